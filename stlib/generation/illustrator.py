"""The LDM's part: captions become pictures, by one of the METHODS.

A method's function is `(pipe, captions, options, seed, on_step) -> Drawing`; a new method is one such function and one
entry of METHODS. Stages are timed from outside any
diffusers pipeline: the first call of the denoiser ends text encoding, `callback_on_step_end` ends each step, and
what follows the last one is the VAE's decoding.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class Drawing:
    """Panels, and seconds: text encoding, each denoising step, VAE decoding (conversion to PIL included)."""

    panels: list[Image.Image]
    text_encoding_s: float
    denoising_s: list[float]
    vae_decode_s: float


def sequential(pipe, captions: Sequence[str], options: dict, seed: int, on_step: Callable[[int], None]) -> Drawing:
    """The panels one after another, independent of each other."""
    drawings = [
        _draw(pipe, [caption], [generator], options, on_step)
        for caption, generator in zip(captions, panel_generators(seed, len(captions)), strict=True)
    ]
    return Drawing(
        [panel for d in drawings for panel in d.panels],
        sum(d.text_encoding_s for d in drawings),
        [s for d in drawings for s in d.denoising_s],
        sum(d.vae_decode_s for d in drawings),
    )


def parallel(pipe, captions: Sequence[str], options: dict, seed: int, on_step: Callable[[int], None]) -> Drawing:
    """All panels in one batch. The same pictures as `sequential`, up to rounding."""
    return _draw(pipe, list(captions), panel_generators(seed, len(captions)), options, on_step)


@dataclass(frozen=True)
class Method:
    """How panels are drawn: by `draw`, with the `weights` of that folder of models/, `panels` at once (None: any)."""

    draw: Callable[..., Drawing]
    weights: str = "illustrator"
    panels: int | None = None


METHODS = {"sequential": Method(sequential), "parallel": Method(parallel)}


def panel_generators(seed: int, n_panels: int) -> list[torch.Generator]:
    """One generator a panel, the same whatever the method, streams of different seeds unrelated."""
    states = [np.random.SeedSequence([seed, panel]).generate_state(1, np.uint64)[0] for panel in range(n_panels)]
    return [torch.Generator().manual_seed(int(state)) for state in states]


def draw(pipe, method: str, captions: Sequence[str], options: dict, seed: int, on_step=lambda panels: None) -> Drawing:
    """Draw `captions` by the named method.

    options: keyword arguments of the pipeline (num_inference_steps, and height, width, guidance_scale if wanted).
    on_step(n) is called after each denoising step of n panels. The pipeline gets a fresh scheduler, since schedulers
    carry state. Raises RuntimeError if the model's values become NaN.
    """
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return METHODS[method].draw(pipe, captions, options, seed, on_step)


def _draw(pipe, captions, generators, options, on_step) -> Drawing:
    """One call of the pipeline on a batch of captions, timed by stage."""
    marks = []

    def mark(*_):
        if pipe.device.type == "cuda":
            torch.cuda.synchronize(pipe.device)
        marks.append(time.monotonic())

    def step_ended(_pipe, _step, _timestep, tensors):
        mark()
        on_step(len(captions))
        return tensors

    def denoiser_begins(*_):
        if len(marks) == 1:
            mark()

    denoiser = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
    hook = denoiser.register_forward_pre_hook(denoiser_begins)
    try:
        mark()
        with np.errstate(invalid="raise"):  # as a byte, NaN would pass for a colour
            panels = pipe(prompt=captions, generator=generators, callback_on_step_end=step_ended, **options).images
        mark()
    except FloatingPointError as error:
        raise RuntimeError("the diffusion model drew no picture: its values are not a number (NaN)") from error
    finally:
        hook.remove()
    seconds = np.diff(marks).tolist()
    return Drawing(panels, seconds[0], seconds[1:-1], seconds[-1])
