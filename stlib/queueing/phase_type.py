"""Phase-type laws: the time an absorbing Markov chain takes to be absorbed.

They come as close as one likes to any law of positive times, and keep a queue a Markov chain (Neuts, 1981).
"""

import math
from dataclasses import dataclass

import numpy as np

from stlib.queueing import checks

MAX_PHASES = 2000


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
        if alpha.ndim != 1 or T.shape != 2 * alpha.shape or not np.isfinite(T).all():
            raise ValueError(f"alpha {alpha.shape} and T {T.shape} must have the shapes (m,) and (m, m), all finite")
        if not ((alpha >= 0).all() and abs(alpha.sum() - 1) < 1e-9):
            raise ValueError(f"alpha = {alpha} must be probabilities that sum to 1; normalise it")
        between = T - np.diag(T.diagonal())
        if (between < 0).any() or (T.sum(1) > 1e-9 * abs(T).max()).any() or not _left_for_sure(alpha, T):
            raise ValueError("T must be a subgenerator: rates >= 0 off its diagonal, row sums <= 0, every phase left")

    @classmethod
    def erlang(cls, n: int, mean_s: float) -> "PhaseType":
        """Return the sum of n exponential phases, of mean `mean_s` and SCV 1 / n."""
        n = checks.whole(n=n)
        checks.positive(mean_s=mean_s)
        return cls(np.eye(n)[0], n / mean_s * (np.eye(n, k=1) - np.eye(n)))

    @classmethod
    def from_moments(cls, mean_s: float, scv: float) -> "PhaseType":
        """Return a law of this mean (seconds) and SCV (> 0).

        A mixture of Erlang laws of n - 1 and n phases for 1/n <= scv <= 1/(n - 1), two exponential branches of
        balanced means above 1 (Tijms, 2003, appendix B).
        """
        checks.positive(mean_s=mean_s, scv=scv)
        if scv > 1:
            share = (1 + math.sqrt((scv - 1) / (scv + 1))) / 2
            return cls([share, 1 - share], np.diag([-2 * share / mean_s, -2 * (1 - share) / mean_s]))
        n = math.ceil(1 / scv - 1e-9)
        _refuse_too_many_phases(n, scv)
        skip = max(0.0, (n * scv - math.sqrt(max(0.0, n * (1 + scv) - n**2 * scv))) / (1 + scv))
        law = cls.erlang(n, n / (n - skip) * mean_s)
        alpha = np.zeros(n)
        alpha[: min(n, 2)] = [1.0] if n == 1 else [1 - skip, skip]
        return cls(alpha, law.T)

    def moment(self, order: int) -> float:
        """Return the raw moment E S^order = order! alpha (-T)^-order 1 (seconds^order)."""
        row = self.alpha
        for j in range(1, checks.whole(order=order) + 1):
            row = j * np.linalg.solve(-self.T.T, row)
        return float(row.sum())

    @property
    def mean(self) -> float:
        """Mean, seconds."""
        return self.moment(1)

    @property
    def scv(self) -> float:
        """Squared coefficient of variation."""
        return self.moment(2) / self.moment(1) ** 2 - 1

    @property
    def exit_rates(self) -> np.ndarray:
        """Rate of ending from each phase, (m,) per second."""
        return np.maximum(-self.T.sum(1), 0.0)


def _left_for_sure(alpha: np.ndarray, T: np.ndarray) -> bool:
    try:
        visits = np.linalg.solve(-T.T, alpha)
    except np.linalg.LinAlgError:
        return False
    return bool((visits >= -1e-9 * abs(visits).max()).all() and abs(-T.sum(1) @ visits - 1) < 1e-6)


def _refuse_too_many_phases(count: int, scv: float) -> None:
    if count > MAX_PHASES:
        raise ValueError(f"scv = {scv} takes {count} phases of at most {MAX_PHASES}; take mdk's deterministic service")
