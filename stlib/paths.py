"""The folders of the project. No other module and no notebook names one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stlib.settings import known

PROFILES = ("smoke", "quick", "full")

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
MODELS = DATA / "models"
MIXES = DATA / "mixes"
REFERENCE = DATA / "reference"
BUILD = ROOT / "build"
CACHE = Path(os.environ.get("STORYTELLER_CACHE")
             or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "storyteller"))


def profile() -> str:
    """The profile in force: environment variable PROFILE, `quick` when it is not set.

    Raises ValueError for a name outside PROFILES.
    """
    return known("profile", os.environ.get("PROFILE") or "quick", PROFILES)


def build() -> Path:
    """Everything that this profile makes: executed notebooks and the folders below."""
    return BUILD / profile()


def results() -> Path:
    """Measurements of this profile."""
    return build() / "results"


def figures() -> Path:
    """Figures of this profile."""
    return build() / "figures"


def generated() -> Path:
    """Tables and macros of this profile."""
    return build() / "generated"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name to write `path` under, a file or a folder: it appears whole when the block ends, not at all if it fails.

    Each call has a place of its own (and the same name), so that two processes may write the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        yield scratch
        scratch.replace(path)
