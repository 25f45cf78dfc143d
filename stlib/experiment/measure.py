"""What is timed: single jobs on fresh replicas, doers side by side, contention, the dispatcher's own time.

A *doer* does one job: `doer(row) -> products`, the job's parameters in, what it took out (`run_s` and `probe_s` in
seconds). A replica (`run_on`), a server behind HTTP and a test's function are all the same to what is timed here.
"""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stlib.serving.replica import ReplicaSpec, stop_replica
from stlib.serving.rules import options_of

Doer = Callable[[dict], dict]
LABELS = {"run", "workload", "method", "threads", "job_id", "mix", "experiment", "block", "replicate",
          "process"}  # not of a job
WARM_UP = 8  # jobs of a fresh process


def run_on(handle, menu: dict | None = None) -> Doer:
    """The doer that has a replica (a handle of `ReplicaSpec.start`) do a row's job by its `method`, probes around it.

    A row's other entries, but for LABELS and None, are the job's parameters, with those that the method stands for in
    the menu (left out: the parameter `method`); the products are what `Replica.run` measured.
    """
    import ray

    def run(row: dict) -> dict:
        params = {name: value for name, value in row.items() if name not in LABELS and value is not None}
        return ray.get(handle.run.remote(params | options_of(row.get("method"), menu)))[1]

    return run


class FreshReplicas:
    """A doer on replicas of its own, one for each number of `threads` of the rows, started anew after `runs` rows.

    A process keeps the memory it was given, and with it about a percent of its speed, for its life: runs that are to
    speak for any process are spread over many. The products get `process`, an id of the replicas that no others have:
    a measurement that is resumed does so in another process. spec: of the replicas; a name: of such a workload.
    """

    def __init__(self, spec: ReplicaSpec | str, runs: int | None = None, menu: dict | None = None):
        self.spec = ReplicaSpec(spec) if isinstance(spec, str) else spec
        self.runs, self.menu, self.handles = runs, menu, {}
        self.stop()

    def __call__(self, row: dict) -> dict:
        if self.done == self.runs:
            self.stop()
        products = run_on(self.handle(row.get("threads", self.spec.threads)), self.menu)(row)
        self.done += 1
        return products | {"process": self.process}

    def handle(self, threads: int = 1):
        """The handle of the replica with so many threads, started if it is not there."""
        if threads not in self.handles:
            self.handles[threads] = self.spec.but(threads=threads).start()
        return self.handles[threads]

    def stop(self) -> None:
        """End the replicas; the next row starts others."""
        while self.handles:
            stop_replica(self.handles.popitem()[1])
        self.process, self.done = uuid.uuid4().hex[:12], 0


def _timed(doer: Doer, record: dict, probe: str) -> dict:
    """What a job took, seconds; probe_s: the product of that name (NaN without probes)."""
    at_s, products = time.monotonic(), doer(record)
    return {"at_s": at_s, "run_s": products["run_s"], "probe_s": products.get(probe, np.nan)}


def side_by_side(doers: Sequence[Doer], jobs: pd.DataFrame, *, label: str) -> pd.DataFrame:
    """Have each doer do all the jobs, all at once and each from another job on; a row a job and doer.

    Columns: those of `jobs`, replica (the doer's number), at_s (monotonic), run_s and probe_s (NaN without probes).
    """
    records = jobs.to_dict("records")
    bar = tqdm(total=len(doers) * len(records), desc=label, unit="job")

    def work(replica: int) -> list[dict]:
        first, rows = replica * len(records) // len(doers), []
        for record in records[first:] + records[:first]:
            rows.append(record | {"replica": replica} | _timed(doers[replica], record, "probe_s"))
            bar.update()
        return rows

    with bar, ThreadPoolExecutor(len(doers)) as pool:
        return pd.DataFrame([row for rows in pool.map(work, range(len(doers))) for row in rows])


def measure_contention(doers: Sequence[Doer], jobs: pd.DataFrame, *, blocks: int) -> pd.DataFrame:
    """Run the same jobs on the first doer while 1, 2, ... of the doers are busy; a row a job and condition.

    doers: warmed up here by the first jobs. jobs: with their `method`. The jobs are shared among `blocks` blocks (for
    an interval at least 10 in all); each block runs once under every number of busy doers, in rising order and in
    falling order by turns. The other doers do jobs of the same list until the block ends. Columns: method, job_id,
    block, busy, at_s, run_s, probe_s (the one after the job: the one before may date from the condition before).
    """
    if blocks > len(jobs):
        raise ValueError(f"{blocks} blocks of {len(jobs)} jobs: give at least one job a block")
    records, labels, rows = jobs.to_dict("records"), jobs[["method", "job_id"]].to_dict("records"), []
    side_by_side(doers, jobs.head(WARM_UP), label="warm-up")
    for block, part in enumerate(tqdm(np.array_split(np.arange(len(jobs)), blocks), desc="contention")):
        levels = range(1, len(doers) + 1)
        for busy in levels if block % 2 == 0 else reversed(levels):
            with _kept_busy(doers[1:busy], records, int(part[-1]) + 1):
                for i in part:
                    timed = _timed(doers[0], records[i], "probe_after_s")
                    rows.append(labels[i] | {"block": block, "busy": busy} | timed)
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
def _kept_busy(doers: Sequence[Doer], records: list[dict], start: int):
    """Each of the doers does one job of the list after another, from `start` on, until the end."""
    stop = threading.Event()

    def work(doer, jobs):
        while not stop.is_set():
            doer(next(jobs))

    with ThreadPoolExecutor(max_workers=max(1, len(doers))) as pool:
        working = [pool.submit(work, doer, islice(cycle(records), start + i, None)) for i, doer in enumerate(doers)]
        try:
            yield
        finally:
            stop.set()
        for one in working:
            one.result()
