import itertools
import math
from dataclasses import FrozenInstanceError, astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from independent import erlang
from scipy import optimize, special, stats

from stlib.queueing.chains import MAX_CONFIGURATIONS, PhaseType, mphk
from stlib.queueing.checks import QueueMetrics, check_jobs
from stlib.queueing.formulas import (
    SLOWEST,
    erlang_c,
    gigk,
    lee_longton,
    mdk,
    mg1,
    mgk,
    mm1,
    mmk,
)
from stlib.queueing.simulation import run_jobs

RHO = st.floats(0.01, 0.99)
SERVERS = st.integers(1, 64)
SCV = st.floats(0, 8)


def crommelin(a, k):
    """M/D/k mean wait in service times by Crommelin's double series, summed term by term from Poisson probabilities."""
    terms, i = [], 1
    while not terms or terms[-1] > 1e-11 * sum(terms[:9]):
        mean = i * a
        j = i * k + np.arange(40 + int(9 * math.sqrt(mean)))
        chances = np.exp(j * math.log(mean) - mean - special.gammaln(j + 1))
        terms.append(chances.sum() - k / a * chances[1:].sum())
        i += 1
    return math.fsum(terms)


def erlang_c_by_definition(a, k):
    tail = a**k / math.factorial(k) / (1 - a / k)
    return tail / (tail + math.fsum(a**n / math.factorial(n) for n in range(k)))


def test_mmk_textbook_value():
    found = mmk(0.2, 0.1, 3)
    assert found.wq == pytest.approx(4.444, abs=5e-4)
    assert astuple(found) == pytest.approx((2 / 3, 40 / 9, 130 / 9, 8 / 9, 26 / 9))
    assert erlang_c(0.2, 0.1, 3) == pytest.approx(4 / 9)


@pytest.mark.parametrize(("a", "k"), [(0.1, 1), (2.0, 3), (7.6, 8), (20.0, 25), (95.0, 100)])
def test_erlang_c_is_its_definition(a, k):
    assert erlang_c(a, 1.0, k) == pytest.approx(erlang_c_by_definition(a, k), rel=1e-10)


def test_erlang_c_of_very_many_servers():
    assert 0 < erlang_c(9_900.0, 1.0, 10_000) < 1
    assert erlang_c(100.0, 1.0, 10_000) == pytest.approx(0, abs=1e-300)


