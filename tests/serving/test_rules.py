"""The dispatcher's rules: the told wait against the simulator, menus."""

from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlib.generation import METHODS as STORY_METHODS
from stlib.queueing.simulation import simulate
from stlib.serving.rules import candidates, options_of, read_menu, wait_s

METHODS = ("a", "b")


@given(k=st.integers(1, 3), n=st.integers(4, 9), seed=st.integers(0, 10**6),
       policy=st.lists(st.integers(0, 1), min_size=1, max_size=6))
def test_the_told_wait_is_the_simulator_s_if_none_comes_after(k, n, seed, policy):
    """All come at once; the last is told when it will start, from those that run and wait then."""
    work = np.random.default_rng(seed).uniform(0.1, 2.0, (n, 2))
    run = simulate(np.zeros(n), work, k, methods=METHODS, policy=policy)

    def job(i, **row):
        return SimpleNamespace(method=None, declared_s=dict(zip(METHODS, work[i], strict=True)), row=row,
                               ended=SimpleNamespace(cancelled=lambda: False))

    def method_of(one, outstanding):
        return METHODS[policy[min(outstanding, len(policy) - 1)]]

    queue = deque(job(i) for i in range(k, n - 1))
    servers = [SimpleNamespace(job=job(i, method=run["method"][i], start_s=0.0)) for i in range(k)]
    assert wait_s(servers, queue, 0.0, method_of) == pytest.approx(run["start_s"][n - 1])


def test_a_replica_that_is_down_gets_jobs_in_its_turn_only():
    up, down = (SimpleNamespace(handle=handle, idle=bool(handle), idle_s=0.0, queue=[], job=None)
                for handle in ("up", None))
    for routing in ("central", "jsq", "least_work"):
        assert candidates(routing, [down, up], 0.0, 0) == [up]
        assert down in candidates(routing, [down], 0.0, 0)
    for routing in ("random", "power_of_two"):
        assert candidates(routing, [down, up], 0.0, 0, 0.9) == [up]
        assert candidates(routing, [down], 0.0, 0, 0.9) == [down]
    assert candidates("round_robin", [down, up], 0.0, 2) == [down]


def test_power_of_two_takes_the_shorter_of_two_that_differ():
    """Over all of [0, 1): every ordered pair of five servers as often, the shorter one, the first of equal ones."""
    servers = [SimpleNamespace(handle="up", queue=[None] * n, job=None, number=i)
               for i, n in enumerate((3, 1, 0, 1, 2))]
    taken = [candidates("power_of_two", servers, 0.0, 0, chance)[0].number for chance in (np.arange(2000) + 0.5) / 2000]
    assert np.bincount(taken).tolist() == [0, 500, 800, 500, 200]
    assert np.bincount([candidates("random", servers, 0.0, 0, chance)[0].number
                        for chance in (np.arange(2000) + 0.5) / 2000]).tolist() == [400] * 5


def test_a_method_stands_for_its_parameters():
    menu = {"nap": {"seconds": 0.01}, "half": {"method": "parallel", "precision": "fp16"}}
    assert options_of("half", menu) == {"method": "parallel", "precision": "fp16"}
    assert options_of("parallel") == {"method": "parallel"} and options_of(None) == {}
    assert options_of("a", None, METHODS) == {"method": "a"}
    for given_menu, known in ((menu, ()), (None, METHODS)):
        with pytest.raises(ValueError, match="unknown method 'night': use one of"):
            options_of("night", given_menu, known)


def test_the_committed_menu_names_the_plain_methods():
    menu = read_menu()
    assert {"sequential", "parallel"} <= set(menu)
    assert {options["method"] for options in menu.values()} <= set(STORY_METHODS)
    assert all(menu[name] == {"method": name} for name in set(menu) & set(STORY_METHODS))


@pytest.mark.parametrize("text", ["", "hasty:\n", "hasty: 2\n", "- hasty\n", "hasty: {}\n",
                                  "a: {steps: 1}\na: {steps: 2}\n"])
def test_a_wrong_menu_is_refused(tmp_path, text):
    (tmp_path / "menu.yml").write_text(text)
    with pytest.raises(ValueError, match=r"menu\.yml"):
        read_menu(tmp_path / "menu.yml")
