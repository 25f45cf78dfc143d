"""Independent runs side by side: the input is checked, the rules become arrays, the kernel goes over the runs."""

from itertools import pairwise

import numpy as np
from joblib import Parallel, delayed

from . import kernels
from .checks import whole

_CODES = {
    "central": kernels.CENTRAL,
    "jsq": kernels.JSQ,
    "least_work": kernels.LEAST_WORK,
    "round_robin": kernels.ASSIGNED,
}
ROUTINGS = tuple(_CODES)


def check_jobs(arrival_s, work_s, work_estimate_s=None):
    """Contiguous arrays: arrivals (runs, n), work (runs, n, methods) and estimates (runs, n), (runs, 0) if None."""
    arrival, work = np.asarray(arrival_s, float), np.asarray(work_s, float)
    if arrival.ndim != 2 or arrival.size == 0:
        raise ValueError(f"arrival_s has shape {arrival.shape[1:]}: give a sequence (n,) of at least one arrival time")
    _check_seconds("arrival_s", arrival, arrival.shape)
    falls = arrival[:, 1:] < arrival[:, :-1]
    if falls.any():
        run, i = np.unravel_index(falls.argmax(), falls.shape)
        raise ValueError(
            f"arrival_s falls from {arrival[run, i]:g} to {arrival[run, i + 1]:g} s at job {i + 1}: "
            "arrivals must be in order of time; sort the jobs by arrival"
        )
    _check_seconds("work_s", work, arrival.shape + work.shape[2:3])
    work = work[..., None] if work.ndim == 2 else work
    if work_estimate_s is None:
        return _for_kernel(arrival), _for_kernel(work), np.empty((len(arrival), 0))
    estimate = np.asarray(work_estimate_s, float)
    _check_seconds("work_estimate_s", estimate, arrival.shape)
    return _for_kernel(arrival), _for_kernel(work), _for_kernel(estimate)


def _for_kernel(values):
    """One memory layout, for numba compiles anew for each: also for a table's read-only column."""
    return np.require(values, requirements=["C", "W", "A"])


def _check_seconds(name, values, shape):
    if values.shape != shape or values.size == 0:
        raise ValueError(f"{name} has shape {values.shape[1:]}, expected {shape[1:]}: one entry for each job")
    if not (values.min() >= 0 and values.max() < np.inf):
        wrong = np.argmax(~((values >= 0) & (values < np.inf)))
        index = tuple(map(int, np.unravel_index(wrong, shape)))[1:]
        raise ValueError(f"{name}{list(index)} is {values.flat[wrong]}: give finite seconds >= 0")


def run_jobs(arrival, work, estimate, k, *, routing="central", methods=("only",), policy=None, speed=None,
             max_waiting=None, deadline_s=None, rng=None, assigned=None, workers=1) -> kernels.Rows:  # fmt: skip
    """Simulate every run of checked jobs; options as in `simulate`.

    assigned: replica of each job, (n,), in place of a routing. workers: threads; the result does not depend on them.
    """
    runs, n = arrival.shape
    whole(k=k)
    k = int(k)
    whole(0, max_waiting=max_waiting or 0)
    if routing not in ROUTINGS:
        raise ValueError(f"routing {routing!r} is unknown; choose one of {ROUTINGS}")
    if routing == "least_work" and (estimate.size == 0 or policy is not None):
        raise ValueError(
            "least_work needs work_estimate_s, (n,), and no policy: an estimate must not depend on the method chosen "
            "later; give the estimates and one method, or take jsq"
        )
    if routing == "round_robin":
        assigned = np.arange(n) % k
    code = _CODES[routing] if assigned is None else kernels.ASSIGNED
    rules = kernels.Rules(
        code,
        _check_policy(policy, methods, work.shape[2]),
        _check_speed(speed, k),
        n if max_waiting is None else int(max_waiting),
        estimate,
        _tie_breaks(code, k, runs, n, rng),
        *_expiries(arrival, deadline_s),
    )
    rows = _empty_rows(runs, n, assigned)
    bounds = np.linspace(0, runs, min(runs, workers) + 1).astype(int)
    shares = [delayed(kernels.simulate_rows)(*share, arrival, work, k, rules, rows) for share in pairwise(bounds)]
    Parallel(n_jobs=len(shares), prefer="threads")(shares)
    return rows


def _check_policy(policy, methods, columns):
    if len(methods) != columns or len(set(methods)) != columns:
        raise ValueError(f"methods {tuple(methods)} must name each of the {columns} columns of work_s once")
    if policy is None and columns > 1:
        raise ValueError(f"work_s has {columns} methods: give a policy; [c] always takes column c")
    policy = np.atleast_1d(np.asarray([0] if policy is None else policy))
    if policy.ndim != 1 or policy.size == 0 or policy.dtype.kind not in "iu":
        raise ValueError(f"policy {policy!r} must be a sequence of integers, the columns of work_s")
    if policy.min() < 0 or policy.max() >= columns:
        raise ValueError(f"policy {policy.tolist()} names a column outside 0 ... {columns - 1} of work_s; correct it")
    return policy.astype(np.int64)


def _check_speed(speed, k):
    if speed is None:
        return np.empty(0)
    speed = np.array(speed, float)
    if speed.shape != (k + 1,) or not ((speed[1:] > 0) & (speed[1:] < np.inf)).all() or speed[1] != 1:
        raise ValueError(
            f"speed {speed.tolist()} must have length k + 1 = {k + 1}, positive finite entries and speed[1] = 1: "
            "speed[b] is that of every busy replica while b are busy, relative to one busy alone"
        )
    return speed


def _tie_breaks(code, k, runs, n, rng):
    """One uniform number a job, drawn whether a tie comes or not, so that rules can be compared on the same ones."""
    if code not in (kernels.JSQ, kernels.LEAST_WORK) or k == 1:
        return np.empty((runs, 0), np.float32)
    rng = np.random.default_rng(0) if rng is None else rng
    return rng.random((runs, n), dtype=np.float32)


def _expiries(arrival, deadline_s):
    """When each job leaves the queue, and the order in which they do."""
    if deadline_s is None:
        return np.empty((len(arrival), 0)), np.empty((len(arrival), 0), np.int64)
    deadline = np.asarray(deadline_s, float)
    if deadline.shape not in ((), arrival.shape[1:]) or not (deadline >= 0).all():
        raise ValueError(f"deadline_s {deadline} must be seconds >= 0, one for all jobs or one each; inf: no deadline")
    expiry = arrival + deadline
    return expiry, np.argsort(expiry, axis=1, kind="stable")


def _empty_rows(runs, n, assigned):
    replica = np.full((runs, n), -1, np.int32)
    if assigned is not None:
        replica[:] = assigned
    times = [np.full((runs, n), np.nan) for _ in range(3)]
    return kernels.Rows(*times, replica, np.full((runs, n), -1, np.int8), np.zeros((runs, n), np.int32),
                        np.zeros((runs, n), np.int8))  # fmt: skip
