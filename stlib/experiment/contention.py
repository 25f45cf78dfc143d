"""What busy replicas do to each other, and what the dispatcher adds to a job: measured apart, before a campaign."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stlib.experiment.measurement import run_on
from stlib.queueing.simulation import replication_interval

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
