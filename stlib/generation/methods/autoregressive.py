"""Each panel begins from the one before it."""

import math
from collections.abc import Iterator

import diffusers
import torch

from stlib.generation import loading
from stlib.generation.early_exit import fresh
from stlib.generation.illustrator import (
    Drawing,
    Method,
    decoded,
    draw_batch,
    panel_generators,
    starting_noise,
    timed,
)

STRENGTH = 0.8  # of the noise that is added to the last panel


def autoregressive(pipe, captions, options, seed, on_step) -> Iterator[Drawing]:
    """A UNet with twice the latents' channels is told the last panel's latents; any other starts from its picture."""
    unet = getattr(pipe, "unet", None)
    if unet is not None and unet.config.in_channels == 2 * pipe.vae.config.latent_channels:
        return from_latents(pipe, captions, options, seed, on_step)
    return from_picture(pipe, captions, options, seed, on_step)


def from_latents(pipe, captions, options, seed, on_step) -> Iterator[Drawing]:
    """The latents of the last panel, zeros before the first one, are further input channels of the UNet."""
    last = None

    def tell(_, args):
        return torch.cat([args[0], last.expand_as(args[0])], 1), *args[1:]

    def draw(caption, generator, **callback):
        nonlocal last
        noise = starting_noise(pipe, [generator], options)
        last = torch.zeros_like(noise) if last is None else last
        last = pipe(prompt=[caption], latents=noise, output_type="latent", **callback, **options).images
        return decoded(pipe, last)

    hook = pipe.unet.register_forward_pre_hook(tell)
    try:
        for caption, generator in zip(captions, panel_generators(seed, len(captions)), strict=True):
            yield timed(pipe, 1, on_step, lambda c=caption, g=generator, **callback: draw(c, g, **callback))
    finally:
        hook.remove()


def from_picture(pipe, captions, options, seed, on_step, strength: float = STRENGTH) -> Iterator[Drawing]:
    """Image to image of the last panel, with as many denoising steps a panel as the first one takes."""
    generators, options = panel_generators(seed, len(captions)), dict(options)
    strength, steps = options.pop("strength", strength), options["num_inference_steps"]
    drawing = draw_batch(pipe, [captions[0]], [generators[0]], options, on_step)
    yield drawing
    rule = pipe.scheduler.watch.rule if hasattr(pipe.scheduler, "watch") else None
    redraw = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    redraw.set_progress_bar_config(disable=True)
    own = {name: value for name, value in options.items() if name not in ("height", "width")}
    own |= {"strength": strength, "num_inference_steps": planned(steps, strength)}
    for caption, generator in zip(captions[1:], generators[1:], strict=True):
        redraw.scheduler = fresh(pipe.scheduler, rule)
        drawing = draw_batch(redraw, [caption], [generator], own | {"image": drawing.panels}, on_step)
        yield drawing


def planned(steps: int, strength: float) -> int:
    """The number of steps of which image to image runs `steps`, its last int(number x strength)."""
    number = math.ceil(steps / strength)
    return number + (int(number * strength) < steps)


def _lacks(parts: dict) -> str:
    known = loading.image_to_image(parts["_class_name"])
    return "" if known else f"autoregressive needs image to image, which diffusers has not for {parts['_class_name']}"


METHOD = Method(autoregressive, weights="autoregressive", lacks=_lacks)
