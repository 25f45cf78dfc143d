"""Phase-type laws, and an exact chain for a queue that they serve: M/PH/k. Times in seconds, rates per second.

A phase-type law is that of the time an absorbing Markov chain takes to be absorbed. Such laws come as close as one
likes to any law of positive times, and keep a queue a Markov chain (Neuts, 1981).
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from stlib.queueing import checks
from stlib.queueing.checks import QueueMetrics, metrics

MAX_PHASES = 2000
MAX_CONFIGURATIONS = 2000
MAX_RHO = 0.9999  # rounding errors grow as (1 - rho)^-2: about 1e-7 of the wait here


@dataclass(frozen=True, eq=False)
class PhaseType:
    """Phase-type law: `alpha` (m,) the probabilities of the first phase, `T` (m, m) the rates between phases.

    The rates out of the phases are -T 1. ValueError unless alpha sums to 1 and T is a subgenerator that is left
    for sure.
    """

    alpha: np.ndarray
    T: np.ndarray

    def __post_init__(self):
        alpha, T = np.asarray(self.alpha, dtype=float), np.asarray(self.T, dtype=float)
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "T", T)
        square = alpha.ndim == 1 and T.shape == 2 * alpha.shape and np.isfinite(T).all()
        if not (square and (alpha >= 0).all() and abs(alpha.sum() - 1) < 1e-9):
            raise ValueError(f"alpha = {alpha} must be m probabilities of sum 1, T {T.shape} a finite matrix (m, m)")
        between = T - np.diag(T.diagonal())
        grows = (between < 0).any() or (T.sum(1) > 1e-9 * abs(T).max()).any()
        if grows or np.linalg.matrix_rank(T) < len(T):
            raise ValueError("T must be a subgenerator: rates >= 0 off its diagonal, row sums <= 0, every phase left")

    @classmethod
    def from_moments(cls, mean_s: float, scv: float) -> "PhaseType":
        """Return a law of this mean (seconds) and SCV (> 0).

        A mixture of Erlang laws of n - 1 and n phases for 1/n <= scv <= 1/(n - 1), the Erlang law of n phases at 1/n,
        two exponential branches of balanced means above 1 (Tijms, 2003, appendix B).
        """
        checks.positive(mean_s=mean_s, scv=scv)
        if scv > 1:
            share = (1 + math.sqrt((scv - 1) / (scv + 1))) / 2
            return cls([share, 1 - share], np.diag([-2 * share / mean_s, -2 * (1 - share) / mean_s]))
        n = math.ceil(1 / scv - 1e-9)
        if n > MAX_PHASES:
            raise ValueError(f"scv = {scv} takes {n} phases of at most {MAX_PHASES}; take mdk's deterministic service")
        skip = max(0.0, (n * scv - math.sqrt(max(0.0, n * (1 + scv) - n**2 * scv))) / (1 + scv))
        phase = np.eye(n)
        alpha = (1 - skip) * phase[0] + skip * phase[min(1, n - 1)]
        return cls(alpha, (n - skip) / mean_s * (np.eye(n, k=1) - phase))

    @property
    def mean(self) -> float:
        """Mean, seconds."""
        return float(np.linalg.solve(-self.T.T, self.alpha).sum())

    @property
    def exit_rates(self) -> np.ndarray:
        """Rate of ending from each phase, (m,) per second."""
        return np.maximum(-self.T.sum(1), 0.0)


def mphk(lam: float, ph: PhaseType, k: int) -> QueueMetrics:
    """M/PH/k: Poisson arrivals, phase-type service, k servers. Exact.

    A quasi-birth-death process whose level is the number of jobs and whose phase is the multiset of the busy
    servers' phases. Above k its matrix G comes from logarithmic reduction (Latouche and Ramaswami, 1999, chapter
    8), below from first-passage matrices level by level; no step subtracts, except on diagonals. Its law on level n
    is pi(n), with pi(n) flow(n) = lam pi(n - 1) begins(n).

    ValueError for rho above MAX_RHO or more than MAX_CONFIGURATIONS configurations, C(m + k - 1, k) for m phases.
    """
    k = checks.steady(lam, ph.mean, k)
    if (rho := lam * ph.mean / k) > MAX_RHO:
        raise ValueError(f"rho = {rho} must be at most {MAX_RHO}, above it the chain loses digits; use formulas.mgk")
    if (count := math.comb(len(ph.alpha) + k - 1, k)) > MAX_CONFIGURATIONS:
        raise ValueError(f"{count} phase configurations must be at most {MAX_CONFIGURATIONS}; take fewer servers or "
                         "phases, or simulate (stlib.queueing.simulation)")
    inside, ends, begins = zip((None,) * 3, *(_level(ph, n) for n in range(1, k + 1)), strict=True)
    up = lam * np.eye(count)
    flow = {k: up - inside[k]}
    flow[k] = flow[k] - lam * _first_passage(flow[k], up, ends[k] @ begins[k])
    for n in range(k - 1, 0, -1):
        passage = linalg.solve(flow[n + 1], ends[n + 1])
        flow[n] = lam * np.eye(len(passage.T)) - inside[n] - lam * (begins[n + 1] @ passage)
    level, total = np.ones(1), 1.0
    for n in range(1, k + 1):
        level = linalg.solve(flow[n].T, lam * (level @ begins[n]))
        total += level.sum()
    above = linalg.solve((flow[k] - up).T, lam * level)  # some wait, by configuration; divided by total a probability
    lq = linalg.solve((flow[k] - up).T, above @ flow[k]).sum() / (total + above.sum())
    return metrics(lam, lq / lam, ph.mean, k)


def _level(ph: PhaseType, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The moves of n busy servers, as matrices between configurations, numbered in the order of their tuples.

    Returns the rates among those of n while nothing begins or ends, total outflow on the diagonal; the rates to those
    of n - 1 as a service ends; and the probabilities from those of n - 1 once one more has begun. Each move is told by
    the configuration of the other n - 1 servers, and the phase of this one, before or after.
    """
    phases = range(len(ph.alpha))
    others = list(itertools.combinations_with_replacement(phases, n - 1))
    number = {busy: i for i, busy in enumerate(itertools.combinations_with_replacement(phases, n))}
    row = np.array([[number[tuple(sorted((*rest, phase)))] for rest in others] for phase in phases])
    servers = np.array([[rest.count(phase) + 1 for rest in others] for phase in phases])
    inside, ends = np.zeros((len(number), len(number))), np.zeros((len(number), len(others)))
    begins = np.zeros_like(ends.T)
    source, goal = ph.T.nonzero()
    np.add.at(inside, (row[source], row[goal]), ph.T[source, goal, None] * servers[source])
    ends[row, range(len(others))] = ph.exit_rates[:, None] * servers
    begins[range(len(others)), row] = ph.alpha[:, None]
    return inside, ends, begins


def _first_passage(flow: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return G, the law of the configuration on the first visit one level down, by logarithmic reduction."""
    rise, fall = np.split(linalg.solve(flow, np.hstack([up, down])), 2, axis=1)
    step, passage, path = fall, fall.copy(), rise.copy()
    while step.max() > 1e-15:
        back = np.eye(len(flow)) - rise @ fall - fall @ rise
        rise, fall = np.split(linalg.solve(back, np.hstack([rise @ rise, fall @ fall])), 2, axis=1)
        step = path @ fall
        passage += step
        path = path @ rise
    return passage
