import json

import pandas as pd
import pytest

from stlib.experiment.measurement import Store, measure, provenance


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
