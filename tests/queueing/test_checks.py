"""Whole numbers at every door: 2.0 and numpy's integers are the int, all else is refused by name."""

import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from independent import erlang
from queue_dependent import mg1_queue_dependent

from stlib.queueing import checks
from stlib.queueing.arrivals import MMPP2, Poisson, Renewal, Trace
from stlib.queueing.chains import mphk
from stlib.queueing.formulas import erlang_c, gigk, lee_longton, mdk, mgk, mmk
from stlib.queueing.simulation import finite_run, simulate
from stlib.queueing.variability import select_model

LAW = erlang(2, 1.0)
ARRIVALS, WORK = np.arange(60.0), np.linspace(0.5, 1.5, 60)


def drawn(process):
    return lambda n: process.sample(n, np.random.default_rng(0)).tolist()


def runs(n_runs, k):
    def draw(rng, m):
        return rng.exponential(1, (m, 20)).cumsum(axis=1), rng.exponential(1, (m, 20)), None

    return finite_run(draw, k, n_runs, np.random.default_rng(0)).to_dict()


TAKE_TWO = {
    "erlang_c k": ("k", lambda k: erlang_c(1.2, 1.0, k)),
    "mmk k": ("k", lambda k: mmk(1.2, 1.0, k)),
    "mdk k": ("k", lambda k: mdk(1.2, 1.0, k)),
    "mdk k by roots": ("k", lambda k: mdk(1.95, 1.0, k)),
    "mgk k": ("k", lambda k: mgk(1.2, 1.0, 0.5, k)),
    "gigk k": ("k", lambda k: gigk(1.2, 0.5, 1.0, 0.5, k)),
    "lee_longton k": ("k", lambda k: lee_longton(1.2, 1.0, 0.5, k)),
    "mphk k": ("k", lambda k: mphk(1.2, LAW, k)),
    "poisson n": ("n", drawn(Poisson(1.0))),
    "renewal n": ("n", drawn(Renewal(1.0, 0.0))),
    "mmpp n": ("n", drawn(MMPP2(1.0, 2.0, 0.1, 0.1))),
    "trace n": ("n", drawn(Trace([0.0, 1.0, 2.0]))),
    "simulate k": ("k", lambda k: simulate(ARRIVALS, WORK, k).to_dict()),
    "simulate k round robin": ("k", lambda k: simulate(ARRIVALS, WORK, k, routing="round_robin").to_dict()),
    "simulate max_waiting": ("max_waiting", lambda m: simulate(ARRIVALS, 3 * WORK, 2, max_waiting=m).to_dict()),
    "finite_run k": ("k", lambda k: runs(40, k)),
    "select_model k": ("k", lambda k: select_model(ARRIVALS, WORK, k).reasons),
}


@pytest.mark.parametrize(("name", "use"), TAKE_TWO.values(), ids=TAKE_TWO)
def test_two_is_two_however_written_and_nothing_else_passes(name, use):
    expected = use(2)
    for two in (2.0, np.int64(2), np.int8(2), np.float32(2), np.uint16(2), Fraction(2)):
        assert str(use(two)) == str(expected)
    for bad in (True, np.True_, 2.5, math.nan, math.inf, -2, "2", [2], 2j):
        with pytest.raises(ValueError, match=f"{name} = .* must be a whole number of at least"):
            use(bad)


def test_a_number_of_runs_is_whole():
    assert runs(np.float64(45), 2) == runs(45, 2)
    for bad in (True, 40.5, math.nan, math.inf, "40", None):
        with pytest.raises(ValueError, match=f"n_runs = {bad} must be a whole number"):
            runs(bad, 2)


@pytest.mark.parametrize("policy", [[0, 1], [0.0, 1.0], np.array([0, 1], np.int8), (np.int64(0), 1.0)])
def test_a_policy_of_whole_numbers_is_that_of_ints(policy):
    assert checks.check_policy(policy, 2).tolist() == [0, 1]
    laws = [(1.0, 1.0), (0.5, 1.0)]
    assert mg1_queue_dependent(0.5, laws, policy) == mg1_queue_dependent(0.5, laws, [0, 1])
    work = np.column_stack([WORK, WORK / 2])
    table = simulate(ARRIVALS, work, 2, methods=("slow", "quick"), policy=policy)
    pd.testing.assert_frame_equal(table, simulate(ARRIVALS, work, 2, methods=("slow", "quick"), policy=[0, 1]))


@pytest.mark.parametrize("policy", [[], [2], [-1], [0.5], [[0]], [math.nan], [True, False], ["0"], [None]])
def test_a_policy_of_anything_else_is_refused_by_name(policy):
    with pytest.raises(ValueError, match=r"policy = .*(must be a row of integers|column outside 0 \.\.\. 1)"):
        checks.check_policy(policy, 2)


@pytest.mark.parametrize("bad", [True, np.True_, "1", None, math.nan, math.inf, 1j])
def test_a_quantity_is_a_finite_number(bad):
    for check in (checks.positive, checks.nonnegative):
        check(rate=1, other=np.float32(0.5))
        with pytest.raises(ValueError, match=r"rate = .* must be a finite number"):
            check(rate=bad)
