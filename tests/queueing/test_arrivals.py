import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import interval_scv
from scipy import linalg

from stlib.queueing.arrivals import MMPP2, Poisson, Renewal, Trace, arrival_process

RENEWALS = [
    Renewal(2.0, 0.3, "gamma"),
    Renewal(2.0, 2.5, "gamma"),
    Renewal(0.5, 4.0, "hyperexponential"),
    Renewal(3.0, 0.6, "lognormal"),
]
BURSTY = MMPP2(3.55, 1.48, 0.2, 1 / 15)  # bursts of 5 s that fill a quarter of the time: IDC 4


def within(sample, expected, n_errors=4.5):
    """Is the mean of independent values within so many standard errors?"""
    return abs(np.mean(sample) - expected) < n_errors * np.std(sample, ddof=1) / math.sqrt(len(sample))


@pytest.mark.parametrize("process", [Poisson(2.0), *RENEWALS], ids=str)
def test_gaps_have_the_stated_rate_and_scv(process):
    gaps = np.diff(process.sample(200_001, np.random.default_rng(7)))
    mean = 1 / process.rate
    assert within(gaps, mean)
    assert within((gaps / mean - 1) ** 2, process.scv)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 4.5 / math.sqrt(len(gaps))


def test_deterministic_arrivals_are_a_clock():
    for law in ("gamma", "lognormal"):
        np.testing.assert_allclose(Renewal(4.0, 0, law).sample(3, np.random.default_rng(0)), [0.25, 0.5, 0.75])


@pytest.mark.parametrize("process", [Poisson(1.0), *RENEWALS, BURSTY], ids=str)
def test_samples_are_sorted_positive_and_repeatable(process):
    first, second = (process.sample(1000, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (1000,)
    assert (first == second).all()
    assert (np.diff(first) >= 0).all() and first[0] > 0


def test_a_process_is_frozen():
    with pytest.raises(AttributeError):
        Poisson(1.0).rate = 2.0


# MMPP(2)


def count_moments(process, t):
    """E N(t) and Var N(t) of an MMPP from a stationary start, by integrating the moment equations as one matrix
    exponential: independent of the closed form."""
    generator = np.array([[-process.switch1, process.switch1], [process.switch2, -process.switch2]])
    rates = np.diag([process.rate1, process.rate2])
    zero = np.zeros((2, 2))
    blocks = np.block([[generator, rates, zero], [zero, generator, 2 * rates], [zero, zero, generator]])
    start = np.array([process.switch2, process.switch1]) / (process.switch1 + process.switch2)
    top = start @ linalg.expm(blocks * t)[:2]
    mean, second_factorial = top[2:4].sum(), top[4:].sum()
    return mean, second_factorial + mean - mean**2


@given(*(st.floats(0.05, 20) for _ in range(4)), st.floats(0.01, 20))
@settings(max_examples=60)
def test_idc_is_exact(rate1, rate2, switch1, switch2, t):
    process = MMPP2(rate1, rate2, switch1, switch2)
    mean, variance = count_moments(process, t)
    assert process.rate * t == pytest.approx(mean, rel=1e-9)
    assert process.idc(t) == pytest.approx(variance / mean, rel=1e-6)


def test_equal_rates_are_poisson():
    process = MMPP2(2.0, 2.0, 0.3, 0.7)
    assert process.idc(np.array([0.1, 10.0, np.inf])) == pytest.approx([1, 1, 1])
    assert interval_scv(process) == pytest.approx(1)


def test_counts_of_a_sample_match_rate_and_idc_from_the_start():
    window, rng = 5.0, np.random.default_rng(11)
    counts = np.array([np.searchsorted(BURSTY.sample(80, rng), window) for _ in range(4000)])
    assert counts.max() < 80
    mean = BURSTY.rate * window
    assert within(counts, mean)
    assert within((counts - mean) ** 2, mean * BURSTY.idc(window))


def test_gaps_of_a_long_sample_match_the_interval_scv():
    runs = [np.diff(BURSTY.sample(20_000, np.random.default_rng(i))) for i in range(40)]
    assert within([(gaps**2).mean() - (interval_scv(BURSTY) + 1) / BURSTY.rate**2 for gaps in runs], 0)


def test_an_mmpp_refuses_an_scv_and_says_why():
    with pytest.raises(ValueError, match="correlated"):
        _ = BURSTY.scv


# traces


def written(tmp_path, text):
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode())
    return path


def test_a_trace_of_seconds_keeps_times_and_jobs(tmp_path):
    path = written(tmp_path, "steps,when,size\n20,0.5,128\n30,0.5,64\n25,2.75,96\n")
    trace = Trace.read(path, "when")
    assert trace.arrival_s.tolist() == [0.5, 0.5, 2.75]
    assert trace.jobs.to_dict("list") == {"steps": [20, 30, 25], "size": [128, 64, 96]}
    assert trace.rate == pytest.approx(2 / 2.25)
    assert trace.sample(2, np.random.default_rng(0)).tolist() == [0.5, 0.5]
    trace.sample(3)[0] = 99.0
    assert trace.arrival_s[0] == 0.5


def test_crlf_a_byte_order_mark_and_blank_lines_at_the_end_are_read(tmp_path):
    path = written(tmp_path, "\ufefft,steps\r\n1,10\r\n2.5,20\r\n\r\n\r\n")
    trace = Trace.read(path, "t")
    assert trace.arrival_s.tolist() == [1.0, 2.5]
    assert trace.jobs["steps"].tolist() == [10, 20]


def test_timestamps_become_seconds_since_the_first(tmp_path):
    path = written(tmp_path, "t\n2023-11-16 18:15:46.6805900\n2023-11-16T18:15:50Z\n2023-11-16T20:16:46.68059+02:00\n")
    assert Trace.read(path, "t").arrival_s == pytest.approx([0, 3.31941, 60])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header"),
        ("t,steps\n", "empty"),
        ("t\n\n\n", "empty"),
        ("s\n1\n", "must have one column 't', not 0"),
        ("t\n1\n0.5\n2\n", "line 3.*earlier"),
        ("t\n-1\n2\n", "line 2.*negative"),
        ("t\n1\nnan\n2\n", "line 3.*no finite time"),
        ("t\r\n1\r\n\r\n2\r\n", "line 3.*no finite time"),
        ("t\n1\n2\nlate\n", "line 4.*no finite time"),
        ("t\n1\ninf\n", "line 3.*no finite time"),
        ("t\nyesterday\n", "line 2.*no finite time"),
        ("t\n2023-11-16T18:15:50\n2023-11-16T18:15:49\n", "line 3.*earlier"),
        ("t,a\n1,2\n1,2,3,4\n", "line 3"),
    ],
)
def test_bad_traces_name_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        Trace.read(written(tmp_path, text), "t")


