"""Open-loop replay: what it sends and when, its tables, its clocks, bad input."""

import os
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest
from test_dispatcher import running_sleepers

from stlib.queueing.job_table import JOB_COLUMNS, job_metrics
from stlib.serving.dispatcher import Dispatcher
from stlib.serving.replay import replay
from stlib.serving.workloads.sleep import SleepWorkload

ray = pytest.importorskip("ray")


def sleepers(seconds, **columns) -> pd.DataFrame:
    return pd.DataFrame({"job_id": np.arange(len(seconds)), "workload": "sleep", "seconds": seconds} | columns)


@pytest.fixture(scope="module")
def replicas():
    yield running_sleepers()[:2]
    ray.shutdown()  # other tests start it anew


@pytest.fixture
def pair(replicas):
    with Dispatcher("sleep", 2, handles=replicas) as target:
        yield target


def makespan_and_overhead(target) -> tuple[float, float]:
    table, _ = replay(sleepers([0.1] * 20), np.zeros(20), target, progress=False)
    return table["finish_s"].max(), (table["finish_s"] - table["start_s"] - table["service_s"]).median()


def test_it_is_nearly_work_conserving(pair):
    runs = np.array([makespan_and_overhead(pair) for _ in range(3)])
    assert np.median(runs[:, 0]) <= 1.12 and np.median(runs[:, 1]) <= 0.010


@pytest.mark.slow
def test_work_conserving_within_six_percent_and_five_milliseconds_a_job(pair):
    runs = np.array([makespan_and_overhead(pair) for _ in range(10)])
    assert np.median(runs[:, 0]) <= 1.06 and np.median(runs[:, 1]) <= 0.005


def test_the_tables_and_littles_law(pair):
    """Little: the dispatcher's own count against the times of the table, from empty to empty."""
    rng = np.random.default_rng(3)
    arrival = np.cumsum(rng.exponential(0.09, 14))
    jobs = sleepers(rng.uniform(0.15, 0.3, 14))
    jobs["job_id"] = rng.permutation(14)
    table, products = replay(jobs, arrival, pair, progress=False)
    state = pair.queue()
    assert state["job_seconds"] == pytest.approx((table["reply_s"] - table["scheduled_s"]).sum(), rel=0.01)
    assert list(table) == list(JOB_COLUMNS) and list(table["job_id"]) == list(range(14)) == list(products["job_id"])
    np.testing.assert_array_equal(table["scheduled_s"], arrival[np.argsort(jobs["job_id"])])
    times = table[["scheduled_s", "arrival_s", "start_s", "finish_s", "reply_s"]].to_numpy()
    assert (np.diff(times, axis=1) >= 0).all()
    asked = jobs.sort_values("job_id")["seconds"].to_numpy()
    assert (products["slept_s"] >= asked).all() and (table["service_s"] >= asked).all()
    assert job_metrics(table)["completed"] == 14 and set(table["method"]) == {"only"}
    assert {"lag_s", "error", "busy_start", "busy_finish", "run_s"} <= set(products)
    assert table.attrs["generator_limited"] == (products["lag_s"].quantile(0.99) > 0.005)


def test_jobs_are_sent_whatever_becomes_of_the_others(pair):
    table, _ = replay(sleepers([0.5] * 6), np.arange(6) * 0.02, pair, deadline_s=[9, 9, 9, 9, 0.1, np.inf],
                      progress=False)
    assert (table["arrival_s"] - table["scheduled_s"]).max() < 0.05
    assert list(table["outcome"]) == ["completed"] * 4 + ["timed_out", "completed"]
    out = table.iloc[4]
    assert out["replica"] == -1 and out[["start_s", "finish_s", "service_s", "reply_s", "method"]].isna().all()


def test_parameters_left_out_are_not_sent(pair, monkeypatch):
    seen = []
    monkeypatch.setattr(SleepWorkload, "validate", lambda self, params: seen.append(params))
    jobs = sleepers([0.01, 0.02], captions=[("a fox",), None], steps=pd.array([4, None], "Int64"), method=[None, "nap"])
    table, _ = replay(jobs, [0, 0], pair, method="rest", progress=False)
    assert seen[:2] == [{"seconds": 0.01, "captions": ("a fox",), "steps": 4, "method": "rest"},
                        {"seconds": 0.02, "method": "nap"}]
    assert type(seen[0]["steps"]) is int and list(table["method"]) == ["rest", "nap"]


def test_a_late_generator_is_told(pair, monkeypatch):
    monkeypatch.setattr(SleepWorkload, "validate", lambda *_: time.sleep(0.02))
    with pytest.warns(UserWarning, match="the load generator was late"):
        table, products = replay(sleepers([0.0] * 5), np.zeros(5), pair, progress=False)
    assert table.attrs["generator_limited"] and products["lag_s"].max() > 0.05


@pytest.fixture
def heeds_ctrl_c():
    """A shell's background jobs, and so their tests, ignore it otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_cancels_what_waits_and_leaves_the_dispatcher_able_to_work(pair, heeds_ctrl_c):
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        replay(sleepers([0.6] * 10), np.arange(10) / 20, pair)
    state = pair.queue()
    assert state["in_system"] == 0 and state["cancelled"] == state["offered"] < 10
    table, _ = replay(sleepers([0.01]), [0.0], pair, progress=False)
    assert table["outcome"][0] == "completed"


@pytest.mark.parametrize("jobs, arrival_s, options, message", [
    (sleepers([0.1] * 3), [0, 1], {}, "2 arrivals for 3 jobs"),
    (sleepers([0.1] * 2), [1, 0], {}, "arrival_s falls from 1 to 0 s at job 1"),
    (sleepers([0.1] * 2), [0, np.nan], {}, r"arrival_s\[1\] is nan"),
    (sleepers([0.1] * 2), [-1, 0], {}, r"arrival_s\[0\] is -1"),
    (sleepers([0.1, -1]), [0, 1], {}, "job 1: seconds = -1"),
    (sleepers([]), [], {}, "0 jobs"),
    (sleepers([0.1] * 2).assign(job_id=1), [0, 1], {}, "1 different job_id"),
    (sleepers([0.1]).assign(workload="story"), [0], {}, "job 0: .*'story'.*'sleep'"),
    (sleepers([0.1] * 2), [0, 1], {"deadline_s": [1, -1]}, "deadline_s"),
    (sleepers([0.1]), [0], {"method": "night"}, "job 0: unknown method 'night'"),
])
def test_bad_input_is_refused_before_any_job_runs(replicas, jobs, arrival_s, options, message):
    with Dispatcher("sleep", 2, methods=("only",), handles=replicas) as target:
        with pytest.raises(ValueError, match=message):
            replay(jobs, arrival_s, target, **options)
        assert target.queue()["offered"] == 0


def test_arrivals_beyond_the_jobs_are_not_used(pair):
    assert len(replay(sleepers([0.01]), [0.0, 100.0], pair, progress=False)[0]) == 1
