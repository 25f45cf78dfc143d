import functools
import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import ray

from stlib.experiment.measure import FreshReplicas, run_on
from stlib.experiment.rows import Store, export, measure, provenance, reference
from stlib.serving.replica import start_ray, start_replica, stop_replica


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


def test_export_keeps_rows_and_provenance(tmp_path):
    rows = measure(PLAN, counting_run([]), Store(tmp_path / "rows.jsonl"), "weights")
    for suffix, read in ((".parquet", pd.read_parquet), (".csv", pd.read_csv)):
        file = export(rows, tmp_path / f"rows{suffix}")
        pd.testing.assert_frame_equal(read(file), rows.drop(columns="provenance"))
        assert json.loads(file.with_suffix(".provenance.json").read_text()) == [rows["provenance"][0]]


def test_a_reference_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="nonsense"):
        reference("nonsense")


@pytest.fixture(scope="module")
def running_ray():
    start_ray()
    yield
    ray.shutdown()


def test_rows_are_run_on_the_replica_of_their_threads(running_ray, tmp_path):
    started, handles = [], []

    @functools.cache
    def replica_of(threads, process=None):
        started.append(threads)
        handles.append(start_replica("sleep", threads=threads,
                                     menu={"nap": {"seconds": 0.01}, "sleep": {"seconds": 0.05}}))
        return handles[-1]

    plan = pd.DataFrame({"method": ["nap", "sleep", "nap"], "threads": 1, "block": 0, "replicate": [0, 0, 1]})
    try:
        rows = measure(plan, run_on(replica_of), Store(tmp_path / "rows.jsonl"), "none")
        measure(plan, run_on(replica_of), Store(tmp_path / "rows.jsonl"), "none")
    finally:
        stop_replica(handles.pop())
    assert started == [1]
    assert (rows["run_s"] >= [0.01, 0.05, 0.01]).all() and (rows["service_s"] > rows["run_s"]).all()
    assert (rows["probe_s"] > 0).all()


def test_another_process_is_another_replica(running_ray):
    replica_of, pids = FreshReplicas("sleep"), []
    try:
        for process in (0, 0, 1):
            pids.append(ray.get(replica_of(1, process).about.remote())["pid"])
    finally:
        replica_of.stop()
    assert pids[0] == pids[1] != pids[2]


CAMPAIGN = """
import sys
import pandas as pd
from stlib.experiment import Store, measure
from stlib.serving.workload import make_workload

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
