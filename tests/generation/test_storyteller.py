"""The whole road on the embedded models, and the same road with a user's own."""

import time

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from stlib.generation import METHODS, ModelError, StoryJob, Storyteller, load_llm
from stlib.generation.illustrator import Method
from stlib.generation.loading import picture_sizes

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
        for method in ("sequential", "parallel")
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
        storyteller.tell(StoryJob("a fox", n_panels=2, llm_tokens=12, method=method, steps=2))
        for method in ("sequential", "parallel")
    )
    assert one.panels[0].size == (64, 64), "the pipeline's own size"
    assert one.captions == other.captions and len(one.captions) == 2
    assert (one.steps_run, other.steps_run) == (4, 2)
    assert np.abs(pixels(one) - pixels(other)).max() <= 2


def test_precision_reaches_the_model(tiny_sd):
    storyteller = Storyteller.from_pretrained({"ldm": str(tiny_sd)}, device="cpu", precision="bf16")
    assert storyteller.pipe.unet.dtype == torch.bfloat16
    for precision in (None, "fp32", "bf16"):
        result = storyteller.tell(StoryJob(captions="a fox", steps=1, precision=precision))
        assert result.provenance["precision"] == (precision or "bf16")
    assert {one.unet.dtype for one in storyteller._pipes.values()} == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("save", [{"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "50KB"},
                                  {"variant": "mine"}, {"max_shard_size": "50KB"}], ids=str)
def test_a_pipeline_saved_as_a_variant_or_in_shards(tiny_sd, tmp_path, save):
    given = StableDiffusionPipeline.from_pretrained(tiny_sd)
    given.save_pretrained(tmp_path, **save)
    loaded = Storyteller.from_pretrained({"ldm": str(tmp_path)}, device="cpu", precision="bf16").pipe
    assert loaded.unet.dtype == loaded.vae.dtype == loaded.text_encoder.dtype == torch.bfloat16
    for name, weights in given.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], weights.to(torch.bfloat16))


def test_a_pipeline_of_which_a_part_is_a_variant(tiny_sd, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipe.save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe.unet.half().save_pretrained(tmp_path / "unet", variant="fp16")
    assert Storyteller.from_pretrained({"ldm": str(tmp_path)}, device="cpu").pipe.unet.dtype == torch.float32


def test_plain_weights_come_before_a_variant(tiny_sd, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipe.save_pretrained(tmp_path)
    torch.nn.init.zeros_(pipe.unet.conv_in.weight)
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert Storyteller.from_pretrained({"ldm": str(tmp_path)}, device="cpu").pipe.unet.conv_in.weight.abs().sum() > 0


def test_an_llm_saved_as_a_variant(tiny_llama, tmp_path):
    model, tokenizer = load_llm(str(tiny_llama), dtype="fp32")
    model.save_pretrained(tmp_path, variant="fp16", max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(load_llm(str(tmp_path), dtype="fp32")[0].lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(("pipeline", "multiple"), [("tiny_sd", 2), ("tiny_sdxl", 2), ("tiny_flux", 16)])
def test_sizes_a_pipeline_cannot_draw_are_refused_before_it_is_loaded(pipeline, multiple, request):
    storyteller = Storyteller.from_pretrained({"ldm": str(request.getfixturevalue(pipeline))}, device="cpu")
    for size in (64, 72, 80, 88):
        job = StoryJob(captions="a fox", steps=1, image_size=size)
        if size % multiple:
            nearest = f"image_size = {size}.*nearest sizes that they draw.* {size - 8}, {size + 8}, "
            with pytest.raises(ValueError, match=nearest):
                storyteller.check(job)
            assert not storyteller._pipes
    for size in range(64, 97, max(8, multiple)):
        assert storyteller.tell(StoryJob(captions="a fox", steps=1, image_size=size)).panels[0].size == (size, size)


def test_sizes_are_not_known_without_a_configuration(tmp_path):
    assert picture_sizes(str(tmp_path)) == (1, 512)


@pytest.mark.parametrize(("prompt", "tokens"), [("\N{FOX FACE}" * 400, 1200), ("狐" * 200, 600), ("а б " * 130, 260)])
def test_prompts_of_too_many_tokens_are_refused_before_anything_is_loaded(prompt, tokens):
    storyteller = Storyteller.from_pretrained(device="cpu")
    with pytest.raises(ValueError, match=f"prompt has {tokens} tokens of the LLM, at most 256 are allowed"):
        storyteller.check(StoryJob(prompt))
    assert not storyteller._writers and not storyteller._pipes
    storyteller.check(StoryJob("the fox goes into the forest and finds a balloon, " * 19))


def test_a_story_longer_than_the_llm_s_context_is_refused_before_it_is_loaded(tiny_llama):
    storyteller = Storyteller.from_pretrained({"llm": str(tiny_llama)}, device="cpu")
    storyteller.check(StoryJob("a fox", llm_tokens=64))
    with pytest.raises(ValueError, match="the LLM has 512: shorten the prompt or lower llm_tokens"):
        storyteller.check(StoryJob("a fox", llm_tokens=1024))
    assert not storyteller._writers


class Stop(Exception):
    pass


@pytest.mark.parametrize("stage, at", [("story", 1), ("story", 5), ("pictures", 1), ("pictures", 3)])
@pytest.mark.parametrize("method", METHODS)
def test_a_job_that_is_stopped_leaves_the_models_as_they_were(storyteller, stage, at, method):
    """What on_progress raises ends the job at that token or step."""
    job = StoryJob("a fox", n_panels=1, llm_tokens=8, exact_tokens=True, captions="a fox", method=method, steps=4,
                   image_size=64, seed=3)
    before, seen = storyteller.tell(job), []

    def stop(*now):
        seen.append(now[:2])
        if now[:2] == (stage, at):
            raise Stop

    with pytest.raises(Stop):
        storyteller.tell(job, stop)
    assert seen[-1] == (stage, at)
    assert not any(module._forward_pre_hooks for module in (storyteller.pipe.unet, storyteller.writer.model))
    after = storyteller.tell(job)
    assert np.array_equal(pixels(before), pixels(after)) and before.story == after.story


def test_a_new_method_is_a_function_and_an_entry(tiny_sd, monkeypatch):
    draw = METHODS["parallel"].draw
    monkeypatch.setitem(METHODS, "mirrored", Method(draw, most_panels=2))
    monkeypatch.setitem(METHODS, "other", Method(draw, weights="other"))
    monkeypatch.setitem(METHODS, "own", Method(draw, lacks=lambda parts: f"a {parts['_class_name']} is not enough"))
    storyteller = Storyteller.from_pretrained({"ldm": str(tiny_sd)}, device="cpu")
    for method in ("mirrored", "other"):
        told = storyteller.tell(StoryJob(captions=["a fox", "a cat"], method=method, steps=1, image_size=64))
        assert len(told.panels) == 2
    assert len(storyteller._pipes) == 1  # weights of their own are the embedded pipeline's
    for panels, method, says in ((3, "mirrored", "mirrored was trained for at most 2"),
                                 (1, "own", "method = 'own': a StableDiffusionPipeline is not enough")):
        with pytest.raises(ValueError, match=says):
            storyteller.check(StoryJob(captions=["a fox"] * panels, method=method))
    embedded = Storyteller.from_pretrained(device="cpu")
    with pytest.raises(ModelError, match="the weights of other are not in"):
        embedded.tell(StoryJob(captions="a fox", method="other"))


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
        ({"precision": "int3"}, "unknown precision 'int3': use one of fp32"),
        ({"llm_dtype": "int3"}, "unknown llm_dtype 'int3': use one of auto, fp32"),
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
