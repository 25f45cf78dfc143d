"""The shell, run as a user runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from stlib import paths
from stlib.generation.quantization import PRECISIONS
from stlib.queueing.simulation import ROUTINGS
from stlib.serving import replica
from stlib.serving.workloads import make_workload

sys.path.extend([str(paths.ROOT / "tests" / room) for room in ("prediction", "serving", "generation")])
from served import fitted_costs
from service import Command
from tiny import tiny_flux, tiny_llama, tiny_sd

__all__ = ["tiny_flux", "tiny_llama", "tiny_sd"]


def stlib(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "stlib", *arguments], capture_output=True, text=True,
                          cwd=paths.ROOT, env=os.environ | environment, timeout=120)


@pytest.mark.parametrize("command", ["tell", "measure", "serve", "predict", "policy", "replay", "check", "models",
                                     "table"])
def test_help(shell, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    told, code = shell(command, "--help")
    assert code == 0 and "Usage" in told
    if "--method" in told:
        assert "inference method: a name of the menu" in told
    if "--routing" in told:
        assert ", ".join(ROUTINGS) in told
    if "--precision" in told:
        assert ", ".join(PRECISIONS) in told
    if "--http" in told:
        assert f"such as {next(iter(make_workload('story').routes))} " in told


def test_every_command_is_in_the_help(shell):
    told, code = shell()
    assert code == 2 and all(command in told for command in ("tell", "serve", "predict", "replay", "check", "models",
                                                                    "table"))
    assert shell("paint")[1] == "error: No such command 'paint'."
    assert shell("predict")[1] == "error: Missing option '--rate'."


def test_tell_saves_a_story(tmp_path):
    done = stlib("tell", "a fox and a red balloon", "--method", "parallel", "--panels", "2", "--steps", "2",
                 "--threads", "1", "--gpus", "0", "--out", str(tmp_path / "story"))
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "story" / "story.json").read_text())
    assert facts["story"] in done.stdout
    assert {"panel_1.png", "panel_2.png", "strip.png"} <= {file.name for file in (tmp_path / "story").iterdir()}
    assert "pictures" in done.stderr  # the progress bar


def test_tell_takes_a_name_of_the_menu(shell, tmp_path):
    (tmp_path / "menu.yml").write_text("hasty: {method: parallel, steps: 2}\n")
    out = shell("tell", "a fox", "--method", "hasty", "--menu", tmp_path / "menu.yml", "--panels", 1,
                "--out", tmp_path / "story")
    assert json.loads((tmp_path / "story" / "story.json").read_text())["job"]["steps"] == 2, out
    error = shell("tell", "a fox", "--menu", tmp_path / "menu.yml", "--out", tmp_path / "other")[1]
    assert error.startswith("error: unknown method 'sequential': use one of hasty")


@pytest.mark.parametrize("arguments, message", [
    (["a fox", "--method", "telepathy"], "unknown method 'telepathy': use one of sequential, parallel"),
    (["a fox", "--method", ""], "unknown method ''"),
    (["a fox", "--panels", "0"], "n_panels = 0"),
    (["", "--panels", "1"], "empty"),
    (["x" * 10_000], "10000 characters"),
    (["a fox", "--ldm", "no/such/folder"], "no folder no/such/folder"),
    (["a fox", "--precision", "fp7"], "precision 'fp7': use one of fp32, "),
    (["a fox", "--device", "abacus"], "device 'abacus'"),
])
def test_bad_input_is_one_clear_line_and_leaves_nothing(shell, tmp_path, arguments, message):
    error = shell("tell", *arguments, "--out", tmp_path / "story")[1]
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option, field, allowed", [
    ("--panels", "n_panels", "1 to 16"), ("--steps", "steps", "1 to 200"), ("--llm-tokens", "llm_tokens", "1 to 1024"),
    ("--guidance", "guidance_scale", "0 to 50"), ("--seed", "seed", "0 to 4294967295"),
])
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e99", "many"])
def test_numbers_of_a_story_are_refused_in_one_line(shell, tmp_path, option, field, allowed, value):
    error = shell("tell", "a fox", option, value, "--out", tmp_path / "story")[1]
    assert error.startswith("error: ") and value.strip("-") in error.replace("+", "")
    assert (f"'{option}': Input should be a valid" in error) or (field in error and allowed in error)
    assert "\n" not in error and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(shell, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "empty")
    before = sorted(tmp_path.iterdir())
    for out in ("file", "file/story", "link", "loop", "x" * 250, "x" * 300, "new/" + "x" * 300):
        error = shell("tell", "a fox", "--out", tmp_path / out)[1]
        assert re.match(f"error: --out .*{out} cannot be written .*: name another", error)
        assert sorted(tmp_path.iterdir()) == before
    assert "cannot be written (Directory not empty)" in shell("tell", "a fox", "--out", tmp_path)[1]
    (tmp_path / "empty").chmod(0o750)
    shell("tell", "", "--out", tmp_path / "empty")
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o750
    for out in ("/proc/story", "/proc/a/b/story"):
        assert f"--out {out} cannot be written" in shell("tell", "a fox", "--out", out)[1]
    for out in ("file", "file/results", "/proc/results"):
        assert "cannot be written" in shell("replay", "--rate", 1, "--out", tmp_path / out)[1]
    assert sorted(tmp_path.iterdir()) == before


def test_unknown_profile():
    done = stlib("replay", "--rate", "1", PROFILE="tiny")
    assert done.returncode != 0 and "unknown profile 'tiny'" in done.stderr and "Traceback" not in done.stderr
    make = subprocess.run(["make", "-n", "report", "PROFILE=tiny"], cwd=paths.ROOT, capture_output=True, text=True)
    assert make.returncode != 0 and "use PROFILE=smoke, quick or full" in make.stderr


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The option that names the system."""
    folder = tmp_path_factory.mktemp("fitted")
    fitted_costs().to_json(folder / "costs_story.json")
    return ["--system", str(folder)]


