"""The workloads' contract; the story's with the real models."""

import io

import pytest
from PIL import Image

from stlib.serving.replica import Replica
from stlib.serving.workloads import WORKLOADS, make_workload

STORY = {"prompt": "a fox", "captions": ["The fox finds a ball.", "The fox sleeps."], "llm_tokens": 6,
         "exact_tokens": True, "steps": 2, "image_size": 64}
MEMBERS = ("name", "load", "validate", "run", "probe")


@pytest.fixture(scope="module")
def replica():
    return Replica("story", {"device": "cpu"})


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_has_the_members_that_the_system_asks_for(name):
    assert all(hasattr(make_workload(name), member) for member in MEMBERS) and make_workload(name).name == name


@pytest.mark.parametrize("method, steps_run", [("sequential", 4), ("parallel", 2)])
def test_a_story_job_gives_pictures_and_what_it_took(replica, method, steps_run):
    payload, products = replica.run(STORY, method)
    panels = [Image.open(io.BytesIO(png)) for png in payload["panels"]]
    assert [panel.size for panel in panels] == [(64, 64)] * 2
    assert payload["captions"] == tuple(STORY["captions"]) and payload["story"].startswith("The fox")
    assert (products["tokens_run"], products["steps_run"]) == (6, steps_run)
    stages = [value for name, value in products.items()
              if name.endswith("_s") and name.split("_")[0] not in ("run", "service", "probe")]
    assert len(stages) == 5 and 0 < sum(stages) < products["run_s"] < products["service_s"]
    assert products["probe_s"] > 0


def test_captions_alone_run_no_llm(replica):
    _, products = replica.run({"captions": ["a fox"], "steps": 1, "image_size": 64}, "parallel", probe=False)
    assert products["tokens_run"] == products["llm_decode_s"] == 0


def test_the_probe_repeats_the_same_computation(replica):
    """Its pieces are a step of the denoiser and a token: repeating them must not lengthen the LLM's cache."""
    token = replica.workload._token
    pieces = replica.call("pieces", 2, 3)
    length = token.kwargs["past_key_values"].get_seq_length()
    replica.call("pieces", 0, 3)
    assert token.kwargs["past_key_values"].get_seq_length() == length
    assert len(pieces["step"]) == 2 and len(pieces["token"]) == 3 and min(pieces["step"] + pieces["token"]) > 0


@pytest.mark.parametrize("bad, message", [
    ({"colour": "red"}, "no parameter 'colour'"),
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
