import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from independent import erlang, moment, scv_of

from stlib.queueing.chains import MAX_PHASES, PhaseType


def raw_moments(ph):
    return [moment(ph, order) for order in (1, 2, 3)]


def test_erlang_moments():
    assert raw_moments(erlang(4, 2.0)) == pytest.approx([2, 2**2 * 5 / 4, 2**3 * 5 * 6 / 16])
    assert raw_moments(erlang(1, 3.0)) == pytest.approx([3, 18, 162])


@given(st.floats(1e-3, 1e3), st.floats(0.01, 50))
def test_two_moments_are_matched(mean_s, scv):
    law = PhaseType.from_moments(mean_s, scv)
    assert (law.mean, scv_of(law)) == pytest.approx((mean_s, scv), rel=1e-6)
    assert len(law.alpha) == (2 if scv > 1 else math.ceil(1 / scv - 1e-9))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 49])
def test_an_erlang_scv_gives_the_erlang_law(n):
    law = PhaseType.from_moments(1.0, 1 / n)
    assert law.alpha == pytest.approx(np.eye(n)[0])
    np.testing.assert_allclose(law.T, erlang(n, 1.0).T, atol=1e-12)


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
    ):
        with pytest.raises(ValueError, match="must"):
            make()


def test_moments_no_small_law_has_are_refused():
    with pytest.raises(ValueError, match=f"at most {MAX_PHASES}"):
        PhaseType.from_moments(1.0, 1e-5)


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=30)
def test_random_laws_have_positive_increasing_moments(m, seed):
    rng = np.random.default_rng(seed)
    between = rng.exponential(1.0, (m, m)) * (1 - np.eye(m))
    law = PhaseType(rng.dirichlet(np.ones(m)), between - np.diag(between.sum(1) + rng.exponential(1.0, m)))
    m1, m2, m3 = raw_moments(law)
    assume(m1 > 0)
    assert m2 > m1**2 and m1 * m3 > m2**2
