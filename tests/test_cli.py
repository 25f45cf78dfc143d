"""The shell, run as a user runs it."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from stlib import paths

sys.path.insert(0, str(paths.ROOT / "tests" / "prediction"))
from served import fitted_costs


def stlib(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "stlib", *arguments], capture_output=True, text=True,
                          cwd=paths.ROOT, env=os.environ | environment, timeout=120)


@pytest.mark.parametrize("command", ["tell", "predict", "replay", "models", "pdf"])
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


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The option that names the costs."""
    costs = fitted_costs(np.random.default_rng(1)).to_json(tmp_path_factory.mktemp("fitted") / "costs.json")
    return ["--costs", str(costs)]


def test_predict_answers_in_a_line_and_plans(fitted):
    done = stlib("predict", "--rate", "0.6", "--method", "parallel", "--slo", "6", *fitted)
    assert done.returncode == 0, done.stderr
    told, exact = done.stdout.splitlines()
    assert told.startswith("parallel, 0.6 jobs/s on 1 replicas (rho 0.") and "slo_6 0." in told
    assert float(exact.split("mean ")[1].split(",")[0]) == pytest.approx(
        float(told.split("mean ")[1].split(" ")[0]), rel=0.03)
    done = stlib("predict", "--rate", "1.5", "--replicas", "3", "--method", "parallel", "--target", "p95=4", *fitted)
    assert done.returncode == 0, done.stderr
    assert "replicas for 1.5 jobs/s; 3 replicas up to" in done.stdout
    assert "with more than 2 replicas busy (not measured) each has the speed of 2, 0.850" in done.stdout


@pytest.mark.parametrize("arguments, message", [
    (["predict", "--rate", "9"], "1 replicas do less than"),
    (["predict", "--rate", "0.4", "--target", "p95=soon"], "target 'p95=soon'"),
    (["predict", "--rate", "0.4", "--arrivals", "tides"], "unknown arrivals 'tides'"),
    (["predict", "--rate", "0.4", "--method", "joint"], "no speed of method 'joint'|no method 'joint'"),
    (["replay", "--rho", "0.5", "--routing", "fastest"], "unknown routing 'fastest'"),
    (["replay"], "give arrivals with either rho or rate"),
    (["replay", "--cell", "12"], "no cell 12"),
])
def test_bad_requests_are_one_clear_line(fitted, arguments, message):
    done = stlib(*arguments, *fitted)
    assert done.returncode != 0
    assert re.search(message, done.stderr) and "Traceback" not in done.stderr


def test_a_missing_model_names_the_remedy(fitted, tmp_path):
    done = stlib("predict", "--rate", "0.4", "--costs", str(tmp_path / "none.json"))
    assert done.returncode != 0 and "run notebooks 05" in done.stderr and "Traceback" not in done.stderr
