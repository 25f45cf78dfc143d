"""Runs of a server that tells nothing but its answers: prediction, verdict, what a difference says; by simulation."""

import numpy as np
import pandas as pd
import pytest

from stlib import paths
from stlib.experiment import Costs, JobMix
from stlib.experiment.system import requests_of
from stlib.prediction.sent import difference, level_of, offered_load, places, predict_sent, verdict
from stlib.queueing.simulation import simulate
from stlib.serving.images_server import METHOD


@pytest.fixture(scope="module")
def costs():
    """Of a server of two places, each at 0.8 of its speed while both are busy."""
    rng = np.random.default_rng(1)
    rows = pd.concat([requests_of(paths.DATA / "design_images.yml")[0]] * 3, ignore_index=True)
    rows["run_s"] = (0.1 + 0.02 * rows["n_panels"] * rows["steps"]) * np.exp(0.1 * rng.standard_normal(len(rows)))
    speed = pd.DataFrame({"method": METHOD, "busy": [1, 2], "speed": [1, 0.8], "se": [0, 0.01], "probe_ratio": 1.0})
    return Costs.fit(rows.assign(probe_s=1.0, at_s=np.arange(len(rows)))).with_speed(speed)


def run(costs, rho, n=300, k=2, seed=2, late_s=0.0, scale=1.0):
    """The job table of a simulated server of k places, and its jobs."""
    rng = np.random.default_rng(seed)
    jobs = JobMix.from_yaml("requests").sample(n, rng)
    rate = rho * 2 * 0.8 / costs.mean_s(jobs, METHOD).mean()
    arrival = rng.exponential(1 / rate, n).cumsum()
    work = scale * costs.sample_s(jobs, METHOD, rng)
    table = simulate(arrival, work, k, speed=[1, 1, 0.8][: k + 1] if k < 3 else None)
    return table.assign(reply_s=table["reply_s"] + late_s), jobs


def test_a_run_of_the_server_lies_within_its_prediction(costs):
    inside = []
    for seed in range(20):
        rows = predict_sent(*run(costs, 0.6, seed=seed), costs, draws=200).set_index("metric")
        inside.append(rows["low"]["mean"] <= rows["served"]["mean"] <= rows["high"]["mean"])
        assert rows["fewer"]["mean"] > rows["predicted"]["mean"] > rows["more"]["mean"]
    assert places(costs) == 2 and sum(inside) >= 15  # 19 of 20 if all is right; below 15 with P < 0.1 %


def test_a_deadline_a_job_and_the_way_there(costs):
    table, jobs = run(costs, 0.5, late_s=0.2)
    plain, way = (predict_sent(table, jobs, costs, trip_s=trip, draws=100).set_index("metric")["predicted"]
                  for trip in (0.0, 0.2))
    assert way["mean"] == pytest.approx(plain["mean"] + 0.2, rel=1e-6)
    slo = predict_sent(table, jobs, costs, slo_s=np.full(len(jobs), 1e6), draws=100).set_index("metric")
    assert slo.loc["within", ["served", "predicted"]].tolist() == [1, 1]


def test_jobs_that_failed_are_not_answered_in_time(costs):
    table, jobs = run(costs, 0.4)
    table["outcome"] = table["outcome"].where(table["job_id"] % 10 > 0, "failed")
    rows = predict_sent(table, jobs, costs, draws=100).set_index("metric")
    assert rows["served"]["within"] <= 0.9 and np.isfinite(rows["served"]["p99"])


def test_the_verdict_follows_its_rule(costs):
    for rho, name in ((0.5, "stable"), (1.5, "overloaded")):
        table, jobs = run(costs, rho)
        load, se = offered_load(table, jobs, costs)
        assert load == pytest.approx(rho, rel=0.2) and 0 < se < 0.05
        assert verdict(table, load, se)[0] == name and verdict(table, load, se)[1].startswith(name)
    table, jobs = run(costs, 0.95, n=60, scale=1.6)  # slower than measured: nothing says so but the queue
    assert verdict(table, *offered_load(table, jobs, costs))[0] in ("backlogged", "overloaded")
    assert verdict(table, 0.97, 0.02)[0] == "overloaded"  # not told from 1


def test_a_difference_says_what_may_be_behind_it(costs):
    for changes, words in (({}, "as it was measured"), ({"k": 1}, "slower than predicted: another queue"),
                           ({"k": 4}, "faster than predicted: it works on more")):
        assert words in difference(predict_sent(*run(costs, 0.65, **changes), costs, draws=200))


def test_the_level_of_a_run_is_that_around_it():
    assert level_of([]) == (1.0, 0.0)
    level, se = level_of([np.array([1.1, 1.1, 1.1]), np.array([1.3, 1.3, 1.3])])
    assert level == pytest.approx(1.2) and se == pytest.approx(0.2 / np.sqrt(12) / 1.2)
