"""All panels stacked in the channels of one UNet that was trained for it, denoised together."""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from stlib.generation.illustrator import Drawing, Method, decoded, panel_generators, starting_noise, timed


def joint(pipe, captions, options, seed, on_step) -> Iterator[Drawing]:
    """One picture of n x c latent channels; the captions' states one after another, each with its panel's embedding.

    Fewer panels than the UNet has take the first filters of its ends.
    """
    n, generators = len(captions), panel_generators(seed, len(captions))
    few = copy.copy(pipe)
    few.unet = of_panels(pipe.unet, n, pipe.vae.config.latent_channels)
    guided = options.get("guidance_scale", 0) > 1

    def draw(**callback):
        states = few.encode_prompt(list(captions), few.device, 1, guided)
        told, untold = (one if one is None else (one + panel_embedding(few)[:n, None]).flatten(0, 1)[None]
                        for one in states)
        noise = starting_noise(few, generators, options).flatten(0, 1)[None]
        latents = few(prompt_embeds=told, negative_prompt_embeds=untold, latents=noise, output_type="latent",
                      **callback, **options).images
        return decoded(few, latents.unflatten(1, (n, -1))[0])

    yield timed(few, n, on_step, draw)


def panel_embedding(pipe) -> torch.Tensor:
    """What tells the panels' captions apart, [panels, width]; it lies beside the UNet's folder."""
    folder = Path(pipe.unet.config._name_or_path).parent
    return load_file(folder / "panel_embedding.safetensors")["panel_embedding"].to(pipe.device, pipe.unet.dtype)


def of_panels(unet, n: int, channels: int):
    """The UNet of the first n panels: the same weights, the filters of the others' latents left out."""
    few = copy.copy(unet)
    few._modules = dict(unet._modules)
    few.conv_in, few.conv_out = copy.copy(unet.conv_in), copy.copy(unet.conv_out)
    for end in (few.conv_in, few.conv_out):
        end._parameters = dict(end._parameters)
    few.conv_in.weight = torch.nn.Parameter(unet.conv_in.weight[:, : n * channels])
    few.conv_out.weight = torch.nn.Parameter(unet.conv_out.weight[: n * channels])
    few.conv_out.bias = torch.nn.Parameter(unet.conv_out.bias[: n * channels])
    few.register_to_config(in_channels=n * channels, out_channels=n * channels)
    return few


METHOD = Method(joint, weights="joint", most_panels=4,
                lacks=lambda parts: "joint draws with a UNet that was trained for stacked panels: the embedded one")
