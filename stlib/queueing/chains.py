"""Exact chains: M/PH/k, and M/G/1 whose service law depends on the number of outstanding jobs.

Times in seconds, rates per second.
"""

import itertools
import math
from collections.abc import Iterable

import numpy as np
from scipy import linalg, sparse, stats

from stlib.queueing import checks
from stlib.queueing.checks import QueueMetrics, metrics
from stlib.queueing.phase_type import PhaseType

MAX_CONFIGURATIONS = 2000
MAX_RHO = 0.9999  # rounding errors grow as (1 - rho)^-2: about 1e-7 of the wait here


def _refuse_too_many(count: int) -> None:
    if count > MAX_CONFIGURATIONS:
        raise ValueError(
            f"{count} phase configurations must be at most {MAX_CONFIGURATIONS}; "
            "take fewer servers or phases, or simulate (stlib.queueing.simulation)"
        )


def mphk(lam: float, ph: PhaseType, k: int) -> QueueMetrics:
    """M/PH/k: Poisson arrivals, phase-type service, k servers. Exact.

    ValueError for rho above MAX_RHO or more than MAX_CONFIGURATIONS configurations, C(m + k - 1, k) for m phases.
    """
    k = checks.whole(k=k)
    top, flow = _stationary(lam, ph, k)
    above = linalg.solve((flow - lam * np.eye(len(top))).T, lam * top)  # waiting > 0, by configuration
    lq = linalg.solve((flow - lam * np.eye(len(top))).T, above @ flow).sum()
    return metrics(lam, lq / lam, ph.mean, k)


def _stationary(lam: float, ph: PhaseType, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pi(k), the law on the configurations of k jobs, and F with pi(n + 1) F = lam pi(n), n >= k.

    A quasi-birth-death process whose level is the number of jobs and whose phase is the multiset of the busy
    servers' phases. Above k its matrix G comes from logarithmic reduction (Latouche and Ramaswami, 1999, chapter
    8), below from first-passage matrices level by level; no step subtracts, except on diagonals.
    """
    checks.positive(lam=lam)
    rho = lam * ph.mean / k
    checks.stable(rho)
    if rho > MAX_RHO:
        raise ValueError(
            f"rho = {rho} must be at most {MAX_RHO}, above it the chain loses its digits; use formulas.mgk"
        )
    _refuse_too_many(math.comb(len(ph.alpha) + k - 1, k))
    rows = [_configurations(len(ph.alpha), n) for n in range(k + 1)]
    inside = [_changes(ph, at) for at in rows]
    ends = [None, *(_ends(ph, at, below) for below, at in itertools.pairwise(rows))]
    begins = [_begins(ph, at, above) for at, above in itertools.pairwise(rows)]
    identity = np.eye(inside[k].shape[0])
    down = (ends[k] @ begins[k - 1]).toarray()
    flow = {k: lam * identity - inside[k].toarray()}
    flow[k] = flow[k] - lam * _first_passage(flow[k], lam * identity, down)
    for n in range(k - 1, 0, -1):
        passage = linalg.solve(flow[n + 1], ends[n + 1].toarray())
        flow[n] = lam * np.eye(inside[n].shape[0]) - inside[n].toarray() - lam * (begins[n] @ passage)
    levels = [np.ones(1)]
    for n in range(1, k + 1):
        levels.append(linalg.solve(flow[n].T, lam * (levels[-1] @ begins[n - 1])))
    waiting = linalg.solve((flow[k] - lam * identity).T, lam * levels[k]).sum()
    total = sum(level.sum() for level in levels) + waiting
    return levels[k] / total, flow[k]


def _configurations(m: int, n: int) -> dict[tuple[int, ...], int]:
    """Number the multisets of n phases out of m, each a sorted tuple."""
    return {phases: i for i, phases in enumerate(itertools.combinations_with_replacement(range(m), n))}


def _changes(ph: PhaseType, rows: dict) -> sparse.csr_array:
    """Rates between the configurations of one level while nothing begins or ends; total outflow on the diagonal."""
    return _matrix(
        (
            (busy.count(i) * ph.T[i, j], a, rows[_with(_without(busy, i), j)])
            for busy, a in rows.items()
            for i in set(busy)
            for j in np.flatnonzero(ph.T[i])
        ),
        (len(rows), len(rows)),
    )


def _ends(ph: PhaseType, rows: dict, below: dict) -> sparse.csr_array:
    """Rates to the level below: one busy server ends its service."""
    exits = ph.exit_rates
    return _matrix(
        ((busy.count(i) * exits[i], a, below[_without(busy, i)]) for busy, a in rows.items() for i in set(busy)),
        (len(rows), len(below)),
    )


def _begins(ph: PhaseType, rows: dict, above: dict) -> sparse.csr_array:
    """Probabilities of the configuration in the level above once one more service has begun."""
    return _matrix(
        ((ph.alpha[j], a, above[_with(busy, j)]) for busy, a in rows.items() for j in np.flatnonzero(ph.alpha)),
        (len(rows), len(above)),
    )


def _without(busy: tuple[int, ...], i: int) -> tuple[int, ...]:
    at = busy.index(i)
    return busy[:at] + busy[at + 1 :]


def _with(busy: tuple[int, ...], j: int) -> tuple[int, ...]:
    return tuple(sorted((*busy, j)))


def _matrix(entries: Iterable[tuple[float, int, int]], shape: tuple[int, int]) -> sparse.csr_array:
    table = np.array(list(entries), dtype=float).reshape(-1, 3)
    return sparse.csr_array((table[:, 0], (table[:, 1].astype(int), table[:, 2].astype(int))), shape=shape)


def _first_passage(flow: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return G, the law of the configuration on the first visit one level down, by logarithmic reduction."""
    identity = np.eye(len(flow))
    rise, fall = np.split(linalg.solve(flow, np.hstack([up, down])), 2, axis=1)
    passage, path = fall.copy(), rise.copy()
    step = passage
    while step.max() > 1e-15:
        back = identity - rise @ fall - fall @ rise
        rise, fall = np.split(linalg.solve(back, np.hstack([rise @ rise, fall @ fall])), 2, axis=1)
        step = path @ fall
        passage += step
        path = path @ rise
    return passage


