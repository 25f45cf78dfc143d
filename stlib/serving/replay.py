"""Open-loop load: each job is sent at its own time, whatever becomes of the others."""

import asyncio
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stlib.queueing.checks import check_jobs
from stlib.queueing.job_table import job_table
from stlib.serving.dispatcher import Dispatcher
from stlib.serving.replica import error_text
from stlib.serving.rules import UNSTARTED, Reply
from stlib.settings import within

LAG_S, LAG_SHARE = 0.005, 0.01  # the generator keeps up if 99 % of its lags are below the larger


def replay(jobs: pd.DataFrame, arrival_s, target: Dispatcher, *, method: str | None = None, deadline_s=None,
           progress: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Send each job to a started dispatcher at its time and wait for all; returns the job table and the products.

    jobs: a row a job, as of `JobMix.sample`: job_id, workload, its parameters (None or NaN: left out) and, if there,
    `method`, which wins over the argument `method`, which wins over the dispatcher's. arrival_s: seconds from the
    run's start, in order, one a job; further ones are not used. deadline_s: scalar or one a job, as in `simulate`.

    Both tables are in order of job_id; a job that got no answer is a row too, failed. Products: `lag_s`, how late the
    job was sent, `error`, and what the replica reported. The job table's `attrs["generator_limited"]` is True, with a
    warning, if the 99th percentile of the lags is above 5 ms and above 1 % of the mean interarrival time. Ctrl-C
    cancels all jobs.
    Raises ValueError for bad input, RuntimeError for a target that is not there, before any job runs.
    """
    arrival, n = np.asarray(arrival_s, float), len(jobs)
    if n == 0 or jobs["job_id"].duplicated().any():
        raise ValueError(f"{n} jobs with {jobs['job_id'].nunique()} different job_id: give each its own")
    if arrival.ndim != 1 or len(arrival) < n:
        raise ValueError(f"{arrival.size} arrivals for {n} jobs: give a longer trace or fewer jobs")
    deadline = np.broadcast_to(np.asarray(np.inf if deadline_s is None else deadline_s, float), n)
    if not (deadline >= 0).all():
        raise ValueError(f"deadline_s {deadline_s} must be seconds >= 0, one for all jobs or one each")
    ((arrival,), _, _) = check_jobs(arrival[None, :n], np.zeros((1, n)))
    requests = [_request(job, method, target) | {"scheduled_s": at, "deadline_s": limit}
                for job, at, limit in zip(jobs.to_dict("records"), arrival.tolist(), deadline.tolist(), strict=True)]
    answers = []
    _run_in_thread(_send_all(requests, target, answers), answers, tqdm(total=len(jobs), disable=not progress))
    rows, products = zip(*sorted(answers, key=lambda answer: answer[0]["job_id"]), strict=True)
    table, products = job_table(pd.DataFrame(rows)), pd.json_normalize(products)
    late, allowed = products["lag_s"].quantile(0.99), max(LAG_S, LAG_SHARE * np.ptp(arrival) / max(1, n - 1))
    table.attrs["generator_limited"] = bool(late > allowed)
    if late > allowed:
        warnings.warn(f"the load generator was late: by {late:.3f} s at the 99th percentile, {allowed:.3f} s allowed; "
                      "ease the machine or the load, or take this run as limited by its generator", stacklevel=2)
    return table, products


async def _send_all(requests: list[dict], target: Dispatcher, answers: list) -> None:
    target.reset()
    try:
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await asyncio.sleep(target.zero_s + request["scheduled_s"] - time.monotonic())
                group.create_task(_send(request, target, answers))
    finally:
        await target.drain()


async def _send(request: dict, target: Dispatcher, answers: list) -> None:
    lag = time.monotonic() - target.zero_s - request["scheduled_s"]
    try:
        reply = await target.submit(**request)
    except Exception as error:  # whatever it is: one job's trouble must not lose the others' rows
        reply = Reply(UNSTARTED | {"job_id": request["job_id"], "workload": target.name, "outcome": "failed",
                                   "scheduled_s": request["scheduled_s"], "arrival_s": np.nan}, error=error_text(error))
    if reply.row["outcome"] in ("completed", "failed"):
        reply.row["reply_s"] = time.monotonic() - target.zero_s
    answers.append((reply.row, reply.products | {"job_id": request["job_id"], "lag_s": lag, "error": reply.error}))


def _run_in_thread(sending, answers: list, bar: tqdm) -> None:
    """A notebook's thread has a loop running already; this one draws the bar, so that no job waits for it."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(sending)
    with bar, ThreadPoolExecutor(1) as pool:
        running = pool.submit(loop.run_until_complete, task)
        running.add_done_callback(lambda _: loop.close())
        try:
            while not wait([running], timeout=0.3).done:
                bar.update(len(answers) - bar.n)
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(task.cancel)
            raise
        bar.update(len(answers) - bar.n)
        running.result()


def _request(job: dict, method: str | None, target: Dispatcher) -> dict:
    """A row as arguments of `submit`, which would accept them."""
    params = {name: value for name, value in job.items() if not (pd.api.types.is_scalar(value) and pd.isna(value))}
    job_id, workload, method = params.pop("job_id"), params.pop("workload", None), params.pop("method", method)
    with within(f"job {job_id}"):
        if workload != target.name:
            raise ValueError(f"its workload is {workload!r}, the dispatcher's {target.name!r}")
        target.check(params, method)
    return {"job_id": job_id, "params": params, "method": method}
