import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import by_three_moments, draws, erlang, scv_of
from queue_dependent import mg1_queue_dependent
from scipy import sparse, stats
from scipy.sparse.linalg import spsolve

from stlib.queueing import chains
from stlib.queueing.chains import PhaseType, mphk
from stlib.queueing.formulas import mdk, mg1, mgk, mm1, mmk
from stlib.queueing.simulation import simulate


def steady_state(transitions):
    """Stationary law of a finite Markov chain from its {(state, state): rate}, by one sparse direct solve."""
    number = {state: i for i, state in enumerate(sorted({state for pair in transitions for state in pair}))}
    rows, columns = ([number[pair[end]] for pair in transitions] for end in (0, 1))
    rates = sparse.csr_array((list(transitions.values()), (rows, columns)), shape=(len(number),) * 2)
    balance = sparse.lil_array((rates - sparse.diags_array(rates.sum(1))).T)
    balance[0] = 1
    law = spsolve(balance.tocsc(), np.eye(len(number))[0])
    return dict(zip(number, law, strict=True))


def two_phase_waiting(lam, starts, ends, moves, k, longest=400):
    """Mean number waiting of k servers whose jobs begin in phase 0 or 1 with `starts`, end at rates `ends`, and move
    from phase 0 to 1 at rate `moves`. States: (waiting, busy in phase 0, busy in phase 1), the queue cut off."""
    rates = {}

    def add(state, to, rate):
        if rate > 0:
            rates[state, to] = rates.get((state, to), 0) + rate

    for q, a, b in itertools.product(range(longest + 1), range(k + 1), range(k + 1)):
        if a + b > k or (q > 0 and a + b < k):
            continue
        here = (q, a, b)
        if a + b == k and q < longest:
            add(here, (q + 1, a, b), lam)
        elif a + b < k:
            add(here, (0, a + 1, b), lam * starts[0])
            add(here, (0, a, b + 1), lam * starts[1])
        if a:
            add(here, (q, a - 1, b + 1), a * moves)
        for count, rate, left in ((a, ends[0], (a - 1, b)), (b, ends[1], (a, b - 1))):
            if count and q:
                add(here, (q - 1, left[0] + 1, left[1]), count * rate * starts[0])
                add(here, (q - 1, left[0], left[1] + 1), count * rate * starts[1])
            elif count:
                add(here, (0, *left), count * rate)
    return sum(state[0] * p for state, p in steady_state(rates).items())


@pytest.mark.parametrize(("k", "rho"), [(1, 0.9), (2, 0.5), (3, 0.8), (5, 0.9), (8, 0.7)])
def test_erlang_service_against_a_direct_solution(k, rho):
    lq = two_phase_waiting(rho * k, (1, 0), (0, 2.0), 2.0, k)
    assert mphk(rho * k, erlang(2, 1.0), k).lq == pytest.approx(lq, rel=1e-7)


@pytest.mark.parametrize(("k", "rho", "scv"), [(1, 0.7, 4.0), (2, 0.6, 8.0), (4, 0.8, 2.0), (8, 0.5, 5.0)])
def test_hyperexponential_service_against_a_direct_solution(k, rho, scv):
    law = PhaseType.from_moments(1.0, scv)
    lq = two_phase_waiting(rho * k, law.alpha, law.exit_rates, 0.0, k)
    assert mphk(rho * k, law, k).lq == pytest.approx(lq, rel=1e-6)


@given(st.floats(0.01, 0.99), st.integers(1, 12))
@settings(max_examples=40)
def test_one_phase_is_mmk(rho, k):
    assert mphk(rho * k, erlang(1, 1.0), k).wq == pytest.approx(mmk(rho * k, 1.0, k).wq, rel=1e-8)


@given(st.floats(0.01, 0.98), st.floats(0.04, 20), st.floats(1e-2, 1e2))
@settings(max_examples=40)
def test_one_server_is_pollaczek_khinchine(rho, scv, mean_s):
    law = PhaseType.from_moments(mean_s, scv)
    assert mphk(rho / mean_s, law, 1).wq == pytest.approx(mg1(rho / mean_s, mean_s, scv).wq, rel=1e-6)