def test_a_trace_refuses_more_than_it_has_and_idle_questions():
    trace = Trace([0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="at most 3"):
        trace.sample(4)
    with pytest.raises(ValueError, match="windows"):
        trace.idc(1.0)
    with pytest.raises(ValueError, match="spans 0"):
        _ = Trace([3.0, 3.0]).rate
    with pytest.raises(ValueError, match="arrival 1"):
        Trace([1.0, 0.5])


def test_the_idc_of_a_trace_is_that_of_its_process():
    regular = Trace(np.arange(1, 1001) - 0.5)
    assert regular.idc(10.0) == 0
    runs = [Trace(BURSTY.sample(8000, np.random.default_rng(i))).idc(4.0) for i in range(40)]
    assert within(runs, BURSTY.idc(4.0))


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_bad_numbers_are_refused(bad):
    makers = [
        lambda: Poisson(bad),
        lambda: Renewal(bad, 1.0),
        lambda: MMPP2(1, 1, bad, 1),
        lambda: MMPP2.fit(bad, 2, 4),
        lambda: MMPP2.fit(1, bad, 4),
        lambda: MMPP2.fit(1, 2, bad),
        lambda: MMPP2.fit(1, 2, 4, bad),
        lambda: Poisson(1.0).sample(bad, np.random.default_rng(0)),
        lambda: Trace([1, 2, 3]).idc(bad),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=r"must|leaves|needs"):
            make()
    with pytest.raises(ValueError, match="must"):
        MMPP2(1, -1, 1, 1)
    with pytest.raises(ValueError, match="must be above 0"):
        BURSTY.idc(-1.0)


@pytest.mark.parametrize(
    ("scv", "law"), [(-0.1, "gamma"), (0, "hyperexponential"), (0.5, "hyperexponential"), (1, "weibull")]
)
def test_renewal_refuses_an_scv_its_law_cannot_have(scv, law):
    with pytest.raises(ValueError, match=r"scv|law"):
        Renewal(1.0, scv, law)


@pytest.mark.parametrize(("given", "process"), [
    ({}, Poisson(2.0)), ({"name": "poisson", "scv": 1, "idc": 1.0}, Poisson(2.0)),
    ({"name": "calm", "scv": 1}, Poisson(2.0)), ({"name": "lumpy", "scv": 4}, Renewal(2.0, 4)),
    ({"name": "even", "scv": 0.25}, Renewal(2.0, 0.25)), ({"name": "on", "scv": 3, "idc": 3}, MMPP2.fit(2.0, 3, 3)),
    ({"name": "clock", "scv": 0}, Renewal(2.0, 0)),
    ({"name": "bursty", "scv": 2, "idc": 4}, MMPP2.fit(2.0, 2, 4)),
])
def test_a_process_is_what_its_parameters_say(given, process):
    found = arrival_process(2.0, **given)
    assert found == process
    gaps = np.diff(found.sample(100_000, np.random.default_rng(5)))
    assert gaps.mean() == pytest.approx(0.5, rel=0.05)
    if "idc" not in given:
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(given.get("scv", 1), rel=0.1, abs=1e-9)


@pytest.mark.parametrize(("given", "message"), [
    ({"name": "lumpy", "idc": 4}, "'lumpy' cannot have scv = None, idc = 4"),
    ({"name": "lumpy", "idc": 1}, "others state the SCV"),
    ({"name": "lumpy"}, "'lumpy' cannot have scv = None"), ({"scv": 4}, "'poisson' cannot have scv = 4, idc = None"),
    ({"name": "poisson", "scv": 2, "idc": 4}, "those named poisson have 1 and 1"),
    ({"idc": 4}, "'poisson' .* idc = 4"),
    ({"name": "lumpy", "scv": 4, "idc": 1}, "1 < scv <= idc"),
    ({"name": "lumpy", "scv": 1, "idc": 4}, "1 < scv <= idc"),
    ({"name": "lumpy", "scv": -1}, "scv = -1 must be"), ({"name": "lumpy", "scv": math.nan}, "scv = nan must be"),
    ({"name": "lumpy", "scv": "4"}, "scv = 4 must be a finite number"),
    ({"name": "lumpy", "scv": True}, "scv = True must be a finite number"),
    ({"name": "lumpy", "scv": 4, "time_column": "t"}, r"'lumpy' cannot have {'time_column': 't'}: a trace, a .csv"),
    ({"name": "day.csv", "scv": 4}, r"'day.csv' cannot have {'scv': 4}: .*any other process scv and idc"),
])
def test_a_process_that_would_be_another_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        arrival_process(2.0, **given)


def test_a_parameter_of_no_process_is_refused_by_name():
    for name, unknown in (("lumpy", "svc"), ("day.csv", "column")):
        with pytest.raises(TypeError, match=unknown):
            arrival_process(2.0, name, **{unknown: 4})


@pytest.mark.parametrize("rate", [None, 0, -1.0, math.nan, "2", True])
def test_a_process_needs_a_rate_above_zero(tmp_path, rate):
    path = written(tmp_path, "t\n0\n1\n")
    makers = [lambda: arrival_process(rate), lambda: arrival_process(rate, "lumpy", scv=4)]
    makers += [lambda: arrival_process(rate, str(path), time_column="t")] if rate is not None else []
    for make in makers:
        with pytest.raises(ValueError, match=f"rate = {rate} must be a finite number above 0"):
            make()


def test_a_trace_is_stretched_to_a_rate_or_keeps_its_own(tmp_path):
    path = str(written(tmp_path, "job_id,t\n7,0\n8,1500\n9,2000\n"))
    assert arrival_process(None, path, time_column="t", unit="ms").arrival_s.tolist() == [0, 1.5, 2]
    assert arrival_process(4.0, path, time_column="t").arrival_s == pytest.approx([0, 0.375, 0.5])
