"""Counts that only a run tells, such as the tokens of a natural story: their laws, by what is known of the job.

Laws are kept by the values of the workload's fields that a count depends on, as text: {"tokens_run": {"4, 64": [...]}},
each the sorted counts that were run. A count that a job says beforehand, but not under every method (steps, of which an
early exit leaves some out), has a law for each such method: "panel_steps_run[parallel+exit]".
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

VALUES = 128  # of a law, equally likely


def fit_laws(kind, rows: pd.DataFrame) -> dict[str, dict[str, list[int]]]:
    """The laws that rows tell, of the counts of a workload that their jobs did not say. kind: of WORKLOADS."""
    laws = {}
    for count, told in kind.known(rows).items():
        if count in rows:
            unsaid = pd.Series(np.isnan(told), rows.index)
            parts = {count: unsaid} | {of_method(count, method): (rows["method"] == method) & ~unsaid
                                       for method in rows["method"].unique()}
            laws |= {name: {_key(key): sorted(map(int, group)) for key, group in
                            rows[part].groupby(list(kind.counts[count]))[count]}
                     for name, part in parts.items() if (part & (rows[count] != told)).any()}
    return laws


def of_method(count: str, method: str) -> str:
    """The name of a count's law under one method."""
    return f"{count}[{method}]"


def law_of(known: Mapping[str, Mapping], count: str, method: str) -> str:
    """The name of the law, among those known, that a count has under a method."""
    return of_method(count, method) if of_method(count, method) in known else count


def values_of(known: Mapping[str, Mapping], kind, jobs: pd.DataFrame, method) -> dict[str, np.ndarray]:
    """For each count its equally likely values for each job, (n, VALUES), or (n, 1) if all are known.

    known: the laws. kind: of WORKLOADS. method: one name or one a job.
    """
    values = {}
    for count, told in kind.known(jobs).items():
        names = [law_of(known, count, one) for one in np.broadcast_to(np.asarray(method, object), len(jobs))]
        random = np.isnan(told) | (np.array(names) != count)
        values[count] = np.repeat(told[:, None], VALUES if random.any() else 1, axis=1)
        for i in np.flatnonzero(random):
            values[count][i] = law(known.get(names[i], {}), count, jobs.iloc[i], kind.counts[count])
    return values


def law(known: Mapping[str, list[int]], count: str, job: Mapping, fields: Sequence[str]) -> np.ndarray:
    """The equally likely values of a job's count, (VALUES,). known: its laws.

    Raises ValueError for a job of which no count was run.
    """
    key = _key([job[field] for field in fields])
    if key not in known:
        raise ValueError(f"{count} of jobs with {', '.join(fields)} = {key} was not measured (known: "
                         f"{'; '.join(known) or 'none'}): give `fit` rows of such jobs as `counts`")
    return _equally_likely(known[key])


def nearest_mean(known: Mapping[str, list[int]], job: Mapping, fields: Sequence[str]) -> float:
    """The mean of the law whose fields are nearest by their ratios; without any law the last field, the most it can be.
    """
    values = [float(job[field]) for field in fields]
    if not known:
        return values[-1]
    nearest = min(known, key=lambda key: np.abs(np.log1p(np.array(key.split(", "), float)) - np.log1p(values)).sum())
    return float(_equally_likely(known[nearest]).mean())


def _equally_likely(counts: list[int]) -> np.ndarray:
    return np.quantile(counts, (np.arange(VALUES) + 0.5) / VALUES, method="inverted_cdf")


def _key(values) -> str:
    return ", ".join(f"{value:g}" for value in values)
