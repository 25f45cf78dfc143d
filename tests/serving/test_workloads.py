"""The workloads' contract; the story's with the real models."""

import io
import sys
import time

import pytest
import ray
from PIL import Image

from stlib import paths
from stlib.generation import weights_hash
from stlib.serving.replica import Replica, ReplicaSpec, stop_job, stop_replica
from stlib.serving.rules import options_of
from stlib.serving.workloads import WORKLOADS, Cancelled, make_workload
from stlib.serving.workloads.protocol import LastCall

sys.path.append(str(paths.ROOT / "tests" / "generation"))
from tiny import tiny_sd

__all__ = ["tiny_sd"]
STORY = {"prompt": "a fox", "captions": ["The fox finds a ball.", "The fox sleeps."], "llm_tokens": 6,
         "exact_tokens": True, "steps": 2, "image_size": 64}
MEMBERS = ("name", "load", "validate", "run", "probe", "weights_hash")


@pytest.fixture(scope="module")
def replica():
    return Replica(WORKLOADS["story"], {"device": "cpu"})


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_has_the_members_that_the_system_asks_for(name):
    assert all(hasattr(make_workload(name), member) for member in MEMBERS) and make_workload(name).name == name


@pytest.mark.parametrize("method, steps_run", [("sequential", 4), ("parallel", 2)])
def test_a_story_job_gives_pictures_and_what_it_took(replica, method, steps_run):
    payload, products = replica.run(STORY | {"method": method})
    panels = [Image.open(io.BytesIO(png)) for png in payload["panels"]]
    assert [panel.size for panel in panels] == [(64, 64)] * 2
    assert payload["captions"] == tuple(STORY["captions"]) and payload["story"].startswith("The fox")
    assert (products["tokens_run"], products["steps_run"]) == (6, steps_run)
    stages = [value for name, value in products.items()
              if name.endswith("_s") and name.split("_")[0] not in ("run", "service", "probe", "first")]
    assert len(stages) == 5 and 0 < sum(stages) < products["run_s"] < products["service_s"]
    assert 0 < products["first_s"] <= products["service_s"]
    assert products["probe_s"] > 0


@pytest.mark.parametrize("method", ["sequential", "parallel"])
@pytest.mark.parametrize("stage, done", [("story", 1), ("story", 6), ("pictures", 2), ("pictures", 4)])
def test_a_story_stops_at_any_token_and_step_and_the_next_is_unharmed(replica, method, stage, done):
    def stop(*at):
        seen.append(at[:2])
        if at[:2] == (stage, done):
            raise Cancelled

    seen, job = [], STORY | {"method": method}
    whole = replica.workload.run(job)[0]
    with pytest.raises(Cancelled):
        replica.workload.run(job, stop)
    assert seen[-1] == (stage, done)
    assert replica.workload.run(job)[0] == whole and replica.workload.probe() > 0


def test_a_story_stops_in_an_actor_too_and_its_replica_stays_the_same(cluster):
    """A job of minutes: the actor is free within a step, and draws what it drew before."""
    actor = ReplicaSpec("story", {"device": "cpu"}).start()
    try:
        before = ray.get(actor.run.remote(STORY | {"method": "parallel"}))
        for long in (STORY | {"llm_tokens": 300}, STORY | {"steps": 100, "image_size": 160}):
            job = actor.run.remote(long, token=str(long))
            time.sleep(0.5)
            began = time.monotonic()
            stop_job(actor, str(long))
            with pytest.raises(Cancelled):
                ray.get(job)
            assert time.monotonic() - began < 1.0
        assert ray.get(actor.run.remote(STORY | {"method": "parallel"}))[0] == before[0]
    finally:
        stop_replica(actor)


def test_a_sleeper_tells_its_progress_and_sleeps_no_longer_for_it():
    seen = []
    _, products = make_workload("sleep").run({"seconds": 0.12}, lambda *at: seen.append(at))
    assert seen == [("sleep", 1, 3), ("sleep", 2, 3), ("sleep", 3, 3)] and 0.12 <= products["slept_s"] < 0.14


