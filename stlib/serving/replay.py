"""Open-loop load: each job is sent at its own time, whatever becomes of the others."""

import asyncio
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stlib.queueing.jobs import job_table
from stlib.queueing.runs import check_jobs
from stlib.serving.dispatcher import Dispatcher, Reply

LAG_S, LAG_SHARE = 0.005, 0.01  # the generator kept up if 99 % of its lags are below either
NOT_PARAMETERS = {"job_id", "workload", "method"}


def replay(jobs: pd.DataFrame, arrival_s, target: Dispatcher, *, method: str | None = None, deadline_s=None,
           progress: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Send each job to a started dispatcher at its time and wait for all; returns the job table and the products.

    jobs: a row a job, as of `JobMix.sample`: job_id, workload, its parameters (None or NaN: left out) and, if there,
    `method`, which wins over the argument `method`, which wins over the dispatcher's. arrival_s: seconds from the
    run's start, in order, one a job; further ones are not used. deadline_s: scalar or one a job, as in `simulate`.

    Both tables are in order of job_id. Products: `lag_s`, how late the job was sent, `error`, and what the replica
    reported. The job table's `attrs["generator_limited"]` is True, with a warning, if the 99th percentile of the lags
    is above 5 ms and above 1 % of the mean interarrival time. Ctrl-C cancels what waits and lets the running jobs end.
    Raises ValueError for bad input before any job runs.
    """
    arrival = _checked_arrivals(arrival_s, jobs)
    deadline = np.broadcast_to(np.inf if deadline_s is None else np.asarray(deadline_s, float), len(jobs))
    requests = [_request(job, method) for job in jobs.to_dict("records")]
    for job_id, request in zip(jobs["job_id"], requests, strict=True):
        _check(target, job_id, *request)
    sent = [{"job_id": int(job_id), "scheduled_s": at, "params": params, "method": name, "deadline_s": limit}
            for job_id, at, (params, name), limit in zip(jobs["job_id"], arrival.tolist(), requests, deadline.tolist(),
                                                        strict=True)]
    replies: list[tuple[Reply, float]] = []
    _run_in_thread(_send_all(sent, target, replies), replies, tqdm(total=len(jobs), unit="job", disable=not progress))
    replies.sort(key=lambda reply: reply[0].row["job_id"])
    table = job_table(pd.DataFrame([reply.row for reply, _ in replies]).to_dict("series"))
    table.attrs["generator_limited"] = _is_limited([lag for _, lag in replies], arrival)
    return table, pd.json_normalize([{"job_id": reply.row["job_id"], "lag_s": lag, "error": reply.error}
                                     | reply.products for reply, lag in replies])


async def _send_all(requests: list[dict], target: Dispatcher, replies: list) -> None:
    target.reset()
    try:
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await asyncio.sleep(max(0.0, target.zero_s + request["scheduled_s"] - time.monotonic()))
                group.create_task(_send(request, target, replies))
    finally:
        await target.drain()


async def _send(request: dict, target: Dispatcher, replies: list) -> None:
    lag = time.monotonic() - target.zero_s - request["scheduled_s"]
    reply = await target.submit(**request)
    if reply.row["outcome"] in ("completed", "failed"):
        reply.row["reply_s"] = time.monotonic() - target.zero_s
    replies.append((reply, lag))


def _run_in_thread(sending, replies: list, bar: tqdm) -> None:
    """A notebook's own thread has a running loop already; only this one draws the bar, so that no job waits for it."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(sending)
    try:
        with bar, ThreadPoolExecutor(1) as pool:
            running = pool.submit(loop.run_until_complete, task)
            try:
                while not wait([running], timeout=0.3).done:
                    bar.update(len(replies) - bar.n)
            except KeyboardInterrupt:
                loop.call_soon_threadsafe(task.cancel)
                raise
            running.result()
            bar.update(len(replies) - bar.n)
    finally:
        loop.close()


def _request(job: dict, method: str | None) -> tuple[dict, str | None]:
    given = {name: value for name, value in job.items() if not (pd.api.types.is_scalar(value) and pd.isna(value))}
    params = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()
              if name not in NOT_PARAMETERS}
    return params, given.get("method", method)


def _check(target: Dispatcher, job_id: int, params: dict, method: str | None) -> None:
    try:
        target.check(params, method)
    except ValueError as error:
        raise ValueError(f"job {job_id}: {error}") from error


def _checked_arrivals(arrival_s, jobs: pd.DataFrame) -> np.ndarray:
    arrival = np.asarray(arrival_s, float)
    if len(jobs) == 0 or jobs["job_id"].duplicated().any():
        raise ValueError(f"{len(jobs)} jobs with {jobs['job_id'].nunique()} different job_id: give each its own")
    if arrival.ndim != 1 or len(arrival) < len(jobs):
        raise ValueError(f"{arrival.size} arrivals for {len(jobs)} jobs: give a longer trace or fewer jobs")
    return check_jobs(arrival[None, :len(jobs)], np.zeros((1, len(jobs))))[0][0]


def _is_limited(lags: list[float], arrival: np.ndarray) -> bool:
    late, allowed = np.quantile(lags, 0.99), max(LAG_S, LAG_SHARE * np.ptp(arrival) / max(1, len(arrival) - 1))
    if late > allowed:
        warnings.warn(f"the load generator was late: 1 % of the jobs by more than {late:.3f} s ({allowed:.3f} are "
                      "allowed); the machine is too busy, or the load too high, for this run to be open-loop",
                      stacklevel=3)
    return bool(late > allowed)
