"""The columns of the model of a job's time: each term of its workload, shared by the methods or once for each."""

from collections.abc import Mapping

import numpy as np
import pandas as pd


def term_columns(kind, job, method, methods, counts: Mapping) -> dict:
    """A workload's terms by name: the shared ones, then the others once for each of the methods, 0 but under it.

    kind: of WORKLOADS. job: a table, or a mapping of numbers or arrays. method: one name or one a job. counts: what
    only the run tells.
    """
    terms = kind.terms(mapping(job) | counts)
    of_method = {one: np.asarray(method) == one for one in methods}
    return {name: values for name, values in terms.items() if name in kind.shared} | {
        f"{name}[{one}]": terms[name] * of_method[one] for one in methods for name in terms if name not in kind.shared}


def mapping(job) -> dict:
    """The fields of a job by name: of a table arrays (n,), of one job as they are."""
    return {name: job[name].to_numpy() for name in job} if isinstance(job, pd.DataFrame) else dict(job)


def check_rows(rows: pd.DataFrame, kind) -> None:
    """Raises ValueError for rows that costs cannot be fitted to: no numbers, mixed threads, counts not known before."""
    ranged = kind.ranged(rows)
    numbers = np.column_stack([rows[["run_s", "probe_s", "at_s"]].to_numpy(float), *ranged.values()])
    if not np.isfinite(numbers).all() or (rows[["run_s", "probe_s"]].to_numpy() <= 0).any():
        raise ValueError("the rows hold NaN, infinite or non-positive numbers: leave out runs that failed, "
                         f"and give {' and '.join(ranged)} as numbers")
    if "threads" in rows and rows["threads"].nunique() > 1:
        raise ValueError(f"threads = {sorted(rows['threads'].unique())}: fit one model a number of threads")
    for count, values in kind.known(rows).items():
        if np.isnan(values).any():
            raise ValueError(f"{count} of {int(np.isnan(values).sum())} rows only the run told (natural jobs): fit on "
                             "jobs whose counts are known beforehand, and give the others as `counts`")
