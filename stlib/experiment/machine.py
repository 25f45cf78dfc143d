"""What the machine does to a job: its speed over time, and what busy replicas do to each other.

The logarithm of the machine factor is taken to be an Ornstein-Uhlenbeck process, an AR(1) in continuous time. A probe
shows it through noise of its own; taken as it is, a noisy covariate biases its slope toward zero.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from stlib.queueing.simulation import replication_interval

MAX_GAP_S = 30.0  # runs further apart are not neighbours in time
CHUNK = 500  # probes smoothed together


def contention(rows: pd.DataFrame) -> pd.DataFrame:
    """What replicas do to each other, from the rows of `measure_contention`: a row a method and number of busy ones.

    Columns: method, busy, speed (relative to one busy alone: exp of the mean over jobs of log(alone / busy)), low, high
    (95 % interval, blocks taken as independent), se (relative), blocks, probe_ratio (the probe's seconds over those
    alone).
    """
    table = []
    for method, of_method in rows.groupby("method", observed=True):
        logs = np.log(of_method.set_index(["block", "job_id", "busy"])[["run_s", "probe_s"]]).unstack("busy")
        gain = -logs["run_s"].sub(logs["run_s"][1], axis=0)
        probe = logs["probe_s"].sub(logs["probe_s"][1], axis=0).mean()
        for busy, means in gain.groupby("block").mean().items():
            low, high = np.exp(replication_interval(means))
            table.append({"method": method, "busy": busy, "speed": np.exp(gain[busy].mean()), "low": low, "high": high,
                          "se": means.sem(), "blocks": len(means), "probe_ratio": np.exp(probe[busy])})
    return pd.DataFrame(table)


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
        (sd, tau_s, noise), total = np.exp(parameters).tolist(), 0.0
        for part in _chunks(at_s):  # by a Kalman filter: the law of each probe given those before it
            mean, variance, gaps_s = 0.0, sd**2, np.diff(at_s[part], prepend=at_s[part[0]])
            for value, phi in zip(y[part].tolist(), np.exp(-gaps_s / tau_s).tolist(), strict=True):
                mean, variance = phi * mean, sd**2 + phi**2 * (variance - sd**2)
                seen = variance + noise**2
                total += ((value - mean) ** 2 / seen + math.log(seen)) / 2
                mean, variance = mean + variance / seen * (value - mean), variance * noise**2 / seen
        return total

    spread, gap_s = y.std() / np.sqrt(2), np.median(np.diff(np.sort(at_s)))
    found = minimize(loss, np.log([spread, 5 * gap_s, spread]), method="Nelder-Mead", tol=0.02,
                     bounds=[(np.log(least), None) for least in (spread / 100, gap_s / 10, spread / 100)])
    return Level(*np.exp(found.x).tolist())


def smoothed(log_probe: np.ndarray, at_s, level: Level) -> np.ndarray:
    """The level's conditional expectation at each probe's time, given all probes, (n,); log_probe about its mean."""
    out, at_s = np.zeros(len(log_probe)), np.asarray(at_s, float)
    for part in _chunks(at_s) if level.sd > 0 else ():
        covariance = _covariance(level, at_s[part])
        out[part] = covariance @ np.linalg.solve(covariance + level.noise**2 * np.eye(len(part)), log_probe[part])
    return out


def draw_level(level: Level, at_s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paths of the level at times `at_s`, (n,) or (draws, n), seconds in order along the last axis: mean 0, stationary.

    An Ornstein-Uhlenbeck process is an AR(1) whose coefficient is exp(-gap / tau_s).
    """
    path = rng.standard_normal(at_s.shape) * level.sd
    phi = np.exp(-np.diff(at_s, axis=-1) / level.tau_s)
    for i in range(1, at_s.shape[-1]):
        one = phi[..., i - 1]
        path[..., i] = one * path[..., i - 1] + np.sqrt(1 - one**2) * path[..., i]
    return path


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
