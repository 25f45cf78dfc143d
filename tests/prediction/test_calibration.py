"""Calibration finds how much longer whole jobs take than the costs says, and a prediction that uses it is right."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from served import a_cell, calibration_rows, fitted_costs, serve

from stlib.experiment.measure import run_on, side_by_side
from stlib.prediction.calibration import LEAST_JOBS, Calibration
from stlib.prediction.compare import predict_run
from stlib.serving.replica import ReplicaSpec, stop_replica


@pytest.fixture(scope="module")
def costs():
    return fitted_costs()


def fit(costs, seed, ratio=1.05, factor=1.1, n_jobs=50, k=1, **both):
    rows = calibration_rows(costs, np.random.default_rng(seed), n_jobs=n_jobs, replicas=k, factor=factor,
                            ratio={"before": ratio, **both})
    return Calibration.fit(rows, costs, "sequential")


@pytest.mark.parametrize("k", [1, 2])
def test_the_ratio_is_found_within_its_standard_error(costs, k):
    """Of 60 calibrations the mean within 4 s.e. of the truth, and 48 or more within 2 of their own."""
    found = [fit(costs, seed, k=k) for seed in range(60)]
    ratios = np.array([one.level / (one.probe_s / costs.probe_s)**costs.gamma for one in found])
    se = np.array([one.se for one in found])
    assert abs(ratios.mean() / 1.05 - 1) < 4 * ratios.std(ddof=1) / np.sqrt(60) < 0.02
    assert np.sum(np.abs(ratios / 1.05 - 1) < 2 * se) >= 48
    assert np.mean([one.probe_s for one in found]) == pytest.approx(1.1 * costs.probe_s, rel=0.05)


def test_before_and_after_count_alike_and_their_distance_widens_the_error(costs):
    still, moved = fit(costs, 3, ratio=1.0, after=1.0), fit(costs, 3, ratio=1.0, after=1.1)
    assert moved.level == pytest.approx(still.level * 1.05, rel=0.01)
    assert moved.se**2 - still.se**2 == pytest.approx((np.log(1.1) / np.sqrt(12)) ** 2, rel=0.5)
    assert moved.se > np.log(1.1) / np.sqrt(12) * 0.8


def test_few_jobs_are_refused(costs):
    with pytest.raises(ValueError, match=f"give each at least {LEAST_JOBS}"):
        fit(costs, 0, n_jobs=LEAST_JOBS - 1)


def test_the_error_of_ten_jobs_is_no_chance(costs):
    """One replica, ten jobs, `before` alone: the standard error varies as one of nine degrees of freedom does."""
    se = np.array([fit(costs, seed, n_jobs=10).se for seed in range(60)])
    assert se.std() / se.mean() < 0.4  # of one degree of freedom it would be 0.76


@pytest.mark.parametrize("given", [{}, {"replicas": 2}], ids=["one replica", "two"])
def test_a_calibrated_prediction_is_right_where_the_model_is_not(costs, given):
    """Every job takes 8 % longer than the costs says: with calibration the mean error is within 4 s.e., without not."""
    with_it, without = [], []
    for seed in range(16):
        rng = np.random.default_rng([seed, 99])
        cell = a_cell(costs, seed=seed, **given)
        served = serve(cell, replace(costs, beta=costs.beta * 1.08), rng)
        rows = calibration_rows(costs, rng, replicas=cell["replicas"], factor=cell["factor"],
                                ratio={"before": 1.08, "after": 1.08})
        for errors, calibration in ((with_it, rows), (without, None)):
            one = predict_run(*served, costs, calibration=calibration, draws=60, runs=60).iloc[0]
            errors.append(one["traced"] / one["served"] - 1)
    z = [np.mean(errors) / (np.std(errors, ddof=1) / 4) for errors in (with_it, without)]
    assert abs(z[0]) < 4 and z[1] < -4


def test_what_follows_the_run_is_not_known_beforehand(costs):
    """Only traced uses the jobs after the run; plain uses none."""
    served = serve(a_cell(costs), costs, np.random.default_rng(1))
    rows = {after: calibration_rows(costs, np.random.default_rng(2), ratio={"before": 1.0, "after": after})
            for after in (1.0, 1.2)}
    one, other = (predict_run(*served, costs, calibration=rows[after], draws=60, runs=60).iloc[0]
                  for after in (1.0, 1.2))
    assert other["traced"] > 1.05 * one["traced"]
    for column in ("plain", "beforehand_median", "quantile", "formula", "recursion"):
        assert one[column] == other[column]


def test_every_replica_does_every_job(cluster):
    handles = [ReplicaSpec("sleep").start() for _ in range(2)]
    try:
        jobs = pd.DataFrame({"job_id": range(6), "workload": "sleep", "seconds": 0.02})
        rows = side_by_side([run_on(handle) for handle in handles], jobs, label="calibration")
    finally:
        for handle in handles:
            stop_replica(handle)
    assert list(rows["replica"]) == [0] * 6 + [1] * 6
    assert list(rows["job_id"]) == [0, 1, 2, 3, 4, 5, 3, 4, 5, 0, 1, 2]
    assert (rows["run_s"] > 0.019).all() and rows["probe_s"].notna().all()
    assert rows.groupby("replica")["at_s"].min().diff().abs().iloc[1] < 1  # at once


def test_the_first_part_is_the_wait_and_its_share_of_the_time_in_service(costs):
    """Where the run and the calibration tell when a first panel was finished; else there is no such metric."""
    cell = a_cell(costs, 1, n_jobs=60)
    cell, table, jobs, products = serve(cell, costs, np.random.default_rng(1))
    rows = calibration_rows(costs, np.random.default_rng(2), ratio={"before": 1.0, "after": 1.0})
    plain = predict_run(cell, table, jobs, products, costs, rows, draws=60, runs=60)
    assert "first" not in set(plain["metric"])
    rows, products = (one.assign(first_s=0.4 * seconds) for one, seconds in (
        (rows.assign(service_s=rows["run_s"] + costs.probe_cost_s), rows["run_s"] + costs.probe_cost_s),
        (products, table["service_s"])))
    found = predict_run(cell, table, jobs, products, costs, rows, draws=60, runs=60).set_index("metric")
    first, wait, mean = (found.loc[name] for name in ("first", "wq", "mean"))
    assert first["served"] == pytest.approx(wait["served"] + 0.4 * table["service_s"].mean())
    for column in ("traced", "plain", "recursion", "formula"):
        assert first[column] == pytest.approx(wait[column] + 0.4 * (mean[column] - wait[column]))
    assert first["traced_lo"] < first["served"] < first["traced_hi"]
