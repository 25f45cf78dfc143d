"""OpenVINO in torch's place: the same pictures, and what it refuses."""

from importlib.util import find_spec

import numpy as np
import pytest

from stlib.generation import StoryJob, Storyteller, engine

installed = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is an optional extra")


@installed
@pytest.mark.parametrize("method", ["sequential", "parallel", "autoregressive"])
@pytest.mark.parametrize("precision, apart", [("fp32", 2), ("bf16", 60)])
def test_it_draws_what_torch_draws(storyteller, method, precision, apart):
    job = StoryJob(captions=["a fox in the snow", "a key"], method=method, steps=4, image_size=64, seed=3)
    ours, theirs = (storyteller.tell(one) for one in (job, job.but(engine="openvino", precision=precision)))
    pixels = [np.stack([np.asarray(panel, int) for panel in told.panels]) for told in (ours, theirs)]
    assert np.abs(pixels[0] - pixels[1]).max() <= apart and np.abs(pixels[0] - pixels[1]).mean() < apart / 10
    assert (theirs.provenance["engine"], theirs.steps_run) == ("openvino", ours.steps_run)


@installed
def test_an_early_exit_too(storyteller):
    job = StoryJob(captions=["a fox"], steps=8, image_size=64, engine="openvino", early_exit={"step": 3})
    assert storyteller.tell(job).steps_run == 3


@installed
def test_unets_with_further_conditions_are_refused(tiny_sdxl):
    own = Storyteller.from_pretrained({"llm": None, "ldm": str(tiny_sdxl)}, device="cpu")
    with pytest.raises(ValueError, match="takes further conditions"):
        own.tell(StoryJob(captions="a fox", steps=1, image_size=64, engine="openvino"))


@pytest.mark.parametrize("method, precision, device, says", [
    ("joint", "fp32", "cpu", "joint changes the UNet's layers"), ("parallel", "nf4", "cpu", "not in nf4"),
    ("parallel", "fp32", "cuda", "on a CPU only"),
])
def test_what_it_cannot_do_is_refused(method, precision, device, says):
    with pytest.raises(ValueError, match=says):
        engine.refuse("openvino", precision, method, device)
    engine.refuse("torch", precision, method, device)


def test_without_the_package_it_is_refused(storyteller, monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match="engine = 'openvino': it is not installed: pip install openvino"):
        storyteller.check(StoryJob(captions="a fox", engine="openvino"))
