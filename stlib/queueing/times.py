"""The one reader of times: the time columns of a file as seconds, whatever clock wrote them."""

import json
import re

import numpy as np
import pandas as pd

NAMES = re.compile(r"(scheduled|arrival|at|time|timestamp|time_stamp|stamp|datetime|date_time|arrival_time|"
                   r"arrival_timestamp)(_(utc|s|ms|us|ns))?")
UNITS = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}  # of numbers, per second
YEARS = 946_684_800, 4_102_444_800  # 2000 to 2100 in seconds since 1970: here a number is an epoch
LONGEST_S = 2e7  # of a run, 231 days, unless its unit is stated; above lie dates YYYYMMDD and other units
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
COMPACT = r"20[0-9]{12}(\.[0-9]+|[0-9]{3})?"  # a stamp, with a fraction or in ms: never a number
ENDED = ("end_timestamp", "duration")  # of a trace that tells when its calls ended, as Azure Functions 2021 does
DAY_S, MINUTE_S = 86_400, 60
LAYOUT = {"skip_blank_lines": False, "encoding": "utf-8-sig"}
ACCEPTED = ("seconds from the run's start, ISO 8601 timestamps, YYYYMMDDhhmmss stamps, or an epoch in s, ms, us or ns, "
            "all in one format, with a decimal point and no other separators")
STATE_UNIT = 'state the unit of the numbers: unit="ms", or a column name that ends in _ms (us and ns likewise)'
NO_TRACE = "a trace is a CSV file with a header and one line an arrival, or a .jsonl file with one object an arrival"


def read_times(path, column: str | None = None, unit: str | None = None) -> tuple[np.ndarray, pd.DataFrame]:
    """Read the times (n,), in seconds, and the other columns, a row a time, of a CSV (with a header) or .jsonl file.

    column: left out, the only one with a name of NAMES; of a job table, `scheduled_s`; where there are those of ENDED,
    ends less durations, in their order. It holds seconds from the run's start, kept as they are (but a slice from the
    middle, which begins later than it is long and than a minute, starts at 0), or an absolute clock, which becomes
    seconds since its first time: ISO 8601 timestamps, stamps YYYYMMDDhhmmss (both UTC unless they say a zone), or an
    epoch in s, ms, us or ns, told by its size. unit: of numbers, one of UNITS, where their size does not tell; a column
    name that ends in _ms, _us or _ns states it too. Equal times are kept in the file's order; blank lines at the end
    are ignored. Raises ValueError naming file, line and cell for a time that is missing, unreadable, negative, unsorted
    or not written as the first, and for whole numbers over more than a day whose unit nothing states.
    """
    if unit not in (None, *UNITS):
        raise ValueError(f"unit = {unit!r} must be one of {', '.join(UNITS)}, or left out")
    text = read_cells(path)
    by_end = column is None and {*ENDED} <= {*text}
    place = _place(path, text.columns.tolist(), ENDED[0] if by_end else column)
    if text.empty:
        raise ValueError(f"{path}: a trace must have at least one arrival; this one is empty")
    name, cells = text.columns[place], text.iloc[:, place].str.strip()

    def at(i, name=name, cells=cells):
        return f"{path}, line {cells.index[i]}, column {name!r}: {cells.iloc[i]!r}"

    times, order = seconds(cells, unit or stated_unit(name), at), np.arange(len(cells))
    if by_end:
        lasted = text[ENDED[1]].str.strip()
        times = times - seconds(lasted, unit, lambda i: at(i, ENDED[1], lasted))
        order = times.argsort(kind="stable")
        times = times[order] - times.min()
    refuse_bad_times(times, at)
    length = np.ptp(times)
    counted = cells.str.fullmatch("[0-9]+").all() and float(cells.iloc[0]) < YEARS[0]
    if counted and length > DAY_S and not (unit or by_end or re.search(r"_(s|ms|us|ns)$", plain(name))):
        raise ValueError(f"{at(0)} and so on: whole numbers over more than a day if they are seconds, and nothing says "
                         f"that they are: give the unit (--trace-unit s or ms), or {STATE_UNIT}")
    if times[0] > max(length, MINUTE_S) and len(times) > 1:
        times = times - times[0]
    lines = str(path).endswith(".jsonl")
    table = pd.read_json(path, lines=True, convert_dates=False) if lines else pd.read_csv(path, index_col=False,
                                                                                         **LAYOUT)
    table = table.iloc[: len(times)].drop(columns=table.columns[place])
    return times, table if not by_end else table.iloc[order].reset_index(drop=True)


