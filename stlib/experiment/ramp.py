"""How many requests a server works on at once, and how fast each then is: closed loops of 1, 2, 3, ... requests.

With c requests always under way, throughput is c over their mean response (Little, 1961). While c is at most the number
of places k, nobody waits: throughput over c is a busy place's speed. Beyond, it stays what k places do together.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from stlib.experiment.measure import Doer
from stlib.experiment.rows import Store, measure

LEVELS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
EACH = 8  # requests of each of a level's loops, the first and the last of which are not counted
GAIN = 0.03  # throughput that three levels in a row do not gain: the server is full
ALIKE = 0.005  # by which throughputs may differ though they are one: the clients' own
SIGNIFICANT = 0.01


def closed_loop(doer: Doer, job: dict, level: int) -> dict:
    """Keep `level` requests of the same job under way; mean response in the middle, its relative standard error.

    Also how many requests failed, and the first error.
    """
    errors, times, lock = [], [[] for _ in range(level)], threading.Lock()

    def loop(i: int) -> None:
        for _ in range(EACH):
            began = time.monotonic()
            try:
                doer(job)
                times[i].append(time.monotonic() - began)
            except RuntimeError as error:  # a refusal is what is looked for
                with lock:
                    errors.append(str(error))

    with ThreadPoolExecutor(level) as pool:
        list(pool.map(loop, range(level)))
    middle = [one for of_loop in times for one in of_loop[1:-1]]
    mean_s = float(np.mean(middle)) if middle else None
    se = float(stats.sem(middle) / mean_s) if len(middle) > 1 else None
    return {"run_s": mean_s, "se": se, "failed": len(errors), "error": errors[0] if errors else None}


def measure_ramp(doer: Doer, job: dict, folder: Path, weights: str, most: int = LEVELS[-1]) -> pd.DataFrame:
    """A row a level, in rising order: level, run_s, se, throughput (per second), failed, error; kept in `folder`.

    It ends where the server is full, at the first level of which a request fails (that one left out), or at `most`.
    Raises RuntimeError if a request fails alone already.
    """
    store, rows = Store(Path(folder) / "ramp.jsonl"), []
    for level in (one for one in LEVELS if one <= most):
        plan = pd.DataFrame([{"level": level, "job": repr(sorted(job.items()))}])
        row = measure(plan, lambda row: closed_loop(doer, job, row["level"]), store, weights, code=(),
                      label=f"{level} at once").iloc[0]
        if row["failed"]:
            if level == 1:
                raise RuntimeError(f"a single request fails: {row['error']}")
            print(f"{row['failed']} of {level * EACH} requests fail with {level} at once, the first: {row['error']}")
            break
        rows.append(row.to_dict() | {"throughput": level / row["run_s"]})
        flow = [one["throughput"] for one in rows]
        if len(flow) > 3 and max(flow[-3:]) < (1 + GAIN) * flow[-4]:
            break
    return pd.DataFrame(rows)


def fit_places(ramp: pd.DataFrame) -> pd.DataFrame:
    """The places of a server and their speeds: a row a number of busy places up to k, as of `machine.contention`.

    ramp: of `measure_ramp`. k is the smallest level from which on no throughput differs from their common mean
    (chi-square, with ALIKE beside the standard errors); the last level if all differ: then k is at least that.
    Columns: method is left to the caller; busy, speed (relative to one alone), se (relative), probe_ratio 1.
    """
    level, se = ramp["level"].to_numpy(), np.hypot(ramp["se"].fillna(0.0), ALIKE).to_numpy()
    log_flow, weight = np.log(ramp["throughput"].to_numpy()), 1 / se**2
    for i in range(len(level)):
        full = np.average(log_flow[i:], weights=weight[i:])
        if stats.chi2.sf((weight[i:] * (log_flow[i:] - full) ** 2).sum(), max(1, len(level) - i - 1)) > SIGNIFICANT:
            break
    k, seconds = int(level[i]), level[: i + 1] * np.exp(-np.append(log_flow[:i], full))
    busy = np.arange(1, k + 1)
    speed = seconds[0] / np.interp(busy, level[: i + 1], seconds)  # what a step takes grows linearly in between
    apart = np.append(se[:i], weight[i:].sum() ** -0.5)
    error = np.where(busy == 1, 0.0, np.hypot(np.interp(busy, level[: i + 1], apart), apart[0]))
    return pd.DataFrame({"busy": busy, "speed": speed, "se": error, "probe_ratio": 1.0})