def test_predict_answers_in_a_line_and_plans(shell, fitted):
    out, code = shell("predict", "--rate", "0.6", "--method", "parallel", "--slo", "6", *fitted)
    assert code == 0
    told, known, exact = out.splitlines()
    mean, low, high = (float(re.search(rf"{word} (\d+\.\d+)", text)[1]) for word, text in (
        ("mean", told), ("mean", known), ("to", known)))
    assert low < mean < high
    assert told.startswith("parallel, 0.6 jobs/s on 1 replicas (rho 0.") and "slo_6 0." in told
    assert float(exact.split("mean ")[1].split(",")[0]) == pytest.approx(
        float(told.split("mean ")[1].split(" ")[0]), rel=0.03)
    done = stlib("predict", "--rate", "1.5", "--replicas", "3", "--method", "parallel", "--target", "p95=4", *fitted)
    assert done.returncode == 0, done.stderr
    assert "replicas for 1.5 jobs/s; 3 replicas up to" in done.stdout
    assert "with more than 2 replicas busy (not measured) each has the speed of 2, 0.850" in done.stdout


def test_predict_beyond_the_capacity_tells_the_replicas(shell, fitted):
    told, code = shell("predict", "--rate", 5, "--replicas", 2, "--target", "p95=6", *fitted)
    assert code == 0 and "on 2 replicas (rho 3." in told and "the queue only grows" in told
    k, most = re.search(r"p95=6 .*: (\d+) replicas for 5 jobs/s; 2 replicas up to (\S+) jobs/s", told).groups()
    for rate, replicas in ((5, k), (most, 2)):
        told = shell("predict", "--rate", rate, "--replicas", replicas, *fitted)[0]
        assert float(re.search(r"p95 (\S+)", told)[1]) <= 6
    _, error = shell("predict", "--rate", 5, "--replicas", 2, *fitted)
    capacity, carry = re.search(r"less than (\S+) jobs/s .* take (\d+) replicas or more", error).groups()
    carry = int(carry)
    assert carry <= int(k) and float(most) < float(capacity)
    assert shell("predict", "--rate", 5, "--replicas", carry, *fitted)[1] == 0
    assert "do less than" in shell("predict", "--rate", 5, "--replicas", carry - 1, *fitted)[1]


def test_a_load_that_cannot_be_told_from_one_has_no_answer(shell, fitted):
    capacity = float(re.search(r"less than (\S+) jobs/s", shell("predict", "--rate", 9, *fitted)[1])[1])
    told, code = shell("predict", "--rate", 0.999 * capacity, *fitted)
    assert code == 0 and "cannot be told from 1" in told and "p95" not in told
    most = float(re.search(r"take at most (\S+) jobs/s", told)[1])
    assert 0.8 * capacity < most < capacity and "p95" in shell("predict", "--rate", 0.99 * most, *fitted)[0]


