"""Simulation of k replicas job by job: one run (`simulate`), many (`finite_run`), and `recursion` on a recorded run."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from scipy import stats

from stlib.queueing import kernels
from stlib.queueing.checks import check_jobs, check_policy, whole
from stlib.queueing.job_table import OUTCOMES, job_table, reduce_runs
from stlib.queueing.kernels import Rows

BATCH_JOBS = 1_000_000  # of finite_run: about 100 MB
LEAST_RUNS = 40  # with fewer, the 2.5 and 97.5 % quantiles lie beyond the smallest and the largest run
LEAST_REPLICATIONS = 10  # with fewer, nothing would show that their mean is far from normal

ROUTINGS = ("central", "jsq", "least_work", "power_of_two", "round_robin", "random")  # in the order of the kernels


def simulate(arrival_s, work_s, k: int, *, routing: str = "central", methods: Sequence[str] = ("only",), policy=None,
             work_estimate_s=None, speed=None, max_waiting: int | None = None, deadline_s=None,
             rng: np.random.Generator | None = None) -> pd.DataFrame:  # fmt: skip
    """Simulate n jobs on k replicas, empty at first, until the last job has left; returns the job table.

    arrival_s: (n,), in order of time, seconds. work_s: (n,) or (n, methods): seconds job i takes on a replica, under
    each method, while no other replica is busy.
    routing: "central" (one queue, first come first served, the longest idle replica first); or a queue a replica, and
    each arriving job is sent to the replica with the fewest jobs present, waiting and in service ("jsq"); to the one
    with the least declared work ("least_work"): the estimates of its waiting jobs, and of its running job the estimate
    less the time it has run, at least 0, an idle replica before any other; to the one with fewer jobs of two
    that are drawn at random, the first if they have as many ("power_of_two"); in turn, rejected jobs counted
    ("round_robin"); or to any ("random"). Other ties of load are broken at random.
    methods: the names of the columns of work_s. policy: integers, policy[n] the column of a job that starts with n
    jobs outstanding, itself included (in the system under "central", else on its replica), the last entry for more;
    [c] always takes column c. work_estimate_s: (n,), read by "least_work" alone.
    speed: (k + 1,), speed[b] the speed of every busy replica while b are busy; speed[1] is 1, speed[0] is not used.
    max_waiting: jobs waiting in the whole system; a job that would have to wait beyond them is rejected.
    deadline_s: scalar or (n,): a job not started so long after its arrival leaves then, timed out (inf: never).
    rng: breaks ties and draws replicas (`default_rng(0)` if left out), one number a job.

    Rules are compared on common random numbers by giving them the same arrays:

        central, jsq = (simulate(arrival_s, work_s, 2, routing=name) for name in ("central", "jsq"))
        job_metrics(jsq)["mean"] - job_metrics(central)["mean"]

    Raises ValueError for an input out of its range.
    """
    estimate = None if work_estimate_s is None else np.asarray(work_estimate_s)[None]
    jobs = check_jobs(np.asarray(arrival_s)[None], np.asarray(work_s)[None], estimate)
    return _table(arrival_s, run_jobs(*jobs, k, routing, methods, policy, speed, max_waiting, deadline_s, rng), methods)


def recursion(arrival_s, service_s, replica, start_s=None) -> pd.DataFrame:
    """The job table that follows from recorded arrivals, service times, replicas and the order of the starts.

    A job starts when it arrives or when its predecessor on the replica finishes, whichever is later (D. V. Lindley,
    1952). Arguments (n,), seconds, arrivals in order of time, replica whole and >= 0. start_s: the recorded starts, of
    which the order alone counts; left out, each replica serves in order of arrival. `n_outstanding` counts the jobs of
    that replica. Raises ValueError for an input out of its range; jobs that never started (replica -1) must be left
    out.
    """
    (arrival,), (service,), _ = check_jobs(np.asarray(arrival_s)[None], np.reshape(service_s, (1, -1)))
    service = service[:, 0]
    replica, recorded = np.asarray(replica), arrival if start_s is None else np.asarray(start_s, float)
    if replica.shape != arrival.shape or replica.dtype.kind not in "iu" or replica.min() < 0:
        raise ValueError(f"replica {replica} must be {arrival.size} whole numbers >= 0, one a job: leave out jobs that "
                         "never started")
    if recorded.shape != arrival.shape or not np.isfinite(recorded).all():
        raise ValueError(f"start_s {recorded} must be {arrival.size} finite seconds: leave out jobs that never started")
    rows = _empty_rows(1, arrival.size, replica)
    of_replica = [arrival[replica == r] for r in range(replica.max() + 1)]
    free, done = np.zeros(len(of_replica)), np.zeros(len(of_replica), int)
    for i in np.argsort(recorded, kind="stable"):
        r, start = replica[i], max(arrival[i], free[replica[i]])
        arrived = np.searchsorted(of_replica[r], start) + (start == arrival[i])  # at a departure: none who arrive then
        rows.start[0, i], rows.n_outstanding[0, i] = start, arrived - done[r]
        free[r], done[r] = start + service[i], done[r] + 1
        rows.finish[0, i] = free[r]
    rows.service[0], rows.method[0] = service, 0
    return _table(arrival_s, rows, ("only",))


def finite_run(draw: Callable, k: int, n_runs: int, rng: np.random.Generator, *, slo_s: Sequence[float] = (),
               **simulate_options) -> pd.DataFrame:  # fmt: skip
    """The metrics of n_runs independent runs of n jobs, each started empty: the law of what one such run will show.

    draw: draw(rng, m) gives, for m runs, arrivals (m, n), work (m, n) or (m, n, methods), and estimates (m, n) or
    None. Drawn anew each time they give the prediction beforehand; with the same arrivals and jobs in every row and
    only the work redrawn, the one given arrivals and job list. simulate_options: as of `simulate`, but for rng and
    work_estimate_s. Runs are drawn one after another and simulated in parallel: the result depends on rng alone.

    Returns a row a run: mean, wq, p50, p95 (seconds) and slo_X for each X of slo_s, as in `job_metrics`. Raises
    ValueError for n_runs < 40, too few for a 95 % interval, and for an input out of its range.
    """
    n_runs = whole(n_runs=n_runs)
    if n_runs < LEAST_RUNS:
        raise ValueError(f"n_runs is {n_runs}: a 95 % interval of a run needs at least {LEAST_RUNS} (10 000 is usual)")
    batches, done, size = [], 0, 1
    while done < n_runs:
        arrival, work, estimate = check_jobs(*draw(rng, size))
        if len(arrival) != size:
            raise ValueError(f"draw gave {len(arrival)} runs, asked for {size}: it must give arrivals (m, n)")
        rows = run_jobs(arrival, work, estimate, k, rng=rng, workers=cpu_count(), **simulate_options)
        batches.append(pd.DataFrame(reduce_runs(rows.finish - arrival, rows.start - arrival, slo_s, (50, 95))))
        done += size
        size = min(n_runs - done, max(1, BATCH_JOBS // arrival.shape[1]))
    return pd.concat(batches, ignore_index=True)


def replication_interval(values, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval for the mean of independent replications; values (n,), level in (0, 1).

    Raises ValueError for fewer than 10 replications or a value that is not finite.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or values.size < LEAST_REPLICATIONS or not np.isfinite(values).all() or not 0 < level < 1:
        raise ValueError(f"values has shape {values.shape}, level is {level}: an interval needs at least "
                         f"{LEAST_REPLICATIONS} replications, all finite, and a level between 0 and 1, such as 0.95")
    half = stats.t.ppf((1 + level) / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean() - half), float(values.mean() + half)


def _table(arrival_s, rows: Rows, methods) -> pd.DataFrame:
    """The job table of the one run in `rows`; columns that are equal share their memory (copy on write)."""
    run = Rows(*(column[0] for column in rows))
    arrival, finish = pd.Series(np.array(arrival_s, float)), pd.Series(run.finish, copy=False)
    named = partial(pd.Categorical.from_codes, validate=False)
    return job_table({
        "job_id": np.arange(arrival.size), "workload": named(np.zeros(arrival.size, np.int8), ["simulated"]),
        "scheduled_s": arrival, "arrival_s": arrival, "start_s": run.start, "finish_s": finish, "reply_s": finish,
        "service_s": run.service, "probe_s": np.nan, "replica": run.replica, "method": named(run.method, list(methods)),
        "n_outstanding": run.n_outstanding, "attempt": 1, "outcome": named(run.outcome, OUTCOMES)})


def run_jobs(arrival, work, estimate, k, routing="central", methods=("only",), policy=None, speed=None,
             max_waiting=None, deadline_s=None, rng=None, workers=1) -> Rows:
    """Simulate every run of checked jobs; options as in `simulate`, workers threads that do not change the result."""
    runs, n = arrival.shape
    k = whole(k=k)
    max_waiting = n if max_waiting is None else whole(0, max_waiting=max_waiting)
    if routing not in ROUTINGS:
        raise ValueError(f"routing {routing!r} is unknown; choose one of {ROUTINGS}")
    if routing == "least_work" and (estimate.size == 0 or policy is not None):
        raise ValueError("least_work needs work_estimate_s, (n,), and no policy: an estimate must not depend on the "
                         "method chosen later; give the estimates and one method, or take jsq")
    ties = np.empty((runs, 0), np.float32)
    if routing not in ("central", "round_robin") and k > 1:  # drawn always, so that rules can be compared
        rng = np.random.default_rng(0) if rng is None else rng
        ties = rng.random((runs, n), dtype=np.float32)
    assigned = {"round_robin": np.arange(n) % k, "random": (ties.astype(float) * k).astype(int) if k > 1 else 0}
    rules = kernels.Rules(min(ROUTINGS.index(routing), kernels.ASSIGNED), _check_policy(policy, methods, work.shape[2]),
                          _check_speed(speed, k), max_waiting, estimate, ties, *_expiries(arrival, deadline_s))
    rows = _empty_rows(runs, n, assigned.get(routing, -1))
    bounds = np.linspace(0, runs, min(runs, workers) + 1).astype(int)
    shares = [delayed(kernels.simulate_rows)(*share, arrival, work, k, rules, rows) for share in pairwise(bounds)]
    Parallel(n_jobs=len(shares), prefer="threads")(shares)
    return rows


def _check_policy(policy, methods, columns):
    if len(methods) != columns or len(set(methods)) != columns:
        raise ValueError(f"methods {tuple(methods)} must name each of the {columns} columns of work_s once")
    if policy is None and columns > 1:
        raise ValueError(f"work_s has {columns} methods: give a policy; [c] always takes column c")
    return check_policy([0] if policy is None else policy, columns)


def _check_speed(speed, k):
    if speed is None:
        return np.empty(0)
    speed = np.array(speed, float)
    if speed.shape != (k + 1,) or not ((speed[1:] > 0) & (speed[1:] < np.inf)).all() or speed[1] != 1:
        raise ValueError(f"speed {speed.tolist()} must have length k + 1 = {k + 1}, positive finite entries and "
                         "speed[1] = 1: speed[b] is that of every busy replica while b are, relative to one busy alone")
    return speed


def _expiries(arrival, deadline_s):
    """When each job leaves the queue, and the order in which they do."""
    if deadline_s is None:
        return np.empty((len(arrival), 0)), np.empty((len(arrival), 0), np.int64)
    deadline = np.asarray(deadline_s, float)
    if deadline.shape not in ((), arrival.shape[1:]) or not (deadline >= 0).all():
        raise ValueError(f"deadline_s {deadline} must be seconds >= 0, one for all jobs or one each; inf: no deadline")
    expiry = arrival + deadline
    return expiry, np.argsort(expiry, axis=1, kind="stable")


def _empty_rows(runs, n, replica):
    values = (*[(np.nan, float)] * 3, (replica, np.int32), (-1, np.int8), (0, np.int32), (0, np.int8))
    return Rows(*(np.full((runs, n), value, kind) for value, kind in values))
