"""What make would do, asked with -n and -q: nothing is made."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stlib import paths

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items()
            if name not in ("VIRTUAL_ENV", "CONDA_DEFAULT_ENV", "PROFILE", "MAKEFLAGS", "MAKELEVEL", "PWD")}
    return subprocess.run(["make", *arguments], cwd=folder, env=kept | environment, capture_output=True, text=True)


@pytest.fixture
def made(tmp_path) -> Path:
    """A project in which every profile's report is made: empty files, the made ones newer than their sources."""
    names = subprocess.run(["git", "ls-files"], cwd=paths.ROOT, capture_output=True, text=True).stdout.split("\n")
    if len(names) < 10:
        pytest.skip("not a git checkout")
    for name in filter(None, names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9, 1e9))
    shutil.copy(paths.ROOT / "Makefile", tmp_path)
    stamps = [".venv/bin/python", ".venv/.storyteller-setup", "build/.models"]
    for profile in paths.PROFILES:
        stamps += [f"build/{profile}/{file.name}" for file in sorted((tmp_path / "notebooks").glob("*.ipynb"))]
        stamps += [f"build/{profile}/report.pdf"]
    for place, name in enumerate(stamps):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1.1e9 + place, 1.1e9 + place))
    return tmp_path


def executed(folder: Path, **environment: str) -> set[str]:
    """The notebooks that `make report` would execute, by number."""
    done = make(folder, "-n", "report", **environment)
    assert not done.returncode, done.stderr
    return {line.split("notebooks.execute ")[1][:2] for line in done.stdout.splitlines() if "notebooks.execute" in line}


@pytest.mark.parametrize("changed, again", [
    ("stlib/prediction/cell.py", {"08", "11", "13"}), ("data/campaign.yml", {"08", "13"}),
    ("data/reference/validation.csv", {"08", "11", "13"}),
    ("data/campaign_tables.yml", {"11", "13"}), ("data/reference/served/cell_21_run_1/cell.json", {"11", "13"}),
    ("data/reference/served/cell_2_run_1/cell.json", {"08", "13"}),
    ("stlib/queueing/formulas.py", {"06", "07", "08", "11", "13"}),
    ("stlib/serving/dispatcher.py", {"05", "08", "11", "13"}), ("data/design.yml", {"05", "08", "13"}),
    ("data/reference/07_true_waits.csv", {"07", "13"}),
    ("data/mixes/images.yml", {"01", "05", "06", "07", "08", "11", "13"}),
    ("notebooks/profiles/quick/06_arrivals_and_variability.yml", {"06", "13"}), ("report/main.tex", set()),
    ("report/build.py", set()), ("README.md", set()),
])
def test_a_change_executes_the_notebooks_of_its_room(made, changed, again):
    assert executed(made) == set()
    (made / changed).touch()
    assert executed(made, PROFILE="quick") == again


def test_the_full_run_does_not_measure_again_for_the_reference_it_made(made):
    (made / "data/reference/validation.csv").touch()
    assert executed(made, PROFILE="full") == set()


def test_an_interrupted_run_of_another_profile_changes_nothing_of_this_one(made):
    shutil.copy(made / "build/quick/report.pdf", made / "report/report.pdf")
    (made / "build/full/08_predicted_vs_served.ipynb").unlink()  # full was interrupted before it
    assert executed(made, PROFILE="full") == {"08", "13"}
    assert executed(made, PROFILE="quick") == set()
    assert make(made, "report").returncode == 0  # what is shown is quick's: nothing to export


def test_the_report_asked_for_is_the_one_that_is_shown(made):
    shutil.copy(made / "build/full/report.pdf", made / "report/report.pdf")
    (made / ".venv/bin/python").write_text("#!/bin/sh\necho PROFILE=$PROFILE \"$@\" > exported\n")
    (made / ".venv/bin/python").chmod(0o755)
    os.utime(made / ".venv/bin/python", (1.1e9, 1.1e9))
    assert make(made, "report", PROFILE="full").returncode == 0 and not (made / "exported").exists()
    assert make(made, "report", PROFILE="smoke").returncode == 0 and not (made / "exported").exists()
    assert make(made, "report").returncode == 0
    assert (made / "exported").read_text() == "PROFILE=quick -m report.build export\n"


def test_only_the_full_run_changes_the_readme_s_pictures(made):
    for profile in paths.PROFILES:
        (made / "report/main.tex").touch()
        assert ("figures/reference" in make(made, "-n", "report", PROFILE=profile).stdout) == (profile == "full")


@pytest.mark.parametrize("name", ["a b", "a(b", "a$b", "a#b", "a:b", "a;b", "a'b", "a%b", "a&b", "a\tb"])
def test_a_path_that_make_cannot_take_is_refused_in_one_line_before_anything_is_made(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for file in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(paths.ROOT / file, folder)
    for target in ("help", "setup", "report"):
        done = make(folder, target)
        [line] = done.stderr.splitlines()
        assert done.returncode and "has a space or another sign" in line and not done.stdout
    assert sorted(file.name for file in tmp_path.rglob("*")) == sorted(
        [name, "Makefile", "requirements.txt", "pyproject.toml"])


def test_an_environment_whose_path_has_a_space_is_refused(tmp_path):
    shutil.copy(paths.ROOT / "Makefile", tmp_path)
    assert "'/my environments/x'" in make(tmp_path, "setup", VIRTUAL_ENV="/my environments/x").stderr


@pytest.mark.parametrize("name", ["plain", "a-b_c.d+e@f", "märchen"])
def test_an_ordinary_path_is_taken(tmp_path, name):
    (tmp_path / name).mkdir()
    shutil.copy(paths.ROOT / "Makefile", tmp_path / name)
    assert make(tmp_path / name, "help").stdout.startswith("help ")
