"""The predictions are right where the truth is known: on runs served by an independent simulation of the costs."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from served import a_cell, fitted_costs, serve

from stlib import paths
from stlib.experiment import Costs, JobMix, reference
from stlib.experiment.machine import contention
from stlib.prediction.cell import Campaign, read_cell, read_fitted
from stlib.prediction.compare import COLUMNS, machine_factors, predict_cell, predict_run, read_validation
from stlib.prediction.predict import System, after_idle

CELLS = [{}, {"replicas": 2}, {"replicas": 2, "routing": "jsq"},
         {"replicas": 2, "routing": "least_work", "method": "parallel",
          "arrivals": {"name": "bursty", "scv": 2, "idc": 4}}]
NAMES = ["one replica", "two, central", "two, JSQ", "two, least work, bursty"]


@pytest.fixture(scope="module", autouse=True)
def mixes_are_read_once():
    """Reading YAML takes longer than predicting a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobMix, "from_yaml", functools.cache(JobMix.from_yaml))
        yield


@pytest.fixture(scope="module")
def costs():
    return fitted_costs()


def predicted(costs, given, seed, n_jobs=60, draws=60, runs=60):
    cell = a_cell(costs, seed=seed, n_jobs=n_jobs, **given)
    run = serve(cell, costs, np.random.default_rng([seed, 99]))
    return predict_run(*run, costs, draws=draws, runs=runs)


def relative_errors(tables, column, metric="mean"):
    rows = pd.concat(tables)
    rows = rows[rows["metric"] == metric]
    return (rows[column] / rows["served"] - 1).to_numpy()


