import json

import pytest
from hypothesis import settings

from stlib import paths

settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
settings.load_profile("untimed")


@pytest.fixture
def record_summary():
    """record(name, summary) commits what a slow test found to data/reference/validate/NAME.json."""

    def record(name: str, summary: dict) -> None:
        folder = paths.REFERENCE / "validate"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")

    return record
