"""Arrival processes: Poisson, renewal, Markov-modulated Poisson with two phases, and recorded traces.

Each has `rate` (per second) and `sample(n, rng)`, the times (n,) in seconds of the first n arrivals after time
zero. `scv` is the squared coefficient of variation of independent inter-arrival times; `idc(t)` is the index of
dispersion for counts, Var N(t) / E N(t), which also sees correlation.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from stlib.queueing import checks
from stlib.queueing.times import read_times, refuse_bad_times

LAWS = ("gamma", "hyperexponential", "lognormal")
LEAST_SCV = 1e-9  # below, no law can be told from a constant


@dataclass(frozen=True)
class Poisson:
    """Poisson arrivals at `rate` per second."""

    rate: float
    scv = 1.0  # no field: it is that of every Poisson process

    def __post_init__(self):
        checks.positive(rate=self.rate)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return the first n arrival times, (n,) seconds."""
        return rng.exponential(1 / self.rate, checks.whole(n=n)).cumsum()


@dataclass(frozen=True)
class Renewal:
    """Independent inter-arrival times of one `law` out of LAWS, mean 1 / `rate` seconds and squared CV `scv`.

    The first arrival comes one whole inter-arrival time after time zero. The hyper-exponential has two branches
    of balanced means and needs scv >= 1; at scv = 0 the others are a clock.
    """

    rate: float
    scv: float
    law: str = "gamma"

    def __post_init__(self):
        checks.positive(rate=self.rate)
        checks.nonnegative(scv=self.scv)
        if self.law not in LAWS or (self.law == "hyperexponential" and self.scv < 1):
            raise ValueError(f"law = {self.law!r}, scv = {self.scv}: the law must be one of {LAWS}, and not "
                             "hyperexponential for an SCV below 1; use gamma there")

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return the first n arrival times, (n,) seconds."""
        n = checks.whole(n=n)
        mean, scv = 1 / self.rate, self.scv
        if scv < LEAST_SCV:
            gaps = np.full(n, mean)
        elif self.law == "gamma":
            gaps = rng.gamma(1 / scv, scv * mean, n)
        elif self.law == "lognormal":
            gaps = rng.lognormal(math.log(mean) - math.log1p(scv) / 2, math.sqrt(math.log1p(scv)), n)
        else:
            share = (1 + math.sqrt((scv - 1) / (scv + 1))) / 2
            first = rng.random(n) < share
            gaps = rng.exponential(1.0, n) * np.where(first, mean / (2 * share), mean / (2 * (1 - share)))
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
    def fit(cls, rate: float, scv: float, idc: float, burst_share: float = 0.5) -> "MMPP2":
        """The process of this rate, SCV of inter-arrival times and IDC over long windows, 1 < scv <= idc.

        These leave one of its four parameters open; `burst_share`, the share of time in the phase of higher rate,
        closes the fit. With V the variance of the momentary rate and s the sum of the switching rates, the stationary
        equation pi (D0 + D1) = 0 gives idc = 1 + 2 V / (rate s) and scv = 1 + 2 V / (rate s + rate1 rate2). Without s
        this is a quadratic in x = sqrt(V) / rate with one positive root, which leaves rate2 >= 0; at scv = idc phase 2
        is silent. Raises ValueError outside the range: no MMPP(2) has scv > idc.
        """
        checks.positive(rate=rate)
        if not (1 < scv <= idc < math.inf and 0 < burst_share < 1):
            raise ValueError(f"scv = {scv}, idc = {idc}, burst_share = {burst_share}: an MMPP(2) needs 1 < scv <= idc "
                             "and a share in (0, 1); take Poisson for scv = idc = 1, Renewal for independent gaps")
        odds = math.sqrt((1 - burst_share) / burst_share)
        skew = odds - 1 / odds
        a = 1 + 2 * (idc - scv) / ((scv - 1) * (idc - 1))
        x = (skew + math.sqrt(skew**2 + 4 * a)) / (2 * a)
        switching = 2 * x**2 * rate / (idc - 1)
        return cls(rate * (1 + x * odds), max(rate * (1 - x / odds), 0.0), switching * (1 - burst_share),
                   switching * burst_share)

    @property
    def rate(self) -> float:
        """Mean arrival rate per second."""
        return (self.rate1 * self.switch2 + self.rate2 * self.switch1) / (self.switch1 + self.switch2)

    @property
    def scv(self) -> float:
        """Refused: inter-arrival times of an MMPP are correlated."""
        raise ValueError("an MMPP2 has correlated inter-arrival times, and a formula fed their SCV alone would predict "
                         "too short waits; describe it by idc(t), and simulate")

    def idc(self, t) -> np.ndarray | float:
        """Return Var N(t) / E N(t) for windows of `t` seconds (scalar or array), started at any moment. Exact.

        1 + 2 p1 p2 (rate1 - rate2)^2 / (rate s) (1 - (1 - e^(-s t)) / (s t)), s = switch1 + switch2 and p the
        phases' shares of time (Heffes and Lucantoni, 1986); it follows from the covariance p1 p2 (rate1 - rate2)^2
        e^(-s u) of the rate at two moments u apart. t may be infinite.
        """
        if not (np.asarray(t) > 0).all():
            raise ValueError(f"t = {t} must be above 0 seconds; give the window's length")
        switching = self.switch1 + self.switch2
        spread = self.switch1 * self.switch2 * ((self.rate1 - self.rate2) / switching) ** 2
        st = switching * np.asarray(t, float)
        return 1 + 2 * spread / (self.rate * switching) * (1 + np.expm1(-st) / st)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return the first n arrival times, (n,) seconds."""
        n = checks.whole(n=n)
        rates, switches = np.array([self.rate1, self.rate2]), np.array([self.switch1, self.switch2])
        phase = int(rng.random() < self.switch1 / switches.sum())
        phases = (phase + np.arange(2 * math.ceil(n / (self.rate * (1 / switches).sum())) + 8)) % 2
        times, start, found = [], 0.0, 0
        while found < n:
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
        refuse_bad_times(self.arrival_s, lambda i: f"arrival {i}: {self.arrival_s[i]}")

    @classmethod
    def read(cls, path, time_column: str | None = None, unit: str | None = None, window=None) -> "Trace":
        """Read a trace from a CSV or .jsonl file, as `times.read_times` does; its other columns become `jobs`.

        window: from and to, seconds of the trace: the arrivals of this part alone, which then starts at 0.
        """
        arrival_s, jobs = read_times(path, time_column, unit)
        if window is None:
            return cls(arrival_s, jobs)
        begin, end = window
        inside = (begin <= arrival_s) & (arrival_s < end)
        if not inside.any():
            raise ValueError(f"{path} has no arrival from {begin:g} to {end:g} s: it spans {arrival_s[0]:g} to "
                             f"{arrival_s[-1]:g} s, take a window in there")
        return cls(arrival_s[inside] - begin, jobs[inside].reset_index(drop=True))

    @property
    def rate(self) -> float:
        """Arrivals per second between the first and the last one, (n - 1) / (last - first)."""
        span = self.arrival_s[-1] - self.arrival_s[0]
        if span <= 0:
            raise ValueError(f"a trace that spans {span} s has no rate; give at least two different times")
        return float((len(self.arrival_s) - 1) / span)

    def sample(self, n: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return the trace's first n arrival times, (n,) seconds; nothing is drawn, and more than it has is refused."""
        n = checks.whole(n=n)
        if n > len(self.arrival_s):
            raise ValueError(f"n = {n} must be at most {len(self.arrival_s)}, the trace's length; ask for fewer")
        return self.arrival_s[:n].copy()

    def drift(self, parts: int = 10) -> tuple[float, float, float]:
        """The smallest and the largest rate (per second) among equal parts, and the p-value of one rate for all.

        By a one-way analysis of variance of the counts in ten windows of each part: correlation within a part, as of
        bursts shorter than it, is not taken for a rate that moves. ValueError unless each part has ten arrivals or
        more in the mean.
        """
        if len(self.arrival_s) < 10 * parts:
            raise ValueError(f"{len(self.arrival_s)} arrivals in {parts} parts: give ten or more a part")
        counts, edges = np.histogram(self.arrival_s, bins=10 * parts)
        by_part, seconds = counts.reshape(parts, 10), (edges[-1] - edges[0]) / parts
        rates = by_part.sum(axis=1) / seconds
        return float(rates.min()), float(rates.max()), float(stats.f_oneway(*by_part).pvalue)

    def idc(self, t: float) -> float:
        """Return the variance over the mean of the counts in the trace's successive windows of `t` seconds.

        ValueError unless at least ten windows fit between the first and the last arrival.
        """
        checks.positive(t=t)
        window = ((self.arrival_s - self.arrival_s[0]) / t).astype(int)
        if (windows := window[-1]) < 10:
            raise ValueError(f"t = {t} s leaves {windows} windows of at least 10; take shorter windows")
        counts = np.bincount(window[window < windows], minlength=windows)
        return float(counts.var(ddof=1) / counts.mean())


def is_trace(name: str) -> bool:
    """Whether arrivals of that name are a recorded trace, a file."""
    return name.endswith((".csv", ".jsonl"))


def arrival_process(rate: float | None, name: str = "poisson", *, scv: float | None = None, idc: float | None = None,
                    time_column: str | None = None, unit: str | None = None, window=None, scale: float | None = None):
    """The arrival process of that rate which these parameters describe.

    None: Poisson, called so. scv alone: Renewal, with gamma inter-arrival times. scv and idc: MMPP2. A name of
    `is_trace`: this trace, read as by `Trace.read`, stretched to the rate, or, where that is None, to `scale` times its
    own. Raises ValueError for parameters that are out of range or of another kind of process.
    """
    traced = is_trace(name)
    foreign = {"scv": scv, "idc": idc} if traced else {"time_column": time_column, "unit": unit, "window": window,
                                                       "scale": scale}
    if stated := {key: value for key, value in foreign.items() if value is not None}:
        raise ValueError(f"arrivals {name!r} cannot have {stated}: a trace, a .csv or .jsonl file, takes time_column, "
                         "unit, window and scale, any other process scv and idc")
    if traced:
        trace = Trace.read(name, time_column, unit, window)
        if rate is not None and scale is not None:
            raise ValueError(f"rate = {rate} beside scale = {scale}: give a trace one of the two")
        if rate is None and scale is None:
            return trace
        checks.positive(**{"rate": rate} if scale is None else {"scale": scale})
        return Trace(trace.arrival_s * (trace.rate / rate if scale is None else 1 / scale), trace.jobs)
    checks.nonnegative(scv=scv or 0, idc=idc or 0)
    random = {scv, idc} <= {None, 1}
    if (name == "poisson" and not random) or (name != "poisson" and scv is None):
        raise ValueError(f"arrivals {name!r} cannot have scv = {scv}, idc = {idc}: those named poisson have 1 and 1, "
                         "stated or not; others state the SCV of their inter-arrival times, and idc if correlated")
    if random:
        return Poisson(rate)
    return Renewal(rate, scv) if idc is None else MMPP2.fit(rate, scv, idc)
