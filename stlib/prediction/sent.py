"""Predicted beside served for a run whose server told nothing but its answers; and the verdict of any run."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stlib.experiment.costs import Costs
from stlib.prediction.predict import work_se
from stlib.queueing.checks import check_jobs
from stlib.queueing.job_table import reduce_runs
from stlib.queueing.simulation import run_jobs
from stlib.serving.images_server import METHOD

SLACK = 3.0  # a deadline, in unloaded times of the job, where none is stated
DRAINED = 0.2  # of the time until the last arrival: a queue that takes longer to empty after it was behind
PERCENTILES = (50, 95, 99)


def places(costs: Costs) -> int:
    """How many requests the server was found to work on at once."""
    return len(costs.speed[METHOD])


def alone(server, jobs: pd.DataFrame, costs: Costs, when: str) -> np.ndarray:
    """Send the jobs one after another: the seconds of each over those of the costs, (n,)."""
    seconds = [server(row)["run_s"] for row in tqdm(jobs.to_dict("records"), desc=f"alone, {when}", unit="request")]
    return (np.array(seconds) - server.server.trip_s) / costs.mean_s(jobs, METHOD)


def level_of(ratios: Sequence[np.ndarray]) -> tuple[float, float]:
    """What the work of a run is multiplied by, and its relative standard error, from what `alone` said around it.

    The standard error is that of the ratios, and of before and after being apart, as of `Calibration.fit`.
    """
    if not ratios:
        return 1.0, 0.0
    means = [one.mean() for one in ratios]
    se = np.sqrt(sum(one.var(ddof=1) / len(one) for one in ratios)) / len(ratios)
    return float(np.mean(means)), float(np.hypot(se, np.ptp(means) / np.sqrt(12)) / np.mean(means))


def predict_sent(table: pd.DataFrame, jobs: pd.DataFrame, costs: Costs, level: float = 1.0, level_se: float = 0.0,
                 trip_s: float = 0.0, *, slo_s: Sequence[float] | None = None, draws: int = 1000,
                 seed: int = 0) -> pd.DataFrame:
    """The metrics of the jobs of a run beside those of `draws` simulations with the same arrivals and jobs.

    table: as of `replay`; jobs: as they were asked for, in its order. level, level_se: of `level_of`. trip_s: of each
    request, outside the server's places. slo_s: a deadline a job, seconds; left out, SLACK
    times its unloaded time. A row a metric: served, predicted, low, high (95 % of the draws), fewer and more (with one
    place fewer, and one more). `within`: the share of all jobs answered in their time; throughput: answers a second
    until the last one. Jobs that failed take no part in served times; the simulation does them all.
    """
    k, arrival = places(costs), table["scheduled_s"].to_numpy()
    alone = costs.mean_s(jobs, METHOD) + trip_s
    limit = SLACK * alone if slo_s is None else np.asarray(slo_s, float)
    done = (table["outcome"] == "completed").to_numpy()
    answered = np.where(done, table["reply_s"] - table["scheduled_s"], np.nan)
    served = _metrics(answered[None], arrival, limit)
    by_k = {n: _metrics(trip_s + _responses(arrival, jobs, costs, n, (level, level_se), draws, seed), arrival,
                        limit)
            for n in {max(1, k - 1), k, k + 1}}
    here = by_k[k]
    return pd.DataFrame([{"metric": name, "served": float(served[name][0]), "predicted": values.mean(),
                          "low": np.quantile(values, 0.025), "high": np.quantile(values, 0.975),
                          "fewer": by_k[k - 1][name].mean() if k > 1 else np.nan, "more": by_k[k + 1][name].mean()}
                         for name, values in here.items()])


def offered_load(table: pd.DataFrame, jobs: pd.DataFrame, costs: Costs, level: float = 1.0,
                 level_se: float = 0.0) -> tuple[float, float]:
    """The load of a run on the server's places, all busy, and its relative standard error."""
    k, span = places(costs), np.ptp(table["scheduled_s"])
    busy = costs.busy_speed(METHOD, k)[k] * k
    work = costs.mean_s(jobs, METHOD).sum() * (len(jobs) - 1) / len(jobs)
    return float(level * work / (busy * span)), float(np.hypot(work_se(costs, jobs, METHOD, k), level_se))


def verdict(table: pd.DataFrame, load: float, se: float) -> tuple[str, str]:
    """Whether a run was stable, backlogged or overloaded, and the sentence that says by which rule.

    Overloaded: a load of 1 or more cannot be excluded (load (1 + 2 se) >= 1). Backlogged: after the last arrival the
    jobs in the system took longer than DRAINED of the time until then, and longer than three jobs one after another.
    """
    last, end = table["scheduled_s"].max(), table["reply_s"].max()
    drain, alone = end - last, (table["reply_s"] - table["scheduled_s"]).quantile(0.1)
    told = f"load {load:.2f} (known to {2 * se:.0%}), {drain:.3g} s to empty after {last:.4g} s of arrivals"
    if load * (1 + 2 * se) >= 1:
        return "overloaded", f"overloaded: {told}; the queue may only grow, its numbers are those of a run this long"
    if drain > max(DRAINED * last, 3 * alone):
        return "backlogged", f"backlogged: {told}; the run ended in a queue, a longer one may differ"
    return "stable", f"stable: {told}"


def difference(rows: pd.DataFrame) -> str:
    """What the difference between served and predicted mean says of the server."""
    one = rows.set_index("metric").loc["mean"]
    if one["low"] <= one["served"] <= one["high"]:
        return "the mean lies within the 95 % interval of the prediction: the server is as it was measured"
    off = f"the mean is {one['served'] / one['predicted'] - 1:+.0%} off"
    if one["served"] < one["low"]:
        return f"{off}, faster than predicted: it works on more requests at once (one more: {one['more']:.3g} s), in " \
               "larger batches, or answers some from a cache"
    return f"{off}, slower than predicted: another queue in front, an order that is not first come first served, or " \
           f"fewer places (one fewer: {one['fewer']:.3g} s)"


def _responses(arrival, jobs, costs: Costs, k: int, level, draws: int, seed: int) -> np.ndarray:
    """Responses (draws, n), the work drawn anew; the server's speed is uncertain by its standard error."""
    rng = np.random.default_rng([seed, k])
    se = np.hypot(work_se(costs, jobs, METHOD, k), level[1])
    factor = level[0] * np.exp(se * rng.standard_normal((draws, 1)))
    work = costs.sample_s(jobs, METHOD, rng, draws=draws, within=True) * factor
    arrivals = np.broadcast_to(arrival, work.shape)
    return run_jobs(*check_jobs(arrivals, work), k, speed=costs.busy_speed(METHOD, k) if k > 1 else None,
                    rng=rng).finish - arrivals


def _metrics(response: np.ndarray, arrival: np.ndarray, limit: np.ndarray) -> dict[str, np.ndarray]:
    """Of responses (m, n), NaN where there was none."""
    found = reduce_runs(response, np.zeros_like(response), (), PERCENTILES)
    ends = np.nanmax(arrival + response, axis=1) - arrival[0]
    return {name: values for name, values in found.items() if name != "wq"} | {
        "within": (response <= limit).mean(axis=1), "throughput": np.isfinite(response).sum(axis=1) / ends}
