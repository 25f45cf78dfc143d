"""Anybody's log of served jobs, read: arrivals, starts, finishes or replies, replicas, classes."""

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd

from stlib.queueing.times import UNITS, plain, read_cells, seconds, stated_unit
from stlib.queueing.variability import LEAST_TESTED

ROLES = {  # of columns: their usual names, the best first, without a suffix of TIME
    "arrival": "arrival|arrived|submit|submitted|enqueued|queued|received|request|requested|created|scheduled",
    "start": "start|started|service_start|begin|began", "finish": "finish|finished|service_end|end|ended|completed",
    "reply": "reply|replied|response|responded|answered|exit|departure",
    "replica": "replica|replica_id|server|server_id|worker|worker_id|gpu|device",
    "class": "class|job_class|customer_class|kind|type|workload", "outcome": "outcome|status|status_code"}
TIMES = ("arrival", "start", "finish", "reply")
SUFFIX = "(_(at|on|time|date|timestamp|ts|utc|s|ms|us|ns))*"
COMPLETED = r"completed?|ok|success|successful|succeeded|done|finished|true|2\d\d(\.0)?"
READERS = {".csv": read_cells, ".parquet": pd.read_parquet, ".jsonl": lambda path: pd.DataFrame(
    [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()])}
LEAST_JOBS = LEAST_TESTED + 1
ROUNDING_S = 1e-6  # of stamps
HOUR_BACK_S = -3660, -1800  # between two arrivals when a local clock is set back


@dataclass(frozen=True)
class Log:
    """Completed jobs in order of arrival, and what they were read from.

    jobs: arrival_s, finish_s and reply_s, seconds since the first arrival, and where the file has them start_s, replica
    (numbered from 0) and class; the index says the line of a CSV file, else the row, counted from 1. columns: the
    file's, by ROLES. left_out: the number of jobs that did not complete.
    """

    jobs: pd.DataFrame
    columns: dict[str, str]
    left_out: int


def read_log(path, columns: dict[str, str] | None = None, unit: str | None = None) -> Log:
    """Read a log of jobs, a job a row: CSV with a header, JSONL or Parquet.

    columns: by a name of ROLES the file's column, "none" for none; those left out are found by their usual names.
    Needed are arrivals, and finishes or replies, which stand for each other. Times are in one format and one unit, as
    of `times.read_times`. A job that lacks one of its times, or whose outcome is none of COMPLETED, did not complete.
    Raises ValueError with line, value and remedy for times that cannot be, and for fewer than LEAST_JOBS jobs.
    """
    table = _table(path, unit)
    used = _columns(path, table.columns.tolist(), columns or {})
    text = pd.DataFrame({role: table[name].astype(str).fillna("").str.strip() for role, name in used.items()})
    times = _times(path, text, used, unit)
    done = times.notna().all(axis=1)
    if "outcome" in used:
        done &= text["outcome"].str.lower().str.fullmatch(COMPLETED)
    if done.sum() < LEAST_JOBS:
        raise ValueError(f"{path} has {done.sum()} completed jobs in {len(done)} rows (completed is what has all its "
                         f"times, and of outcomes {COMPLETED}): give at least {LEAST_JOBS}, with fewer no test sees "
                         "anything")
    jobs = times[done].join(text[[role for role in ("replica", "class") if role in used]])

    def at(line, role):
        return f"{path}, {text.index.name} {line}, column {used[role]!r}: {table[used[role]][line]!r}"

    _refuse_impossible(jobs, _given(used), at)
    jobs = jobs.rename(columns={role: f"{role}_s" for role in TIMES}).sort_values("arrival_s", kind="stable")
    if "replica" in used:
        jobs["replica"] = pd.factorize(jobs["replica"], sort=True)[0]
    return Log(jobs, used, int((~done).sum()))


