"""How many requests a server works on at once, and how fast each then is: closed loops of 1, 2, 3, ... requests.

With c requests always under way, throughput is c over their mean response (Little, 1961). While c is at most the number
of places k, nobody waits: throughput over c is a busy place's speed. Beyond, it stays what k places do together.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from stlib.experiment.measure import Doer
from stlib.experiment.rows import Store, measure

LEVELS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
ROUNDS = 3  # over all levels, up, down, up: the machine's own changes are told from theirs
LEAST, EACH = 24, 8  # requests of a level and round, and of each of its loops, the first and last of which do not count
GAIN = 0.03  # throughput that three levels in a row do not gain: the server is full
ALIKE = 0.005  # by which throughputs may differ though they are one: the clients' own
TRIPS = 3  # of a request without work: what one with work may take outside its place
FULL, FREE = 0.01, 0.2  # p-values: below, levels differ in throughput; above, busy places do not slow each other


def closed_loop(doer: Doer, job: dict, level: int) -> dict:
    """Keep `level` requests of the same job under way; the mean response in the middle, its relative standard error.

    Raises RuntimeError if a request fails, with how many had done by then.
    """
    errors, times = [], [[] for _ in range(level)]

    def loop(i: int) -> None:
        while not errors and len(times[i]) < max(EACH, -(-LEAST // level)):
            began = time.monotonic()
            try:
                doer(job)
            except RuntimeError as error:  # a refusal is what is looked for
                errors.append(error)
            times[i].append(time.monotonic() - began)

    with ThreadPoolExecutor(level) as pool:
        list(pool.map(loop, range(level)))
    if errors:
        raise RuntimeError(f"of {sum(map(len, times))} requests, {level} at once, {len(errors)} fail, the first: "
                           f"{errors[0]}")
    middle = [one for of_loop in times for one in of_loop[1:-1]]
    return {"run_s": float(np.mean(middle)), "se": float(stats.sem(middle) / np.mean(middle))}


def measure_ramp(doer: Doer, job: dict, folder: Path, weights: str, most: int = LEVELS[-1]) -> pd.DataFrame:
    """A row a level, in rising order: level, run_s, se (relative), throughput (per second); kept in `folder`.

    It ends where the server is full, before the first level of which a request fails, or at `most`; then the levels are
    gone through again. Raises RuntimeError if one request fails alone already.
    """
    store, flow, rows = Store(Path(folder) / "ramp.jsonl"), {}, []

    def measured(level: int, turn: int) -> dict:
        plan = pd.DataFrame([{"level": level, "turn": turn, "job": repr(sorted(job.items()))}])
        row = measure(plan, lambda row: closed_loop(doer, job, row["level"]), store, weights, code=(),
                      label=f"{level} at once").iloc[0]
        rows.append({"level": level, "run_s": row["run_s"], "se": row["se"]})
        return rows[-1]

    for level in (one for one in LEVELS if one <= most):
        try:
            flow[level] = level / measured(level, 0)["run_s"]
        except RuntimeError as error:
            if level == 1:
                raise
            print(error)
            break
        last = list(flow.values())
        if len(last) > 3 and max(last[-3:]) < (1 + GAIN) * last[-4]:
            break
    for turn in range(1, ROUNDS):
        for level in sorted(flow, reverse=turn % 2 == 1):
            measured(level, turn)
    return rounds_as_one(pd.DataFrame(rows))


def rounds_as_one(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each level its rounds' mean run_s (their geometric mean), its se by how rounds differ, and throughput.

    rows: level, run_s, se, each level as often. Rounds differ by the requests' scatter or, if that is more, as the
    levels' rounds do in the middle (the machine's own changes).
    """
    rows = rows.assign(log=np.log(rows["run_s"]))
    found = rows.groupby("level").agg(log=("log", "mean"), within=("se", "mean"), apart=("log", "var"),
                                      n=("log", "size")).reset_index()
    between = np.sqrt(found["apart"].mean()) if found["n"].min() > 1 else 0.0
    run_s, se = np.exp(found["log"]), np.maximum(found["within"], between) / np.sqrt(found["n"])
    return pd.DataFrame({"level": found["level"], "run_s": run_s, "se": se, "throughput": found["level"] / run_s})


def fit_places(ramp: pd.DataFrame, trip_s: float = 0.0) -> pd.DataFrame:
    """The places of a server and their speeds: a row a number of busy places up to k, as of `machine.contention`.

    ramp: of `measure_ramp`. trip_s: what a request takes outside its place. k is the smallest level from which on no
    throughput differs from their common mean (chi-square, with ALIKE beside the standard errors), or the level below it
    if it lacks no more than idle places between two requests explain (TRIPS, and twice its error); the last level if
    all differ: then k is at least that. Up to k a place's speed is throughput over places, and 1 if none of these
    differs. Columns: busy, speed (relative to one alone), se (relative), probe_ratio 1.
    """
    level, log_flow = ramp["level"].to_numpy(), np.log(ramp["throughput"].to_numpy())
    weight, seconds = 1 / np.hypot(ramp["se"].to_numpy(), ALIKE) ** 2, ramp["run_s"].to_numpy()
    i = next(i for i in range(len(level)) if i == len(level) - 1 or _alike(log_flow[i:], weight[i:]) > FULL)
    full, full_weight = np.average(log_flow[i:], weights=weight[i:]), weight[i:].sum()
    if i and full - log_flow[i - 1] < TRIPS * trip_s / seconds[i - 1] + 2 * weight[i - 1] ** -0.5:
        i -= 1
    log_place = np.append(-np.log(seconds[:i] - trip_s), full - np.log(level[i]))
    weight, busy = np.append(weight[:i], full_weight), np.arange(1, level[i] + 1)
    if _alike(log_place, weight) > FREE:
        speed, error = np.ones(len(busy)), np.where(busy == 1, 0.0, weight.sum() ** -0.5)
    else:  # what a step takes grows linearly in between
        speed = 1 / np.interp(busy, level[: i + 1], np.exp(log_place[0] - log_place))
        apart = np.interp(busy, level[: i + 1], weight**-0.5)
        error = np.where(busy == 1, 0.0, np.hypot(apart, apart[0]))
    return pd.DataFrame({"busy": busy, "speed": speed, "se": error, "probe_ratio": 1.0})


def _alike(values: np.ndarray, weight: np.ndarray) -> float:
    """The p-value that all are one number; weight: of each one, 1 / variance."""
    apart = weight * (values - np.average(values, weights=weight)) ** 2
    return float(stats.chi2.sf(apart.sum(), len(values) - 1)) if len(values) > 1 else 1.0
