"""Estimates that learn, from the jobs that complete, how fast this machine does them."""

from collections import deque
from collections.abc import Callable

import numpy as np

FORGET = 0.9  # of what was learned, kept at each further job: ten jobs or so count
PRIOR = 5  # jobs that took as estimated, which is all that is known at first
HOUR_S = 3600.0


class Learned:
    """`estimate(params, method)` of a dispatcher, times the ratio of measured to estimated seconds so far, by method.

    A method that has done no job yet has the ratio of all jobs. beyond: whether a job of these parameters is beyond
    what was fitted, so that its estimate is an extrapolation; such jobs are learned from too.
    """

    def __init__(self, estimate: Callable[[dict, str], float],
                 beyond: Callable[[dict], bool] = lambda params: False):
        self.estimate, self.beyond, self._sums, self._waits = estimate, beyond, {}, deque()

    def __call__(self, params: dict, method: str) -> float:
        return self.estimate(params, method) * self.ratio(method)

    def ratio(self, method: str | None = None) -> float:
        """Measured over estimated seconds of a method's latest jobs; of all jobs for None or a method without any."""
        measured, estimated = self._sums.get(method) or np.sum(list(self._sums.values()) or [(1.0, 1.0)], axis=0)
        return float(measured / estimated)

    def learn(self, params: dict, method: str, seconds: float) -> None:
        """A job of these parameters took so many seconds on its replica."""
        estimated = self.estimate(params, method)
        start = PRIOR * estimated * self.ratio(), PRIOR * estimated
        before = self._sums.get(method, start)
        self._sums[method] = FORGET * before[0] + seconds, FORGET * before[1] + estimated

    def waited(self, at_s: float, told_s: float, real_s: float) -> None:
        """A job that was told a wait started at `at_s`, a clock of seconds, after the real one."""
        self._waits.append((at_s, told_s, real_s))
        while self._waits[0][0] < at_s - HOUR_S:
            self._waits.popleft()

    def state(self) -> dict:
        """The ratio of each method, and of the last hour's jobs their number, mean wait told and mean wait, seconds."""
        told, real = np.array(list(self._waits)).reshape(-1, 3)[:, 1:].T
        return {"speed_ratio": {name: self.ratio(name) for name in self._sums}, "waits": len(told),
                "told_wait_s": float(told.mean()) if len(told) else None,
                "real_wait_s": float(real.mean()) if len(real) else None}
