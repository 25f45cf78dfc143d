"""Arrival processes: Poisson, renewal, Markov-modulated Poisson with two phases, and recorded traces.

Each has `rate` (per second) and `sample(n, rng)`, the times (n,) in seconds of the first n arrivals after time
zero. `scv` is the squared coefficient of variation of independent inter-arrival times; `idc(t)` is the index of
dispersion for counts, Var N(t) / E N(t), which also sees correlation.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from stlib.queueing import checks

LAWS = ("gamma", "hyperexponential", "lognormal", "deterministic")
LEAST_SCV = 1e-9  # of a law that is not deterministic


@dataclass(frozen=True)
class Poisson:
    """Poisson arrivals at `rate` per second."""

    rate: float

    def __post_init__(self):
        checks.positive(rate=self.rate)

    @property
    def scv(self) -> float:
        """SCV of the inter-arrival times, 1."""
        return 1.0

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return the first n arrival times, (n,) seconds."""
        checks.whole(n=n)
        return rng.exponential(1 / self.rate, n).cumsum()


@dataclass(frozen=True)
class Renewal:
    """Independent inter-arrival times of one `law` out of LAWS, mean 1 / `rate` seconds and squared CV `scv`.

    The first arrival comes one whole inter-arrival time after time zero. The hyper-exponential has two branches
    of balanced means and needs scv >= 1; the deterministic law needs scv = 0, gamma and lognormal scv > 0.
    """

    rate: float
    scv: float
    law: str = "gamma"

    def __post_init__(self):
        checks.positive(rate=self.rate)
        checks.nonnegative(scv=self.scv)
        if self.law not in LAWS:
            raise ValueError(f"law = {self.law!r} must be one of {LAWS}")
        if (self.scv < LEAST_SCV) != (self.law == "deterministic"):
            raise ValueError(
                f"scv = {self.scv} must be 0 for the deterministic law, at least {LEAST_SCV} for the others"
            )
        if self.law == "hyperexponential" and self.scv < 1:
            raise ValueError(f"scv = {self.scv} must be at least 1 for a hyper-exponential law; use gamma below")

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return the first n arrival times, (n,) seconds."""
        checks.whole(n=n)
        mean, scv = 1 / self.rate, self.scv
        if self.law == "gamma":
            gaps = rng.gamma(1 / scv, scv * mean, n)
        elif self.law == "lognormal":
            gaps = rng.lognormal(math.log(mean) - math.log1p(scv) / 2, math.sqrt(math.log1p(scv)), n)
        elif self.law == "hyperexponential":
            share = (1 + math.sqrt((scv - 1) / (scv + 1))) / 2
            first = rng.random(n) < share
            gaps = rng.exponential(1.0, n) * np.where(first, mean / (2 * share), mean / (2 * (1 - share)))
        else:
            gaps = np.full(n, mean)
        return gaps.cumsum()


@dataclass(frozen=True)
class MMPP2:
    """Markov-modulated Poisson process: `rate1` for exponential spells of mean 1 / `switch1`, then `rate2`, and so on.

    Spells at `rate2` have the mean 1 / `switch2`. All rates per second; a phase may be silent (rate 0), not both.
    Time zero is an arbitrary moment, not an arrival: the phase then has the time-stationary law, so that
    E N(t) = rate t from the start.
    """

    rate1: float
    rate2: float
    switch1: float
    switch2: float

    def __post_init__(self):
        checks.nonnegative(rate1=self.rate1, rate2=self.rate2)
        checks.positive(switch1=self.switch1, switch2=self.switch2, **{"the larger rate": max(self.rate1, self.rate2)})

    @classmethod
    def from_dispersion(cls, rate: float, idc: float, burst_s: float, burst_share: float = 0.5) -> "MMPP2":
        """Return the process of mean `rate` and index of dispersion `idc` (> 1) over long windows.

        Phase 1 is the burst: it lasts `burst_s` seconds in the mean and fills `burst_share`, in (0, 1), of the time.
        With p = burst_share, s = 1 / (burst_s (1 - p)) and d the rates' difference,
        idc = 1 + 2 p (1 - p) d^2 / (rate s), see `idc`; ValueError where the quiet phase would need a negative rate.
        """
        checks.positive(rate=rate, burst_s=burst_s)
        if not 0 < burst_share < 1:
            raise ValueError(f"burst_share = {burst_share} must lie in (0, 1); give the share of time spent in bursts")
        quiet_share = 1 - burst_share
        switching = 1 / (burst_s * quiet_share)
        highest = 1 + 2 * rate * quiet_share / (burst_share * switching)
        if not 1 < idc <= highest:
            raise ValueError(
                f"idc = {idc} must lie in (1, {highest:.6g}] for bursts of {burst_s} s that fill {burst_share} of the "
                "time; take longer or rarer bursts for more, Poisson for 1"
            )
        step = math.sqrt((idc - 1) * rate * switching / (2 * burst_share * quiet_share))
        quiet_rate = max(0.0, rate - burst_share * step)
        return cls(rate + quiet_share * step, quiet_rate, switching * quiet_share, switching * burst_share)

    @property
    def rate(self) -> float:
        """Mean arrival rate per second."""
        return (self.rate1 * self.switch2 + self.rate2 * self.switch1) / (self.switch1 + self.switch2)

    @property
    def scv(self) -> float:
        """Refused: inter-arrival times of an MMPP are correlated."""
        raise ValueError(
            "an MMPP2 has correlated inter-arrival times, and a formula fed their SCV alone would predict too short "
            "waits; describe it by idc(t), and simulate (interval_scv gives the SCV for a fit)"
        )

    @property
    def interval_scv(self) -> float:
        """SCV of the time between successive arrivals in the long run (Fischer and Meier-Hellstern, 1993)."""
        generator = np.array([[-self.switch1, self.switch1], [self.switch2, -self.switch2]])
        rates = np.array([self.rate1, self.rate2])
        at_arrival = np.array([self.switch2, self.switch1]) * rates
        mean_gap = np.linalg.inv(np.diag(rates) - generator)
        once = at_arrival / at_arrival.sum() @ mean_gap
        return float(2 * (once @ mean_gap).sum() / once.sum() ** 2 - 1)

    def idc(self, t) -> np.ndarray | float:
        """Return Var N(t) / E N(t) for windows of `t` seconds (scalar or array), started at any moment. Exact.

        1 + 2 p1 p2 (rate1 - rate2)^2 / (rate s) (1 - (1 - e^(-s t)) / (s t)), s = switch1 + switch2 and p the
        phases' shares of time (Heffes and Lucantoni, 1986); it follows from the covariance p1 p2 (rate1 - rate2)^2
        e^(-s u) of the rate at two moments u apart. t may be infinite.
        """
        t = np.asarray(t, dtype=float)
        if not (t > 0).all():
            raise ValueError(f"t = {t} must be above 0 seconds; give the window's length")
        switching = self.switch1 + self.switch2
        spread = self.switch1 * self.switch2 * ((self.rate1 - self.rate2) / switching) ** 2
        level = 2 * spread / (self.rate * switching)
        return 1 + level * (1 + np.expm1(-switching * t) / (switching * t))

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return the first n arrival times, (n,) seconds."""
        checks.whole(n=n)
        rates, switches = np.array([self.rate1, self.rate2]), np.array([self.switch1, self.switch2])
        phase = int(rng.random() < self.switch1 / switches.sum())
        per_cycle = self.rate * (1 / switches).sum()
        spells = 2 * math.ceil(n / per_cycle) + 8
        times, start, found = [], 0.0, 0
        while found < n:
            phases = (phase + np.arange(spells)) % 2
            length = rng.exponential(1 / switches[phases])
            begin = start + length.cumsum() - length
            count = rng.poisson(rates[phases] * length)
            times.append(np.repeat(begin, count) + np.repeat(length, count) * rng.random(count.sum()))
            start, found = begin[-1] + length[-1], found + count.sum()
        return np.sort(np.concatenate(times))[:n]


