"""The simulator job by job: a plain loop, Ciw, Lindley, a Markov chain.

Coverage of the compiled loop: `NUMBA_DISABLE_JIT=1 pytest tests/queueing --cov=stlib.queueing` (some minutes).
"""

import os
import subprocess
import sys
from pathlib import Path

import ciw
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import plain_loop

from stlib.queueing import kernels
from stlib.queueing.job_table import job_metrics
from stlib.queueing.simulation import ROUTINGS, recursion, replication_interval, simulate

METHODS = ("slow", "quick")


def assert_same(table, jobs, rtol=0.0):
    for column, key in (("start_s", "start"), ("finish_s", "finish")):
        np.testing.assert_allclose(table[column], [job[key] for job in jobs], rtol=rtol, atol=rtol)
    assert table["replica"].tolist() == [job["replica"] for job in jobs]
    assert table["n_outstanding"].tolist() == [job["n_outstanding"] for job in jobs]
    assert table["outcome"].tolist() == [job["outcome"] for job in jobs]
    assert table["method"].cat.codes.tolist() == [job.get("method", -1) for job in jobs]


@st.composite
def small_cases(draw, limited):
    """Quarters of seconds and speeds that are powers of two: sums are exact and ties are frequent."""
    n, k = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    quarters = st.integers(0, 24).map(lambda x: x / 4)
    each = lambda values: draw(st.lists(values, min_size=n, max_size=n))  # noqa: E731
    case = {"arrival": np.cumsum(each(quarters)), "k": k, "routing": draw(st.sampled_from(ROUTINGS))}
    case["work"] = np.array([each(quarters), each(quarters)]).T
    case["estimate"] = np.array(each(quarters))
    longest = 0 if case["routing"] == "least_work" else 4
    case["policy"] = [0, *draw(st.lists(st.integers(0, 1), max_size=longest))]
    case |= dict.fromkeys(("speed", "max_waiting", "deadline"))
    if limited:
        speeds = st.lists(st.sampled_from([1.0, 0.5, 0.25]), min_size=k - 1, max_size=k - 1)
        case["speed"] = draw(st.none() | speeds.map(lambda rest: [np.nan, 1.0, *rest]))
        case["max_waiting"] = draw(st.none() | st.integers(0, 4))
        case["deadline"] = draw(st.none() | st.just(np.array(each(quarters | st.just(np.inf)))))
    return case


def simulate_case(case, seed=0):
    one = case["routing"] == "least_work"
    return simulate(
        case["arrival"], case["work"][:, 0] if one else case["work"], case["k"], routing=case["routing"],
        methods=METHODS[:1] if one else METHODS, policy=None if one else case["policy"],
        work_estimate_s=case["estimate"], speed=case["speed"], max_waiting=case["max_waiting"],
        deadline_s=case["deadline"], rng=np.random.default_rng(seed))  # fmt: skip


def loop_case(case, seed=0):
    n = len(case["arrival"])
    ties = np.random.default_rng(seed).random(n, np.float32)
    waiting = np.inf if case["max_waiting"] is None else case["max_waiting"]
    return plain_loop(case["arrival"].tolist(), case["work"].tolist(), case["k"], routing=case["routing"],
                      policy=case["policy"], estimate=case["estimate"].tolist(), speed=case["speed"],
                      max_waiting=waiting, deadline=case["deadline"], ties=ties)  # fmt: skip


@pytest.mark.parametrize("limited", [False, True])
@settings(max_examples=150)
@given(st.data())
def test_every_small_case_is_the_plain_loop(limited, data):
    case = data.draw(small_cases(limited))
    table = simulate_case(case)
    assert_same(table, loop_case(case))
    started = table["replica"] >= 0
    assert (table["start_s"][started] >= table["arrival_s"][started]).all()
    assert started.eq(table["outcome"] == "completed").all()


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("extra", [{}, {"speed": [1, 1, 0.9, 0.83]}, {"max_waiting": 4, "deadline": 0.7}, "all"])
def test_long_path_is_the_plain_loop(routing, extra):
    rng = np.random.default_rng(7)
    n, k = 3000, 3
    work = rng.gamma(2, 0.5, (n, 1)) * [1.0, 0.6]
    case = {"arrival": rng.exponential(0.25, n).cumsum(), "work": work, "k": k, "routing": routing,
            "estimate": work[:, 0] * rng.lognormal(0, 0.3, n), "policy": [0] if routing == "least_work" else [0, 0, 1],
            "speed": None, "max_waiting": None, "deadline": None}  # fmt: skip
    if extra == "all":
        extra = {"speed": [1, 1, 0.9, 0.83], "max_waiting": 4, "deadline": rng.exponential(1, n)}
    if isinstance(extra.get("deadline"), float):
        extra = extra | {"deadline": np.full(n, extra["deadline"])}
    table = simulate_case(case | extra)
    assert_same(table, loop_case(case | extra), rtol=1e-9)
    if "deadline" in extra:
        assert (table["outcome"].value_counts()[["completed", "rejected", "timed_out"]] > 10).all()


