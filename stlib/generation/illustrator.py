"""The LDM's part: captions become pictures, by a method.

A method's function is `(pipe, captions, options, seed, on_step) -> Drawing`; a new method is a module of
`generation.methods` with one such function. Stages are timed from outside any diffusers pipeline: the first call of
the denoiser ends text encoding, `callback_on_step_end` ends each step, and what follows the last one is the VAE's
decoding.
"""

import time
from collections.abc import Callable
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


@dataclass(frozen=True)
class Method:
    """How panels are drawn: by `draw`, with the `weights` of that folder of models/, `panels` at once (None: any)."""

    draw: Callable[..., Drawing]
    weights: str = "illustrator"
    panels: int | None = None


def panel_generators(seed: int, n_panels: int) -> list[torch.Generator]:
    """One generator a panel, the same whatever the method, streams of different seeds unrelated."""
    states = [np.random.SeedSequence([seed, panel]).generate_state(1, np.uint64)[0] for panel in range(n_panels)]
    return [torch.Generator().manual_seed(int(state)) for state in states]


def draw_batch(pipe, captions, generators, options, on_step) -> Drawing:
    """One call of the pipeline on a batch of captions, timed by stage.

    options: keyword arguments of the pipeline (num_inference_steps, and height, width, guidance_scale if wanted).
    on_step(n) is called after each denoising step of n panels. Raises RuntimeError if the model's values become NaN.
    """
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