def _table(path, unit) -> pd.DataFrame:
    path = Path(path)
    if path.suffix not in READERS or unit not in (None, *UNITS):
        raise ValueError(f"{path}, unit {unit}: a log must end in one of {', '.join(READERS)}, and a unit, if stated, "
                         f"be one of {', '.join(UNITS)}; convert it")
    if path.suffix == ".csv":
        return read_cells(path).rename_axis("line")
    try:
        table = READERS[path.suffix](path)
    except (OSError, ValueError) as error:
        problem = str(error).strip()
        raise ValueError(f"{path} is no {path.suffix[1:]} file: {problem}; write it anew, or as CSV") from error
    return table.set_axis(pd.RangeIndex(1, len(table) + 1, name="row")).rename(columns=str)


def _columns(path, header: list[str], stated: dict[str, str]) -> dict[str, str]:
    """The file's column of each role: as stated, else the one with the best of the usual names."""
    used = {}
    for role, names in ROLES.items():
        usual = [column for name in names.split("|") for column in header if re.fullmatch(name + SUFFIX, plain(column))]
        column = stated.get(role) or (usual or ["none"])[0]
        if column != "none" and header.count(column) != 1:
            raise ValueError(f"{path} has {header.count(column)} columns {column!r}, for {role} it must have one; name "
                             f"it, of {header}")
        used |= {} if column == "none" else {role: column}
    if "arrival" not in used or not used.keys() & {"finish", "reply"}:
        raise ValueError(f"{path} has the columns {header}: a log needs arrivals, and finishes or replies; name them "
                         "(--arrival, --finish or --reply)")
    return used


def _times(path, text: pd.DataFrame, used: dict[str, str], unit: str | None) -> pd.DataFrame:
    """The columns of times as seconds since the first arrival, NaN where a cell is empty."""
    given = _given(used)
    cells = text[given].stack()
    cells = cells[cells != ""]

    def at(i):
        line, role = cells.index[i]
        return f"{path}, {text.index.name} {line}, column {used[role]!r}: {cells.iloc[i]!r}"

    if cells.empty:
        raise ValueError(f"{path} has no times in the columns {[used[role] for role in given]}: it must have at least "
                         f"{LEAST_JOBS} jobs")
    parsed = seconds(cells, unit or stated_unit(*(used[role] for role in given)), at)
    times = pd.Series(parsed, cells.index).unstack().reindex(index=text.index, columns=given)
    times = times - times["arrival"].min()
    if not {"finish", "reply"} <= set(times):
        times = times.assign(**{"finish" if "reply" in times else "reply": times[given[-1]]})
    return times


def _refuse_impossible(jobs: pd.DataFrame, given: list[str], at) -> None:
    """Raise ValueError, with a remedy, for what no queue does; jobs in the file's order, at(line, role) a cell."""
    steps = jobs["arrival"].diff()
    back = steps[steps < HOUR_BACK_S[1]]
    if 0 < len(back) <= 2 and back.iloc[0] > HOUR_BACK_S[0]:  # more often: the file is in another order
        raise ValueError(f"{at(back.index[0], 'arrival')} is {-back.iloc[0]:.0f} s before the arrival above it: a "
                         "local clock set back at the end of daylight saving; write the times in UTC or with their "
                         "zone, or sort the file")
    for before, role in pairwise(given):
        spans = jobs[role] - jobs[before]
        if spans[line := spans.idxmin()] < -ROUNDING_S:
            raise ValueError(f"{at(line, role)} is {-spans[line]:.6g} s before the {before} of the job: take both from "
                             "one clock, in UTC, for a local one is set back at the end of daylight saving; a column "
                             "of durations holds no times; or leave a column out ('none')")
    if {"start", "replica"} <= set(jobs):
        order = jobs.sort_values("start", kind="stable")
        overlaps = order.groupby("replica")["finish"].shift() - order["start"]
        if (overlaps > ROUNDING_S).any():
            line = overlaps.idxmax()
            raise ValueError(f"{at(line, 'start')} is {overlaps[line]:.6g} s before its replica, "
                             f"{jobs['replica'][line]}, has finished the job before, and a replica does one job at a "
                             "time: give each of its slots a name, or leave that column out ('none')")


def _given(used) -> list[str]:
    return [role for role in TIMES if role in used]