def test_captions_alone_run_no_llm(replica):
    _, products = replica.run({"captions": ["a fox"], "steps": 1, "image_size": 64, "method": "parallel"},
                              probe=False)
    assert products["tokens_run"] == products["llm_decode_s"] == 0


def test_a_last_call_repeats_the_same_computation(replica):
    """The probe's is a step of the denoiser; notebook 05 keeps a token's too and takes it off the LLM's cache again."""
    writer = replica.workload.storyteller.writer
    token = LastCall(writer.model, lambda: writer.write("a fox", 1, 4, seed=0, exact_tokens=True))
    cache = token.kwargs["past_key_values"]
    length = cache.get_seq_length()
    for _ in range(3):
        cache.crop(-1)
        assert token.repeat() > 0 and cache.get_seq_length() == length
    assert replica.workload.step.repeat() > 0
    assert not writer.model._forward_pre_hooks and not replica.workload.step.module._forward_pre_hooks


def test_the_weights_of_a_spec_are_those_of_what_it_loads(tmp_path):
    embedded = ReplicaSpec().make().weights_hash()
    assert embedded == weights_hash() == ReplicaSpec(options={"models": {"llm": "embedded"}}).make().weights_hash()
    for content in (b"one", b"two"):
        (tmp_path / "model.safetensors").write_bytes(content)
        own = ReplicaSpec(options={"models": {"ldm": str(tmp_path)}})
        assert own.make().weights_hash() == weights_hash({"llm": "embedded", "ldm": str(tmp_path)}) != embedded
        embedded = own.make().weights_hash()
    assert ReplicaSpec("sleep").make().weights_hash() == "none"


def test_a_loader_option_may_stand_in_the_menu(replica):
    """The replica is given it as a job's parameter, and loads what it asks for."""
    menu = {name: {"method": "parallel", "precision": one} for name, one in
            (("whole", "fp32"), ("half", "bf16"), ("none", "int3"))}
    whole, half = (replica.run(STORY | options_of(name, menu), probe=False)[0] for name in ("whole", "half"))
    assert whole["story"] == half["story"] and whole["panels"] != half["panels"]
    with pytest.raises(ValueError, match="int3"):
        replica.workload.validate(STORY | options_of("none", menu))


@pytest.mark.parametrize("bad, message", [
    ({"colour": "red"}, "unknown field 'colour'"),
    ({"steps": 0}, "steps = 0"),
    ({"method": "magic"}, "method 'magic'"),
    ({"image_size": 72}, "image_size = 72"),
])
def test_bad_parameters_are_named_before_anything_is_loaded(bad, message):
    story = make_workload("story")
    story.validate(STORY)
    with pytest.raises(ValueError, match=message):
        story.validate(STORY | bad)
    assert not story.storyteller._pipes


@pytest.mark.parametrize("seconds", [None, "long", -1, 4000])
def test_a_sleeper_checks_its_seconds(seconds):
    with pytest.raises(ValueError, match="a sleeping job takes"):
        make_workload("sleep").validate({"seconds": seconds})


@pytest.mark.parametrize("none", [None, "none"])
def test_without_an_llm_captions_are_drawn_and_prompts_refused(tiny_sd, none):
    replica = Replica(WORKLOADS["story"], {"models": {"llm": none, "ldm": str(tiny_sd)}, "device": "cpu"})
    payload, products = replica.run({"captions": ["a fox", "a cat"], "steps": 2})
    assert len(payload["panels"]) == 2 and (products["tokens_run"], products["steps_run"]) == (0, 4)
    assert products["probe_s"] > 0 and replica.workload.step.repeat() > 0
    assert not replica.workload.storyteller._writers and replica.workload.weights_hash()
    assert replica.workload.resolve({"captions": "a fox"})["prompt_tokens"] == 0
    with pytest.raises(ValueError, match="no LLM is loaded: give captions alone, or serve with --llm"):
        replica.workload.validate({"prompt": "a fox", "captions": "a fox"})
