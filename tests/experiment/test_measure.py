"""The arithmetic of contention, and its measurement on sleeping jobs, which do not hinder each other."""

import threading
import time

import numpy as np
import pandas as pd
import pytest

from stlib.experiment.machine import contention
from stlib.experiment.measure import measure_contention, measure_dispatch, run_on, side_by_side
from stlib.serving.replica import ReplicaSpec, stop_replica


def rows(slowdown, blocks=12, per_block=3, noise=0.05, seed=0):
    """Times of the same jobs alone and with two busy, `slowdown` times as long, the probe 1.5 times."""
    rng, out = np.random.default_rng(seed), []
    for job in range(blocks * per_block):
        work = rng.uniform(0.5, 3)
        out += [{"method": "nap", "job_id": job, "block": job // per_block, "busy": busy,
                 "run_s": work * (slowdown if busy == 2 else 1) * np.exp(noise * rng.standard_normal()),
                 "probe_s": 0.1 * (1.5 if busy == 2 else 1), "at_s": 0.0} for busy in (1, 2)]
    return pd.DataFrame(out)


def test_speed_is_the_ratio_of_the_same_jobs():
    table = contention(rows(1.25, noise=0))
    assert np.allclose(table["speed"], [1, 0.8]) and np.allclose(table["probe_ratio"], [1, 1.5])
    assert np.allclose(table[["low", "high"]], [[1, 1], [0.8, 0.8]]) and list(table["blocks"]) == [12, 12]


def test_the_interval_covers_the_truth():
    """95 % intervals of 60 campaigns: from 50 on cover (P < 0.1 % of fewer)."""
    intervals = [contention(rows(1.25, seed=seed)).loc[1, ["low", "high"]] for seed in range(60)]
    assert sum(low < 0.8 < high for low, high in intervals) >= 50


@pytest.fixture(scope="module")
def doers(cluster):
    handles = [ReplicaSpec("sleep").start() for _ in range(2)]
    yield [run_on(handle, menu={"nap": {}}) for handle in handles]
    for handle in handles:
        stop_replica(handle)


def test_sleeping_jobs_do_not_hinder_each_other(doers):
    jobs = pd.DataFrame({"job_id": range(20), "workload": "sleep", "seconds": 0.02, "method": "nap"})
    measured = measure_contention(doers, jobs, blocks=10)
    assert len(measured) == 40 and (measured.groupby(["block", "busy"]).size() == 2).all()
    first = measured.sort_values("at_s").groupby("block")["busy"].first()
    assert list(first) == [1, 2] * 5  # the order alternates
    assert contention(measured).loc[1, "speed"] == pytest.approx(1, abs=0.15)
    with pytest.raises(ValueError, match="21 blocks of 20 jobs"):
        measure_contention(doers, jobs, blocks=21)


def test_a_job_that_fails_on_the_other_replica_is_no_silence(doers):
    bad = pd.DataFrame({"job_id": range(10), "workload": "sleep", "seconds": [0.02] * 9 + ["long"], "method": "nap"})
    with pytest.raises(Exception, match=r"long|TypeError"):
        measure_contention(doers, bad, blocks=10)


def test_any_function_is_a_doer():
    """Of a machine of one core two busy functions take twice as long; they know no method, threads or probes."""
    core = threading.Lock()

    def doer(row):
        began = time.monotonic()
        with core:
            time.sleep(row["seconds"])
        return {"run_s": time.monotonic() - began}

    jobs = pd.DataFrame({"job_id": range(20), "seconds": 0.02})
    rows = side_by_side([doer, doer], jobs, label="doers")
    assert list(rows.columns) == [*jobs, "replica", "at_s", "run_s", "probe_s"] and rows["probe_s"].isna().all()
    measured = measure_contention([doer, doer], jobs.assign(method="any"), blocks=10)
    alone, busy = (measured[measured["busy"] == n]["run_s"].mean() for n in (1, 2))
    assert 1.5 < busy / alone < 4  # 2 on a quiet machine


def test_the_dispatcher_takes_milliseconds(cluster):
    assert 0 < measure_dispatch(n_jobs=40, seconds=0.01) < 0.05


def test_the_standard_error_is_that_of_many_campaigns():
    """The spread of the estimate over 60 campaigns of 12 blocks, and the mean of their own standard errors."""
    tables = [contention(rows(1.25, seed=seed)).loc[1] for seed in range(60)]
    spread = np.std([np.log(one["speed"]) for one in tables], ddof=1)
    assert np.mean([one["se"] for one in tables]) == pytest.approx(spread, rel=4 / np.sqrt(2 * 60))
