import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loop import plain_loop

from stlib.queueing.simulation import ROUTINGS, simulate

METHODS = ("slow", "quick")


def assert_same(table, jobs, rtol=0.0):
    for column, key in (("start_s", "start"), ("finish_s", "finish")):
        np.testing.assert_allclose(table[column], [job[key] for job in jobs], rtol=rtol, atol=rtol)
    assert table["replica"].tolist() == [job["replica"] for job in jobs]
    assert table["n_outstanding"].tolist() == [job["n_outstanding"] for job in jobs]
    assert table["outcome"].tolist() == [job["outcome"] for job in jobs]
    assert table["method"].cat.codes.tolist() == [job.get("method", -1) for job in jobs]


@st.composite
def small_cases(draw):
    """Quarters of seconds and speeds that are powers of two: sums are exact and ties are frequent."""
    n, k = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    quarters = st.integers(0, 24).map(lambda x: x / 4)
    each = lambda values: draw(st.lists(values, min_size=n, max_size=n))  # noqa: E731
    case = {"arrival": np.cumsum(each(quarters)), "k": k, "routing": draw(st.sampled_from(ROUTINGS))}
    case["work"] = np.array([each(quarters), each(quarters)]).T
    case["estimate"] = np.array(each(quarters))
    longest = 0 if case["routing"] == "least_work" else 4
    case["policy"] = [0, *draw(st.lists(st.integers(0, 1), max_size=longest))]
    case["speed"] = draw(st.none() | st.lists(st.sampled_from([1.0, 0.5, 0.25]), min_size=k, max_size=k))
    if case["speed"] is not None:
        case["speed"][0] = 1.0
        case["speed"] = [np.nan, *case["speed"]]
    case["max_waiting"] = draw(st.none() | st.integers(0, 4))
    case["deadline"] = draw(st.none() | st.just(np.array(each(quarters | st.just(np.inf)))))
    return case


def simulate_case(case, seed=0):
    one = case["routing"] == "least_work"
    return simulate(
        case["arrival"], case["work"][:, 0] if one else case["work"], case["k"], routing=case["routing"],
        methods=METHODS[:1] if one else METHODS, policy=None if one else case["policy"],
        work_estimate_s=case["estimate"], speed=case["speed"], max_waiting=case["max_waiting"],
        deadline_s=case["deadline"], rng=np.random.default_rng(seed))  # fmt: skip


def loop_case(case, seed=0):
    n = len(case["arrival"])
    ties = np.random.default_rng(seed).random(n, np.float32)
    waiting = np.inf if case["max_waiting"] is None else case["max_waiting"]
    return plain_loop(case["arrival"].tolist(), case["work"].tolist(), case["k"], routing=case["routing"],
                      policy=case["policy"], estimate=case["estimate"].tolist(), speed=case["speed"],
                      max_waiting=waiting, deadline=case["deadline"], ties=ties)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(small_cases())
def test_every_small_case_is_the_plain_loop(case):
    table = simulate_case(case)
    assert_same(table, loop_case(case))
    started = table["replica"] >= 0
    assert (table["start_s"][started] >= table["arrival_s"][started]).all()
    assert started.eq(table["outcome"] == "completed").all()


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("extra", [{}, {"speed": [1, 1, 0.9, 0.83]}, {"max_waiting": 4, "deadline": 0.7}, "all"])
def test_long_path_is_the_plain_loop(routing, extra):
    rng = np.random.default_rng(7)
    n, k = 3000, 3
    work = rng.gamma(2, 0.5, (n, 1)) * [1.0, 0.6]
    case = {"arrival": rng.exponential(0.25, n).cumsum(), "work": work, "k": k, "routing": routing,
            "estimate": work[:, 0] * rng.lognormal(0, 0.3, n), "policy": [0] if routing == "least_work" else [0, 0, 1],
            "speed": None, "max_waiting": None, "deadline": None}  # fmt: skip
    if extra == "all":
        extra = {"speed": [1, 1, 0.9, 0.83], "max_waiting": 4, "deadline": rng.exponential(1, n)}
    if isinstance(extra.get("deadline"), float):
        extra = extra | {"deadline": np.full(n, extra["deadline"])}
    table = simulate_case(case | extra)
    assert_same(table, loop_case(case | extra), rtol=1e-9)
    if "deadline" in extra:
        assert (table["outcome"].value_counts()[["completed", "rejected", "timed_out"]] > 10).all()
