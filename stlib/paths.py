"""The folders of the project. No other module and no notebook names one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROFILES = ("smoke", "quick", "full")

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
MODELS = DATA / "models"
MIXES = DATA / "mixes"
REFERENCE = DATA / "reference"
BUILD = ROOT / "build"
CACHE = Path(
    os.environ.get("STORYTELLER_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "storyteller"
)


def profile() -> str:
    """The profile in force: environment variable PROFILE, `quick` when it is not set.

    Raises ValueError for a name outside PROFILES.
    """
    name = os.environ.get("PROFILE") or "quick"
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: set PROFILE to one of {', '.join(PROFILES)}")
    return name


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
    """The name to write `path` under: the file appears whole when the block ends, and not at all if it fails.

    Each call has a name of its own (with the same suffix), so that two processes may write the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
