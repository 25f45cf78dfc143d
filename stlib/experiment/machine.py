"""What the machine does to a job: its speed over time, and what busy replicas do to each other.

The logarithm of the machine factor is taken to be an Ornstein-Uhlenbeck process, an AR(1) in continuous time. A probe
shows it through noise of its own; taken as it is, a noisy covariate biases its slope toward zero.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from stlib.queueing.simulation import replication_interval


@dataclass(frozen=True)
class Speed:
    """What replicas do to each other, and the dispatcher's time a job.

    speed: for each method its speed while 1, 2, ... replicas are busy, relative to one alone. interval: of each the
    95 % interval, blocks taken as independent. probe_ratio: the probe's seconds then, over those alone. dispatch_s.
    """

    speed: dict[str, list[float]]
    interval: dict[str, list[list[float]]]
    probe_ratio: dict[str, list[float]]
    dispatch_s: float

    @classmethod
    def fit(cls, rows: pd.DataFrame, dispatch_s: float = 0.0) -> "Speed":
        """From the rows of `measure_contention`: exp of the mean over jobs of log(alone / busy)."""
        speed, interval, ratio = {}, {}, {}
        for method, of_method in rows.groupby("method"):
            logs = np.log(of_method.set_index(["block", "job_id", "busy"])[["run_s", "probe_s"]]).unstack("busy")
            gain = -logs["run_s"].sub(logs["run_s"][1], axis=0)
            speed[method] = np.exp(gain.mean()).tolist()
            interval[method] = [np.exp(replication_interval(block_means)).tolist()
                                for _, block_means in gain.groupby("block").mean().items()]
            ratio[method] = np.exp(logs["probe_s"].sub(logs["probe_s"][1], axis=0).mean()).tolist()
        return cls(speed, interval, ratio, dispatch_s)

    def of(self, method: str, k: int) -> np.ndarray:
        """speed (k + 1,) as the simulator takes it; beyond the replicas measured, the last measured one."""
        return _extended(self.speed, method, k)

    def relative_se(self, method: str, k: int) -> float:
        """Standard error of the speed of k busy replicas, relative; 0 where no interval was measured."""
        measured = self.interval.get(method, [[1.0, 1.0]])
        low, high = measured[min(k, len(measured)) - 1]
        return float(np.log(high / low) / (2 * 1.96))

    def probe_ratios(self, method: str, k: int) -> np.ndarray:
        """The probe's ratios (k + 1,), by the number of busy replicas; likewise."""
        return _extended(self.probe_ratio, method, k)

    def to_json(self, path: str | Path) -> Path:
        """Write as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")
        return Path(path)

    @classmethod
    def from_json(cls, path: str | Path) -> "Speed":
        """Read what `to_json` wrote."""
        return cls(**json.loads(Path(path).read_text()))


def _extended(measured: dict[str, list[float]], method: str, k: int) -> np.ndarray:
    if method not in measured:
        raise ValueError(f"no speed of method {method!r} was measured: there are {', '.join(measured)}; "
                         "measure its contention")
    values = measured[method]
    return np.array([1.0, *values[:k], *[values[-1]] * (k - len(values))])

MAX_GAP_S = 30.0  # runs further apart are not neighbours in time
CHUNK = 500  # probes smoothed together


class Level(NamedTuple):
    """The level's standard deviation, the time in which its correlation falls to 1/e, a probe's noise (logarithms)."""

    sd: float
    tau_s: float
    noise: float


def fit_level(log_probe: np.ndarray, at_s) -> Level:
    """The level and the noise of probes about their mean by maximum likelihood, normal; log_probe, at_s: (n,)."""
    y, at_s = log_probe - np.mean(log_probe), np.asarray(at_s, float)
    if not y.any():
        return Level(0.0, 1.0, 0.0)

    def loss(parameters):
        level = Level(*np.exp(parameters))
        total = 0.0
        for part in _chunks(at_s):
            lower = np.linalg.cholesky(_covariance(level, at_s[part]) + level.noise**2 * np.eye(len(part)))
            total += np.sum(np.linalg.solve(lower, y[part]) ** 2) / 2 + np.log(np.diag(lower)).sum()
        return total

    spread, gap_s = y.std() / np.sqrt(2), np.median(np.diff(np.sort(at_s)))
    found = minimize(loss, np.log([spread, 5 * gap_s, spread]), method="Nelder-Mead",
                     bounds=[(np.log(spread / 100), None), (np.log(gap_s / 10), None), (np.log(spread / 100), None)],
                     options={"xatol": 0.02, "fatol": 0.02})
    return Level(*np.exp(found.x).tolist())


def smoothed(log_probe: np.ndarray, at_s, level: Level) -> np.ndarray:
    """The level's conditional expectation at each probe's time, given all probes, (n,); log_probe about its mean."""
    out, at_s = np.zeros(len(log_probe)), np.asarray(at_s, float)
    for part in _chunks(at_s) if level.sd > 0 else ():
        covariance = _covariance(level, at_s[part])
        out[part] = covariance @ np.linalg.solve(covariance + level.noise**2 * np.eye(len(part)), log_probe[part])
    return out


def draw_ar1(n: int, phi: float, deviation: float, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Paths (draws, n) of a stationary AR(1) with mean 0 and that standard deviation."""
    noise = rng.standard_normal((n, draws)) * deviation
    path = noise.copy()
    for i in range(1, n):
        path[i] = phi * path[i - 1] + np.sqrt(1 - phi**2) * noise[i]
    return path.T


def lag_correlation(values, at_s, lag: int = 1) -> float:
    """Correlation of `values` with those `lag` runs later, over runs that followed each other within MAX_GAP_S a run.

    values, at_s: (n,), in any order; at_s: seconds, when each was measured.
    """
    order = np.argsort(at_s, kind="stable")
    at_s, values = np.asarray(at_s, float)[order], np.asarray(values, float)[order] - np.mean(values)
    near = at_s[lag:] - at_s[:-lag] < lag * MAX_GAP_S
    return float(np.mean(values[:-lag][near] * values[lag:][near]) / np.var(values))


def _chunks(at_s: np.ndarray) -> list[np.ndarray]:
    """The indices of neighbours in time, at most CHUNK in a part."""
    return np.array_split(np.argsort(at_s, kind="stable"), -(-len(at_s) // CHUNK))


def _covariance(level: Level, at_s: np.ndarray) -> np.ndarray:
    return level.sd**2 * np.exp(-np.abs(at_s[:, None] - at_s) / level.tau_s)
