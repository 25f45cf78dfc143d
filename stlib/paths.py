"""The folders of the project. No other module and no notebook names one."""

import os
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
    """Executed notebooks and intermediate files of this profile."""
    return BUILD / profile()


def results() -> Path:
    """Measurements of this profile; the full profile's are the committed reference."""
    return REFERENCE if profile() == "full" else build() / "results"


def figures() -> Path:
    """Figures: smoke's stay in its build folder, so that they never pass for real ones."""
    return build() / "figures" if profile() == "smoke" else ROOT / "figures"


def generated() -> Path:
    """Tables and macros for the report."""
    return build() / "generated" if profile() == "smoke" else ROOT / "report" / "generated"
