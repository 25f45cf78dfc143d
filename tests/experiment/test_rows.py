import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import ray
import yaml

from stlib import paths
from stlib.experiment import rows as rows_of
from stlib.experiment.design import read_design
from stlib.experiment.machine import fit_level, lag_correlation
from stlib.experiment.measure import FreshReplicas, run_on
from stlib.experiment.rows import Store, elapsed_s, export, measure, provenance, reference, row_seeds
from stlib.serving.replica import ReplicaSpec, stop_replica


def counting_run(calls):
    def run(row):
        calls.append(row["replicate"])
        return {"service_s": 0.5}
    return run


PLAN = pd.DataFrame({"steps": [8, 8, 20], "replicate": [0, 1, 0]})


def test_a_second_run_measures_nothing(tmp_path):
    calls = []
    first = measure(PLAN, counting_run(calls), Store(tmp_path / "rows.jsonl"), "weights")
    again = measure(PLAN, counting_run(calls), Store(tmp_path / "rows.jsonl"), "weights")
    assert calls == [0, 1, 0]
    pd.testing.assert_frame_equal(first, again)


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path):
    calls = []

    def breaks_at_the_second(row):
        if row["replicate"] == 1:
            raise RuntimeError("interrupted")
        return counting_run(calls)(row)

    with pytest.raises(RuntimeError):
        measure(PLAN, breaks_at_the_second, Store(tmp_path / "rows.jsonl"), "weights")
    rows = measure(PLAN, counting_run(calls), Store(tmp_path / "rows.jsonl"), "weights")
    assert calls == [0, 1, 0]
    assert list(rows["steps"]) == [8, 8, 20]


def test_other_weights_are_measured_anew(tmp_path):
    calls = []
    measure(PLAN, counting_run(calls), Store(tmp_path / "rows.jsonl"), "weights")
    measure(PLAN, counting_run(calls), Store(tmp_path / "rows.jsonl"), "other weights")
    assert len(calls) == 6
    by_row = {"weights": lambda row: "others" if row["steps"] == 20 else "weights"}
    measure(PLAN, counting_run(calls), Store(tmp_path / "rows.jsonl"), **by_row)
    assert len(calls) == 7  # of the rows that use them


def planned(folder, change=lambda experiments: None):
    """The runs of data/design.yml as jobs, the file changed beforehand."""
    text = yaml.safe_load((paths.DATA / "design.yml").read_text())
    change(text["experiments"])
    (folder / "design.yml").write_text(yaml.safe_dump(text, sort_keys=False))
    designed = pd.concat([runs.assign(experiment=name) for name, runs in read_design(folder / "design.yml").items()])
    return designed.assign(seed=row_seeds(designed) % 2**31)


def with_joint(experiments):
    for name in ("work", "images"):
        experiments[name]["levels"]["method"] = ["sequential", "parallel", "joint"]


def with_size_64(experiments):
    experiments["images"]["levels"]["image_size"] = [64, 96, 128, 160]


def with_experiment(experiments):
    new = {"few": {"levels": {"method": ["sequential", "parallel"], "steps": [2, 3]}, "replicates": 2,
                   "fixed": {"llm_tokens": 0, "n_panels": 1, "threads": 1}}}
    old = dict(experiments)
    experiments.clear()
    experiments |= new | old  # first, so that all the others move


def with_replicates(experiments):
    experiments["work"]["replicates"] = 8


def in_fewer_blocks(experiments):
    experiments["work"]["blocks"] = 3


@pytest.mark.parametrize("change, new", [(with_joint, 162 + 36), (with_size_64, 24), (with_experiment, 8),
                                         (with_replicates, 108), (in_fewer_blocks, 0)])
