"""Steady-state formulas for one queue in front of k equal servers, first come first served.

Rates are per second and times in seconds. The symbols: `lam` the arrival rate, `mu` the service rate of one
server, `k` the number of servers, `scv` a squared coefficient of variation (variance over squared mean),
`rho = lam * mean_s / k` the utilisation. Where `rho >= 1`, or an argument is out of range, ValueError is raised.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import special

from stlib.queueing import checks
from stlib.queueing.chains import PhaseType, mphk
from stlib.queueing.checks import QueueMetrics, metrics

SLOWEST = 0.02  # the rate, a term, at which mdk's series must fade: it then has at most two chunks
SERIES_CHUNK = 1024
BENT_UP_TO_K = 32  # servers; the chain behind mgk's exponent would take long for more
BENT_UP_TO_RHO = 0.999  # nearer to 1 the exponent cannot be told from 1


def erlang_c(lam: float, mu: float, k: int) -> float:
    """Probability that a job of an M/M/k queue has to wait (Erlang, 1917).

    By the recursion of the loss probability, B(j) = a B(j-1) / (j + a B(j-1)) with a = lam / mu, whose terms stay
    in [0, 1] for any k.
    """
    checks.positive(mu=mu)
    k = checks.steady(lam, 1 / mu, k)
    a, blocked = lam / mu, 1.0
    for j in range(1, k + 1):
        blocked = a * blocked / (j + a * blocked)
    return blocked / (1 - a / k * (1 - blocked))


def mmk(lam: float, mu: float, k: int) -> QueueMetrics:
    """M/M/k: Poisson arrivals, exponential service. Exact; wq = C / (k mu - lam) with Erlang's C."""
    k = checks.whole(k=k)
    return metrics(lam, erlang_c(lam, mu, k) / (k * mu - lam), 1 / mu, k)


def mm1(lam: float, mu: float) -> QueueMetrics:
    """M/M/1: Poisson arrivals, exponential service, one server. Exact; w = 1 / (mu - lam)."""
    return mmk(lam, mu, 1)


def mg1(lam: float, mean_s: float, scv_s: float) -> QueueMetrics:
    """M/G/1: Poisson arrivals, any service law. Exact (Pollaczek–Khinchine).

    wq = rho mean_s (1 + scv_s) / (2 (1 - rho)).
    """
    checks.steady(lam, mean_s, scv_s=scv_s)
    rho = lam * mean_s
    return metrics(lam, rho * mean_s * (1 + scv_s) / (2 * (1 - rho)), mean_s, 1)


def mdk(lam: float, d: float, k: int) -> QueueMetrics:
    """M/D/k: Poisson arrivals, every service takes `d` seconds. Exact for any rho < 1 (Crommelin, 1932).

    By Crommelin's series, whose terms are positive and keep their relative accuracy where the wait is tiny, unless
    they fade as slowly as e^(-SLOWEST i); then by the roots of z^k = exp(k rho (z - 1)), whose cost does not grow as
    rho approaches 1, but whose sum cancels where the wait is tiny.
    """
    k = checks.steady(lam, d, k)
    rho = lam * d / k
    wait = _mdk_series if k * (rho - 1 - math.log(rho)) >= SLOWEST else _mdk_roots
    return metrics(lam, wait(rho, k) * d, d, k)


def _mdk_series(rho: float, k: int) -> float:
    """Mean wait in service times: sum over i of P(N_i >= i k) - P(N_i > i k) / rho, N_i Poisson of mean i k rho.

    The i-th term is Spitzer's E[max(0, i d - X)] / i, X the time of i k arrivals, so it is positive.
    """
    total, first = 0.0, 1
    while True:
        i = np.arange(first, first + SERIES_CHUNK)
        n, mean = i * k, i * k * rho
        terms = special.gammainc(n, mean) - special.gammainc(n + 1, mean) / rho
        total += terms.sum()
        if terms[-1] <= 1e-16 * total:
            return float(total)
        first += SERIES_CHUNK


