"""The shell, run as a user runs it."""

import json
import os
import subprocess
import sys

import pytest

from stlib import paths


def stlib(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "stlib", *arguments], capture_output=True, text=True,
                          cwd=paths.ROOT, env=os.environ | environment, timeout=120)


@pytest.mark.parametrize("command", ["tell", "models", "pdf"])
def test_help(command):
    done = stlib(command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_tell_saves_a_story(tmp_path):
    done = stlib("tell", "a fox and a red balloon", "--method", "parallel", "--panels", "2", "--steps", "2",
                 "--out", str(tmp_path / "story"))
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "story" / "story.json").read_text())
    assert facts["story"] in done.stdout
    assert {"panel_1.png", "panel_2.png", "strip.png"} <= {file.name for file in (tmp_path / "story").iterdir()}
    assert "pictures" in done.stderr  # the progress bar


@pytest.mark.parametrize("arguments, message", [
    (["a fox", "--method", "telepathy"], "unknown method 'telepathy': use one of sequential, parallel"),
    (["a fox", "--method", "joint"], "not implemented yet"),
    (["a fox", "--panels", "0"], "n_panels = 0"),
    (["", "--panels", "1"], "empty"),
    (["x" * 10_000], "10000 characters"),
    (["a fox", "--ldm", "no/such/folder"], "no folder no/such/folder"),
])
def test_bad_input_is_one_clear_line_and_leaves_nothing(tmp_path, arguments, message):
    done = stlib("tell", *arguments, "--out", str(tmp_path / "story"))
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_unknown_profile(tmp_path):
    done = stlib("pdf", str(tmp_path / "report.pdf"), PROFILE="tiny")
    assert done.returncode != 0 and "unknown profile 'tiny'" in done.stderr and "Traceback" not in done.stderr
    make = subprocess.run(["make", "-n", "report", "PROFILE=tiny"], cwd=paths.ROOT, capture_output=True, text=True)
    assert make.returncode != 0 and "use PROFILE=smoke, quick or full" in make.stderr