def test_what_joins_a_design_leaves_the_measured_rows_valid(tmp_path, capsys, change, new):
    calls = []

    def run(row):
        calls.append(row)
        return {"run_s": 1.0}

    before = planned(tmp_path)
    assert len(before) == 64 + 324 + 72
    old = measure(before, run, Store(tmp_path / "rows.jsonl"), "weights")
    after = planned(tmp_path, change)
    assert len(after) == len(before) + new
    rows = measure(after, run, Store(tmp_path / "rows.jsonl"), "weights")
    assert f"{len(old)} rows kept, {new} to measure" in capsys.readouterr().out
    assert len(calls) == len(after) and set(old["key"]) <= set(rows["key"])


def test_a_row_keeps_its_number_wherever_it_stands():
    """So a fraction of a plan, chosen by it, is the same rows of a larger plan, and of about that size."""
    plan = pd.DataFrame({"steps": np.repeat(range(1, 201), 10), "replicate": list(range(10)) * 200, "block": 0})
    more = pd.concat([pd.DataFrame({"mix": ["images"]}), plan.assign(run=range(2000), block=1)]).iloc[::-1]
    seeds = row_seeds(plan)
    assert len(set(seeds)) == 2000 and set(seeds) < set(row_seeds(more))
    assert abs((seeds < 0.1 * 2**64).sum() - 200) < 4 * np.sqrt(2000 * 0.1 * 0.9)


@pytest.mark.parametrize("name, old, new, stale", [
    ("methods/sequential.py", "independent of each other.", "each for itself.", 0),
    ("illustrator.py", "def draw_batch(", "# the door\ndef draw_batch(", 0),
    ("methods/parallel.py", "yield draw_batch(pipe, list(captions)", "yield draw_batch(pipe, tuple(captions)", 2),
    ("illustrator.py", "denoiser = pipe.unet", "denoiser = pipe.model", 4)],
    ids=["docstring", "comment", "its method", "all methods"])
def test_an_edit_leaves_the_rows_that_do_not_run_it(tmp_path, monkeypatch, capsys, name, old, new, stale):
    shutil.copytree(paths.ROOT / "stlib", tmp_path / "stlib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    plan = pd.DataFrame({"method": ["sequential", "parallel"] * 2, "replicate": [0, 0, 1, 1]})
    measure(plan, counting_run([]), Store(tmp_path / "rows.jsonl"), "weights")
    file = tmp_path / "stlib" / "generation" / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    capsys.readouterr()
    measure(plan, counting_run([]), Store(tmp_path / "rows.jsonl"), "weights")
    assert f"{4 - stale} rows kept, {stale} to measure" in capsys.readouterr().out


def test_a_method_s_name_counts_as_what_the_menu_says(tmp_path, capsys):
    """The entry `quick` turned into another: its rows are measured again, those of other entries are kept."""
    plan, menu = pd.DataFrame({"method": ["quick", "parallel"]}), {"parallel": {"method": "parallel"}}
    for steps in (4, 4, 2):
        entries = menu | {"quick": {"method": "parallel", "steps": steps}}
        measure(plan, lambda row: {}, Store(tmp_path / "rows.jsonl"), "weights", menu=entries)
    told = [line for line in capsys.readouterr().out.splitlines() if "kept" in line]
    assert told == ["jobs: 0 rows kept, 2 to measure", "jobs: 2 rows kept, 0 to measure",
                    "jobs: 1 rows kept, 1 to measure"]
    with pytest.raises(ValueError, match="slow"):
        measure(pd.DataFrame({"method": ["slow"]}), lambda row: {}, Store(tmp_path / "rows.jsonl"), "w", menu=menu)


def test_rows_of_two_boots_are_no_neighbours(tmp_path, monkeypatch):
    """The clock of the second boot starts anew, so that by it the rows interleave: jobs twice as slow every other."""
    log_probe = np.random.default_rng(1).normal(0, 0.02, 200) + np.where(np.arange(200) < 100, 0.0, 0.7)
    plan = pd.DataFrame({"replicate": range(200)})
    clock = np.tile(np.arange(100) * 2.0, 2) + np.repeat([50.0, 51.0], 100)
    for boot, part in (("first", plan[:100]), ("second", plan)):
        monkeypatch.setattr(rows_of, "_boot", lambda boot=boot: boot)
        measure(part, lambda row: {"probe": log_probe[row["replicate"]]}, Store(tmp_path / "rows.jsonl"), "weights")
    rows = Store(tmp_path / "rows.jsonl").rows().assign(at_s=clock)
    assert list(rows["boot"]) == ["first"] * 100 + ["second"] * 100 and (rows["epoch_s"].diff()[1:] >= 0).all()
    assert lag_correlation(rows["probe"], rows["at_s"]) < -0.9  # one boot's rows between the other's
    assert lag_correlation(rows["probe"], elapsed_s(rows)) > 0.9
    assert fit_level(log_probe, elapsed_s(rows)).sd > 5 * fit_level(log_probe, rows["at_s"]).sd
    within = elapsed_s(rows).groupby(rows["boot"]).diff().dropna()
    assert np.allclose(within, 2) and elapsed_s(rows.drop(columns="boot")).equals(rows["at_s"])


def test_a_torn_last_line_is_cut_off_and_measured_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    store = Store(file)
    store.append({"key": "a", "service_s": 1.0})
    with file.open("a") as torn:
        torn.write('{"key": "b", "serv')
    assert list(Store(file).rows()["key"]) == ["a"]
    Store(file).append({"key": "b", "service_s": 2.0})
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == ["a", "b"]


def test_a_key_is_stored_once(tmp_path):
    store = Store(tmp_path / "rows.jsonl")
    store.append({"key": "a"})
    with pytest.raises(ValueError, match="key a already"):
        store.append({"key": "a"})


def test_a_plan_that_repeats_a_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match="replicate"):
        measure(PLAN[["steps"]], counting_run([]), Store(tmp_path / "rows.jsonl"), "weights")


