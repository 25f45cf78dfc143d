"""How fast the simulator is, as a ratio to Ciw on the same M/G/2 (gamma service, SCV 0.2, rho = 0.8).

`pytest tests/benchmarks --benchmark-enable`: CPU seconds a job (all run in one thread), Ciw's and ours taken in turn
within each round, ours from sampling to the job table, Ciw's to its list of records; the ratios are medians over the
rounds, written to the reference.
`draw` is the cost of drawing the random numbers alone, the limit for any simulator that uses them. Each ratio must
reach its bar; without the option, in few and shorter rounds on a machine that may be busy, half of it: `simulate` is
then at least 100 times as fast as Ciw. The bar of the compiled loop alone is 400: it was 1000 while first come first
served had a loop of its own, which made that one case of `simulate` a quarter faster and was one more set of rules to
keep equal (LOG.md, 2026-11-26).
"""

import json
import time

import ciw
import numpy as np

from stlib import paths
from stlib.queueing import kernels
from stlib.queueing import simulation as runs
from stlib.queueing.job_table import job_metrics
from stlib.queueing.simulation import finite_run, simulate

LAM, MEAN_S, SCV, K = 1.6, 1.0, 0.2, 2
METHODS = {"methods": ("slow", "quick"), "policy": [0, 0, 1]}
BAR = {"fcfs": 200, "jsq_methods": 100, "kernel": 400}


def draw(n, rng):
    gaps = rng.exponential(1 / LAM, n)
    return np.cumsum(gaps, out=gaps), rng.gamma(1 / SCV, MEAN_S * SCV, n)


def fcfs(n, rng):
    return simulate(*draw(n, rng), K)


def jsq_methods(n, rng):
    arrival, work = draw(n, rng)
    return simulate(arrival, np.column_stack([work, 0.8 * work]), K, routing="jsq", rng=rng, **METHODS)


def by_ciw(n, seed):
    ciw.seed(seed)
    arrivals, services = ciw.dists.Exponential(LAM), ciw.dists.Gamma(1 / SCV, MEAN_S * SCV)
    simulation = ciw.Simulation(ciw.create_network([arrivals], number_of_servers=[K], service_distributions=[services]))
    simulation.simulate_until_max_customers(n)
    return simulation.get_all_records()


def kernel(n, rng):
    """The compiled loop alone: seconds for n jobs that are drawn already."""
    arrival, work, estimate = runs.check_jobs(*(values[None] for values in draw(n, rng)))
    rules = kernels.Rules(kernels.CENTRAL, np.zeros(1, np.int64), np.empty(0), n, estimate, estimate.astype(np.float32),
                          estimate, estimate.astype(np.int64))  # fmt: skip
    rows = runs.run_jobs(arrival, work, estimate, K)
    return seconds(kernels.simulate_rows, 0, 1, arrival, work, K, rules, rows)


def seconds(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def one_round(n, n_ciw, rng):
    """Seconds a job of each, one after the other."""
    times = {"ciw": seconds(by_ciw, n_ciw, 0) / n_ciw}
    times |= {f.__name__: seconds(f, n, rng) / n for f in (draw, fcfs, jsq_methods)}
    return times | {"kernel": kernel(n, rng) / n}


def test_speed_against_ciw(benchmark):
    n, n_ciw, rounds, share = (500_000, 2_000, 3, 0.5) if benchmark.disabled else (1_000_000, 20_000, 9, 1)
    rng = np.random.default_rng(0)
    one_round(100, 100, rng)  # compiled, imported
    times = []
    benchmark.pedantic(lambda: times.extend(one_round(n, n_ciw, rng) for _ in range(rounds)))
    ratios = {name: np.median([t["ciw"] / t[name] for t in times]) for name in ("draw", *BAR)}
    summary = {f"{name}_times_ciw": round(ratio) for name, ratio in ratios.items()}
    summary |= {f"{name}_ns_a_job": round(np.median([t[name] for t in times]) * 1e9, 1) for name in times[0]}
    benchmark.extra_info.update(summary)
    assert all(ratios[name] >= share * bar for name, bar in BAR.items()), ratios
    if not benchmark.disabled:
        folder = paths.REFERENCE / "validate"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "simulation_speed.json").write_text(json.dumps(summary | {"bar": BAR}, indent=1) + "\n")


def test_the_two_simulate_the_same_system():
    """The benchmark compares like with like: mean waits of independent replications agree (|z| < 4)."""
    rng = np.random.default_rng(1)
    ours = [job_metrics(fcfs(500, rng))["wq"] for _ in range(60)]
    theirs = [np.mean([record.waiting_time for record in by_ciw(500, seed)]) for seed in range(60)]
    error = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 60)
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error


def test_finite_runs(benchmark):
    """10 000 runs of 300 jobs."""

    def draw_runs(rng, m):
        return rng.exponential(1 / LAM, (m, 300)).cumsum(axis=1), rng.gamma(1 / SCV, SCV, (m, 300)), None

    n_runs = 100 if benchmark.disabled else 10_000
    result = benchmark(finite_run, draw_runs, K, n_runs, np.random.default_rng(0), slo_s=[2])
    assert len(result) == n_runs