def gamma_jobs(n, lam, seed, scv=0.2):
    """Poisson arrivals at rate lam and gamma work of mean 1."""
    rng = np.random.default_rng(seed)
    return rng.exponential(1 / lam, n).cumsum(), rng.gamma(1 / scv, scv, n)


def mean_wait(table):
    return (table["start_s"] - table["arrival_s"]).mean()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_limits_that_are_never_reached_change_nothing(k):
    arrival, work = gamma_jobs(2000, 0.9 * k, seed=k)
    options = {"methods": METHODS, "policy": [0, 0, 1]}
    jobs = arrival, np.column_stack([work, 0.9 * work]), k
    limits = {"deadline_s": np.inf, "max_waiting": 2000}
    pd.testing.assert_frame_equal(simulate(*jobs, **options), simulate(*jobs, **limits, **options))


def test_equal_jobs_at_once_depart_one_after_the_other():
    table = simulate(np.zeros(20), np.ones(20), 2)
    assert table["start_s"].tolist() == np.repeat(np.arange(10), 2).tolist()
    assert table["n_outstanding"].tolist() == [1, 2, *range(19, 1, -1)]


def test_one_replica_is_lindley_under_every_routing():
    arrival, work = gamma_jobs(2000, 0.8, seed=1)
    wait = np.zeros(2000)
    for i in range(1, 2000):
        wait[i] = max(0, wait[i - 1] + work[i - 1] - (arrival[i] - arrival[i - 1]))
    for routing in ROUTINGS:
        table = simulate(arrival, work, 1, routing=routing, work_estimate_s=work)
        np.testing.assert_allclose(table["start_s"] - arrival, wait, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_central_queue_is_ciw_job_by_job(k):
    n = 400
    arrival, work = gamma_jobs(n, 0.9 * k, seed=k)
    gaps = [*np.diff(arrival, prepend=0), np.inf]
    arrivals, services = ciw.dists.Sequential(gaps), ciw.dists.Sequential(work.tolist())
    simulation = ciw.Simulation(ciw.create_network([arrivals], number_of_servers=[k], service_distributions=[services]))
    simulation.simulate_until_max_customers(n)
    records = sorted(simulation.get_all_records(), key=lambda record: record.id_number)
    table = simulate(arrival, work, k)
    np.testing.assert_allclose(table["start_s"], [record.service_start_date for record in records], rtol=1e-9)
    np.testing.assert_allclose(table["finish_s"], [record.exit_date for record in records], rtol=1e-9)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_least_work_with_exact_estimates_starts_as_a_central_queue(k):
    arrival, work = gamma_jobs(5000, 0.92 * k, seed=k, scv=1)
    least_work = simulate(arrival, work, k, routing="least_work", work_estimate_s=work)
    np.testing.assert_allclose(least_work["start_s"], simulate(arrival, work, k)["start_s"], rtol=0, atol=1e-7)


def test_noisy_estimates_make_jobs_wait_longer():
    longer = []
    for seed in range(20):
        arrival, work = gamma_jobs(3000, 1.7, seed, scv=1)
        noise = np.random.default_rng(seed + 100).lognormal(0, 0.7, 3000)
        noisy = simulate(arrival, work, 2, routing="least_work", work_estimate_s=work * noise)
        longer.append(mean_wait(noisy) - mean_wait(simulate(arrival, work, 2)))
    assert replication_interval(longer, 0.999)[0] > 0


def test_recursion_rebuilds_the_run_it_is_given():
    arrival, work = gamma_jobs(1000, 2.6, seed=3)
    for routing in ROUTINGS:
        table = simulate(arrival, work, 3, routing=routing, work_estimate_s=work, speed=[1, 1, 0.9, 0.8])
        again = recursion(arrival, table["service_s"], table["replica"])
        np.testing.assert_allclose(again["finish_s"], table["finish_s"], rtol=1e-12)
        if routing != "central":  # there n_outstanding counts the whole system
            assert again["n_outstanding"].equals(table["n_outstanding"])


def test_recursion_follows_the_order_of_the_starts():
    """Shortest job first on one replica: 0 runs to 4; of 1, 2, 3, which wait then, the shortest starts next."""
    arrival, service = [0.0, 1.0, 2.0, 3.0, 20.0], [4.0, 5.0, 3.0, 1.0, 2.0]
    starts = [0.0, 8.0, 5.0, 4.0, 20.0]
    again = recursion(arrival, service, np.zeros(5, int), starts)
    assert again["start_s"].tolist() == starts
    assert again["finish_s"].tolist() == [4, 13, 8, 5, 22]
    assert again["n_outstanding"].tolist() == [1, 1, 2, 3, 1]
    assert recursion(arrival, service, np.zeros(5, int))["start_s"].tolist() == [0, 4, 9, 12, 20]


def test_recursion_of_other_orders_is_a_plain_loop():
    """Two replicas, each serving its shortest waiting job next; starts recorded late by an overhead give no wait."""
    arrival, work = gamma_jobs(300, 1.8, seed=9, scv=1)
    replica, start = np.arange(300) % 2, np.empty(300)
    for r in (0, 1):
        left, now = list(np.flatnonzero(replica == r)), 0.0
        while left:
            now = max(now, arrival[left[0]])
            i = min((j for j in left if arrival[j] <= now), key=lambda j: work[j])
            left.remove(i)
            start[i], now = now, now + work[i]
    again = recursion(arrival, work, replica, start + 1e-4)
    np.testing.assert_array_equal(again["start_s"], start)
    np.testing.assert_array_equal(again["finish_s"], start + work)
    for i in range(300):
        near = replica == replica[i]
        there = near & (arrival <= start[i]) & (start + work > start[i] + 1e-12) & ~(near & (start < start[i]))
        assert again["n_outstanding"][i] == there.sum()


@pytest.mark.parametrize("routing", ROUTINGS)
def test_n_outstanding_and_littles_law_from_the_times_alone(routing):
    arrival, work = gamma_jobs(800, 1.8, seed=5)
    table = simulate(arrival, work, 2, routing=routing, work_estimate_s=work)
    for i, job in enumerate(table.itertuples()):
        near = True if routing == "central" else table["replica"] == job.replica
        there = (table["arrival_s"] <= job.start_s) & (table["finish_s"] > job.start_s) & near
        assert job.n_outstanding == there.sum(), i
    times, steps = np.array(sorted([(t, 1) for t in table["arrival_s"]] + [(t, -1) for t in table["finish_s"]])).T
    present = np.cumsum(steps)
    assert present[-1] == 0
    assert (present[:-1] * np.diff(times)).sum() == pytest.approx(800 * job_metrics(table)["mean"])


def test_methods_by_queue_length_agree_with_the_markov_chain():
    """M/M/1 of rate 1 for a job started alone, 1.6 for one started with others waiting: states (present, method)."""
    lam, mu, n_max = 0.9, (1.0, 1.6), 200
    states = [(0, 0)] + [(n, m) for n in range(1, n_max + 1) for m in (0, 1)]
    index = {state: i for i, state in enumerate(states)}
    rates = np.zeros((len(states), len(states)))
    for (n, m), i in index.items():
        if n < n_max:
            rates[i, index[n + 1, m]] += lam
        if n > 0:
            rates[i, index[n - 1, int(n > 2)]] += mu[m]  # the next starts with n - 1 present
    balance = (rates - np.diag(rates.sum(axis=1))).T
    balance[0] = 1
    law = np.linalg.solve(balance, np.eye(len(states))[0])
    present = sum(p * n for p, (n, _) in zip(law, states, strict=True))

    def response(seed):
        rng = np.random.default_rng(seed)
        arrival, unit = rng.exponential(1 / lam, 20_000).cumsum(), rng.exponential(1, 20_000)
        table = simulate(arrival, unit[:, None] / mu, 1, methods=METHODS, policy=[0, 0, 1])
        return (table["finish_s"] - table["arrival_s"])[1000:].mean()

    responses = np.array([response(seed) for seed in range(40)])
    assert abs(responses.mean() - present / lam) < 4 * responses.std(ddof=1) / np.sqrt(40)


def test_same_seed_same_ties_and_another_seed_others():
    arrival, work = gamma_jobs(500, 1.0, seed=2)
    runs = [simulate(arrival, work, 4, routing="jsq", rng=np.random.default_rng(s))["replica"] for s in (0, 0, 1)]
    assert runs[0].equals(runs[1]) and not runs[0].equals(runs[2])
    assert simulate(arrival, work, 4, routing="jsq")["replica"].equals(runs[0])
    assert np.ptp(runs[0].value_counts()) < 80  # ties do not all go to one replica


BAD = [
    (([], []), {}, "at least one"),
    (([0, 1], [1, 2, 3]), {}, "one entry for each job"),
    (([[0, 1]], [1, 2]), {}, "sequence"),
    (([0, 1], [1, np.nan]), {}, r"work_s\[1\] is nan"),
    (([0, 1], [-1, 1]), {}, r"work_s\[0\] is -1"),
    (([0, np.inf], [1, 1]), {}, r"arrival_s\[1\] is inf"),
    (([-1, 1], [1, 1]), {}, r"arrival_s\[0\] is -1"),
    (([0, 3, 2], [1, 1, 1]), {}, "falls from 3 to 2 s at job 2"),
    (([0, 1], [1, 1]), {"k": 0}, "k = 0"),
    (([0, 1], [1, 1]), {"k": 1.5}, "k = 1.5"),
    (([0, 1], [1, 1]), {"routing": "shortest"}, "choose one of"),
    (([0, 1], [1, 1]), {"routing": "least_work"}, "needs work_estimate_s"),
    (([0, 1], [1, 1]), {"routing": "least_work", "work_estimate_s": [1, 1], "policy": [0]}, "no policy"),
    (([0, 1], [1, 1]), {"routing": "least_work", "work_estimate_s": [1, -1]}, r"work_estimate_s\[1\]"),
    (([0, 1], [1, 1]), {"policy": [0, 1]}, "column outside 0 ... 0"),
    (([0, 1], [1, 1]), {"policy": [0.5]}, "integers"),
    (([0, 1], [1, 1]), {"policy": []}, "integers"),
    (([0, 1], [1, 1]), {"methods": ("a", "b")}, "name each of the 1 columns"),
    (([0, 1], [[1, 2], [1, 2]]), {"methods": ("a", "b")}, "give a policy"),
    (([0, 1], [1, 1]), {"speed": [1, 1]}, r"length k \+ 1 = 3"),
    (([0, 1], [1, 1]), {"speed": [1, 1, 0]}, "positive"),
    (([0, 1], [1, 1]), {"speed": [1, 0.9, 0.8]}, r"speed\[1\] = 1"),
    (([0, 1], [1, 1]), {"max_waiting": -1}, "max_waiting = -1"),
    (([0, 1], [1, 1]), {"max_waiting": 2.5}, "max_waiting = 2.5"),
    (([0, 1], [1, 1]), {"deadline_s": -1}, "deadline_s"),
    (([0, 1], [1, 1]), {"deadline_s": [1, np.nan]}, "deadline_s"),
    (([0, 1], [1, 1]), {"deadline_s": [1, 1, 1]}, "deadline_s"),
]


@pytest.mark.parametrize(("jobs", "options", "message"), BAD)
def test_bad_input_is_refused(jobs, options, message):
    options = {"k": 2} | options
    with pytest.raises(ValueError, match=message):
        simulate(*jobs, **options)


def test_recursion_refuses_jobs_that_never_started():
    for replica in ([0, -1], [0.0, 1.0], [0]):
        with pytest.raises(ValueError, match="leave out jobs that never started"):
            recursion([0, 1], [1, 1], replica)
    for start in ([0.0, np.nan], [0.0], [0.0, np.inf]):
        with pytest.raises(ValueError, match=r"start_s .* leave out jobs that never started"):
            recursion([0, 1], [1, 1], [0, 0], start)


def test_imports_where_no_cache_can_be_written(tmp_path):
    (tmp_path / "kernels_copy.py").write_text(Path(kernels.__file__).read_text())
    (tmp_path / "__pycache__").touch()  # a file: no folder of that name can be made
    env = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    env |= {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", "import kernels_copy"], cwd=tmp_path, env=env, check=True)


TEN_MILLION_JOBS = """
import resource
import numpy as np
from stlib.queueing.job_table import job_metrics
from stlib.queueing.simulation import simulate
n, rng = 10**7, np.random.default_rng(0)
arrival, work = rng.exponential(1 / 1.6, n).cumsum(), rng.gamma(5, 0.2, n)
metrics = job_metrics(simulate(arrival, work, 2, routing=ROUTING), slo_s=[2])
assert metrics["completed"] == n
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["central", "jsq"])
def test_ten_million_jobs_take_at_most_one_and_a_half_gigabytes(routing, record_summary):
    script = f"ROUTING = {routing!r}\n{TEN_MILLION_JOBS}"
    peak = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    record_summary(f"simulation_memory_{routing}", {"jobs": 10**7, "peak_bytes": peak})
    assert 0.5e9 < peak < 1.5e9