def test_provenance_names_what_matters():
    made = provenance()
    assert made["cpus"] >= 1 and made["versions"]["torch"] and made["commit"] and made["profile"] in ("smoke", "quick")


@pytest.mark.parametrize("file, dirty", [("stlib/a.py", True), ("notebooks/a.ipynb", True), ("data/design.yml", True),
                                         ("data/mixes/new.yml", True), ("data/reference/served/a.json", False),
                                         ("build/quick/a.ipynb", False), ("figures/a.pdf", False)])
def test_dirty_is_what_a_run_is_made_from(tmp_path, monkeypatch, file, dirty):
    for folder in ("stlib", "notebooks", "data/reference/served", "data/mixes", "build/quick", "figures"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("stlib/a.py", "notebooks/a.ipynb", "data/design.yml", "data/reference/served/a.json"):
        (tmp_path / name).write_text("1\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert provenance()["dirty"] is False
    (tmp_path / file).write_text("2\n")
    assert provenance()["dirty"] is dirty


def test_export_keeps_rows_and_provenance(tmp_path):
    rows = measure(PLAN, counting_run([]), Store(tmp_path / "rows.jsonl"), "weights")
    back = pd.read_parquet(export(rows, tmp_path / "rows.parquet"))
    pd.testing.assert_frame_equal(back, rows)
    assert back["provenance"][0] == rows["provenance"][0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.jsonl", "rows.parquet"]


def test_the_reference_s_rows_are_kept_once_and_say_where_they_were_made():
    assert not [*paths.REFERENCE.glob("*.jsonl"), *paths.REFERENCE.glob("*.provenance.json")]
    sizes = {"01_stages": 80, "01_service_times": 130, "05_runs": 1296, "05_tokens": 96, "05_runs_one_process": 900,
             "05_runs_second": 233}
    for name, n in sizes.items():
        rows = reference(name)
        assert len(rows) == n == rows["key"].nunique()
        assert all(made["commit"] and made["cpu"] and made["versions"]["torch"] for made in rows["provenance"])
    assert {made["cpu"] for made in reference("05_runs_second")["provenance"]} == {"Intel(R) Xeon(R) Processor"}


def test_a_reference_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="nonsense"):
        reference("nonsense")


def test_rows_are_run_on_a_replica(cluster, tmp_path):
    handle, menu = ReplicaSpec("sleep").start(), {"nap": {"seconds": 0.01}, "sleep": {"seconds": 0.05}}
    plan = pd.DataFrame({"method": ["nap", "sleep", "nap"], "threads": 1, "block": 0, "replicate": [0, 0, 1]})
    try:
        rows = measure(plan, run_on(handle, menu), Store(tmp_path / "rows.jsonl"), "none")
    finally:
        stop_replica(handle)
    assert (rows["run_s"] >= [0.01, 0.05, 0.01]).all() and (rows["service_s"] > rows["run_s"]).all()
    assert (rows["probe_s"] > 0).all()


@pytest.mark.slow
def test_replicas_are_started_anew_and_a_resumed_measurement_has_its_own(cluster, tmp_path):
    """The runs of a process are those of one operating-system process, also where a measurement was broken off."""
    plan = pd.DataFrame({"seconds": 0.001, "threads": 1, "replicate": range(8)})
    for part in (plan[:4], plan):
        doer = FreshReplicas("sleep", runs=3)

        def run(row, doer=doer):
            return doer(row) | {"pid": ray.get(doer.handle(1).__ray_call__.remote(lambda replica: os.getpid()))}

        try:
            rows = measure(part, run, Store(tmp_path / "rows.jsonl"), "none")
        finally:
            doer.stop()
    assert rows.groupby("process", sort=False).size().to_list() == [3, 1, 3, 1]
    assert (rows.groupby("process")["pid"].nunique() == 1).all() and rows["pid"].nunique() == 4


def test_each_number_of_threads_has_its_replica(cluster):
    doer = FreshReplicas("sleep")
    try:
        one, two = ({"seconds": 0.001, "threads": threads} for threads in (1, 2))
        assert len({doer(row)["process"] for row in (one, two, one)}) == 1
        threads = doer.handle(2).__ray_call__.remote(lambda replica: __import__("torch").get_num_threads())
        assert ray.get(threads) == 2 and len(doer.handles) == 2
    finally:
        doer.stop()


CAMPAIGN = """
import sys
import pandas as pd
from stlib.experiment import Store, measure
from stlib.serving.workloads import make_workload

class Announced(Store):
    def append(self, row):
        super().append(row)
        print("acknowledged", row["key"], flush=True)

sleeper = make_workload("sleep")
plan = pd.DataFrame({"seconds": 0.004, "replicate": range(400)})
print("ready", flush=True)
measure(plan, lambda row: sleeper.run(row)[1], Announced(sys.argv[1]), "none")
"""


@pytest.mark.slow
def test_twenty_kills_lose_and_repeat_nothing(tmp_path, record_summary):
    """SIGKILL at 20 random moments: every acknowledged row stays, none is there twice, the rest is completed."""
    file, rng, acknowledged = tmp_path / "rows.jsonl", np.random.default_rng(20), set()
    command = [sys.executable, "-c", CAMPAIGN, str(file)]
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            lines = [child.stdout.readline() for _ in range(rng.integers(2, 15))]
            time.sleep(rng.uniform(0, 0.01))
            child.kill()
            lines += child.stdout.readlines()
        acknowledged |= {line.split()[1] for line in lines if line.startswith("acknowledged") and line.endswith("\n")}
        assert acknowledged <= {row["key"] for row in whole_lines(file)}
    before = {row["key"]: row for row in Store(file).rows().to_dict("records")}
    assert 60 < len(acknowledged) <= len(before) < 400
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{len(before)} rows kept, {400 - len(before)} to measure" in done.stdout
    rows = whole_lines(file)
    assert len(rows) == 400 == len({row["key"] for row in rows})
    assert all(row["at_s"] == before[row["key"]]["at_s"] for row in rows if row["key"] in before)
    record_summary("kills", {
        "kills": 20, "rows": 400, "acknowledged_before_the_last_kill": len(acknowledged),
        "kept_by_the_store": len(before), "measured_on_resume": 400 - len(before), "lost": 0, "repeated": 0})


def whole_lines(file):
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]
