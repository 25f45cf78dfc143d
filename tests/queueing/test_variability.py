import runpy

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from independent import interval_scv
from scipy import stats

from stlib import paths
from stlib.queueing import variability as var
from stlib.queueing.arrivals import MMPP2, Poisson, Renewal, Trace

TRACE = paths.DATA / "traces" / "day_night.csv"
N = 1000  # arrivals and services of a sample


def exponential(rng):
    return rng.exponential(0.7, N)


def lognormal(rng):
    return np.diff(Renewal(1 / 0.7, 0.3, "lognormal").sample(N, rng), prepend=0)


def hyperexponential(rng):
    return np.diff(Renewal(1 / 0.7, 4, "hyperexponential").sample(N, rng), prepend=0)


def gamma(rng):
    return rng.gamma(2, 0.35, N)


def deterministic(rng):
    return np.full(N, 0.7)


def drifting_machine(rng):
    """A level that lasts a few jobs, as on our machines: AR(1) of the logarithm, 15 %."""
    noise = rng.normal(0, 0.6, N)
    level = [rng.normal()]
    for step in noise[1:]:
        level.append(0.8 * level[-1] + step)
    return 0.7 * np.exp(0.15 * np.array(level))


class ThreeDays:
    """Poisson arrivals whose rate swings by half, three times in N arrivals, by thinning."""

    def sample(self, n, rng):
        times = np.sort(rng.uniform(0, 1.3 * n, rng.poisson(1.3 * n * 1.5)))
        return times[1.5 * rng.random(len(times)) < 1 + 0.5 * np.sin(6 * np.pi * times / n)][:n]


CASES = {  # name: arrivals of rate 1, services of mean 0.7 for k = 1, the answer
    "Poisson, exponential": (Poisson(1), exponential, "M/M/k"),
    "Poisson, deterministic": (Poisson(1), deterministic, "M/G/k"),
    "Poisson, lognormal SCV 0.3": (Poisson(1), lognormal, "M/G/k"),
    "Poisson, hyper-exponential SCV 4": (Poisson(1), hyperexponential, "M/G/k"),
    "deterministic, exponential": (Renewal(1, 0), exponential, "GI/G/k"),
    "Erlang-2, exponential": (Renewal(1, 0.5), exponential, "GI/G/k"),
    "hyper-exponential SCV 4, lognormal SCV 0.3": (Renewal(1, 4, "hyperexponential"), lognormal, "GI/G/k"),
    "lognormal SCV 2, gamma SCV 0.5": (Renewal(1, 2, "lognormal"), gamma, "GI/G/k"),
    "MMPP SCV 2 dispersion 4, exponential": (MMPP2.fit(1, 2, 4), exponential, "simulate"),
    "MMPP SCV 2 dispersion 10, lognormal SCV 0.3": (MMPP2.fit(1, 2, 10), lognormal, "simulate"),
    "Poisson by day and night, exponential": (ThreeDays(), exponential, "simulate"),
    "Poisson, drifting machine": (Poisson(1), drifting_machine, "simulate"),
}


def answers(name, n_samples):
    """The models chosen for n samples of a case, and how often one that is Poisson was found not to be."""
    arrivals, services, _ = CASES[name]
    models, not_poisson = [], 0
    for i in range(n_samples):
        rng = np.random.default_rng([i, list(CASES).index(name)])
        choice = var.select_model(arrivals.sample(N, rng), services(rng), 1)
        models.append(choice.model)
        not_poisson += bool(set(choice.tests.claim[choice.tests.rejected]) & {var.STEADY_ARRIVALS, var.POISSON})
    return pd.Series(models).value_counts().to_dict(), not_poisson


@pytest.mark.parametrize("name", CASES)
def test_a_few_samples_of_each_case_get_the_expected_model(name):
    models, _ = answers(name, 8)
    assert models.get(CASES[name][2], 0) >= 7  # a rate of 95 % gives fewer in 6 % of seeds; these are fixed


@pytest.mark.slow
def test_200_samples_of_each_case(record_summary):
    summary = {}
    for name, (arrivals, _, expected) in CASES.items():
        models, not_poisson = answers(name, 200)
        summary[name] = {"expected": expected, "right": models.get(expected, 0), "poisson_rejected": not_poisson,
                         "models": models}
        assert summary[name]["right"] >= 180, (name, models)
        if isinstance(arrivals, Poisson):
            assert not_poisson <= 20, (name, not_poisson)
    assert summary["MMPP SCV 2 dispersion 4, exponential"]["models"]["simulate"] >= 180
    record_summary("select_model", {"samples": 200, "arrivals": N, "cases": summary})


