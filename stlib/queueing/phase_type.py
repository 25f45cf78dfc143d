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
