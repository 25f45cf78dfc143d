import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import mmk_response_percentile

from stlib.queueing.formulas import mgk, mmk
from stlib.queueing.planning import max_rate, min_replicas, read_target
from stlib.queueing.simulation import simulate


@given(st.integers(1, 12), st.floats(0.05, 1.0), st.floats(1.05, 20))
@settings(max_examples=40)
def test_max_rate_just_meets_a_mean(k, scv, target):
    rate = max_rate(lambda lam: mgk(lam, 1.0, scv, k).w, target, capacity=k)
    assert mgk(rate, 1.0, scv, k).w <= target
    assert rate * 1.01 >= k or mgk(rate * 1.01, 1.0, scv, k).w > target


@given(st.integers(1, 12), st.floats(3.2, 20))
@settings(max_examples=40)
def test_max_rate_just_meets_a_percentile(k, target):
    rate = max_rate(lambda lam: mmk_response_percentile(lam, 1.0, k, 0.95), target, capacity=k)
    assert mmk_response_percentile(rate, 1.0, k, 0.95) <= target
    assert rate * 1.01 >= k or mmk_response_percentile(rate * 1.01, 1.0, k, 0.95) > target


@given(st.floats(0.1, 60), st.floats(1.02, 3))
@settings(max_examples=40)
def test_min_replicas_is_the_least(lam, target):
    k = min_replicas(lambda k: mmk(lam, 1.0, k).w, target, load=lam)
    assert mmk(lam, 1.0, k).w <= target
    assert k - 1 <= lam or mmk(lam, 1.0, k - 1).w > target


def simulated_p95(lam, k):
    rng = np.random.default_rng(5)
    arrivals, work = rng.exponential(1.0, 2000).cumsum() / lam, rng.gamma(5.0, 0.2, 2000)
    return float(np.percentile(simulate(arrivals, work, k)["reply_s"] - arrivals, 95))


def test_the_inverses_of_a_simulated_percentile():
    rate = max_rate(lambda lam: simulated_p95(lam, 2), 4.0, capacity=2.0, rtol=1e-3)
    assert simulated_p95(rate, 2) <= 4.0 < simulated_p95(1.01 * rate, 2)
    k = min_replicas(lambda k: simulated_p95(3.0, k), 2.0, load=3.0)
    assert simulated_p95(3.0, k) <= 2.0 < simulated_p95(3.0, k - 1)


def test_targets_out_of_reach_are_refused():
    with pytest.raises(ValueError, match=r"target = 0\.9 is below 1"):
        max_rate(lambda lam: mmk(lam, 1.0, 2).w, 0.9, capacity=2)
    with pytest.raises(ValueError, match="missed by k_max = 140 servers too, which give 1;"):
        min_replicas(lambda k: mmk(10, 1.0, k).w, 0.9, load=10)
    with pytest.raises(ValueError, match="missed by k_max = 40"):
        min_replicas(lambda k: mmk(10, 1.0, k).w, 0.9, load=10, k_max=40)
    with pytest.raises(ValueError, match="k_max = 10"):
        min_replicas(lambda k: mmk(10, 1.0, k).w, 2.0, load=10, k_max=10)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_bad_targets_are_refused(bad):
    with pytest.raises(ValueError, match="target"):
        max_rate(lambda lam: lam, bad, 1.0)
    with pytest.raises(ValueError, match="capacity"):
        max_rate(lambda lam: lam, 1.0, bad)
    with pytest.raises(ValueError, match="load"):
        min_replicas(lambda k: 1 / k, 1.0, bad)


@given(st.floats(0.1, 2000), st.floats(0.1, 1))
@settings(max_examples=40)
def test_the_search_of_replicas_is_quick_and_near_the_load(lam, slack):
    asked = []
    metric = lambda k: asked.append(k) or (mmk(lam, 1.0, k).wq if k > lam else np.inf)  # noqa: E731
    k = min_replicas(metric, slack, load=lam)
    assert mmk(lam, 1.0, k).wq <= slack and (k - 1 <= lam or mmk(lam, 1.0, k - 1).wq > slack)
    assert len(asked) <= 4 + 2 * np.log2(1 + np.sqrt(10 * lam)) and max(asked) <= lam + 10 * np.sqrt(lam) + 10


@pytest.mark.parametrize("text, name, seconds", [
    ("mean=2", "mean", 2), ("wq=1e-1", "wq", 0.1), ("p95=6", "p95", 6), ("p99.9=6", "p99.9", 6), ("p1=.5", "p1", 0.5),
    ("slo=6:0.95", "p95", 6), ("slo=6:.999", "p99.9", 6), ("p95.0=6", "p95", 6),
])
def test_targets_are_read(text, name, seconds):
    assert read_target(text) == (name, seconds)


@pytest.mark.parametrize("text", [
    "", "6", "p95", "p95=", "p95=soon", "p95=0", "p95=-1", "p95=nan", "p95=inf", "p95=6s", "p0=6", "p100=6", "p=6",
    "pnan=6", "median=6", "=6", "slo=6", "slo=6:", "slo=6:0", "slo=6:1", "slo=6:95", "slo=:0.95", "p95=6:0.95",
])
def test_other_targets_are_refused(text):
    with pytest.raises(ValueError, match="such as p95=6"):
        read_target(text)
