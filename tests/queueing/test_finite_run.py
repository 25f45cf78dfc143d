import heapq

import numpy as np
import pytest
from scipy import stats

from stlib.queueing.job_table import job_metrics
from stlib.queueing.simulation import finite_run, replication_interval, simulate

METRICS = ("mean", "wq", "p95", "slo_2")


def mm1(n, lam):
    """draw of n jobs at rate lam with exponential work of mean 1."""

    def draw(rng, m):
        return rng.exponential(1 / lam, (m, n)).cumsum(axis=1), rng.exponential(1, (m, n)), None

    return draw


def waits_by_lindley(arrival, work, k):
    """First come, first served on k replicas: a job takes the one that is free first."""
    free, waits = [0.0] * k, []
    for a, w in zip(arrival, work, strict=True):
        start = max(a, heapq.heappop(free))
        waits.append(start - a)
        heapq.heappush(free, start + w)
    return np.array(waits)


@pytest.mark.parametrize("options", [{}, {"max_waiting": 3, "deadline_s": 1.5}, {"speed": [1, 1, 0.8]}])
def test_each_row_is_the_metrics_of_that_run(options):
    drawn = []

    def draw(rng, m):
        jobs = mm1(60, 1.9)(rng, m)
        drawn.extend(zip(*jobs[:2], strict=True))
        return jobs

    runs = finite_run(draw, 2, 45, np.random.default_rng(0), slo_s=[2], **options)
    assert len(runs) == len(drawn) == 45
    for (arrival, work), row in zip(drawn, runs.to_dict("records"), strict=True):
        metrics = job_metrics(simulate(arrival, work, 2, **options), slo_s=[2])
        assert row == pytest.approx({name: metrics[name] for name in row})


def test_result_depends_on_the_seed_alone(monkeypatch):
    def run(workers, seed):
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", str(workers))
        return finite_run(mm1(50, 1.6), 2, 200, np.random.default_rng(seed), routing="jsq")

    assert run(1, 0).equals(run(3, 0))
    assert not run(1, 0).equals(run(1, 1))


def test_estimates_and_methods_are_passed_on():
    def draw(rng, m):
        arrival, work, _ = mm1(50, 1.6)(rng, m)
        return np.broadcast_to(arrival[:1], arrival.shape), work, work

    exact, central = (finite_run(draw, 2, 50, np.random.default_rng(0), routing=r) for r in ("least_work", "central"))
    np.testing.assert_allclose(exact.loc[0], central.loc[0])  # later rows are drawn after the ties

    def two_methods(rng, m):
        arrival, work, _ = mm1(50, 1.6)(rng, m)
        return arrival, np.stack([2 * work, work], axis=2), None

    quick, one = (finite_run(d, 2, 50, np.random.default_rng(0), **o) for d, o in (
        (two_methods, {"methods": ("slow", "quick"), "policy": [1]}), (mm1(50, 1.6), {})))  # fmt: skip
    assert quick.equals(one)


def test_mean_waits_from_empty_are_the_transient_ones():
    """M/M/1 from empty: the uniformised chain (arrival or potential departure) seen at arrivals gives E[W_i]."""
    lam, n = 0.8, 60
    up = lam / (1 + lam)
    present, expected = np.eye(n + 1)[0], []
    for _ in range(n):
        expected.append(present @ np.arange(n + 1))  # a job finds j present and waits j mean services
        after = np.roll(present, 1)  # the arrival; the last entry is still empty
        present = np.zeros(n + 1)
        for j, p in enumerate(after):
            gone = np.arange(j)
            present[j - gone] += p * up * (1 - up) ** gone
            present[0] += p * (1 - up) ** j
    runs = finite_run(mm1(n, lam), 1, 20_000, np.random.default_rng(4))
    error = runs["wq"].std() / np.sqrt(len(runs))
    assert abs(runs["wq"].mean() - np.mean(expected)) < 4 * error
    assert error < 0.01 * np.mean(expected)


def coverage(k, rho, n, n_runs, seed):
    """Share of 1 000 runs of a plain loop within the 95 % interval that finite_run predicts for them."""
    rng = np.random.default_rng(seed)
    predicted = finite_run(mm1(n, rho * k), k, n_runs, rng, slo_s=[2])
    low, high = predicted.quantile(0.025), predicted.quantile(0.975)
    inside = dict.fromkeys(METRICS, 0)
    for _ in range(1000):
        arrival, work = rng.exponential(1 / (rho * k), n).cumsum(), rng.exponential(1, n)
        wait = waits_by_lindley(arrival, work, k)
        response = wait + work
        values = (response.mean(), wait.mean(), np.percentile(response, 95), (response <= 2).mean())
        for name, value in zip(METRICS, values, strict=True):  # an end counts half: attainment moves in steps of 1/n
            inside[name] += np.mean([low[name] <= value <= high[name], low[name] < value < high[name]])
    return {name: count / 1000 for name, count in inside.items()}


def test_intervals_cover_runs_of_a_plain_loop():
    covered = coverage(1, 0.8, 100, 4000, seed=11)
    assert all(0.90 <= share <= 0.98 for share in covered.values()), covered


@pytest.mark.slow
def test_intervals_cover_in_every_case(record_summary):
    cases = [(k, rho, n) for k in (1, 2, 4) for rho in (0.5, 0.8, 0.9) for n in (50, 300)]
    rows = [{"k": k, "rho": rho, "n": n} | coverage(k, rho, n, 10_000, seed=i) for i, (k, rho, n) in enumerate(cases)]
    record_summary("finite_run_coverage", rows)
    assert all(0.90 <= row[name] <= 0.98 for row in rows for name in METRICS), rows


def test_too_few_runs_or_runs_that_do_not_match_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"n_runs is 39.*at least 40"):
        finite_run(mm1(10, 0.5), 1, 39, rng)
    with pytest.raises(ValueError, match=r"n_runs = 0.5"):
        finite_run(mm1(10, 0.5), 1, 0.5, rng)
    with pytest.raises(ValueError, match="draw gave 3 runs, asked for 1"):
        finite_run(lambda rng, m: mm1(10, 0.5)(rng, 3), 1, 40, rng)
    with pytest.raises(ValueError, match="sequence"):
        finite_run(lambda rng, m: (np.arange(3), np.ones(3), None), 1, 40, rng)


def test_replication_interval_is_students_and_covers():
    values = [9.1, 10.2, 9.7, 10.9, 10.0, 9.5, 10.4, 9.9, 10.1, 10.3]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert replication_interval(values, 0.9) == pytest.approx(tuple(expected))
    rng = np.random.default_rng(0)
    inside = [low <= 0 <= high for low, high in (replication_interval(rng.normal(size=12)) for _ in range(2000))]
    assert abs(np.mean(inside) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)


def test_replication_interval_refuses():
    for values in ([1.0] * 9, [np.nan] * 12, [[1.0] * 12]):
        with pytest.raises(ValueError, match="at least 10 replications"):
            replication_interval(values)
    with pytest.raises(ValueError, match="level is 95"):
        replication_interval([1.0] * 12, 95)
