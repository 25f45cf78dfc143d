"""Early exit: when it ends, that nothing else changes, and its signals against values known beforehand."""

import inspect

import diffusers
import numpy as np
import pytest
import torch

from stlib.generation import METHODS, StoryJob
from stlib.generation.early_exit import EarlyExit, Watch, fresh, mutual_information, relative_change
from stlib.generation.illustrator import decoded, panel_generators

CAPTIONS = ("a fox in the snow", "the fox finds a key")


def told(storyteller, rule=None, method="parallel", **fields):
    return storyteller.tell(StoryJob(captions=CAPTIONS, method=method, image_size=64, early_exit=rule,
                                     **{"steps": 8, "seed": 2, **fields}))


def pixels(result):
    return np.stack([np.asarray(panel, int) for panel in result.panels])


@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_exit_ends_after_its_step(storyteller, method):
    seen = []
    storyteller.tell(StoryJob(captions=CAPTIONS, method=method, image_size=64, steps=8, early_exit={"step": 3}),
                     lambda *now: seen.append(now))
    apart = method in ("sequential", "autoregressive")
    assert len(seen) == (6 if apart else 3)
    assert told(storyteller, {"step": 3}, method).steps_run == (6 if apart else 3)


def test_the_picture_is_the_prediction_of_that_step(storyteller):
    """Of DDIM with one step left out: x0 as its own step says."""
    pipe, kept = storyteller.pipe, {}
    pipe.scheduler = fresh(pipe.scheduler)
    plain = pipe.scheduler.step

    def step(*args, return_dict=True, **options):
        result = plain(*args, return_dict=True, **options)
        kept[len(kept) + 1] = result.pred_original_sample
        return (result.prev_sample,)

    pipe.scheduler.step = step
    early = told(storyteller, {"step": 3})
    pipe.scheduler = fresh(pipe.scheduler)
    plain = pipe.scheduler.step
    pipe.scheduler.step = step
    pipe(prompt=list(CAPTIONS), generator=panel_generators(2, 2), num_inference_steps=8, height=64, width=64,
         guidance_scale=2.5)
    expected = np.stack([np.asarray(panel, int) for panel in decoded(pipe, kept[3])])
    assert np.abs(pixels(early) - expected).max() <= 1


@pytest.mark.parametrize("rule", [{"step": 8}, {"step": 50}, {"change": 1e-9}, {"information": 2.77}])
def test_a_rule_that_never_fires_is_the_full_run(storyteller, rule):
    full, never = told(storyteller), told(storyteller, rule)
    assert never.steps_run == 8
    assert np.abs(pixels(full) - pixels(never)).max() <= (2 if "step" in rule else 0)  # 2: its last prediction


def test_a_looser_rule_ends_earlier_and_the_next_job_is_a_full_run(storyteller):
    steps = [told(storyteller, {"change": change}, steps=20).steps_run for change in (0.01, 0.05, 0.2)]
    assert 20 >= steps[0] >= steps[1] >= steps[2] >= 2 and steps[2] < 20
    informed = [told(storyteller, {"information": nats}, steps=20).steps_run for nats in (1.8, 1.2, 0.6)]
    assert 20 >= informed[0] >= informed[1] >= informed[2] >= 2 and informed[2] < 20
    assert told(storyteller).steps_run == 8 and not hasattr(storyteller.pipe.scheduler, "watch")


@pytest.mark.parametrize("solver", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"])
def test_other_solvers_say_their_prediction_too(storyteller, solver):
    pipe = storyteller.pipe
    before = pipe.scheduler
    try:
        pipe.scheduler = getattr(diffusers, solver).from_config(before.config)
        early, full = told(storyteller, {"step": 6}), told(storyteller)
        assert early.steps_run == 6
        assert np.abs(pixels(early) - pixels(full)).mean() < 25  # of 255: a picture, not noise
    finally:
        pipe.scheduler = before


def test_a_scheduler_without_a_prediction_is_refused(storyteller):
    pipe = storyteller.pipe
    before = pipe.scheduler
    try:
        pipe.scheduler = diffusers.PNDMScheduler.from_config(before.config)
        with pytest.raises(ValueError, match="early_exit with PNDMScheduler: it says no predicted x0"):
            told(storyteller, {"step": 3})
    finally:
        pipe.scheduler = before


def test_a_watched_step_takes_the_same_arguments(storyteller):
    scheduler = fresh(storyteller.pipe.scheduler)
    arguments = inspect.signature(scheduler.step).parameters
    Watch(scheduler, EarlyExit(step=1))
    assert inspect.signature(scheduler.step).parameters.keys() == arguments.keys()


def test_signals_by_hand():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 6, 40, 40, generator=generator), torch.randn(2, 6, 40, 40, generator=generator)
    assert relative_change(a, a + 0.1 * a).tolist() == pytest.approx([0.1 / 1.1] * 2)
    assert relative_change(a, b).tolist() == pytest.approx([2**0.5] * 2, rel=0.03)
    assert mutual_information(a, 3 * a + 1).tolist() == pytest.approx([np.log(16)] * 2, rel=0.01)
    assert max(mutual_information(a, b)) < 0.03
    for correlation in (0.5, 0.9):
        mixed = correlation * a + (1 - correlation**2) ** 0.5 * b
        assert mutual_information(a, mixed).tolist() == pytest.approx(
            [-0.5 * np.log(1 - correlation**2)] * 2, rel=0.12)


@pytest.mark.parametrize("rule, says", [
    ({}, "give one of step, change and information"),
    ({"step": 3, "change": 0.1}, "give one of step, change and information"),
    ({"step": 0}, "step.*= 0"), ({"step": 2.0}, "step.*= 2.0"), ({"change": 0.0}, "change.*= 0.0"),
    ({"change": float("nan")}, "change"), ({"information": 3.0}, "information"),
    ({"steps": 3}, "unknown field 'steps'"),
    (True, "early_exit"), (3, "early_exit"),
])
def test_wrong_rules_are_refused(rule, says):
    with pytest.raises(ValueError, match=says):
        StoryJob(captions="a fox", early_exit=rule)


def test_false_and_none_are_no_rule():
    assert StoryJob(captions="a fox", early_exit=False).early_exit is StoryJob(captions="a fox").early_exit is None