def test_predict_plans_for_hundreds_of_replicas_and_several_targets(shell, fitted):
    told, code = shell("predict", "--method", "parallel", "--rate", 100, "--replicas", 200, "--target", "p95=6",
                       "--target", "slo=4:0.99", *fitted)
    answers = [int(k) for k in re.findall(r"s\): (\d+) replicas for 100 jobs/s", told)]
    load = 200 * float(re.search(r"rho (\S+)\)", told)[1])
    assert code == 0 and len(answers) == 2 and all(0.99 * load < k < 1.15 * load for k in answers)
    assert answers[0] <= answers[1] and "p99 " in told and "p99 up to 4 s" in told


@pytest.mark.parametrize("target, reason", [
    ("p95=0.1", "is below .*, what an almost empty system gives"), ("slo=0.5:0.9", "is below"),
    ("p100=6", "p1 to p99.9"), ("slo=6:1.2", "0.01 to 0.999"),
])
def test_targets_out_of_reach_are_refused(shell, fitted, target, reason):
    told, error = shell("predict", "--rate", 0.4, "--target", target, *fitted)
    assert not told and re.search(f"error: target .*{reason}", error)


@pytest.mark.parametrize("command, option, least, most", [
    ("predict", "--rate", 0, 10**7), ("predict --rate 0.4", "--replicas", 1, 1001),
    ("predict --rate 0.4", "--slo", 0, None), ("replay", "--rate", 0, 10**7), ("replay", "--rho", 0, 1),
    ("replay", "--replicas", 1, None), ("replay", "--jobs", 1, 2.5), ("replay", "--calibration", 10, 3),
    ("replay", "--seed", 0, 2**32), ("serve", "--port", 0, 70000),
    ("serve", "--replicas", 1, 1.5), ("serve", "--max-waiting", 0, -0.5),
])
def test_numbers_out_of_range_are_refused_in_one_line(shell, fitted, command, option, least, most):
    typed = (f"'{option}': Input should be (greater than or equal to {least}|less than or equal to \\d+|a valid "
             "(integer|number),.*), not ")
    # by the library: bounds that are open, NaN
    checked = rf"{option.strip('-')}.*((above|greater than) 0|a finite number|positive)"
    for value in ("-1", "nan", "inf", "-inf", "many", "", *([] if most is None else [str(most)]),
                  *(["0"] if option in ("--rate", "--slo", "--rho") else [])):
        told, error = shell(*command.split(), option, value, *fitted)
        assert error.startswith("error: ") and "\n" not in error and value in error and not told
        assert re.search(f"{typed}{value}$", error) or re.search(checked, error.lower()), error


def test_a_gpu_is_asked_for_in_one_way(shell, tmp_path):
    error = shell("tell", "a fox", "--device", "cuda", "--gpus", 0, "--out", tmp_path / "story")[1]
    assert "--device cuda with --gpus 0: give one of the two" in error


def test_a_policy_is_told_for_one_s_own_menu(shell, fitted):
    asked = ["policy", "--score", "sequential=1", "--score", "parallel=0.5", *fitted]
    told, code = shell(*asked, "--rate", 0.3, "--quality", 0.8)
    assert code == 0 and "outstanding: sequential" in told and "outstanding: parallel" in told, (told, code)
    assert re.search(r"mean response \d.* s at a mean score of 0.800; the best mixture .* less", told)
    assert "at most" in shell(*asked, "--rate", 50, "--quality", 0.8)[1]
    assert "METHOD=NUMBER" in shell(*asked, "--score", "joint", "--rate", 0.3, "--quality", 0.8)[1]
    assert "quality = 2: the menu's methods have 0.5 to 1" in shell(*asked, "--rate", 0.3, "--quality", 2)[1]