@pytest.mark.parametrize("intervals", [exponential, lognormal, hyperexponential, gamma])
def test_independence_tests_reject_at_their_level_whatever_the_law(intervals):
    rng = np.random.default_rng(1)
    p_values = np.array([[p for _, p in var._independence(intervals(rng))] for _ in range(600)])
    share = (p_values < 0.05).mean(axis=0)
    assert (share < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 600)).all()
    assert (share[1:] > 0.05 - 4 * np.sqrt(0.05 * 0.95 / 600)).all()  # CUSUM is a little cautious at finite n


def test_poisson_tests_have_uniform_p_values_for_exponential_intervals():
    rng = np.random.default_rng(2)
    samples = rng.exponential(3.0, (600, N))
    assert stats.kstest([var._lewis(x) for x in samples], "uniform").pvalue > 0.001
    assert stats.kstest([var._dispersion(x) for x in samples], "uniform").pvalue > 0.001


def test_durbins_transform_against_its_definition():
    """Three intervals 1, 2, 5: ordered spacings of the unit interval, by hand."""
    ordered = np.array([3 * 1, 2 * (2 - 1)]) / 8
    expected = stats.kstest(np.cumsum(ordered), "uniform").pvalue
    assert var._lewis(np.array([5.0, 1.0, 2.0])) == pytest.approx(expected)


def test_holm_by_its_definition():
    rng = np.random.default_rng(3)
    table = var.model_tests(Poisson(1).sample(300, rng), gamma(rng)[:300])
    ordered = table.sort_values("p_value").reset_index(drop=True)
    running = 0.0
    for i, row in ordered.iterrows():  # the i-th smallest is multiplied by the number of hypotheses still standing
        running = min(1.0, max(running, row.p_value * (len(ordered) - i)))
        assert row.p_holm == pytest.approx(running)
    assert table.rejected.equals(table.p_holm <= 0.05)


@given(rate=st.floats(0.01, 100), excess=st.floats(0.02, 5), more=st.floats(0, 20), share=st.floats(0.05, 0.95))
def test_fitted_mmpp2_has_what_was_asked(rate, excess, more, share):
    process = MMPP2.fit(rate, 1 + excess, 1 + excess + more, share)
    assert process.rate == pytest.approx(rate)
    assert interval_scv(process) == pytest.approx(1 + excess, rel=1e-6)
    assert process.idc(np.inf) == pytest.approx(1 + excess + more, rel=1e-6)
    assert process.switch2 / (process.switch1 + process.switch2) == pytest.approx(share)
    assert process.rate1 >= process.rate2


@pytest.mark.parametrize(("scv", "idc", "share"), [(1, 4, 0.5), (4, 2, 0.5), (0.5, 0.8, 0.5), (2, np.inf, 0.5),
                                                   (np.nan, 4, 0.5), (2, 4, 0), (2, 4, 1)])
def test_no_mmpp2_outside_its_range(scv, idc, share):
    with pytest.raises(ValueError, match="1 < scv <= idc"):
        MMPP2.fit(1, scv, idc, share)


def test_fit_of_a_samples_own_summary_finds_the_process():
    process = MMPP2(1.65, 0.35, 0.14, 0.14)
    arrival_s = process.sample(400_000, np.random.default_rng(4))
    seen = var.arrival_variability(arrival_s)
    assert seen.scv == pytest.approx(interval_scv(process), rel=0.02)
    assert seen.dispersion == pytest.approx(process.idc(20 * seen.mean_s), rel=0.05)  # 20 000 windows: s.e. 1 to 2 %
    again = MMPP2.fit(1 / seen.mean_s, seen.scv, Trace(arrival_s).idc(2000))  # 200 windows: s.e. 10 %
    assert (again.rate1, again.rate2) == pytest.approx((1.65, 0.35), rel=0.15)


def test_summary_of_services_by_hand():
    services = np.tile([1.0, 3.0], 50)
    seen = var.service_variability(services)
    assert (seen.n, seen.mean_s, seen.lag1) == (100, 2.0, pytest.approx(-1))
    assert seen.scv == pytest.approx(services.var(ddof=1) / 4)
    assert seen.dispersion == 0  # every block of ten has the same sum


def test_summaries_need_ten_intervals():
    assert var.arrival_variability(np.arange(11.0)).scv == 0
    assert var.service_variability(np.arange(1.0, 11)).n == 10
    for describe, nine in ((var.arrival_variability, np.arange(10.0)), (var.service_variability, np.ones(9))):
        with pytest.raises(ValueError, match="at least 10"):
            describe(nine)


def test_dispersion_of_independent_services_is_their_scv():
    services = np.random.default_rng(5).gamma(2, 0.35, 200_000)
    seen = var.service_variability(services)
    assert seen.dispersion == pytest.approx(0.5, abs=4 * 0.5 * np.sqrt(2 / 10_000))