@given(st.integers(2, 4), st.floats(0.1, 0.9), st.floats(0.3, 5), st.integers(0, 10_000))
@settings(max_examples=20)
def test_other_phases_of_the_same_law_wait_as_long(k, rho, scv, seed):
    """Phases numbered in another order, and one split in two that behave alike, change the chain but not the wait."""
    law = PhaseType.from_moments(1.0, scv)
    m = len(law.alpha)
    order = np.random.default_rng(seed).permutation(m + 1)
    copy = np.vstack([np.eye(m), np.eye(m)[-1:]])
    T = copy @ law.T @ np.linalg.pinv(copy)
    T[np.arange(m + 1), np.arange(m + 1)] = np.append(law.T.diagonal(), law.T[-1, -1])
    T[-1, m - 1] = T[m - 1, -1] = 0
    doubled = PhaseType((law.alpha @ np.linalg.pinv(copy))[order], T[np.ix_(order, order)])
    assert mphk(rho * k, doubled, k).wq == pytest.approx(mphk(rho * k, law, k).wq, rel=1e-8)


def test_nearly_deterministic_service_tends_to_mdk():
    waits = [mphk(1.6, erlang(n, 1.0), 2).wq - mdk(1.6, 1.0, 2).wq for n in (5, 10, 20)]
    assert waits[0] > waits[1] > waits[2] > 0
    assert 2 * waits[2] - waits[1] == pytest.approx(0, abs=0.02 * waits[0])


def test_near_saturation_the_chain_is_exact_or_refuses():
    rho = chains.MAX_RHO
    assert mphk(2 * rho, erlang(1, 1.0), 2).wq == pytest.approx(mmk(2 * rho, 1.0, 2).wq, rel=1e-6)
    assert mphk(rho, PhaseType.from_moments(1.0, 4.0), 1).wq == pytest.approx(mg1(rho, 1.0, 4.0).wq, rel=1e-6)
    with pytest.raises(ValueError, match=r"rho = 0.99999 must be at most 0.9999"):
        mphk(0.99999, erlang(2, 1.0), 1)


@pytest.mark.parametrize("lam", [1e-12, 1e-6, 1e-3])
def test_waits_of_an_almost_empty_queue_keep_their_digits(lam):
    exact = mg1(lam, 2.0, 0.5).wq
    law = erlang(2, 2.0)
    assert mphk(lam, law, 1).wq == pytest.approx(exact, rel=1e-9, abs=0)
    for policy in ([0], [0, 0, 1], [1, 0, 1, 0]):
        found = mg1_queue_dependent(lam, [(2.0, 0.5), law], policy)
        assert (found.wq, found.rho) == pytest.approx((exact, 2 * lam), rel=1e-9, abs=0)


def test_too_many_configurations_point_to_simulation():
    assert math.comb(5 + 10 - 1, 5) > chains.MAX_CONFIGURATIONS
    with pytest.raises(ValueError, match=r"2002 phase configurations must be at most 2000.*simulat"):
        mphk(2.5, erlang(10, 1.0), 5)


@pytest.mark.parametrize("bad", [0, -1, 1.5, math.nan, math.inf])
def test_bad_input_is_refused(bad):
    law = erlang(2, 1.0)
    with pytest.raises(ValueError, match=r"k = .* must"):
        mphk(0.5, law, bad)
    if bad != 1.5:
        with pytest.raises(ValueError, match=r"lam = .* must"):
            mphk(bad, law, 2)
        with pytest.raises(ValueError, match=r"lam = .* must"):
            mg1_queue_dependent(bad, [(1.0, 1.0)], [0])
    with pytest.raises(ValueError, match="rho = 1 must be below 1"):
        mphk(2.0, law, 2)


# M/G/1 with a service law by outstanding jobs, and the simulator's policies against it


def embedded_chain(lam, laws, policy, size=400):
    """Mean jobs left behind, and P(none), from the truncated transition matrix between service ends. The laws are
    frozen scipy distributions; the arrivals in a service are counted by numerical integration over its length."""
    quantiles = (np.arange(4000) + 0.5) / 4000
    counts = [stats.poisson.pmf(np.arange(size)[:, None], lam * law.ppf(quantiles)).mean(1) for law in laws]
    matrix = np.zeros((size, size))
    for left in range(size):
        n = max(left, 1)
        law = policy[min(n, len(policy) - 1)]
        matrix[left, n - 1 :] = counts[law][: size - n + 1]
    matrix /= matrix.sum(1, keepdims=True)
    balance = (matrix - np.eye(size)).T
    balance[0] = 1
    p = np.linalg.solve(balance, np.eye(size)[0])
    return p @ np.arange(size), p[0]


