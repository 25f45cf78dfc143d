"""The arithmetic of contention, and its measurement on sleeping jobs, which do not hinder each other."""

import threading
import time

import numpy as np
import pandas as pd
import pytest
import ray

from stlib.experiment.machine import Speed
from stlib.experiment.measure import measure_contention, measure_dispatch, run_on, side_by_side
from stlib.serving.replica import start_replica


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
    speed = Speed.fit(rows(1.25, noise=0), dispatch_s=0.004)
    assert np.allclose(speed.of("nap", 2), [1, 1, 0.8]) and np.allclose(speed.probe_ratios("nap", 2), [1, 1, 1.5])
    assert np.allclose(speed.interval["nap"], [[1, 1], [0.8, 0.8]]) and speed.dispatch_s == 0.004


def test_the_interval_covers_the_truth():
    """95 % intervals of 60 campaigns: from 50 on cover (P < 0.1 % of fewer)."""
    intervals = [Speed.fit(rows(1.25, seed=seed)).interval["nap"][1] for seed in range(60)]
    assert sum(low < 0.8 < high for low, high in intervals) >= 50


def test_beyond_the_replicas_measured_the_last_speed_holds():
    speed = Speed.fit(rows(1.25, noise=0))
    assert np.allclose(speed.of("nap", 4), [1, 1, 0.8, 0.8, 0.8]) and np.allclose(speed.of("nap", 1), [1, 1])
    with pytest.raises(ValueError, match="'joint'"):
        speed.of("joint", 1)


def test_json_keeps_the_speed(tmp_path):
    speed = Speed.fit(rows(1.25))
    assert Speed.from_json(speed.to_json(tmp_path / "speed.json")) == speed


@pytest.fixture(scope="module")
def doers():
    yield [run_on(start_replica("sleep", menu={"nap": {}})) for _ in range(2)]
    ray.shutdown()


def test_sleeping_jobs_do_not_hinder_each_other(doers):
    jobs = pd.DataFrame({"job_id": range(20), "workload": "sleep", "seconds": 0.02, "method": "nap"})
    measured = measure_contention(doers, jobs, blocks=10)
    assert len(measured) == 40 and (measured.groupby(["block", "busy"]).size() == 2).all()
    first = measured.sort_values("at_s").groupby("block")["busy"].first()
    assert list(first) == [1, 2] * 5  # the order alternates
    assert Speed.fit(measured).of("nap", 2)[2] == pytest.approx(1, abs=0.15)
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

    jobs = pd.DataFrame({"job_id": range(20), "seconds": 0.01})
    rows = side_by_side([doer, doer], jobs, label="doers")
    assert list(rows.columns) == [*jobs, "replica", "at_s", "run_s", "probe_s"] and rows["probe_s"].isna().all()
    measured = measure_contention([doer, doer], jobs.assign(method="any"), blocks=10)
    alone, busy = (measured[measured["busy"] == n]["run_s"].mean() for n in (1, 2))
    assert 1.5 < busy / alone < 2.5


def test_the_dispatcher_takes_milliseconds():
    ray.shutdown()
    assert 0 < measure_dispatch(n_jobs=40, seconds=0.01) < 0.05
    ray.shutdown()


def test_the_standard_error_is_that_of_the_interval():
    speed = Speed.fit(rows(1.25))
    low, high = speed.interval["nap"][1]
    assert speed.relative_se("nap", 2) == pytest.approx(np.log(high / low) / 3.92)
    assert speed.relative_se("nap", 1) == 0 and speed.relative_se("other", 2) == 0