@pytest.mark.parametrize("k", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("rho", [0.1, 0.5, 0.79, 0.81, 0.92])
def test_mdk_is_crommelins_series(rho, k):
    assert mdk(rho * k / 2, 2.0, k).wq == pytest.approx(2 * crommelin(rho * k, k), rel=1e-8)


def test_mdk_is_the_embedded_chain_at_service_ends():
    """Jobs present one service time apart: L' = max(0, L - k) + Poisson(rho k), solved by direct iteration."""
    k, rho, size = 4, 0.85, 260
    weights = np.array([math.exp(-rho * k + n * math.log(rho * k) - math.lgamma(n + 1)) for n in range(size)])
    law = np.eye(size)[0]
    for _ in range(1500):
        kept = np.concatenate([[law[: k + 1].sum()], law[k + 1 :]])
        law = np.convolve(kept, weights)[:size]
    lq = (np.maximum(np.arange(size) - k, 0) * law).sum()
    assert mdk(rho * k, 1.0, k).lq == pytest.approx(lq, rel=1e-8)


@pytest.mark.parametrize("k", [1, 2, 7, 64])
def test_mdk_has_no_seam_and_holds_near_saturation(k):
    seam = optimize.brentq(lambda rho: k * (rho - 1 - math.log(rho)) - SLOWEST, 0.1, 0.9999)
    below, above = mdk(seam * k * (1 - 1e-9), 1.0, k).wq, mdk(seam * k * (1 + 1e-9), 1.0, k).wq
    assert above == pytest.approx(below, rel=5e-7) and above > below
    gap = 1e-6
    assert mdk(k * (1 - gap), 1.0, k).wq * 2 * k * gap == pytest.approx(1, abs=1e-3)


def positive_terms(rho, k):
    """M/D/k mean wait in service times: the sum over i and j >= i k of P(N_i = j) (j + 1 - i k) / (j + 1)."""
    total, i, last = 0.0, 1, math.inf
    while last > 1e-12 * total:
        n, mean, last = i * k, i * k * rho, 0.0
        for j in itertools.count(n):
            term = math.exp(j * math.log(mean) - mean - math.lgamma(j + 1)) * (j + 1 - n) / (j + 1)
            last += term
            if term <= 1e-12 * last:
                break
        total, i = total + last, i + 1
    return total


@pytest.mark.parametrize(("rho", "k"), [(0.85, 3000), (0.9, 1000), (0.83, 64), (0.87, 5000), (0.95, 500), (0.3, 20)])
def test_a_tiny_wait_of_mdk_keeps_its_digits(rho, k):
    assert mdk(rho * k * 2, 0.5, k).wq == pytest.approx(positive_terms(rho, k) / 2, rel=1e-6, abs=0)


@pytest.mark.parametrize("k", [1, 2, 3, 8, 31, 32, 33, 100, 333, 1000, 2500, 3000, 5000])
def test_deterministic_service_waits_less_than_exponential_at_any_load(k):
    waits = [(mdk(rho * k, 1.0, k).wq, mgk(rho * k, 1.0, 0.5, k).wq, mmk(rho * k, 1.0, k).wq)
             for rho in (1e-6, 1e-3, *np.linspace(0.01, 0.99, 50), 0.999, 0.99999, 1 - 1e-9)]  # fmt: skip
    assert all(0 <= constant <= between <= exponential for constant, between, exponential in waits)
    assert (np.diff(np.array(waits), axis=0) >= 0).all()


@given(RHO)
def test_one_server_formulas_agree(rho):
    assert astuple(mmk(rho, 1.0, 1)) == pytest.approx(astuple(mm1(rho, 1.0)))
    assert mm1(rho, 1.0).w == pytest.approx(1 / (1 - rho))
    assert astuple(mg1(rho, 1.0, 1.0)) == pytest.approx(astuple(mm1(rho, 1.0)))
    assert mdk(rho, 1.0, 1).wq == pytest.approx(mg1(rho, 1.0, 0.0).wq, rel=1e-9)


@given(RHO, SCV)
def test_every_mgk_approximation_is_exact_for_one_server(rho, scv):
    exact = mg1(rho, 1.0, scv).wq
    for approximation in (mgk, lee_longton):
        assert approximation(rho, 1.0, scv, 1).wq == pytest.approx(exact, rel=1e-9)


@given(RHO, SERVERS)
def test_mgk_is_exact_at_both_ends(rho, k):
    assert mgk(rho * k, 1.0, 1.0, k).wq == pytest.approx(mmk(rho * k, 1.0, k).wq, rel=1e-9)
    assert mgk(rho * k, 1.0, 0.0, k).wq == pytest.approx(mdk(rho * k, 1.0, k).wq, rel=1e-9)
    assert gigk(rho * k, 1.0, 1.0, 1.0, k).wq == pytest.approx(mmk(rho * k, 1.0, k).wq, rel=1e-9)


@given(RHO, SERVERS, SCV, st.floats(1e-3, 1e3))
def test_metrics_are_consistent_and_scale_with_the_unit_of_time(rho, k, scv, mean_s):
    lam = rho * k / mean_s
    for found in (mgk(lam, mean_s, scv, k), gigk(lam, 0.5, mean_s, scv, k), mdk(lam, mean_s, k)):
        assert found.wq >= 0
        assert astuple(found) == pytest.approx(
            (rho, found.wq, found.wq + mean_s, lam * found.wq, lam * (found.wq + mean_s))
        )
    assert mgk(lam, mean_s, scv, k).wq == pytest.approx(mean_s * mgk(rho * k, 1.0, scv, k).wq, rel=1e-6, abs=1e-300)


@given(st.floats(0.05, 0.9), st.floats(0.01, 0.09), st.integers(1, 32), SCV)
def test_waits_rise_with_load_and_variability_and_fall_with_pooling(rho, more, k, scv):
    wait = mgk(rho * k, 1.0, scv, k).wq
    assert mgk((rho + more) * k, 1.0, scv, k).wq > wait
    assert mgk(rho * k, 1.0, scv + more, k).wq > wait
    assert mgk(rho * (k + 1), 1.0, scv, k + 1).wq < wait


def test_lee_longton_at_its_worst():
    """Deterministic service on 8 servers at rho 0.5: the old rule is a fifth too low."""
    error = lee_longton(4.0, 1.0, 0.0, 8).wq / mdk(4.0, 1.0, 8).wq - 1
    assert error == pytest.approx(-0.21, abs=0.005)


@pytest.mark.parametrize(("scv", "error"), [(2.0, 0.11), (8.0, 0.57)])
def test_mgk_above_scv_one_errs_as_documented(scv, error):
    exact = mphk(4.0, PhaseType.from_moments(1.0, scv), 8).wq
    assert mgk(4.0, 1.0, scv, 8).wq / exact - 1 == pytest.approx(error, abs=0.005)


def test_metrics_are_frozen():
    with pytest.raises(FrozenInstanceError):
        QueueMetrics(0.5, 1.0, 2.0, 0.5, 1.0).wq = 0.0


CALLS = {
    "mm1": (mm1, dict(lam=0.5, mu=1.0)),
    "mmk": (mmk, dict(lam=0.5, mu=1.0, k=2)),
    "mg1": (mg1, dict(lam=0.5, mean_s=1.0, scv_s=0.5)),
    "mdk": (mdk, dict(lam=0.5, d=1.0, k=2)),
    "mgk": (mgk, dict(lam=0.5, mean_s=1.0, scv_s=0.5, k=2)),
    "gigk": (gigk, dict(lam=0.5, scv_a=0.5, mean_s=1.0, scv_s=0.5, k=2)),
    "lee_longton": (lee_longton, dict(lam=0.5, mean_s=1.0, scv_s=0.5, k=2)),
}
BAD = {
    "lam": (0, -1.0, math.nan, math.inf, 5.0),
    "mu": (0, -1.0, math.nan, math.inf, 0.1),
    "mean_s": (0, -1.0, math.nan, math.inf, 9.0),
    "d": (0, -1.0, math.nan, math.inf, 9.0),
    "k": (0, -1, 1.5, math.nan, math.inf),
    "scv_s": (-0.1, math.nan, math.inf),
    "scv_a": (-0.1, math.nan, math.inf),
}


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [(name, argument, value) for name, (_, good) in CALLS.items() for argument in good for value in BAD[argument]],
)
def test_bad_input_is_refused_with_its_range(name, argument, value):
    formula, good = CALLS[name]
    formula(**good)
    with pytest.raises(ValueError, match=r"= .* must .*;"):
        formula(**{**good, argument: value})


