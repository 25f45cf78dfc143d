"""How variable arrivals and services are, and which queueing model they allow.

Every test here has a known null law (exact, or chi-square or Kolmogorov's in the limit), so no bootstrap is needed.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from stlib.queueing import checks
from stlib.queueing.arrivals import Trace

LEVEL = 0.05  # of the whole family of tests
BLOCK = 20  # successive intervals taken together: a block, or the mean number of arrivals in a window
LAGS = 10
LEAST_TESTED = 50  # intervals; with fewer, no test sees anything
LEAST_DESCRIBED = 10

STEADY_ARRIVALS = "inter-arrival times are independent and follow one law"
STEADY_SERVICES = "service times are independent and follow one law"
UNRELATED = "service times do not depend on the gaps before them"
POISSON = "arrivals are Poisson"
EXPONENTIAL = "service times are exponential"


@dataclass(frozen=True)
class Variability:
    """What a queue feels of n inter-arrival times or service times.

    mean_s: seconds. scv: squared coefficient of variation. lag1: correlation of neighbours. dispersion: of arrivals
    the index of dispersion for counts (1 if Poisson), of services that for intervals (the SCV if independent), both
    over about BLOCK intervals.
    """

    n: int
    mean_s: float
    scv: float
    lag1: float
    dispersion: float


@dataclass(frozen=True)
class ModelChoice:
    """`model`, M/M/k, M/G/k, GI/G/k or simulate; `reasons`, sentences; `tests`, a table with one row a test."""

    model: str
    reasons: tuple[str, ...]
    tests: pd.DataFrame


def arrival_variability(arrival_s) -> Variability:
    """Summary of arrival times (n,), seconds in order of time; the rate is 1 / mean_s."""
    gaps = _gaps(arrival_s, LEAST_DESCRIBED)
    return _summary(gaps, Trace(arrival_s).idc(gaps.mean() * min(BLOCK, len(gaps) / 11)))


def service_variability(service_s) -> Variability:
    """Summary of service times (n,), seconds in order of service.

    The index of dispersion for intervals is the variance of sums of b successive ones over b times their squared mean
    (Cox and Lewis, 1966).
    """
    services = _services(service_s, LEAST_DESCRIBED)
    size = min(BLOCK, len(services) // 10)
    sums = services[: len(services) // size * size].reshape(-1, size).sum(axis=1)
    return _summary(services, float(sums.var(ddof=1) / (size * services.mean() ** 2)))


def select_model(arrivals, services, k: int) -> ModelChoice:
    """The simplest model of k replicas that the data do not contradict: M/M/k, M/G/k, GI/G/k, or 'simulate'.

    arrivals: times (n,), seconds in order of time. services: times (m,), seconds in order of service; if m = n,
    taken as those of the same jobs. Tests as in `model_tests`, at 5 % for all together. Not rejected is not proven:
    few jobs show gross departures only. Raises ValueError for fewer than LEAST_TESTED intervals or a time out of range.
    """
    k = checks.whole(k=k)
    tests = model_tests(arrivals, services)
    gaps = _gaps(arrivals)
    rho = _services(services).mean() / (k * gaps.mean())
    broken = set(tests.claim[tests.rejected])
    model = "GI/G/k" if POISSON in broken else "M/G/k" if EXPONENTIAL in broken else "M/M/k"
    if rho >= 1 or broken & {STEADY_ARRIVALS, STEADY_SERVICES, UNRELATED}:
        model = "simulate"
    reasons = [f"load {rho:.2f} on k = {k}" + (": no steady state, finite runs only" if rho >= 1 else "")]
    for claim, rows in tests.groupby("claim", sort=False):
        by = f"rejected by {' and '.join(rows.test[rows.rejected])}" if claim in broken else "not rejected"
        reasons.append(f"{claim}: {by} (adjusted p = {rows.p_holm.min():.2g})")
    if (tied := (gaps == 0).mean()) > 0.01:
        reasons.append(f"{tied:.0%} of the arrivals share a time with the one before: batches, or stamps too coarse")
    return ModelChoice(model, tuple(reasons), tests)


def model_tests(arrivals, services) -> pd.DataFrame:
    """The tests behind `select_model`, one row each: claim, test, p_value, p_holm (Holm, 1979), rejected.

    Independent with one law, whatever it is: on Savage scores of the ranks, CUSUM (Kolmogorov's law), equal levels of
    successive blocks (as Kruskal and Wallis, chi-square), serial correlation (Ljung and Box, 1978). Poisson or
    exponential: Kolmogorov-Smirnov after Durbin's transform (1961), exact; the Lewis test of Kim and Whitt (2014).
    Poisson: dispersion of counts (chi-square). Gaps and the services after them: Spearman's rank correlation.
    """
    gaps, services = _gaps(arrivals), _services(services)
    rows = [(STEADY_ARRIVALS, *row) for row in _independence(gaps)]
    rows += [(STEADY_SERVICES, *row) for row in _independence(services)]
    if len(services) == len(gaps) + 1:
        constant = np.ptp(gaps) == 0 or np.ptp(services[1:]) == 0
        rows.append((UNRELATED, "rank correlation", 1.0 if constant else stats.spearmanr(gaps, services[1:]).pvalue))
    rows += [(POISSON, "Lewis KS", _lewis(gaps)), (POISSON, "dispersion of counts", _dispersion(gaps)),
             (EXPONENTIAL, "Lewis KS", _lewis(services))]
    table = pd.DataFrame(rows, columns=["claim", "test", "p_value"])
    ordered = table.p_value.sort_values()  # statsmodels' multipletests collects all garbage at each call, in 50 ms
    adjusted = (ordered * np.arange(len(rows), 0, -1)).cummax().clip(upper=1)
    return table.assign(p_holm=adjusted, rejected=adjusted <= LEVEL)


def _independence(intervals: np.ndarray) -> list[tuple[str, float]]:
    """Savage scores make rank tests free of the law and best for a changing rate of exponential intervals."""
    n = len(intervals)
    scores = -np.log1p(-stats.rankdata(intervals) / (n + 1))
    scores = (scores - scores.mean()) * (np.ptp(intervals) > 0)  # exactly 0 for a constant, which shows nothing
    squares = scores @ scores or 1.0
    cusum = np.abs(np.cumsum(scores)).max() / np.sqrt(squares)
    blocks = np.array_split(scores, n // BLOCK)
    between = sum(len(block) * block.mean() ** 2 for block in blocks) * (n - 1) / squares
    lags = np.arange(1, LAGS + 1)
    correlation = np.array([scores[lag:] @ scores[:-lag] for lag in lags]) / squares
    ljung_box = n * (n + 2) * (correlation**2 / (n - lags)).sum()
    return [("CUSUM", stats.kstwobign.sf(cusum)), ("level of blocks", stats.chi2.sf(between, len(blocks) - 1)),
            ("serial correlation", stats.chi2.sf(ljung_box, LAGS))]


def _lewis(intervals: np.ndarray) -> float:
    """Durbin's transform turns exponential intervals, given their sum, into uniform order statistics."""
    steps = np.diff(np.sort(intervals), prepend=0.0) * np.arange(len(intervals), 0, -1)
    return stats.kstest(np.cumsum(steps)[:-1] / intervals.sum(), "uniform").pvalue


def _dispersion(gaps: np.ndarray) -> float:
    """Given their number, Poisson arrivals fall into equal windows as a multinomial; too even is no Poisson either."""
    times = np.cumsum(gaps)
    counts, _ = np.histogram(times[:-1], bins=len(gaps) // BLOCK, range=(0, times[-1]))
    statistic = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    law = stats.chi2(len(counts) - 1)
    return min(1.0, 2 * min(law.cdf(statistic), law.sf(statistic)))


def _summary(intervals: np.ndarray, dispersion: float) -> Variability:
    mean, variance = intervals.mean(), intervals.var(ddof=1)
    lag1 = 0.0 if variance == 0 else float(np.corrcoef(intervals[1:], intervals[:-1])[0, 1])
    return Variability(len(intervals), float(mean), float(variance / mean**2), lag1, dispersion)


def _gaps(arrival_s, least: int = LEAST_TESTED) -> np.ndarray:
    return _intervals("inter-arrival times", np.diff(Trace(arrival_s).arrival_s), least)


def _services(service_s, least: int = LEAST_TESTED) -> np.ndarray:
    return _intervals("service times", np.asarray(service_s, float), least)


def _intervals(name: str, values: np.ndarray, least: int) -> np.ndarray:
    """Checked; what differs in the tenth digit only is equal, since sums of equal times do not return exactly."""
    if values.ndim != 1 or len(values) < least:
        raise ValueError(f"{name} of shape {values.shape}: give one sequence of at least {least}")
    wrong = ~((values >= 0) & (values < np.inf))
    if wrong.any() or not values.any():
        i = int(wrong.argmax())
        raise ValueError(f"{name}[{i}] is {values[i]}: they must be finite seconds >= 0, not all 0; correct that job")
    return np.round(values / values.mean(), 9) * values.mean()
