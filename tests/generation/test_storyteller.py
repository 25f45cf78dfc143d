"""The whole road on the embedded models, and the same road with a user's own."""

import time

import numpy as np
import pytest
import torch

from stlib.generation import METHODS, ModelError, StoryJob, Storyteller

STAGES = {"llm_prefill", "llm_decode", "text_encoding", "denoising", "vae_decode", "total"}


def pixels(result):
    return np.stack([np.asarray(panel, dtype=float) for panel in result.panels])


@pytest.mark.parametrize(("method", "steps_run"), [("sequential", 6), ("parallel", 3)])
def test_a_told_story(storyteller, method, steps_run):
    progress = []
    job = StoryJob("a fox and a red balloon", n_panels=2, llm_tokens=24, method=method, steps=3, image_size=64, seed=3)
    result = storyteller.tell(job, on_progress=lambda *now: progress.append(now))
    assert len(result.panels) == len(result.captions) == 2
    assert all(panel.size == (64, 64) for panel in result.panels)
    assert result.story == " ".join(result.captions)
    assert result.steps_run == len(result.timings["denoising"]) == steps_run
    assert progress == [
        *(("story", done, 24) for done in range(1, result.tokens_run + 1)),
        *(("pictures", done, 6) for done in range(6 // steps_run, 7, 6 // steps_run)),
    ]
    times = result.timings
    assert set(times) == STAGES
    stages = sum(times[stage] for stage in STAGES - {"denoising", "total"}) + sum(times["denoising"])
    assert 0.9 * times["total"] < stages <= times["total"], "the stages are the whole"


def test_methods_draw_the_same_pictures(storyteller):
    captions = ["a fox", "a red balloon", "The cat finds a key."]
    one, other = (
        pixels(storyteller.tell(StoryJob(captions=captions, method=method, steps=4, image_size=64, seed=5)))
        for method in METHODS
    )
    assert np.abs(one - other).max() <= 2
    assert np.abs(one[0] - one[1]).mean() > 5, "captions and noise differ"


def test_seed_fixes_the_pictures(storyteller):
    one, same, other = (
        pixels(storyteller.tell(StoryJob(captions="a fox", steps=3, image_size=64, seed=seed))) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert np.abs(one - other).mean() > 5


def test_the_picture_follows_the_caption(storyteller):
    one, other = (
        pixels(storyteller.tell(StoryJob(captions=caption, steps=8, image_size=128, seed=1)))
        for caption in ("a red balloon", "a fox")
    )
    assert np.abs(one - other).mean() > 5, "same noise, another picture"


def test_captions_alone_need_no_llm():
    storyteller = Storyteller.from_pretrained({"llm": "no/such/model/anywhere", "ldm": "embedded"}, device="cpu")
    result = storyteller.tell(StoryJob(captions=["a fox"], steps=1, image_size=64))
    assert (result.story, result.tokens_run, result.timings["llm_decode"]) == ("", 0, 0.0)
    with pytest.raises(ModelError):
        storyteller.tell(StoryJob("a fox"))


def test_given_captions_are_drawn_though_the_llm_runs(storyteller):
    captions = ("a cat", "a house")
    job = StoryJob("a fox", captions=captions, llm_tokens=8, exact_tokens=True, steps=1, image_size=64)
    result = storyteller.tell(job)
    assert result.tokens_run == 8 and result.captions == captions and result.story.startswith("The fox ")


def test_a_picture_of_nan_is_no_picture(storyteller):
    """One call of the denoiser goes wrong; the next job is drawn."""
    job = StoryJob(captions=["a fox"], steps=2, image_size=64)

    def fault(module, given, output):
        hook.remove()
        return tuple(torch.full_like(one, float("nan")) for one in output)

    hook = storyteller.pipe.unet.register_forward_hook(fault)
    with pytest.raises(RuntimeError, match="not a number"):
        storyteller.tell(job)
    assert np.asarray(storyteller.tell(job).panels[0], float).std() > 5


def test_default_size_and_sizes_allowed(storyteller):
    assert storyteller.tell(StoryJob(captions="a fox", steps=1)).panels[0].size == (128, 128)
    with pytest.raises(ValueError, match="64, 96, 128, 160"):
        storyteller.tell(StoryJob(captions="a fox", image_size=256))


def test_another_script_is_warned_of(storyteller):
    with pytest.warns(UserWarning, match="English only"):
        storyteller.tell(StoryJob(captions="лиса", steps=1, image_size=64))


@pytest.mark.parametrize("pipeline", ["tiny_sd", "tiny_sdxl"])
def test_own_models(pipeline, tiny_llama, request):
    models = {"llm": str(tiny_llama), "ldm": str(request.getfixturevalue(pipeline))}
    storyteller = Storyteller.from_pretrained(models, device="cpu", llm_dtype="fp32")
    one, other = (
        storyteller.tell(StoryJob("a fox", n_panels=2, llm_tokens=12, method=method, steps=2)) for method in METHODS
    )
    assert one.panels[0].size == (64, 64), "the pipeline's own size"
    assert one.captions == other.captions and len(one.captions) == 2
    assert (one.steps_run, other.steps_run) == (4, 2)
    assert np.abs(pixels(one) - pixels(other)).max() <= 2


def test_precision_reaches_the_model(tiny_sd):
    storyteller = Storyteller.from_pretrained({"ldm": str(tiny_sd)}, device="cpu", precision="bf16")
    assert storyteller.pipe.unet.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="loaded in bf16"):
        storyteller.tell(StoryJob(captions="a fox", precision="fp32"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda(tiny_llama, tiny_sd):
    storyteller = Storyteller.from_pretrained({"llm": str(tiny_llama), "ldm": str(tiny_sd)}, device="auto")
    assert storyteller.device == "cuda" and len(storyteller.tell(StoryJob("a fox", steps=2)).panels) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"models": "smol"}, "give 'embedded' or a dict"),
        ({"models": {"unet": "x"}}, "llm and ldm"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"precision": "int3"}, "precision 'int3'"),
        ({"llm_dtype": "int3"}, "llm_dtype 'int3'"),
    ],
)
def test_from_pretrained_refuses(options, says):
    with pytest.raises(ValueError, match=says):
        Storyteller.from_pretrained(**options)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "nobody/has-this-model", "no such model"])
@pytest.mark.parametrize("part", ["writer", "pipe"])
def test_unknown_model(name, part, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    storyteller = Storyteller.from_pretrained({"llm": name, "ldm": name}, device="cpu")
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"hf auth login|hub name") as error:
        getattr(storyteller, part)
    assert name in str(error.value)
    assert time.monotonic() - began < 10


def test_a_damaged_model_is_named(tiny_llama, tmp_path):
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load"):
        _ = Storyteller.from_pretrained({"llm": str(tmp_path)}, device="cpu").writer