def test_a_trace_is_replayed_as_long_as_it_is(shell, fitted, tmp_path):
    (tmp_path / "three.csv").write_text("time,x\n0,1\n0.5,1\n1.0,1\n")
    replay = ["replay", "--mix", "images", "--arrivals", tmp_path / "three.csv", "--out", tmp_path / "out"]
    for jobs in ((), ("--jobs", 3), ("--jobs", 1)):  # all is right but the model, which is read next
        assert "costs_story.json holds no costs" in shell(*replay, *jobs, "--system", "none")[1]
    assert re.search("n_jobs = 4 of .*three.csv: .*at most 3", shell(*replay, "--jobs", 4, *fitted)[1])
    assert "costs_story.json holds no costs" in shell("replay", "--rate", 1, "--system", "none")[1]
    error = shell("replay", "--rate", 1, "--time-column", "when")[1]
    assert "arrivals 'poisson' cannot have {'time_column': 'when'}" in error
    assert "a trace ends" in shell("predict", "--rate", 1, "--arrivals", tmp_path / "three.csv", *fitted)[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments, message", [
    (["predict", "--rate", "9"], "1 replicas do less than"),
    (["predict", "--rate", "0.4", "--target", "p95=soon"], "target 'p95=soon'"),
    (["predict", "--rate", "0.4", "--arrivals", "tides"], "unknown arrivals 'tides'"),
    (["predict", "--rate", "0.4", "--method", "joint"], "no speed of method 'joint'|unknown method .* 'joint'"),
    (["replay", "--rho", "0.5", "--routing", "fastest"], "unknown routing 'fastest'"),
    (["replay"], "give arrivals with either rho or rate"),
])
def test_bad_requests_are_one_clear_line(shell, fitted, arguments, message):
    error = shell(*arguments, *fitted)[1]
    assert re.search(f"^error: .*({message})", error) and "\n" not in error


def test_a_missing_model_names_the_remedy(fitted, tmp_path):
    done = stlib("predict", "--rate", "0.4", "--system", str(tmp_path / "none"))
    assert done.returncode != 0 and "stlib measure" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "{}", "null", '{"speed": {}}', "\xff", None])
def test_a_file_of_another_kind_is_one_clear_line(shell, fitted, tmp_path, text):
    costs = json.loads((Path(fitted[1]) / "costs_story.json").read_text()) | {"beta": "many", "of another version": 1}
    (tmp_path / "costs_story.json").write_bytes((json.dumps(costs) if text is None else text).encode("latin-1"))
    error = shell("predict", "--rate", 0.4, "--system", tmp_path)[1]
    assert re.match("error: .*costs_story.json holds no costs of this version", error) and "\n" not in error


def test_a_mix_of_another_workload_is_refused(shell, fitted, tmp_path):
    (tmp_path / "tables.yml").write_text("workload: sleep\nseconds: 1\n")
    for command in (["predict", "--rate", 0.4], ["replay", "--rate", 0.4]):
        refused = shell(*command, "--mix", tmp_path / "tables.yml", *fitted)[1]
        assert "holds the costs of story, none of the workload 'sleep'" in refused


@pytest.mark.slow
def test_own_models_are_served(tiny_flux, tiny_llama):
    with Command("--ldm", str(tiny_flux), "--llm", str(tiny_llama), "--precision", "bf16",
                 "--threads", "2") as service:
        for body in ({"captions": ["a fox"]}, {"prompt": "a fox", "n_panels": 1, "llm_tokens": 4}):
            answer = service.send(body | {"steps": 1, "image_size": 64})
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["panels"]) == 1
        assert "sizes that they draw are 64, 80" in service.send({"captions": ["a fox"], "image_size": 72}).text


def test_pictures_are_served_without_an_llm(tiny_sd):
    with Command("--ldm", str(tiny_sd), "--llm", "none") as service:
        assert service.send({"captions": ["a fox"], "steps": 1}).status_code == 200
        refused = service.send({"prompt": "a fox"})
        assert refused.status_code == 422 and "no LLM is loaded" in refused.text and service.queue()["offered"] == 1


@pytest.mark.slow
def test_own_images_are_replayed(cluster, shell, tiny_sd, fitted, tmp_path):
    mix = re.sub("(?m)^(steps|n_panels): .*", r"\1: [1, 2]", (paths.MIXES / "images.yml").read_text())
    (tmp_path / "mine.yml").write_text(mix.replace("steps: [1, 2]", "steps: [6, 8]"))
    told, code = shell("replay", "--ldm", tiny_sd, "--mix", tmp_path / "mine.yml", "--rate", 5, "--jobs", 12, "--out",
                       tmp_path, *fitted)
    assert code == 0 and re.search(r"mean +\d+\.\d+ ", told)
    assert pd.read_parquet(tmp_path / "served" / "cell_0_run_1" / "served.parquet")["outcome"].eq("completed").all()


