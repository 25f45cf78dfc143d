"""Fetches the emoji artwork with the npm client, at exact versions."""

import shutil
import subprocess

from training.concepts import WORK

PACKAGES = ("@iconify-json/noto@1.2.9", "@twemoji/svg@15.0.0")


def fetch() -> None:
    """Installs the packages in the work folder, once; no package script runs."""
    folder = WORK / "npm"
    present = all((folder / "node_modules" / package.rpartition("@")[0]).exists() for package in PACKAGES)
    if present:
        return
    if shutil.which("npm") is None:
        raise FileNotFoundError("npm is not installed, and the artwork comes from npm packages: install Node.js first")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES]
    subprocess.run(command, check=True)
