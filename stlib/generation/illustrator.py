"""The LDM's part: captions become pictures, by a method.

A method's function is `(pipe, captions, options, seed, on_step)` and yields a Drawing each time panels are finished,
in their order; a new method is a module of `generation.methods` with one such function. Stages are timed from outside
any diffusers pipeline: the first call of the denoiser ends text encoding, `callback_on_step_end` ends each step, and
what follows the last one is the VAE's decoding.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
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
    """How panels are drawn: by `draw`, `most_panels` of them (None: any number).

    weights: the folder of models/ whose UNet the embedded pipeline draws with. lacks: what another pipeline, by its
    `loading.parts`, lacks to be drawn with; empty for nothing.
    """

    draw: Callable[..., Iterator[Drawing]]
    weights: str = "illustrator"
    most_panels: int | None = None
    lacks: Callable[[dict], str] = lambda parts: ""

    def whole(self, pipe, captions, options, seed, on_step) -> Drawing:
        """All panels."""
        return as_one(self.draw(pipe, captions, options, seed, on_step))


def panel_generators(seed: int, n_panels: int) -> list[torch.Generator]:
    """One generator a panel, the same whatever the method, streams of different seeds unrelated."""
    states = [np.random.SeedSequence([seed, panel]).generate_state(1, np.uint64)[0] for panel in range(n_panels)]
    return [torch.Generator().manual_seed(int(state)) for state in states]


def starting_noise(pipe, generators, options: dict, common: torch.Generator | None = None, share: float = 0.0):
    """The latents [n, c, h, w] that a pipeline with a UNet begins with: what it would draw of the same generators.

    share: of the noise's variance is `common`'s, the same for all panels; the rest is each panel's own.
    """
    latents = pipe.vae.config.latent_channels
    sides = [(options.get(side) or pipe.unet.config.sample_size * pipe.vae_scale_factor) // pipe.vae_scale_factor
             for side in ("height", "width")]
    drawn = {"device": pipe.device, "dtype": pipe.unet.dtype}
    own = randn_tensor((len(generators), latents, *sides), generator=generators, **drawn)
    if not share:
        return own
    return math.sqrt(share) * randn_tensor((1, latents, *sides), generator=common, **drawn) + math.sqrt(1 - share) * own


def decoded(pipe, latents: torch.Tensor) -> list[Image.Image]:
    """Latents [n, c, h, w] as pictures, by the pipeline's VAE."""
    with torch.no_grad():
        return pipe.image_processor.postprocess(pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample)


def draw_batch(pipe, captions, generators, options, on_step) -> Drawing:
    """One call of the pipeline on a batch of captions, timed by stage.

    options: keyword arguments of the pipeline (num_inference_steps, and height, width, guidance_scale if wanted).
    """
    return timed(pipe, len(captions), on_step, lambda **callback: pipe(
        prompt=captions, generator=generators, **callback, **options).images)


def timed(pipe, n_panels: int, on_step, draw: Callable[..., list]) -> Drawing:
    """The panels that `draw(callback_on_step_end=...)` draws by one call of the pipeline, timed by stage.

    on_step(n_panels) is called after each denoising step. A scheduler with a `watch` ends the loop when its rule is
    met. Raises RuntimeError if the model's values become NaN.
    """
    marks, watch = [], getattr(pipe.scheduler, "watch", None)
    if watch:
        watch.begin()

    def mark(*_):
        if pipe.device.type == "cuda":
            torch.cuda.synchronize(pipe.device)
        marks.append(time.monotonic())

    def step_ended(running, _step, _timestep, tensors):
        ends = watch and watch.met()
        if ends:
            running._interrupt = True
        mark()
        on_step(n_panels)
        return tensors | {"latents": watch.x0} if ends else tensors

    def denoiser_begins(*_):
        if len(marks) == 1:
            mark()

    denoiser = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
    hook = denoiser.register_forward_pre_hook(denoiser_begins)
    try:
        mark()
        with np.errstate(invalid="raise"):  # as a byte, NaN would pass for a colour
            panels = draw(callback_on_step_end=step_ended)
        mark()
    except FloatingPointError as error:
        raise RuntimeError("the diffusion model drew no picture: its values are not a number (NaN)") from error
    finally:
        hook.remove()
    seconds = np.diff(marks).tolist()
    return Drawing(panels, seconds[0], seconds[1:-1], seconds[-1])


def as_one(drawings: Iterable[Drawing]) -> Drawing:
    """Drawings that were made one after another as one: all panels, the text and VAE times summed, every step."""
    drawings = list(drawings)
    return Drawing([panel for d in drawings for panel in d.panels], sum(d.text_encoding_s for d in drawings),
                   [s for d in drawings for s in d.denoising_s], sum(d.vae_decode_s for d in drawings))
