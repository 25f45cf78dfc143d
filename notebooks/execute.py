"""Run a notebook with the sizes of this profile: python -m notebooks.execute 07_queueing_models."""

import logging
import sys
import tempfile
from pathlib import Path

import papermill
import yaml
from traitlets.config import Config

from stlib import paths

# plain TCP on a shared machine would let others read along, and every kernel warns of it; sockets of IPC
# would do too, but fail where the path of their folder is long
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})


def execute(notebook: Path, target: Path, parameters: dict) -> Path:
    """Execute a notebook; the executed copy appears whole or not at all, and names no folder of this machine."""
    with paths.whole(target) as scratch:
        papermill.execute_notebook(notebook, scratch, parameters, kernel_name="python3", config=ENCRYPTED)
        lines = scratch.read_text().splitlines(keepends=True)
        scratch.write_text("".join(line if '"image/' in line else _unplaced(line) for line in lines))
    return target


def _unplaced(text: str) -> str:
    """The text with a word for the folders of the project, its environment, the user and temporary files."""
    for folder, word in ((str(paths.ROOT), "."), (sys.prefix, "environment"), (str(Path.home()), "~"),
                         (tempfile.gettempdir(), "tmp")):
        text = text.replace(folder, word) if len(folder) > 1 else text
    return text


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    [name] = sys.argv[1:]
    given = paths.ROOT / "notebooks" / "profiles" / paths.profile() / f"{name}.yml"
    execute(paths.ROOT / "notebooks" / f"{name}.ipynb", paths.build() / f"{name}.ipynb",
            yaml.safe_load(given.read_text()) or {})