@pytest.mark.parametrize("policy", [[0, 0, 0, 1], [0, 1, 0], [2, 0, 1, 2, 1], [1]])
def test_queue_dependent_service_against_the_embedded_chain(policy):
    laws = [(1.2, 0.5), (0.8, 0.2), (1.0, 0.04)]
    frozen = [stats.gamma(1 / scv, scale=scv * mean) for mean, scv in laws]
    found = mg1_queue_dependent(0.7, laws, policy)
    jobs, idle = embedded_chain(0.7, frozen, policy)
    assert (found.l, found.rho) == pytest.approx((jobs, 1 - idle), rel=2e-3)


@pytest.mark.parametrize("policy", [[0, 0, 0, 1], [0, 0, 1, 1, 0, 1], [0, 1], [0, 0, 0, 0, 0, 0, 0, 1]])
@pytest.mark.parametrize(("slow", "quick"), [((1, 1.5), (1, 0.7)), ((2, 1.5), (1, 0.7)), ((1, 1.1), (3, 0.9))])
def test_queue_dependent_service_against_the_whole_chain(policy, slow, quick):
    """States: (jobs, law in service, phases left); the law is chosen at each start by the jobs then present."""
    lam, laws, rates = 0.8, (slow, quick), {}

    def start(jobs):
        law = policy[min(jobs, len(policy) - 1)]
        return (jobs, law, laws[law][0])

    def go(state, to, rate):
        rates[state, to] = rates.get((state, to), 0) + rate

    go((0,), start(1), lam)
    for jobs, law in itertools.product(range(1, 300), (0, 1)):
        phases, mean = laws[law]
        for left in range(1, phases + 1):
            here = (jobs, law, left)
            if jobs < 299:
                go(here, (jobs + 1, law, left), lam)
            after = (jobs, law, left - 1) if left > 1 else start(jobs - 1) if jobs > 1 else (0,)
            go(here, after, phases / mean)
    law_of_state = steady_state(rates)
    found = mg1_queue_dependent(lam, [erlang(*slow), erlang(*quick)], policy)
    assert found.l == pytest.approx(sum(state[0] * p for state, p in law_of_state.items()), rel=1e-6)
    assert found.rho == pytest.approx(1 - law_of_state[(0,)], rel=1e-8)
    assert found.w == pytest.approx(found.l / lam)
    assert found.wq == pytest.approx(found.w - found.rho / lam)
    assert found.lq == pytest.approx(lam * found.wq)


@given(st.floats(0.01, 0.95), st.floats(0, 5), st.lists(st.integers(0, 1), min_size=1, max_size=8))
def test_equal_laws_are_pollaczek_khinchine(rho, scv, policy):
    found = mg1_queue_dependent(rho / 2, [(2.0, scv), (2.0, scv)], policy)
    assert (found.rho, found.wq) == pytest.approx((rho, mg1(rho / 2, 2.0, scv).wq), rel=1e-6)


@given(st.integers(1, 12), st.lists(st.integers(0, 1), min_size=1, max_size=8))
def test_gamma_counts_are_those_of_the_erlang_law(n, policy):
    by_pair = mg1_queue_dependent(0.6, [(1.4, 1 / n), (1.0, 0.0)], policy)
    by_phases = mg1_queue_dependent(0.6, [erlang(n, 1.4), (1.0, 0.0)], policy)
    assert by_pair.wq == pytest.approx(by_phases.wq, rel=1e-8)


def test_an_overloaded_law_is_fine_while_the_last_is_stable():
    found = mg1_queue_dependent(0.9, [(3.0, 1.0), (0.5, 1.0)], [0, 0, 0, 0, 1])
    assert mm1(0.9, 2.0).w < found.w < math.inf
    with pytest.raises(ValueError, match=r"rho = 2\.7 must be below 1"):
        mg1_queue_dependent(0.9, [(3.0, 1.0), (0.5, 1.0)], [1, 1, 0])


@pytest.mark.parametrize("policy", [[], [2], [-1], [0.5], [[0]], [math.nan], [math.inf], [True, False], ["0"]])
def test_a_policy_that_names_no_law_is_refused(policy):
    with pytest.raises(ValueError, match="policy"):
        mg1_queue_dependent(0.5, [(1.0, 1.0), (0.5, 1.0)], policy)


@pytest.mark.parametrize("law", [(0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, -0.1), (1.0, math.inf)])
def test_a_law_out_of_range_is_refused(law):
    with pytest.raises(ValueError, match="must be a finite number"):
        mg1_queue_dependent(0.5, [law], [0])