def read_cells(path) -> pd.DataFrame:
    """The cells of a CSV or .jsonl file as text, "" where empty; the index is the line on which a row begins.

    Blank lines at the end are left out. Raises ValueError for what is no such file.
    """
    if str(path).endswith(".jsonl"):
        return _json_cells(path)
    try:
        text = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, **LAYOUT).fillna("")
    except (OSError, UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        problem = str(error).strip()
        raise ValueError(f"{path}: {problem}; {NO_TRACE}") from error
    breaks = text.apply(lambda cells: cells.str.count("\n")).sum(axis=1)
    text.index = text.index + 1 + breaks.cumsum().shift(fill_value=0).to_numpy()
    cells = text.iloc[1:].set_axis(text.iloc[0].tolist(), axis=1)
    return cells[(cells != "").any(axis=1)[::-1].cummax()[::-1]]


def _json_cells(path) -> pd.DataFrame:
    try:
        with open(path, encoding="utf-8") as file:
            rows = {i: dict(json.loads(line)) for i, line in enumerate(file, start=1) if line.strip()}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; {NO_TRACE}") from error
    cells = pd.DataFrame.from_dict(rows, orient="index")
    return cells.map(lambda one: "" if one is None or one != one else str(one))


def stated_unit(*names: str) -> str | None:
    """The unit, ms, us or ns, in which the name of a time column ends; ValueError if several state different ones."""
    units = {found[1] for name in names if (found := re.search(r"_(s|ms|us|ns)$", plain(name)))}
    if len(units) > 1:
        raise ValueError(f"the columns {names} state the units {sorted(units)}: give all times in one unit")
    return (units - {"s"} or {None}).pop()


def refuse_bad_times(times: np.ndarray, at) -> None:
    """Raise ValueError unless the times are finite, >= 0 and sorted; at(i) names the i-th in the message."""
    if len(times) == 0:
        raise ValueError("a trace must have at least one arrival; this one is empty")
    wrong = ~(np.isfinite(times) & (times >= np.append(0, times[:-1])))
    if wrong.any():
        raise ValueError(f"{at(int(wrong.argmax()))} is no finite time, negative or earlier than the one before; give "
                         "seconds from the run's start, sorted by time")


def _place(path, header: list[str], column: str | None) -> int:
    """Where the time column is: found by its name, never by its place."""
    found = [name for name in header if name == column or (column is None and NAMES.fullmatch(plain(name)))]
    if sorted(found) == ["arrival_s", "scheduled_s"]:  # a job table
        found = ["scheduled_s"]
    if len(found) != 1:
        wanted = "called time, timestamp, arrival_s or the like" if column is None else repr(column)
        raise ValueError(f"{path} must have one column {wanted}, not {len(found)}; name the time column (time_column, "
                         f"--time-column), one of {header}")
    return header.index(found[0])


def plain(name: str) -> str:
    """A column's name in lower case with underscores: 'Timestamp [UTC]' is timestamp_utc."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def seconds(cells: pd.Series, unit: str | None, at) -> np.ndarray:
    """The cells of one or several time columns as seconds from one zero, all read as the first one is.

    cells: text, stripped. unit: as of `read_times`. at(i) names the i-th in the message of the ValueError for one that
    is no time, or not written as the first one.
    """
    compact = cells.str.fullmatch(COMPACT)
    number = cells.str.fullmatch(NUMBER) & ~compact
    if number.iloc[0]:
        kind, times = _numbers(cells.where(number, "nan").astype(float).to_numpy(), unit, at)
    else:
        kind = "YYYYMMDDhhmmss" if compact.iloc[0] else "ISO 8601"
        times = _stamps(cells.where(compact if compact.iloc[0] else ~compact & ~number, ""))
        if unit and np.isfinite(times[0]):
            raise ValueError(f"{at(0)} is a timestamp, not in {unit}; leave the unit out, of the column's name too")
    if (wrong := np.isnan(times)).any():
        i = int(wrong.argmax())
        like = (f" in {kind}" if i or number.iloc[0] else "") + (", as the first one is" if i else "")
        remedy = f"{ACCEPTED}; or {STATE_UNIT}" if number.iloc[i] else ACCEPTED
        raise ValueError(f"{at(i)} is no finite time{like}; give {remedy}")
    return times


def _numbers(values: np.ndarray, unit: str | None, at) -> tuple[str, np.ndarray]:
    """What the numbers count, by the size of the first one, and as seconds, NaN where that cannot be."""
    epochs = [name for name, per_s in UNITS.items() if YEARS[0] <= values[0] / per_s < YEARS[1]]
    if epochs and unit not in (None, *epochs):
        raise ValueError(f"{at(0)} is an epoch in {epochs[0]}, not {unit}; state that unit, or start the times at 0")
    clock = values / UNITS[epochs[0] if epochs else unit or "s"]
    if epochs:
        right = (YEARS[0] <= clock) & (clock < YEARS[1])
        return f"an epoch in {epochs[0]}", np.where(right, values - values[right].min(), np.nan) / UNITS[epochs[0]]
    longest = YEARS[0] if unit else LONGEST_S
    return f"{unit or 's'} from the run's start (up to {longest:.0e} s)", np.where(abs(clock) <= longest, clock, np.nan)


def _stamps(text: pd.Series) -> np.ndarray:
    """Timestamps as seconds since the earliest, NaN where they are none."""
    text = text.str.replace(r"^([0-9]{8})([0-9]{6})\.?", r"\1T\2.", regex=True)
    # of four digits at first, for pandas takes "now" for a time
    stamps = pd.to_datetime(text.where(text.str.match("[0-9]{4}")), errors="coerce", utc=True, format="ISO8601")
    return (stamps - stamps.min()).dt.total_seconds().to_numpy()