def test_reasons_are_sentences_and_name_the_tests():
    rng = np.random.default_rng(6)
    arrival_s, services = MMPP2.fit(1, 2, 10).sample(N, rng), exponential(rng)
    choice = var.select_model(arrival_s, services, 2)
    assert choice.reasons[0] == f"load {services.mean() / 2 / np.diff(arrival_s).mean():.2f} on k = 2"
    [sentence] = [reason for reason in choice.reasons if reason.startswith(var.STEADY_ARRIVALS)]
    assert "rejected by" in sentence and "serial correlation" in sentence


def test_services_that_follow_the_gaps_are_simulated():
    rng = np.random.default_rng(7)
    arrival_s = Poisson(1).sample(N, rng)
    services = np.append(0.3, 0.5 * np.diff(arrival_s) + rng.exponential(0.2, N - 1))
    choice = var.select_model(arrival_s, services, 1)
    assert choice.model == "simulate"
    assert set(choice.tests.claim[choice.tests.rejected]) & {var.UNRELATED}
    assert var.UNRELATED not in set(var.select_model(arrival_s, services[:-1], 1).tests.claim)  # not the same jobs


def test_an_overloaded_system_has_no_formula():
    rng = np.random.default_rng(8)
    choice = var.select_model(Poisson(2).sample(N, rng), exponential(rng), 1)
    assert choice.model == "simulate" and "no steady state" in choice.reasons[0]
    assert var.select_model(Poisson(2).sample(N, rng), exponential(rng), 2).model == "M/M/k"


def test_coarse_stamps_are_named():
    rng = np.random.default_rng(9)
    choice = var.select_model(np.floor(Poisson(1).sample(N, rng)), exponential(rng), 1)
    assert "share a time" in choice.reasons[-1]


@pytest.mark.parametrize("k", [0, -1, 1.5, np.nan])
def test_replicas_are_whole(k):
    with pytest.raises(ValueError, match="k = "):
        var.select_model(np.arange(100.0), np.ones(100), k)


@pytest.mark.parametrize(("services", "message"), [
    (np.ones(10), "at least 50"), (np.ones((60, 2)), "one sequence"), (np.zeros(60), "not all 0"),
    (np.append(np.ones(60), np.nan), r"\[60\] is nan"), (np.append(-1.0, np.ones(60)), r"\[0\] is -1"),
    (np.append(np.ones(60), np.inf), "inf"),
])
def test_bad_service_times_are_refused(services, message):
    with pytest.raises(ValueError, match=message):
        var.select_model(np.arange(100.0), services, 1)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t[::-1], "arrival 1"), (lambda t: np.append(t, np.nan), "arrival 100"), (lambda t: t - 5, "negative"),
    (lambda t: t[:20], "at least 50"), (lambda t: t[:0], "empty"), (lambda t: 0 * t, "not all 0"),
])
def test_bad_arrivals_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        var.select_model(change(np.arange(100.0)), np.ones(100), 1)


def edit(lines, change):
    return {"unsorted": [*lines[:3], lines[5], *lines[4:]], "not a number": [*lines[:3], ",8,128,1", *lines[3:]],
            "empty": [], "header only": lines[:1]}[change]


@pytest.mark.parametrize(("change", "message"), [("unsorted", "line 5"), ("not a number", "line 4"), ("empty", "CSV"),
                                                 ("header only", "empty")])
def test_a_bad_trace_names_its_line(tmp_path, change, message):
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(edit(TRACE.read_text().splitlines(), change)))
    with pytest.raises(ValueError, match=message):
        Trace.read(path, "timestamp")


def test_line_ends_and_equal_times_change_nothing(tmp_path):
    lines = TRACE.read_text().splitlines()
    path = tmp_path / "trace.csv"
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    assert np.array_equal(Trace.read(path, "timestamp").arrival_s, Trace.read(TRACE, "timestamp").arrival_s)
    path.write_text("\n".join([*lines, lines[-1]]))
    assert np.diff(Trace.read(path, "timestamp").arrival_s)[-1] == 0


def test_the_example_trace_is_what_its_recipe_makes():
    made = runpy.run_path(str(TRACE.with_name("make_day_night.py")))["day"]()
    pd.testing.assert_frame_equal(made.reset_index(drop=True), pd.read_csv(TRACE), check_dtype=False)


def test_the_example_trace_calls_for_simulation():
    trace = Trace.read(TRACE, "timestamp")
    assert list(trace.jobs) == ["steps", "image_size", "n_panels"]
    work = trace.jobs.n_panels * trace.jobs.steps * trace.jobs.image_size**2
    choice = var.select_model(trace.arrival_s, 20 * work / work.mean(), 2)
    assert choice.model == "simulate" and choice.tests.rejected.sum() >= 5
