"""Policies by the number of outstanding jobs: exact values, the optimum against brute force, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_dependent import mg1_queue_dependent

from stlib.queueing.formulas import mg1
from stlib.queueing.policy import Menu, best_mixture, evaluate, fixed, optimal, policy_for, spans
from stlib.queueing.simulation import replication_interval, simulate


def menu(ratio=2.0, scv=0.2, n=400, seed=0):
    """Two gamma laws, the slow one `ratio` times the fast one of mean 1, and their qualities 1 and 0."""
    rng = np.random.default_rng(seed)
    work = rng.gamma(1 / scv, scv, n)
    work /= work.mean()
    return Menu(("fast", "slow"), np.column_stack([work, ratio * work]), np.array([0.0, 1.0]))


def threshold(at, n_methods=2):
    """Slow up to `at` outstanding, fast beyond."""
    return np.eye(n_methods)[[1] * at + [0]]


def constant(*seconds, quality):
    return Menu(tuple(f"m{i}" for i in range(len(seconds))), np.array([seconds]), np.array(quality))


def test_one_method_is_pollaczek_and_khinchine():
    one = menu()
    for name, rate in (("fast", 0.7), ("slow", 0.45)):
        i = one.names.index(name)
        scv = one.second_s2[i] / one.mean_s[i] ** 2 - 1
        found = evaluate(rate, one, fixed(one, name))
        assert found.response_s == pytest.approx(mg1(rate, one.mean_s[i], scv).w, rel=1e-7)
        assert found.quality == pytest.approx(i) and found.shares.sum() == pytest.approx(1)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.floats(0.2, 0.8))
@settings(max_examples=30)
def test_any_policy_against_the_chain_by_generating_functions(choice, load):
    seconds = (0.7, 1.0, 1.6)
    rate = load / seconds[choice[-1]]
    own = evaluate(rate, constant(*seconds, quality=[0, 1, 2]), np.eye(3)[choice])
    exact = mg1_queue_dependent(rate, [(one, 0.0) for one in seconds], [0, *choice])
    assert own.response_s == pytest.approx(exact.w, rel=1e-6)


def test_a_mixture_is_one_law():
    one = menu()
    p = np.array([[0.3, 0.7]])
    m1, m2 = p[0] @ one.mean_s, p[0] @ one.second_s2
    assert evaluate(0.4, one, p).response_s == pytest.approx(m1 + 0.4 * m2 / (2 * (1 - 0.4 * m1)), rel=1e-7)


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.48, 0.8])
@pytest.mark.parametrize("price", [0.0, 0.5, 3.0, 12.0])
def test_the_optimal_policy_is_not_beaten_by_any_threshold(rate, price):
    one = menu()

    def objective(policy):
        found = evaluate(rate, one, policy)
        return found.response_s + price * (1 - found.quality)

    best = optimal(rate, one, price)
    rivals = [threshold(at) for at in range(40)] + ([fixed(one, "slow")] if rate < 0.5 else [])
    brute = min(map(objective, rivals))
    assert objective(best) <= brute * (1 + 1e-9) and objective(best) == pytest.approx(brute, rel=1e-6)
    methods = best.argmax(axis=1)
    assert (np.diff(methods) <= 0).all()  # never slower with more outstanding
    assert price > 0 or (methods == 0).all()


def test_three_methods_against_brute_force_over_both_thresholds():
    one = constant(0.5, 1.0, 1.4, quality=[0.0, 0.7, 1.0])

    def objective(policy):
        found = evaluate(0.6, one, policy)
        return found.response_s + 4 * (1 - found.quality)

    found = objective(optimal(0.6, one, 4.0))
    brute = min(objective(np.eye(3)[[2] * a + [1] * b + [0]]) for a in range(8) for b in range(12))
    assert found == pytest.approx(brute, rel=1e-7) and found <= brute * (1 + 1e-9)


@pytest.mark.parametrize("quality, least", [(0.5, 0.15), (0.7, 0.2), (0.9, 0.15)])
def test_at_equal_quality_it_is_quicker_than_the_best_mixture(quality, least):
    """Slow twice as long, load 0.8 of its capacity: a gain of 15 to 40 %, by exact calculation."""
    one, rate = menu(), 0.4
    chosen, mixed = policy_for(rate, one, quality), best_mixture(rate, one, quality)
    policy, mixture = evaluate(rate, one, chosen), evaluate(rate, one, mixed)
    assert policy.quality == pytest.approx(quality, abs=1e-6) and mixture.quality == pytest.approx(quality, abs=1e-6)
    assert least < 1 - policy.response_s / mixture.response_s < 0.4
    assert sum(0 < p < 1 for row in chosen for p in row) <= 2  # by chance in one place


def test_the_best_mixture_is_that_of_a_fine_grid():
    one = constant(0.5, 1.0, 1.4, quality=[0.0, 0.7, 1.0])
    best = evaluate(0.6, one, best_mixture(0.6, one, 0.8)).response_s
    grid = []
    for p2 in np.linspace(0, 1, 401):
        p1 = (0.8 - p2) / 0.7
        if 0 <= p1 <= 1 - p2 and 0.6 * (p := np.array([[1 - p1 - p2, p1, p2]]))[0] @ one.mean_s < 1:
            grid.append(evaluate(0.6, one, p).response_s)
    assert best == pytest.approx(min(grid), rel=1e-3)


def test_it_is_stable_where_the_best_quality_alone_is_not():
    one = menu()
    with pytest.raises(ValueError, match=r"rate = 0\.9: at most 0\.5 jobs/s are carried"):
        evaluate(0.9, one, fixed(one, "slow"))
    found = evaluate(0.9, one, optimal(0.9, one, 50.0))
    assert np.isfinite(found.response_s) and found.quality > 0.01


def test_simulated_it_is_the_same():
    """|z| < 4 over 40 runs of 20 000 jobs, the simulator taking the same policy as integers."""
    one, rate, rng = menu(), 0.4, np.random.default_rng(1)
    exact = evaluate(rate, one, threshold(3)).response_s
    means = []
    for _ in range(40):
        arrival = rng.exponential(1 / rate, 20_000).cumsum()
        work = one.work_s[rng.integers(len(one.work_s), size=20_000)]
        table = simulate(arrival, work, 1, methods=one.names, policy=[1, 1, 1, 1, 0])
        means.append((table["finish_s"] - table["arrival_s"]).iloc[1000:].mean())
    low, high = replication_interval(means)
    assert abs(np.mean(means) - exact) < 4 * (high - low) / 2 / 1.96


@pytest.mark.parametrize("call, message", [
    (lambda one: Menu((), np.empty((1, 0)), np.empty(0)), "a menu has one or more methods"),
    (lambda one: Menu(("a",), np.array([[0.0]]), np.array([1.0])), "seconds above 0"),
    (lambda one: optimal(0.4, one, -1.0), "price = -1.0"),
    (lambda one: optimal(1.2, one, 1.0), "rate = 1.2: at most 1 jobs/s are carried"),
    (lambda one: evaluate(0.4, one, [[0.5, 0.6]]), "rows of probabilities"),
    (lambda one: evaluate(0.4, one, [[1.0]]), "for 2 methods"),
    (lambda one: evaluate(0.0, one, [[1, 0]]), "rate = 0.0"),
    (lambda one: policy_for(0.4, one, 1.5), "quality = 1.5: the menu's methods have 0 to 1"),
    (lambda one: policy_for(0.9, one, 0.99), "cannot be had at rate = 0.9: 0."),
    (lambda one: best_mixture(0.9, one, 0.9), "by any stable mixture"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(menu())


def test_a_dominated_method_is_dropped_and_named():
    kept, dropped = constant(0.5, 1.0, 1.2, quality=[0.0, 1.0, 0.9]).undominated()
    assert kept.names == ("m0", "m1") and dropped == ("m2",)
    twins, dropped = constant(0.5, 0.5, quality=[1.0, 1.0]).undominated()
    assert twins.names == ("m0",) and dropped == ("m1",)


def test_a_policy_is_said_in_words():
    one = menu()
    assert spans(one, threshold(3)) == ["1 to 3 outstanding: slow", "4 and more outstanding: fast"]
    assert spans(one, [[0, 1], [0.25, 0.75], [1, 0]])[1] == "2 outstanding: fast (25%) or slow (75%)"
    assert spans(one, fixed(one, "fast")) == ["1 and more outstanding: fast"]