@dataclass(frozen=True, eq=False)
class Trace:
    """Recorded arrivals: `arrival_s` (n,), sorted seconds, and `jobs`, a table with one row an arrival."""

    arrival_s: np.ndarray
    jobs: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "arrival_s", np.asarray(self.arrival_s, dtype=float))
        _refuse_bad_times(self.arrival_s, "arrival ", 0)

    @classmethod
    def from_csv(cls, path, time_column: str) -> "Trace":
        """Read a trace from a CSV file with a header; its other columns become `jobs`.

        `time_column` holds seconds from the run's start, kept as they are, or ISO 8601 timestamps, which become
        seconds since the first one (without a zone: UTC). Equal times are simultaneous arrivals and are kept in
        the file's order. Line ends may be LF or CRLF, blank lines at the end are ignored. ValueError, naming the
        line, for a missing, unreadable, negative or unsorted time; ValueError for an empty file or a wrong column.
        """
        try:
            table = pd.read_csv(path, index_col=False, skip_blank_lines=False, encoding="utf-8-sig")
        except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
            raise ValueError(f"{path}: {error}; a trace is a CSV file with a header and one line an arrival") from error
        if time_column not in table:
            raise ValueError(f"{path} has no column {time_column!r}; choose one of {list(table.columns)}")
        filled = table.notna().any(axis=1).to_numpy()
        table = table.iloc[: len(filled) - filled[::-1].argmax() if filled.any() else 0]
        times = _seconds(table[time_column])
        _refuse_bad_times(times, f"{path}, line ", 2)
        return cls(times, table.drop(columns=time_column))

    @property
    def rate(self) -> float:
        """Arrivals per second between the first and the last one, (n - 1) / (last - first)."""
        span = self.arrival_s[-1] - self.arrival_s[0]
        if span <= 0:
            raise ValueError(f"a trace that spans {span} s has no rate; give at least two different times")
        return float((len(self.arrival_s) - 1) / span)

    def sample(self, n: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return the trace's first n arrival times, (n,) seconds; nothing is drawn, and more than it has is refused."""
        checks.whole(n=n)
        if n > len(self.arrival_s):
            raise ValueError(f"n = {n} must be at most {len(self.arrival_s)}, the trace's length; ask for fewer")
        return self.arrival_s[:n].copy()

    def idc(self, t: float) -> float:
        """Return the variance over the mean of the counts in the trace's successive windows of `t` seconds.

        ValueError unless at least ten windows fit between the first and the last arrival.
        """
        checks.positive(t=t)
        first = self.arrival_s[0]
        windows = int((self.arrival_s[-1] - first) / t)
        if windows < 10:
            raise ValueError(f"t = {t} s leaves {windows} windows of at least 10; take shorter windows")
        window = ((self.arrival_s - first) / t).astype(int)
        counts = np.bincount(window[window < windows], minlength=windows)
        return float(counts.var(ddof=1) / counts.mean())


def _seconds(column: pd.Series) -> np.ndarray:
    """Return the column as seconds, NaN where it cannot be read."""
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().any() or column.isna().all():
        return numbers.to_numpy(dtype=float)
    stamps = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    return (stamps - stamps.min()).dt.total_seconds().to_numpy()


def _refuse_bad_times(times: np.ndarray, where: str, offset: int) -> None:
    if len(times) == 0:
        raise ValueError("a trace must have at least one arrival; this one is empty")
    unsorted = np.concatenate([[False], np.diff(times) < 0])
    for bad, problem in (
        (~np.isfinite(times), "is no finite time; give seconds or ISO 8601 timestamps"),
        (times < 0, "is negative; count seconds from the run's start"),
        (unsorted, "is earlier than the one before; sort the trace by time"),
    ):
        if bad.any():
            i = int(bad.argmax())
            raise ValueError(f"{where}{i + offset}: {times[i]} {problem}")


def arrival_process(rate: float | None, name: str = "poisson", scv: float = 1.0, idc: float = 1.0):
    """The arrival process of that rate: Poisson, an MMPP(2) of this SCV and index of dispersion, or a trace.

    A trace is named by its CSV file, whose first column holds the times; they are stretched to the rate, if there is
    one.
    """
    if name.endswith(".csv"):
        trace = Trace.from_csv(name, pd.read_csv(name, nrows=0).columns[0])
        return trace if rate is None else Trace(trace.arrival_s * trace.rate / rate)
    return Poisson(rate) if idc == 1 else fit_mmpp2(rate, scv, idc)


def fit_mmpp2(rate: float, scv: float, idc: float, burst_share: float = 0.5) -> MMPP2:
    """The MMPP(2) of this rate, SCV of inter-arrival times and index of dispersion over long windows, 1 < scv <= idc.

    These leave one of its four parameters open; `burst_share`, the share of time in the phase of higher rate, closes
    the fit. With V the variance of the momentary rate and s the sum of the switching rates, the stationary equation
    pi (D0 + D1) = 0 gives idc = 1 + 2 V / (rate s) and scv = 1 + 2 V / (rate s + rate1 rate2). Without s this is a
    quadratic in x = sqrt(V) / rate with one positive root, which leaves rate2 >= 0; at scv = idc phase 2 is silent.
    Raises ValueError outside the range: no MMPP(2) has scv > idc.
    """
    checks.positive(rate=rate)
    if not (1 < scv <= idc < np.inf and 0 < burst_share < 1):
        raise ValueError(f"scv = {scv}, idc = {idc}, burst_share = {burst_share}: an MMPP(2) needs 1 < scv <= idc and "
                         "a share in (0, 1); take Poisson for scv = idc = 1 and Renewal for scv > idc")
    odds = math.sqrt((1 - burst_share) / burst_share)
    skew = odds - 1 / odds
    a = 1 + 2 * (idc - scv) / ((scv - 1) * (idc - 1))
    x = (skew + math.sqrt(skew**2 + 4 * a)) / (2 * a)
    switching = 2 * x**2 * rate / (idc - 1)
    return MMPP2(rate * (1 + x * odds), max(rate * (1 - x / odds), 0.0), switching * (1 - burst_share),
                 switching * burst_share)