@pytest.mark.parametrize("command", [["serve", "--port", 0], ["replay", "--rate", 1]])
@pytest.mark.parametrize("options, message", [
    (["--ldm", "no/such/folder"], "no/such/folder"), (["--llm", "no/such/folder"], "no/such/folder"),
    (["--device", "cuda"], "give --gpus 1"), (["--device", "abacus"], "device 'abacus'"),
    (["--precision", "fp7"], "precision 'fp7'"), (["--threads", "0"], "--threads'.* greater than or equal to 1, not 0"),
    (["--gpus", "-1"], "--gpus'.* greater than or equal to 0, not -1"),
])
def test_own_models_are_refused_before_ray_starts(shell, monkeypatch, fitted, tmp_path, command, options, message):
    monkeypatch.setattr(replica, "start_ray", lambda: pytest.fail("Ray was started"))
    out = ["--out", tmp_path / "out"] if command[0] == "replay" else []
    error = shell(*command, *options, *out, *fitted)[1]
    assert re.search(f"^error: .*{message}", error) and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_a_csv_file_becomes_a_model_and_the_model_rows(shell, tmp_path):
    rows = pd.DataFrame({"colour": ["red", "blue", "blue", "red"] * 20, "size": range(80), "flag": [True, False] * 40})
    rows.to_csv(tmp_path / "my.csv", index=False)
    told, code = shell("table", "fit", tmp_path / "my.csv", "--out", tmp_path / "mine", "--updates", 20)
    assert code == 0 and "80 rows; colour (2 values), size (number), flag (2 values); saved" in told
    told, code = shell("table", "sample", 30, "--table", tmp_path / "mine", "--where", "colour=red", "--steps", 3,
                       "--out", tmp_path / "rows.csv")
    drawn = pd.read_csv(tmp_path / "rows.csv")
    assert code == 0 and "30 rows in" in told and (drawn["colour"] == "red").all()
    assert drawn.dtypes.equals(rows.dtypes) and drawn["size"].between(0, 79).all()
    for arguments, message in (
            (("fit", tmp_path / "none.csv"), "none.csv is no CSV file"),
            (("fit", tmp_path / "my.csv", "--out", tmp_path), "is there already"),
            (("sample", 0), "rows = 0"), (("sample", 10**8), "would take 745 GiB"),
            (("sample", 3, "--where", "occupation=pirate"), "use one of student"),
            (("sample", 3, "--table", tmp_path), "holds no table's model")):
        assert message in shell("table", *arguments)[1]


def test_costs_and_options_are_those_of_the_workload(shell):
    told, code = shell("predict", "--rate", 0.2, "--mix", "stories_and_tables")
    assert code == 0 and "exact (Pollaczek and Khinchine)" in told
    assert "--llm or --ldm is not of the workload table" in shell("serve", "--workload", "table", "--llm", "none")[1]
    assert "--table is not of the workload story" in shell("serve", "--table", "mine")[1]
    assert "unknown workload" in shell("serve", "--workload", "cake")[1]
    assert "holds no table's model" in shell("serve", "--workload", "table", "--table", "nowhere")[1]


def test_a_log_of_jobs_is_checked(shell, tmp_path):
    log = paths.REFERENCE / "served" / "cell_1_run_1" / "served.parquet"
    told, code = shell("check", log, "--slo", 5, "--out", tmp_path / "found")
    assert code == 0 and re.search(r"(?m)^k = 1: replicas are named$", told) and "\nthe model holds" in told
    assert re.search(r"(?m)^ +mean +\d", told) and re.search(r"(?m)^ +slo_5 +0\.", told) and "kept in" in told
    assert {"check.pdf", "check.png", "metrics.csv", "replicas.csv", "laws.csv", "tests.csv"} <= {
        file.name for file in (tmp_path / "found").iterdir()}
    assert pd.read_csv(tmp_path / "found" / "replicas.csv")["replicas"].tolist() == [1, 2]
    assert "is there already: name another folder" in shell("check", log, "--out", tmp_path / "found")[1]
    table = pd.read_parquet(log).assign(start_s=lambda rows: rows["arrival_s"] - 1)
    table.to_csv(tmp_path / "bad.csv", index=False)
    error = shell("check", tmp_path / "bad.csv", "--out", tmp_path / "other")[1]
    assert re.match(r"error: .*bad.csv, line \d+, column .*before the arrival of the job", error) and "\n" not in error
    assert not (tmp_path / "other").exists()
    assert "has 0 columns 'x', for class" in shell("check", log, "--class", "x")[1]
