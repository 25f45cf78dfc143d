import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stlib.queueing.phase_type import MAX_PHASES, PhaseType


def raw_moments(ph):
    return [ph.moment(order) for order in (1, 2, 3)]


def test_erlang_moments():
    assert raw_moments(PhaseType.erlang(4, 2.0)) == pytest.approx([2, 2**2 * 5 / 4, 2**3 * 5 * 6 / 16])
    assert raw_moments(PhaseType.erlang(1, 3.0)) == pytest.approx([3, 18, 162])


@given(st.floats(1e-3, 1e3), st.floats(0.01, 50))
def test_two_moments_are_matched(mean_s, scv):
    law = PhaseType.from_moments(mean_s, scv)
    assert (law.mean, law.scv) == pytest.approx((mean_s, scv), rel=1e-6)
    assert len(law.alpha) == (2 if scv > 1 else math.ceil(1 / scv - 1e-9))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 49])
def test_an_erlang_scv_gives_the_erlang_law(n):
    law = PhaseType.from_moments(1.0, 1 / n)
    assert law.alpha == pytest.approx(np.eye(n)[0])
    np.testing.assert_allclose(law.T, PhaseType.erlang(n, 1.0).T, atol=1e-12)


@given(st.floats(1e-2, 1e2), st.floats(0.1, 20), st.floats(1.05, 5))
def test_three_moments_are_matched(mean_s, scv, ratio):
    second = mean_s**2 * (1 + scv)
    third = ratio * second**2 / mean_s
    assert raw_moments(PhaseType.from_moments(mean_s, scv, third)) == pytest.approx([mean_s, second, third], rel=1e-5)


def test_a_gamma_law_and_the_exponential_by_three_moments():
    scv = 0.3
    law = PhaseType.from_moments(1.0, scv, (1 + scv) * (1 + 2 * scv))
    assert raw_moments(law) == pytest.approx([1, 1 + scv, (1 + scv) * (1 + 2 * scv)])
    assert raw_moments(PhaseType.from_moments(1.0, 1.0, 6.0)) == pytest.approx([1, 2, 6])


@pytest.mark.parametrize("moments", [(2.0, 0.05, None), (2.0, 0.3, None), (2.0, 4.0, None), (2.0, 0.5, 30.0)])
def test_samples_have_the_moments(moments):
    law = PhaseType.from_moments(*moments)
    draws = law.sample(100_000, np.random.default_rng(3))
    for order in (1, 2, 3):
        error = (draws**order).std() / math.sqrt(len(draws))
        assert abs((draws**order).mean() - law.moment(order)) < 4.5 * error
    assert (draws == law.sample(100_000, np.random.default_rng(3))).all()


def test_samples_of_a_law_with_feedback():
    law = PhaseType([0.3, 0.7, 0.0], [[-3.0, 1.0, 1.0], [0.5, -1.0, 0.0], [2.0, 2.0, -5.0]])
    draws = law.sample(100_000, np.random.default_rng(4))
    assert abs(draws.mean() - law.mean) < 4.5 * draws.std() / math.sqrt(len(draws))


@pytest.mark.parametrize(
    ("alpha", "T"),
    [
        ([0.5, 0.4], -np.eye(2)),
        ([1.5, -0.5], -np.eye(2)),
        ([1.0], -np.eye(2)),
        ([1.0, 0.0], [[-1.0, -1.0], [0.0, -1.0]]),
        ([1.0, 0.0], [[-1.0, 2.0], [0.0, -1.0]]),
        ([1.0, 0.0], [[-1.0, 1.0], [1.0, -1.0]]),
        ([1.0, 0.0], [[-1.0, math.nan], [0.0, -1.0]]),
        ([1.0], [[1.0]]),
    ],
)
def test_what_is_no_phase_type_law_is_refused(alpha, T):
    with pytest.raises(ValueError, match="must"):
        PhaseType(alpha, T)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
def test_bad_moments_are_refused(bad):
    for make in (
        lambda: PhaseType.from_moments(bad, 1.0),
        lambda: PhaseType.from_moments(1.0, bad),
        lambda: PhaseType.from_moments(1.0, 1.0, bad),
        lambda: PhaseType.erlang(bad, 1.0),
        lambda: PhaseType.erlang(2, bad),
        lambda: PhaseType.erlang(2, 1.0).sample(bad, np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match="must"):
            make()


def test_moments_no_law_or_no_small_law_has_are_refused():
    with pytest.raises(ValueError, match="must exceed 4"):
        PhaseType.from_moments(1.0, 1.0, 4.0)
    with pytest.raises(ValueError, match=f"at most {MAX_PHASES}"):
        PhaseType.from_moments(1.0, 1e-5)
    with pytest.raises(ValueError, match=f"at most {MAX_PHASES}"):
        PhaseType.from_moments(1.0, 1e-5, 1.001)


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=30)
def test_random_laws_have_positive_increasing_moments(m, seed):
    rng = np.random.default_rng(seed)
    between = rng.exponential(1.0, (m, m)) * (1 - np.eye(m))
    law = PhaseType(rng.dirichlet(np.ones(m)), between - np.diag(between.sum(1) + rng.exponential(1.0, m)))
    m1, m2, m3 = raw_moments(law)
    assume(m1 > 0)
    assert m2 > m1**2 and m1 * m3 > m2**2