def z(values):
    return values.mean() / (values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("given", CELLS, ids=NAMES)
def test_traced_is_unbiased_and_plain_is_not(costs, given):
    """The machine is 10 % slower than in the experiment: plain misses it. Traced: the mean error within 4 s.e."""
    tables = [predicted(costs, given, seed) for seed in range(16)]
    traced = relative_errors(tables, "traced")
    assert abs(z(traced)) < 4
    assert traced.std(ddof=1) / np.sqrt(len(traced)) < 0.0125  # so a bias of 5 % would be seen
    assert z(relative_errors(tables, "plain")) < -4


@pytest.mark.parametrize("given", [CELLS[0], CELLS[2]], ids=[NAMES[0], NAMES[2]])
def test_beforehand_quantiles_are_uniform(costs, given):
    rows = pd.concat([predicted(costs, given, 100 + seed, draws=40, runs=150) for seed in range(40)])
    rows = rows[rows["metric"] == "mean"]
    for column in ("quantile", "quantile_given_arrivals"):
        assert stats.kstest(rows[column], "uniform").pvalue > 1e-3


def test_a_wrong_service_time_is_not_uniform(costs):
    """The same test sees work that is 30 % too long."""
    slow = replace(costs, beta=costs.beta * 1.3)
    ranks = []
    for seed in range(16):
        run = serve(a_cell(costs, seed=seed), costs, np.random.default_rng([seed, 99]))
        ranks.append(predict_run(*run, slow, draws=40, runs=60)["quantile_given_arrivals"].iloc[0])
    assert stats.kstest(ranks, "uniform").pvalue < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("given", CELLS, ids=NAMES)
def test_many_long_runs_are_predicted(costs, given):
    """300 jobs, 200 runs: mean, wait and P95 traced within 4 s.e., every quantile uniform."""
    tables = [predicted(costs, given, seed, n_jobs=300, draws=200, runs=400) for seed in range(200)]
    rows = pd.concat(tables)
    for metric in ("mean", "wq", "p95"):
        of_metric = rows[rows["metric"] == metric]
        assert abs(z((of_metric["served"] - of_metric["traced"]).to_numpy())) < 4, metric
        for column in ("quantile", "quantile_given_arrivals"):
            assert stats.kstest(of_metric[column], "uniform").pvalue > 1e-4, metric


@pytest.mark.parametrize("given", CELLS[:3], ids=NAMES[:3])
def test_recursion_is_served_when_nothing_else_is_there(costs, given):
    rows = predicted(replace(costs, dispatch_s=0.0), given, 5)
    assert np.allclose(rows["recursion"], rows["served"]) and np.allclose(rows["overhead"], 0)


def test_the_error_can_be_split(costs):
    """Every number of the chain from the formula to what was served is there, the formula for the two that it knows."""
    rows = predicted(costs, {}, 6)
    assert rows[["beforehand_median", "plain", "traced", "recursion", "served"]].notna().all(axis=None)
    assert list(rows["metric"][rows["formula"].notna()]) == ["mean", "wq"]
    assert np.allclose(rows["served"] - rows["recursion"], rows["overhead"])


def test_columns_and_repetition(costs):
    rows = predicted(costs, CELLS[3], 7)
    assert tuple(rows.columns) == COLUMNS
    assert list(rows["metric"]) == ["mean", "wq", "p50", "p95", "slo", "slo", "slo"]
    assert rows["formula"].isna().all() and rows["slo_s"].notna().sum() == 3
    pd.testing.assert_frame_equal(rows, predicted(costs, CELLS[3], 7))


def test_formula_is_exact_in_the_long_run(costs):
    """Beforehand, 4 000 jobs from empty, one replica: the formula's mean within 3 % of the median run's."""
    cell = a_cell(costs, n_jobs=4000, rho=0.6)
    rows = predict_run(*serve(cell, costs, np.random.default_rng(1)), costs, draws=40, runs=80)
    mean = rows.iloc[0]
    assert mean["formula"] == pytest.approx(mean["beforehand_median"], rel=0.03)


def test_machine_factors_divide_out_contention(costs):
    _, table, _, products = serve(a_cell(costs, replicas=2, seed=3), costs, np.random.default_rng(3))
    factors = machine_factors(table, products, costs, costs.probe_ratios("sequential", 2))
    error = np.log(factors / table["probe_s"])  # the simulation keeps the truth there
    assert abs(error.mean()) < 0.01 and error.std() < 0.03
    assert np.log(machine_factors(table, products, costs, np.ones(3)) / table["probe_s"]).mean() > 0.05


def test_after_idle_by_hand():
    start, finish = np.array([[0.0, 0.1, 1.0, 2.05, 5.0]]), np.array([[1.0, 2.0, 3.0, 4.0, 6.0]])
    replica = np.array([[0, 1, 0, 1, 0]])
    assert after_idle(start, finish, replica).tolist() == [[True, True, False, False, True]]


def test_unfinished_jobs_are_refused(costs):
    cell, table, jobs, products = serve(a_cell(costs), costs, np.random.default_rng(3))
    table["outcome"] = table["outcome"].where(table["job_id"] != 4, "failed")
    with pytest.raises(ValueError, match="1 jobs did not complete"):
        predict_run(cell, table, jobs, products, costs)


def test_work_of_a_mix_has_the_moments_of_its_jobs(costs):
    mix = JobMix.from_yaml("stories_exact")
    work = System.of(costs, mix, "parallel").work
    mean, variance = work.mean[0], work.variance[0]
    jobs = mix.sample(40_000, np.random.default_rng(1))
    moments = costs.moments(jobs, "parallel")
    assert mean == pytest.approx(moments.mean_s, rel=4 * np.sqrt(moments.scv / 40_000))
    assert variance / mean**2 == pytest.approx(moments.scv, rel=0.03)


def test_the_long_run_agrees_with_pollaczek_khinchine(costs):
    system = System.of(costs, "stories_exact", "sequential")
    lam = 0.7 * system.capacity
    runs, exact = system.long_run(lam), system.formula(lam)
    for name, value in (("mean", exact.w), ("wq", exact.wq)):
        assert abs(z((runs[name] - value).to_numpy())) < 4


def test_capacity_counts_contention_and_is_refused(costs):
    one = System.of(costs, "stories_exact", "parallel")
    two, three = replace(one, k=2), replace(one, k=3)
    assert two.capacity == pytest.approx(2 * 0.85 * one.capacity)
    assert three.capacity == pytest.approx(3 * 0.85 * one.capacity)  # beyond those measured
    assert replace(two, routing="jsq").formula(0.1) is None and two.formula(two.capacity) is None
    with pytest.raises(ValueError, match="2 replicas do less than"):
        two.long_run(two.capacity)


def test_a_method_without_contention_is_predicted_on_one_replica(costs):
    alone = replace(costs, speed={}, probe_ratio={})
    assert System.of(alone, "stories_exact", "parallel").capacity > 0
    with pytest.raises(ValueError, match="measure its contention, or take one replica"):
        _ = System.of(alone, "stories_exact", "parallel", 2).capacity


def test_a_policy_of_one_method_is_that_method_and_two_lie_between(costs):
    slow, quick = (System.of(costs, "stories_exact", name) for name in ("sequential", "parallel"))
    same = System.of(costs, "stories_exact", ["sequential", "sequential"])
    both = System.of(costs, "stories_exact", ["sequential", "sequential", "sequential", "parallel"])
    rate = 0.8 * slow.capacity
    assert same.long_run(rate)["mean"].mean() == slow.long_run(rate)["mean"].mean()
    assert quick.long_run(rate)["mean"].mean() < both.long_run(rate)["mean"].mean() < slow.long_run(rate)["mean"].mean()
    assert both.capacity == pytest.approx(quick.capacity) and both.formula(rate) is None


def test_the_machine_s_path_lives_in_time(costs):
    """Neighbours far apart in time are nearly independent, those that follow at once nearly equal."""
    near, far = (np.log(costs.factor_path(np.tile(np.arange(2) * gap, (4000, 1)), np.random.default_rng(0)))
                 for gap in (costs.level.tau_s / 20, costs.level.tau_s * 5))
    assert np.corrcoef(near.T)[0, 1] == pytest.approx(np.exp(-1 / 20), abs=0.02)
    assert abs(np.corrcoef(far.T)[0, 1]) < 4 / np.sqrt(4000) + np.exp(-5)
    assert near.std() == pytest.approx(costs.level.sd, rel=0.05)


FOLDERS = sorted((paths.REFERENCE / "served").glob("cell_*_run_*"))


@pytest.mark.skipif(not FOLDERS, reason="no served cell is committed yet")
@pytest.mark.parametrize("folders", [pytest.param(FOLDERS[::3], id="every third"),
                                     pytest.param(FOLDERS, id="all", marks=pytest.mark.slow)])
def test_every_committed_row_is_recomputed(folders):
    committed = pd.read_csv(paths.REFERENCE / "validation.csv")
    assert set(zip(committed["cell"], committed["run"], strict=True)) == {
        tuple(read_cell(folder)[0][name] for name in ("cell", "run")) for folder in FOLDERS}
    for folder in folders:
        rows = predict_cell(folder)
        one = committed[(committed["cell"] == rows["cell"][0]) & (committed["run"] == rows["run"][0])]
        pd.testing.assert_frame_equal(one.reset_index(drop=True), rows, check_dtype=False, rtol=1e-6)


def test_the_second_campaign_s_model_follows_from_its_committed_rows():
    rows = reference("05_runs_second")
    costs, calibration = read_fitted(paths.REFERENCE / "served" / "cell_2_run_2")
    again = Costs.fit(rows[rows["experiment"].isin(["work", "images", "validation"])], reference("05_tokens"))
    assert again.terms == costs.terms and again.n_rows == costs.n_rows
    for name in ("beta", "gamma", "residual", "level", "probe_s", "probe_cost_s"):
        assert np.allclose(getattr(again, name), getattr(costs, name), rtol=1e-6), name
    again = again.with_speed(contention(reference("08_contention_second")), costs.dispatch_s)
    for name in ("speed", "speed_se", "probe_ratio"):
        for method in costs.methods:
            assert np.allclose(getattr(again, name)[method], getattr(costs, name)[method], rtol=1e-9), name
    assert calibration.groupby("when").size().to_dict() == {"before": 50, "after": 50}


def test_the_readme_states_the_committed_errors():
    """Of the second campaign, which is calibrated."""
    rows = read_validation(paths.REFERENCE / "validation.csv", Campaign.from_yaml()).query("rho <= 0.8001 and run == 2")
    error = (rows["traced"] / rows["served"] - 1).abs().groupby(rows["metric"])
    said = (paths.ROOT / "README.md").read_text()
    for number in (error.median()["mean"], error.max()["mean"], error.median()["p95"]):
        assert f"{100 * number:.1f} %" in said
    slo = rows[rows["metric"] == "slo"]
    nearest = slo.loc[(slo["traced"] - 0.8).abs().groupby(slo["cell"]).idxmin()]
    points = 100 * (nearest["traced"] - nearest["served"]).abs().median()
    assert f"{points:.1f} percentage points" in said
