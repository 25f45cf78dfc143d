"""An exact chain: M/PH/k. Times in seconds, rates per second."""

import itertools
import math
from collections.abc import Iterable

import numpy as np
from scipy import linalg, sparse

from stlib.queueing import checks
from stlib.queueing.checks import QueueMetrics, metrics
from stlib.queueing.phase_type import PhaseType

MAX_CONFIGURATIONS = 2000
MAX_RHO = 0.9999  # rounding errors grow as (1 - rho)^-2: about 1e-7 of the wait here


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
        raise ValueError(f"rho = {rho} must be at most {MAX_RHO}, above it the chain loses digits; use formulas.mgk")
    if (count := math.comb(len(ph.alpha) + k - 1, k)) > MAX_CONFIGURATIONS:
        raise ValueError(f"{count} phase configurations must be at most {MAX_CONFIGURATIONS}; take fewer servers or "
                         "phases, or simulate (stlib.queueing.simulation)")
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
    entries = ((busy.count(i) * ph.T[i, j], a, rows[_with(_without(busy, i), j)])
               for busy, a in rows.items() for i in set(busy) for j in np.flatnonzero(ph.T[i]))  # fmt: skip
    return _matrix(entries, (len(rows), len(rows)))


def _ends(ph: PhaseType, rows: dict, below: dict) -> sparse.csr_array:
    """Rates to the level below: one busy server ends its service."""
    exits = ph.exit_rates
    entries = ((busy.count(i) * exits[i], a, below[_without(busy, i)]) for busy, a in rows.items() for i in set(busy))
    return _matrix(entries, (len(rows), len(below)))


def _begins(ph: PhaseType, rows: dict, above: dict) -> sparse.csr_array:
    """Probabilities of the configuration in the level above once one more service has begun."""
    entries = ((ph.alpha[j], a, above[_with(busy, j)]) for busy, a in rows.items() for j in np.flatnonzero(ph.alpha))
    return _matrix(entries, (len(rows), len(above)))


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