def test_saturation_gives_value_range_and_remedy():
    with pytest.raises(ValueError, match=r"rho = 1 must be below 1 .* lower the arrival rate"):
        mmk(2.0, 1.0, 2)


# battery: the default M/G/k approximation for Erlang service, in units of its bar


REACH = 800  # configurations of the largest chain that serves as a control variate


def erlang_chain(rho, n, k):
    return mphk(rho * k, erlang(n, 1.0), k).wq


def controlled_wait(rho, n, k, rng, precise, most=8000):
    """M/E_n/k mean wait and its 95 % half-width by simulation, continued until precise(wait, half_width).

    Control variates on the same arrivals and the same quantiles of service: M/M/k, M/D/k and M/E_r/k with the
    largest r within REACH, whose waits are known exactly; regression over replications (at least 100).
    """
    r = max(r for r in range(2, n) if math.comb(r + k - 1, k) <= REACH)
    known = [mmk(rho * k, 1.0, k).wq, erlang_chain(rho, r, k), mdk(rho * k, 1.0, k).wq]
    grid = np.linspace(1e-3, 1 + 10 / math.sqrt(n) + 30 / n, 20_001)
    maps = [stats.gamma(m, scale=1 / m).isf(stats.gamma(n, scale=1 / n).sf(grid)) for m in (1, r)]
    relaxation = 4 * (rho / (1 - rho)) ** 2  # arrivals, of M/M/k, the slowest of the four
    warm_up, kept = int(10 * relaxation) + 20 * k, int(20 * relaxation) + 40_000
    means = []
    while len(means) < most:
        arrivals = rng.exponential(1 / (rho * k), warm_up + kept).cumsum()
        service = rng.gamma(n, 1 / n, warm_up + kept)
        works = [service, *(np.interp(service, grid, to) for to in maps), np.ones_like(service)]
        starts = run_jobs(*check_jobs(np.tile(arrivals, (4, 1)), np.array(works)), k).start
        means.append((starts - arrivals)[:, warm_up:].mean(1))
        if len(means) >= 100 and len(means) % 20 == 0:
            wait, error = regressed_mean(np.array(means), known)
            if precise(wait, 1.96 * error):
                break
    return wait, 1.96 * error


