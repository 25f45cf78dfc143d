"""What every model of a queue shares: its metrics, and the checks of its inputs.

A check returns nothing, or its input in the one form that the models take, and raises ValueError with the value, the
allowed range and the remedy.
"""

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np


def positive(**values: float) -> None:
    """Raise ValueError unless each named value is a finite number above zero."""
    for name, value in values.items():
        if not (_finite(value) and value > 0):
            raise ValueError(f"{name} = {value} must be a finite number above 0; check its unit and source")


def nonnegative(**values: float) -> None:
    """Raise ValueError unless each named value is a finite number of at least zero."""
    for name, value in values.items():
        if not (_finite(value) and value >= 0):
            raise ValueError(f"{name} = {value} must be a finite number of at least 0; check its unit and source")


def whole(least: int = 1, **value: int) -> int:
    """Return the one named value, 2.0 as well as 2, as an int; ValueError unless it is whole and at least `least`."""
    ((name, number),) = value.items()
    if not (_finite(number) and number == int(number) and number >= least):
        raise ValueError(f"{name} = {number} must be a whole number of at least {least}; round it first")
    return int(number)


def _finite(value) -> bool:
    """Is it a real number and finite? True and False are no numbers."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) < math.inf


def stable(rho: float) -> None:
    """Raise ValueError unless the utilisation `rho` leaves a steady state."""
    if not 0 <= rho < 1:
        raise ValueError(f"rho = {rho:.6g} must be below 1 for a steady state; lower the arrival rate, shorten the "
                         "service, add servers, or simulate a finite run")


def steady(lam: float, mean_s: float, k: int = 1, **scvs: float) -> int:
    """Return the number of servers k as an int, once rate, mean service, k and squared CVs are in range and stable."""
    positive(lam=lam, mean_s=mean_s)
    k = whole(k=k)
    nonnegative(**scvs)
    stable(lam * mean_s / k)
    return k


def check_policy(policy, laws: int) -> np.ndarray:
    """The policy, (n,) or one number, as int64: which of so many laws, or methods, serves at n outstanding jobs."""
    row = np.atleast_1d(np.asarray(policy))
    if row.ndim != 1 or row.size == 0 or row.dtype.kind not in "iuf" or not (row == np.floor(row)).all():
        raise ValueError(f"policy = {policy!r} must be a row of integers, one for each number of outstanding jobs")
    if row.min() < 0 or row.max() >= laws:
        raise ValueError(f"policy = {row.tolist()} names a law or column outside 0 ... {laws - 1}; correct it")
    return row.astype(np.int64)


def check_jobs(arrival_s, work_s, work_estimate_s=None):
    """Arrivals (runs, n), work (runs, n, methods) and estimates (runs, n), (runs, 0) if None, as contiguous arrays."""
    arrival, work = np.asarray(arrival_s, float), np.asarray(work_s, float)
    if arrival.ndim != 2 or arrival.size == 0:
        raise ValueError(f"arrival_s has shape {arrival.shape[1:]}: give a sequence (n,) of at least one arrival time")
    _check_seconds("arrival_s", arrival, arrival.shape)
    falls = arrival[:, 1:] < arrival[:, :-1]
    if falls.any():
        run, i = np.unravel_index(falls.argmax(), falls.shape)
        raise ValueError(f"arrival_s falls from {arrival[run, i]:g} to {arrival[run, i + 1]:g} s at job {i + 1}: "
                         "arrivals must be in order of time; sort the jobs by arrival")
    _check_seconds("work_s", work, arrival.shape + work.shape[2:3])
    estimate = np.empty((len(arrival), 0)) if work_estimate_s is None else np.asarray(work_estimate_s, float)
    if work_estimate_s is not None:
        _check_seconds("work_estimate_s", estimate, arrival.shape)
    # one memory layout, for numba compiles anew for each: also for a table's read-only column
    return tuple(np.require(a, requirements="CWA") for a in (arrival, work.reshape(*arrival.shape, -1), estimate))


def _check_seconds(name, values, shape):
    if values.shape != shape or values.size == 0:
        raise ValueError(f"{name} has shape {values.shape[1:]}, expected {shape[1:]}: one entry for each job")
    if not (values.min() >= 0 and values.max() < np.inf):
        wrong = np.argmax(~((values >= 0) & (values < np.inf)))
        index = tuple(map(int, np.unravel_index(wrong, shape)))[1:]
        raise ValueError(f"{name}{list(index)} is {values.flat[wrong]}: give finite seconds >= 0")


@dataclass(frozen=True)
class QueueMetrics:
    """Steady-state means: utilisation `rho` of a server, wait in queue `wq` and response time `w` (seconds),
    jobs waiting `lq` and jobs in the system `l`."""

    rho: float
    wq: float
    w: float
    lq: float
    l: float


def metrics(lam: float, wq: float, mean_s: float, k: int) -> QueueMetrics:
    """Complete the mean wait `wq` to all five metrics by Little's law (Little, 1961)."""
    w = wq + mean_s
    return QueueMetrics(float(lam * mean_s / k), float(wq), float(w), float(lam * wq), float(lam * w))
