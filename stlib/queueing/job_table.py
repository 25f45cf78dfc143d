"""The job table, which a served and a simulated run both return, and its reduction to metrics."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

OUTCOMES = ("completed", "rejected", "timed_out", "cancelled", "failed")

JOB_COLUMNS = {
    "job_id": "int64",
    "workload": "category",
    "scheduled_s": "float64",  # when the load generator meant to send it
    "arrival_s": "float64",
    "start_s": "float64",
    "finish_s": "float64",
    "reply_s": "float64",  # when the load generator had its answer
    "service_s": "float64",  # elapsed on the replica
    "probe_s": "float64",
    "replica": "int32",  # -1: never started
    "method": "category",  # missing: never started
    "n_outstanding": "int32",  # waiting and in service at its service start, itself included; 0: never started
    "attempt": "int8",  # 1 is the first
    "outcome": "category",
}


def job_table(columns: Mapping) -> pd.DataFrame:
    """A job table, one row a job, with the columns of `JOB_COLUMNS` in their order and dtypes.

    columns: for each name of `JOB_COLUMNS` a sequence, or one value for all jobs. Times in seconds since the run's
    start, NaN where there is none. Strings, or `pd.Categorical`, for workload, method and outcome.
    Arrays that already have their dtype are not copied. Raises ValueError for a column that is missing or not of the
    table, and for an outcome that is none of `OUTCOMES`.
    """
    if odd := set(JOB_COLUMNS) ^ set(columns):
        raise ValueError(f"columns missing or unknown: {sorted(odd)}; a job table has exactly {list(JOB_COLUMNS)}")
    index = pd.RangeIndex(len(columns["job_id"]))
    table = {name: pd.Series(columns[name], index, copy=False).astype(dtype) for name, dtype in JOB_COLUMNS.items()}
    known = table["outcome"].cat.set_categories(OUTCOMES)
    if known.cat.codes.min() < 0:
        raise ValueError(f"outcome {table['outcome'][known.isna()].iloc[0]!r} is none of {OUTCOMES}")
    return pd.DataFrame(table | {"outcome": known}, index=index, copy=False)


def job_metrics(table: pd.DataFrame, *, slo_s: Sequence[float] = (), percentiles: Sequence[float] = (50, 95)):
    """Reduce a job table, served or simulated, to metrics: a Series.

    `mean`, `p50`, `p95` (any `percentiles`, linear interpolation) of the response time reply_s - scheduled_s and the
    mean wait `wq` of start_s - arrival_s, seconds, all over completed jobs (NaN if there are none); `slo_X` for each
    X of `slo_s` (seconds): the share of all offered jobs that completed within X; `offered` and the number of jobs
    of each outcome. Raises ValueError for an empty table, or a percentile or SLO out of range.
    """
    if len(table) == 0:
        raise ValueError("the job table is empty: there is nothing to reduce; give at least one job")
    completed = (table["outcome"] == "completed").to_numpy()
    response = np.where(completed, table["reply_s"] - table["scheduled_s"], np.nan)
    wait = np.where(completed, table["start_s"] - table["arrival_s"], np.nan)
    reduced = reduce_runs(response[None], wait[None], slo_s, percentiles)
    counts = table["outcome"].value_counts().reindex(OUTCOMES, fill_value=0)
    return pd.Series({name: value[0] for name, value in reduced.items()} | {"offered": len(table)} | dict(counts))


def reduce_runs(response_s, wait_s, slo_s, percentiles) -> dict[str, np.ndarray]:
    """The metrics of `job_metrics` for m runs of n jobs at once.

    response_s, wait_s: shape (m, n), seconds, NaN for a job that did not complete. Returns arrays of shape (m,).
    """
    if not all(0 <= p <= 100 for p in percentiles) or not all(0 < s < np.inf for s in slo_s):
        raise ValueError(f"percentiles {percentiles} must lie in [0, 100] and SLOs {slo_s} be positive seconds")
    done = np.isfinite(response_s)
    completed = done.sum(axis=1)
    share = np.where(completed > 0, 1 / np.maximum(completed, 1), np.nan)
    metrics = {"mean": response_s.sum(axis=1, where=done) * share, "wq": wait_s.sum(axis=1, where=done) * share}
    ordered = np.sort(response_s, axis=1)  # NaN last
    metrics |= {f"p{p:g}": _percentile(ordered, completed, p) for p in percentiles}
    return metrics | {f"slo_{s:g}": (ordered <= s).mean(axis=1) for s in slo_s}


def _percentile(ordered, completed, p):
    """Percentile p of the first `completed` values of each ordered row, linearly interpolated."""
    last, rows = np.maximum(completed - 1, 0), np.arange(len(ordered))
    position = last * (p / 100)
    below = position.astype(np.int64)
    low, high = ordered[rows, below], ordered[rows, np.minimum(below + 1, last)]
    return low + (position - below) * (high - low)
