"""The reference run's folder is described, file by file."""

import re

from stlib import paths


def test_every_file_of_the_reference_is_in_its_dictionary():
    told = (paths.REFERENCE / "README.md").read_text()
    names = re.findall(r"`([\w/*]+\.(?:parquet|csv|json))`", told)
    for file in paths.REFERENCE.iterdir():
        if file.is_file() and file.suffix != ".md":
            assert file.name in names, f"{file.name} is not described in data/reference/README.md"
    here = {file.name for file in paths.REFERENCE.rglob("*")}
    assert not [name for name in names if "*" not in name and name not in here]