def _mdk_roots(rho: float, k: int) -> float:
    """Mean wait in service times from the k - 1 roots z inside the unit disc (Crommelin, 1932).

    The number waiting has the generating function c (x - 1) prod (x - z) / (x^k - exp(k rho (x - 1))), so that
    lq = ((k rho)^2 - k (k - 1)) / (2 k (1 - rho)) + sum of 1 / (1 - z). Each root is z = -W(-rho e^-rho u) / rho
    with Lambert's W and a k-th root of unity u other than 1.
    """
    unity = np.exp(2j * np.pi * np.arange(1, k) / k)
    z = -special.lambertw(-rho * math.exp(-rho) * unity) / rho
    lq = ((k * rho) ** 2 - k * (k - 1)) / (2 * k * (1 - rho)) + (1 / (1 - z)).sum().real
    return float(lq / (k * rho))


def mgk(lam: float, mean_s: float, scv_s: float, k: int) -> QueueMetrics:
    """M/G/k: Poisson arrivals, any service law of this mean and SCV. The default approximation for k servers.

    wq = wq(M/D/k) + scv_s^p (wq(M/M/k) - wq(M/D/k)), with p = 1 the interpolation of Björklund and Elldin (1964) and
    Page (1972). For SCV below 1 and k <= 32 the exponent p, near 1, is the one that makes the curve pass through
    wq(M/E2/k), which the chain gives exactly; else p = 1. Exact for k = 1 and at SCV 0, 1/2 (Erlang) and 1; for Erlang
    service of SCV in [0.05, 1], k <= 8 and rho in [0.5, 0.95] it is within max(1 % of wq, 0.1 % of mean_s). For SCV > 1
    it extrapolates: positive and rising with scv_s, but the truth then depends on more than two moments (at k = 8 and
    rho = 0.5 it is 11 % above the exact wait for a hyper-exponential law of balanced means and SCV 2, 57 % at SCV 8):
    use `chains.mphk` or simulate.
    """
    k = checks.steady(lam, mean_s, k, scv_s=scv_s)
    constant, exponential = mdk(lam, mean_s, k).wq, mmk(lam, 1 / mean_s, k).wq
    bent = 0 < scv_s < 1 < k <= BENT_UP_TO_K and lam * mean_s / k < BENT_UP_TO_RHO
    power = _power(lam, mean_s, k) if bent else 1.0
    return metrics(lam, constant + scv_s**power * (exponential - constant), mean_s, k)


@lru_cache(maxsize=1024)
def _power(lam: float, mean_s: float, k: int) -> float:
    """The exponent of `mgk` that makes it exact for Erlang service of two phases."""
    constant, exponential = mdk(lam, mean_s, k).wq, mmk(lam, 1 / mean_s, k).wq
    erlang2 = mphk(lam, PhaseType.from_moments(mean_s, 0.5), k).wq
    if not constant < erlang2 < exponential:  # waits so short that rounding orders them
        return 1.0
    return -math.log2((erlang2 - constant) / (exponential - constant))


def gigk(lam: float, scv_a: float, mean_s: float, scv_s: float, k: int) -> QueueMetrics:
    """GI/G/k by Allen and Cunneen: wq = (scv_a + scv_s) / 2 wq(M/M/k) (Allen, 1990).

    The field's usual approximation for independent inter-arrival times of SCV `scv_a`; exact for M/M/k and M/G/1
    only, best in heavy traffic, and far off for nearly deterministic service on many servers. Arrivals that are
    correlated (an MMPP, most traces) have no place in it.
    """
    k = checks.steady(lam, mean_s, k, scv_a=scv_a, scv_s=scv_s)
    return metrics(lam, (scv_a + scv_s) / 2 * mmk(lam, 1 / mean_s, k).wq, mean_s, k)


def lee_longton(lam: float, mean_s: float, scv_s: float, k: int) -> QueueMetrics:
    """M/G/k by Lee and Longton (1959): wq = (1 + scv_s) / 2 wq(M/M/k). For comparison: `mgk` is the better one."""
    return gigk(lam, 1.0, mean_s, scv_s, k)
