"""The methods that tell panels of each other: joint, consistent, autoregressive."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from stlib import paths
from stlib.generation import METHODS, StoryJob, Storyteller
from stlib.generation.illustrator import as_one, panel_generators, starting_noise
from stlib.generation.methods.autoregressive import from_picture, planned
from stlib.generation.methods.consistent import SharedAttention, consistent, shared_attention
from stlib.generation.methods.joint import of_panels

CAPTIONS = ("a fox in the snow", "the fox finds a key", "a star at night", "the fox is happy")
SMALL = {"num_inference_steps": 2, "height": 64, "width": 64, "guidance_scale": 2.5}


def drawn(storyteller, method, n=4, **fields):
    told = storyteller.tell(StoryJob(captions=CAPTIONS[:n], method=method, image_size=64, **{"steps": 2, **fields}))
    return np.stack([np.asarray(panel, int) for panel in told.panels])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_draws_one_to_four_panels(storyteller, method, n):
    seen = []
    job = StoryJob(captions=CAPTIONS[:n], method=method, steps=3, image_size=64, seed=4)
    told = storyteller.tell(job, lambda *now: seen.append(now))
    assert [panel.size for panel in told.panels] == [(64, 64)] * n
    assert seen[-1] == ("pictures", 3 * n, 3 * n)
    at_once = method not in ("sequential", "autoregressive")
    assert len(told.timings["denoising"]) == told.steps_run == (3 if at_once else 3 * n)
    assert min(told.timings["text_encoding"], told.timings["vae_decode"], *told.timings["denoising"]) > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_fixes_the_pictures(storyteller, method):
    one, again, other = (drawn(storyteller, method, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize("method", ["consistent", "joint", "autoregressive"])
def test_without_guidance_too(storyteller, method):
    assert drawn(storyteller, method, n=2, guidance_scale=1.0).shape == (2, 64, 64, 3)


@pytest.mark.parametrize("method, alike", [("parallel", True), ("consistent", False), ("joint", False)])
def test_which_panels_know_of_each_other(storyteller, method, alike):
    """With another last caption the first panel is another where the panels are told of each other, and only there."""
    job = StoryJob(captions=CAPTIONS, method=method, steps=2, image_size=64)
    other = job.model_copy(update={"captions": (*CAPTIONS[:3], "a robot and a rocket in space")})
    first = [np.asarray(storyteller.tell(one).panels[0], int) for one in (job, other)]
    assert (np.abs(first[0] - first[1]).max() <= 1) == alike


def test_an_autoregressive_panel_is_told_the_one_before_it(storyteller):
    job = StoryJob(captions=CAPTIONS, method="autoregressive", steps=2, image_size=64)
    other = job.model_copy(update={"captions": ("a robot and a rocket in space", *CAPTIONS[1:])})
    panels = [storyteller.tell(one).panels for one in (job, other)]
    assert all(not np.array_equal(*map(np.asarray, pair)) for pair in zip(*panels, strict=True))


def test_one_panel_of_consistent_is_that_of_its_unet_with_the_same_noise(storyteller):
    pipe = storyteller.pipe_of("consistent", "fp32")
    ours = next(consistent(pipe, CAPTIONS[:1], SMALL, 3, lambda n: None, shared_noise=0.0)).panels[0]
    plain = pipe(prompt=[CAPTIONS[0]], generator=panel_generators(3, 2)[:1], **SMALL).images[0]
    assert np.array_equal(np.asarray(ours), np.asarray(plain))


def test_starting_noise_is_the_pipelines_own_and_shares_as_much_variance_as_said(storyteller):
    pipe = storyteller.pipe
    latents, _ = [], pipe(prompt=[CAPTIONS[0]], generator=panel_generators(3, 1), output_type="latent",
                          **SMALL | {"num_inference_steps": 1})
    plain = pipe.prepare_latents(2, 6, 64, 64, torch.float32, pipe.device, panel_generators(3, 2))
    assert torch.equal(starting_noise(pipe, panel_generators(3, 2), SMALL), plain)
    for seed in range(60):
        *own, common = panel_generators(seed, 3)
        latents.append(starting_noise(pipe, own, SMALL | {"height": 128, "width": 128}, common, 0.6))
    pairs = torch.stack(latents).transpose(0, 1).flatten(1)
    assert pairs.var(1).tolist() == pytest.approx([1, 1], abs=0.03)
    assert np.corrcoef(pairs)[0, 1] == pytest.approx(0.6, abs=0.02)


def test_shared_attention_reads_the_whole_story_and_leaves_the_unet_as_it_was(storyteller):
    unet = storyteller.pipe.unet
    before = dict(unet.attn_processors)
    with pytest.raises(KeyError, match="stop"), shared_attention(unet, 2) as shared:
        assert {type(unet.attn_processors[name]) for name in shared} == {SharedAttention}
        assert all("attn1" in name for name in shared) and 0 < len(shared) < len(before)
        raise KeyError("stop")
    assert unet.attn_processors == before
    block = next(module for name, module in unet.named_modules() if name.endswith("attn1"))
    hidden = torch.randn(4, 9, block.to_q.in_features)
    with torch.no_grad():
        ours = SharedAttention(block.processor, 2)(block, hidden)
        for story in (0, 1):
            whole = hidden[2 * story : 2 * story + 2].reshape(1, 18, -1)
            assert torch.allclose(ours[2 * story : 2 * story + 2].reshape(1, 18, -1), block(whole), atol=1e-5)


def test_fewer_panels_take_the_first_filters(storyteller):
    """As many panels of zeros, left out, change nothing."""
    unet = storyteller.pipe_of("joint", "fp32").unet
    few, x, states = of_panels(unet, 2, 6), torch.randn(1, 12, 8, 8), torch.randn(1, 40, 384)
    with torch.no_grad():
        whole = unet(torch.cat([x, torch.zeros(1, 12, 8, 8)], 1), 500, states).sample
        assert torch.allclose(few(x, 500, states).sample, whole[:, :12], atol=1e-4)
    assert (unet.config.in_channels, few.config.in_channels) == (24, 12)
    assert few.mid_block is unet.mid_block


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
@pytest.mark.parametrize("strength", [0.01, 0.05, 0.3, 0.35, 0.7, 0.8, 0.99, 1.0])
def test_image_to_image_runs_as_many_steps_as_are_asked_for(steps, strength):
    number = planned(steps, strength)
    assert min(int(number * strength), number) == steps


def test_image_to_image_of_the_last_panel(storyteller):
    pipe = storyteller.pipe
    full, weak = (as_one(from_picture(pipe, CAPTIONS, SMALL, 3, lambda n: None, strength=strength)).panels
                  for strength in (1.0, 0.05))

    def step(panels):
        return [np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() for a, b in pairwise(panels)]

    assert np.mean(step(weak)) < 0.5 * np.mean(step(full))


@pytest.mark.parametrize("n, fields, says", [
    (5, {"method": "joint"}, r"n_panels = 5: joint was trained for at most 4"),
    (2, {"method": "autoregressive", "strength": 0.5}, r"strength = 0.5: the embedded models tell a panel the latents"),
])
def test_what_the_embedded_models_cannot_do_is_refused(storyteller, n, fields, says):
    with pytest.raises(ValueError, match=says):
        storyteller.check(StoryJob(captions=["a fox"] * n, **fields))


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, float("nan"), "much"])
def test_strength_outside_its_range_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        StoryJob(captions="a fox", method="autoregressive", strength=strength)


def test_strength_of_another_method_is_refused():
    with pytest.raises(ValueError, match=r"strength = 0.5 with parallel: it is of autoregressive"):
        StoryJob(captions="a fox", method="parallel", strength=0.5)


@pytest.mark.parametrize("pipeline", ["tiny_sd", "tiny_sdxl"])
def test_methods_of_a_pipeline_of_a_hub(pipeline, request):
    own = Storyteller.from_pretrained({"llm": None, "ldm": str(request.getfixturevalue(pipeline))}, device="cpu")
    for method in ("consistent", "autoregressive"):
        job = StoryJob(captions=CAPTIONS[:3], method=method, steps=4, image_size=64)
        told = own.tell(job)
        assert len(told.panels) == 3 and told.steps_run == (4 if method == "consistent" else 12)
    assert own.tell(job.model_copy(update={"strength": 0.5})).steps_run == 12
    with pytest.raises(ValueError, match=r"method = 'joint': .*trained for stacked panels"):
        own.check(StoryJob(captions="a fox", method="joint"))


def test_a_pipeline_of_the_wrong_kind_is_refused_by_name(tiny_flux):
    flux = Storyteller.from_pretrained({"llm": None, "ldm": str(tiny_flux)}, device="cpu")
    with pytest.raises(ValueError, match=r"method = 'consistent': .*self-attention of a UNet"):
        flux.check(StoryJob(captions="a fox", method="consistent"))
    flux.check(StoryJob(captions="a fox", method="autoregressive"))


@pytest.mark.parametrize("method", ["joint", "consistent", "autoregressive"])
def test_values_that_are_no_number_are_an_error_not_a_picture(storyteller, method, monkeypatch):
    pipe = storyteller.pipe_of(METHODS[method].weights, "fp32")
    monkeypatch.setattr(pipe.unet.conv_in.bias, "data", torch.full_like(pipe.unet.conv_in.bias, float("nan")))
    with pytest.raises(RuntimeError, match="NaN"):
        drawn(storyteller, method, n=2)


def test_the_committed_weights_are_small_and_of_their_kind():
    sizes = {file: file.stat().st_size for file in paths.MODELS.rglob("*.safetensors")}
    assert sum(sizes.values()) <= 80e6
    for name, channels in (("joint", 24), ("consistent", 6), ("autoregressive", 12)):
        folder = paths.MODELS / name
        assert UNet2DConditionModel.load_config(folder / "unet")["in_channels"] == channels
        assert (folder / "README.md").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_may_be_wider_than_high(storyteller, method):
    job = StoryJob(captions=CAPTIONS[:2], method=method, image_size="96x64", steps=2)
    assert {panel.size for panel in storyteller.tell(job).panels} == {(96, 64)}
    assert storyteller.resolve(job)["image_size"] == "96x64"
