"""environment.yml, pyproject.toml and the lock say the same."""

import re
import tomllib
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stlib import paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
LOCKED = ("test", "train")  # the extras that the lock is made with; the others are for who asks for them
NEEDED = [Requirement(line) for line in
          PROJECT["dependencies"] + [one for extra in LOCKED for one in PROJECT["optional-dependencies"][extra]]]


def lock() -> dict[str, str]:
    lines = [line for line in (paths.ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines)
    assert len(pins) == len(lines)
    return {canonicalize_name(name): pinned for name, pinned in pins.items()}


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_lock_pins_every_dependency_within_its_range(needed):
    assert needed.specifier.contains(lock()[canonicalize_name(needed.name)])


@pytest.mark.parametrize("name", ["torch", "diffusers", "transformers", "numpy", "numba"])
def test_what_is_installed_is_what_is_locked(name):
    assert version(name).split("+")[0] == lock()[name]


def test_conda_environment_takes_its_packages_from_the_project():
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["name"] == "storyteller"
    assert conda == ["python=3.11", "pip"]
    assert pip == {"pip": ["-r requirements.txt", "-e ."]}
    assert "3.11" in PROJECT["requires-python"]