def mg1_queue_dependent(lam: float, laws: list, policy) -> QueueMetrics:
    """M/G/1 whose service law follows the number n of outstanding jobs at each service start. Exact.

    `laws`: the service laws, each a PhaseType or a pair (mean_s, scv_s) that stands for a gamma law (SCV 0:
    deterministic). `policy`: integers, policy[n] the law's index at n outstanding jobs, the starting one included
    (its last entry for more; policy[0] is not used). `rho` is the share of time the server is busy. ValueError
    if the last law alone has no steady state or the policy names no law.

    The number left behind by departing jobs is a Markov chain whose law is also the one at any moment. Below
    n = len(policy) its probabilities follow from the balance of jumps across each level (Ramaswami, 1988: sums of
    positive terms), above from the moments of the generating function Pi, with N = len(policy) - 1 and A_n the
    generating function of the arrivals in a service begun at n:
    Pi(z) (z - A_N(z)) = p_0 (z A_1(z) - A_N(z)) + sum over 0 < n < N of p_n z^n (A_n(z) - A_N(z)).
    """
    law_at = _laws_by_outstanding(lam, laws, policy)
    last = len(law_at) - 1
    load = [lam * mean for mean, _ in map(_two_moments, law_at)]  # A'(1)
    bend = [lam**2 * second for _, second in map(_two_moments, law_at)]  # A''(1)
    checks.stable(load[last])
    p = _embedded_probabilities(lam, law_at)
    busy = p[0] * load[1]  # Pi(1) - p_0 and, below, Pi'(1) less it, both times 1 - load[last]: nothing cancels
    waiting = p[0] * (bend[1] - bend[last])
    for n in range(1, last):
        busy += p[n] * (load[n] - load[last])
        waiting += p[n] * (2 * (n - 1) * (load[n] - load[last]) + bend[n] - bend[last])
    total = p[0] + busy / (1 - load[last])
    lq = (waiting + bend[last] * total) / (2 * (1 - load[last])) / total
    return metrics(lam, lq / lam, busy / (1 - load[last]) / total / lam, 1)


def _laws_by_outstanding(lam: float, laws: list, policy) -> list:
    """Return the law at n outstanding jobs for n = 0..N (that at 0 is a placeholder), N >= 1 the last that differs."""
    checks.positive(lam=lam)
    policy = checks.check_policy(policy, len(laws))
    for law in laws:
        if not isinstance(law, PhaseType):
            checks.positive(mean_s=law[0])
            checks.nonnegative(scv_s=law[1])
    return [laws[i] for i in (policy if len(policy) > 1 else [policy[0], policy[0]])]


def _two_moments(law) -> tuple[float, float]:
    if isinstance(law, PhaseType):
        return law.mean, law.moment(2)
    return law[0], law[0] ** 2 * (1 + law[1])


def _arrivals_in_service(lam: float, law, n_max: int) -> np.ndarray:
    """Return P(i Poisson arrivals during one service) for i = 0..n_max."""
    counts = np.arange(n_max + 1)
    if isinstance(law, PhaseType):
        leave = np.linalg.inv(lam * np.eye(len(law.alpha)) - law.T)
        row, chances = law.alpha @ leave, []
        for _ in counts:
            chances.append(row @ law.exit_rates)
            row = lam * row @ leave
        return np.array(chances)
    mean_s, scv_s = law
    if scv_s < 1e-9:  # a gamma law too narrow to tell from a constant
        return stats.poisson.pmf(counts, lam * mean_s)
    return stats.nbinom.pmf(counts, 1 / scv_s, 1 / (1 + lam * mean_s * scv_s))


def _embedded_probabilities(lam: float, law_at: list) -> np.ndarray:
    """Return the unnormalised p_0..p_N-1 of the number left behind, p_0 = 1."""
    last = len(law_at) - 1
    chances = [_arrivals_in_service(lam, law, last) for law in law_at]
    above = [1 - chance.cumsum() for chance in chances]  # above[n][i] = P(more than i arrivals)
    p = np.ones(max(last, 1))
    for i in range(last - 1):
        upward = p[0] * above[1][i] + sum(p[n] * above[n][i + 1 - n] for n in range(1, i + 1))
        p[i + 1] = upward / chances[i + 1][0]
    return p