@pytest.mark.parametrize("policy", [[0, 0, 0, 1], [0, 1, 0, 2]])
def test_the_simulator_follows_a_policy_as_the_exact_queue_does(policy):
    """Mean waits of 40 long runs, their first tenth left out."""
    laws, n, waits = [(1.2, 0.5), (0.8, 0.2), (1.0, 0.04)], 20_000, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        work = np.column_stack([rng.gamma(1 / scv, scv * mean, n) for mean, scv in laws])
        arrival = rng.exponential(1 / 0.7, n).cumsum()
        table = simulate(arrival, work, 1, methods=("slow", "quick", "even"), policy=policy)
        waits.append((table["start_s"] - table["arrival_s"])[n // 10 :].mean())
    exact = mg1_queue_dependent(0.7, laws, policy).wq
    assert abs(np.mean(waits) - exact) < 4 * np.std(waits, ddof=1) / math.sqrt(40)


def test_mgk_stays_near_the_exact_chain_for_erlang_service():
    for k, n, rho in itertools.product((2, 3, 4), (2, 4), (0.5, 0.7, 0.9)):
        exact = mphk(rho * k, erlang(n, 1.0), k).wq
        assert abs(mgk(rho * k, 1.0, 1 / n, k).wq - exact) < max(0.01 * exact, 0.001)


# battery: the exact chain against the simulator, by the z rule


def random_cases(n_cases, rng):
    """Service laws by two moments, every third by three, of which the chain takes at most MAX_CONFIGURATIONS."""
    while n_cases:
        k, rho, scv = int(rng.integers(1, 9)), rng.uniform(0.3, 0.95), float(np.exp(rng.uniform(*np.log([0.05, 8]))))
        third = None if n_cases % 3 else rng.uniform(1.2, 2.5) * (1 + scv) ** 2
        law = PhaseType.from_moments(1.0, scv) if third is None else by_three_moments(1.0, scv, third)
        if math.comb(len(law.alpha) + k - 1, k) <= chains.MAX_CONFIGURATIONS:
            n_cases -= 1
            yield k, rho, scv, law


def simulated_waits(lam, law, k, n_runs, rng):
    """Mean wait of each of n_runs replications, (n_runs,), after a warm-up that forgets the empty start.

    The wait forgets its start with the relaxation time of reflected Brownian motion, 2 (1 + scv) (rho / (1 - rho))^2
    arrivals, and the services with a few of the longest phase. Ten of them leave a bias far below the standard error.
    """
    rho = lam * law.mean / k
    relaxation = 2 * (1 + scv_of(law)) * (rho / (1 - rho)) ** 2 + lam / -law.T.diagonal().max()
    warm_up, kept = int(10 * relaxation), int(15 * relaxation) + 10_000
    waits = []
    for _ in range(n_runs):
        arrivals = rng.exponential(1 / lam, warm_up + kept).cumsum()
        table = simulate(arrivals, draws(law, warm_up + kept, rng), k)
        waits.append((table["start_s"] - table["arrival_s"]).to_numpy()[warm_up:].mean())
    return np.array(waits)


@pytest.mark.slow
def test_the_chain_agrees_with_the_simulator(record_summary):
    seed, n_runs, rows = 20261124, 120, []
    rng = np.random.default_rng(seed)
    for k, rho, scv, law in random_cases(64, rng):
        exact = mphk(rho * k, law, k).wq
        waits = simulated_waits(rho * k, law, k, n_runs, rng)
        error = waits.std(ddof=1) / math.sqrt(n_runs)
        case = {"k": k, "rho": rho, "scv": scv, "phases": len(law.alpha), "exact_wq": exact}
        rows.append(case | {"simulated_wq": waits.mean(), "standard_error": error, "z": (waits.mean() - exact) / error})
    z = np.array([row["z"] for row in rows])
    p = float(stats.chi2.sf((z**2).sum(), len(z)))
    summary = {"cases": len(z), "replications": n_runs, "seed": seed, "largest_abs_z": abs(z).max(), "p_of_sum_z2": p}
    summary["largest_relative_standard_error"] = max(row["standard_error"] / row["exact_wq"] for row in rows)
    record_summary("mphk_against_simulator", summary | {"rows": rows})
    assert abs(z).max() < 4
    assert 0.001 <= p <= 0.999
