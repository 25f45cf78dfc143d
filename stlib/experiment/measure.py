"""What is timed: single jobs on fresh replicas, replicas side by side, contention, the dispatcher's own time."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stlib.serving.replica import start_replica, stop_replica

LABELS = {"run", "workload", "method", "threads", "job_id", "mix", "experiment", "block", "replicate",
          "process"}  # not of a job


def run_on(replica_of: Callable) -> Callable[[dict], dict]:
    """The `run` of `measure` that does a row's job by its `method` on the replica of its `threads`, probes around it.

    replica_of(threads, process) gives a handle of `start_replica`, such as FreshReplicas; process: the row's, or
    None. A row's other entries, but for LABELS and None, are the job's parameters. The row gets what `Replica.run`
    measured.
    """
    import ray

    def run(row: dict) -> dict:
        params = {name: value for name, value in row.items() if name not in LABELS and value is not None}
        return ray.get(replica_of(row["threads"], row.get("process")).run.remote(params, row["method"]))[1]

    return run


class FreshReplicas:
    """Replicas by their threads, started when first asked for; all end when another process is asked for.

    A process keeps the memory it was given, and with it about a percent of its speed, for its life: runs that are to
    speak for any process are spread over many.
    """

    def __init__(self, workload: str):
        self.workload, self.process, self.handles = workload, None, {}

    def __call__(self, threads: int, process: int | None = None):
        if process != self.process:
            self.stop()
            self.process = process
        if threads not in self.handles:
            self.handles[threads] = start_replica(self.workload, threads=threads)
        return self.handles[threads]

    def stop(self) -> None:
        """End the replicas."""
        while self.handles:
            stop_replica(self.handles.popitem()[1])

WARM_UP = 8  # jobs of a fresh process


def side_by_side(handles, jobs: pd.DataFrame, method: str, *, label: str) -> pd.DataFrame:
    """Have each replica do all the jobs, every replica at once and each from another job on; a row a job and replica.

    Columns: those of `jobs`, method, threads, replica, at_s (monotonic), run_s and probe_s (as of `Replica.run`).
    """
    records = jobs.assign(method=method, threads=1).to_dict("records")
    bar = tqdm(total=len(handles) * len(records), desc=label, unit="job")

    def work(replica: int) -> list[dict]:
        run, first, rows = run_on(lambda *_: handles[replica]), replica * len(records) // len(handles), []
        for record in records[first:] + records[:first]:
            at_s, products = time.monotonic(), run(record)
            rows.append(record | {"replica": replica, "at_s": at_s}
                        | {name: products[name] for name in ("run_s", "probe_s")})
            bar.update()
        return rows

    with bar, ThreadPoolExecutor(len(handles)) as pool:
        return pd.DataFrame([row for rows in pool.map(work, range(len(handles))) for row in rows])


def measure_contention(handles, jobs: pd.DataFrame, method: str, *, blocks: int) -> pd.DataFrame:
    """Run the same jobs on the first replica while 1, 2, ... of the replicas are busy; a row a job and condition.

    handles: loaded replicas, warmed up here by the first jobs. The jobs are shared among `blocks` blocks (for an
    interval at least 10 in all); each block runs once under every number of busy replicas, in rising order and in
    falling order by turns. The other replicas do jobs of the same list until the block ends. Columns: method, job_id,
    block, busy, run_s, probe_s (the one after the job: the one before may date from the condition before), at_s.
    """
    if blocks > len(jobs):
        raise ValueError(f"{blocks} blocks of {len(jobs)} jobs: give at least one job a block")
    records, rows = jobs.assign(method=method, threads=1).to_dict("records"), []
    runs = [run_on(lambda *_, handle=handle: handle) for handle in handles]
    side_by_side(handles, jobs.head(WARM_UP), method, label="warm-up")
    for block, part in enumerate(tqdm(np.array_split(np.arange(len(jobs)), blocks), desc=f"contention, {method}")):
        levels = range(1, len(handles) + 1)
        for busy in levels if block % 2 == 0 else reversed(levels):
            with _kept_busy(runs[1:busy], records, int(part[-1]) + 1):
                for i in part:
                    at_s, products = time.monotonic(), runs[0](records[i])
                    rows.append({"method": method, "job_id": records[i]["job_id"], "block": block, "busy": busy,
                                 "run_s": products["run_s"], "probe_s": products["probe_after_s"], "at_s": at_s})
    return pd.DataFrame(rows)


def measure_dispatch(n_jobs: int = 200, seconds: float = 0.02) -> float:
    """Seconds the dispatcher adds to a job: of sleeping jobs back to back, finish to finish less `service_s`.

    Starts a replica of its own, which takes a CPU slot of Ray's for that time.
    """
    from stlib.serving.dispatcher import Dispatcher
    from stlib.serving.replay import replay

    jobs = pd.DataFrame({"job_id": range(n_jobs), "workload": "sleep", "seconds": seconds})
    with Dispatcher("sleep", 1) as dispatcher:
        table, _ = replay(jobs, np.zeros(n_jobs), dispatcher, progress=False)
    table = table.sort_values("start_s")
    return float((table["finish_s"].diff() - table["service_s"]).iloc[1:].mean())


@contextmanager
def _kept_busy(runs, records: list[dict], start: int):
    """Each of the replicas behind `runs` does one job of the list after another, from `start` on, until the end."""
    stop = threading.Event()

    def work(run, jobs):
        while not stop.is_set():
            run(next(jobs))

    with ThreadPoolExecutor(max_workers=max(1, len(runs))) as pool:
        working = [pool.submit(work, run, islice(cycle(records), start + i, None)) for i, run in enumerate(runs)]
        try:
            yield
        finally:
            stop.set()
        for one in working:
            one.result()