def regressed_mean(means, known):
    """Estimate of the first column's mean, and its standard error, given the others' known means."""
    design = np.column_stack([np.ones(len(means)), means[:, 1:] - known])
    fit, *_ = np.linalg.lstsq(design, means[:, 0], rcond=None)
    residual = means[:, 0] - design @ fit
    variance = residual @ residual / (len(means) - design.shape[1]) * np.linalg.inv(design.T @ design)[0, 0]
    return fit[0], math.sqrt(variance)


def bar(wait):
    return max(0.01 * wait, 0.001)


@pytest.mark.slow
def test_mgk_keeps_its_bar_for_erlang_service(record_summary):
    """At rho = 0.74 and k = 8 the two parts of the bar meet: the tightest place. Simulated cells count their
    half-width against the formula, and are continued until they are on one side of the bar."""
    seed, rows = 7, []
    for k, n, rho in itertools.product(range(2, 9), (2, 3, 4, 5, 7, 10, 20), (0.5, 0.6, 0.7, 0.74, 0.8, 0.9, 0.95)):
        approximate, by_chain = mgk(rho * k, 1.0, 1 / n, k).wq, math.comb(n + k - 1, k) <= MAX_CONFIGURATIONS
        widest = 0.001 if rho <= 0.8 else 0.003

        def precise(wait, half_width, approximate=approximate, widest=widest):
            return half_width <= min(widest * wait, abs(abs(approximate - wait) - bar(wait)))

        rng = np.random.default_rng([seed, k, n, round(100 * rho)])
        wait, half_width = (erlang_chain(rho, n, k), 0.0) if by_chain else controlled_wait(rho, n, k, rng, precise)
        case = {"k": k, "scv": 1 / n, "rho": rho, "exact": by_chain, "wq": wait, "half_width": half_width}
        case["relative_error"] = approximate / wait - 1
        case["largest_share_of_bar"] = (abs(approximate - wait) + half_width) / bar(wait)
        rows.append(case | {"lee_longton_error": lee_longton(rho * k, 1.0, 1 / n, k).wq / wait - 1})
        assert half_width <= widest * wait, f"{case}: the simulation is too short"
    worst = max(rows, key=lambda row: row["largest_share_of_bar"])
    exact = sum(row["exact"] for row in rows)
    summary = {"cells": len(rows), "exact": exact, "seed": seed, "worst": worst}
    record_summary("mgk_for_erlang_service", summary | {"rows": rows})
    assert worst["largest_share_of_bar"] <= 1, worst
