"""Tuning of the VAE's decoder alone: the encoder stays, so all latents and the UNet stay valid.

Half of the latents are exact and half are the UNet's one-step estimates of them, so that the decoder learns to mend
the UNet's blur.
"""

import copy
import time

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.concepts import WORK
from training.diffusion import one_step_estimate
from training.unet import Scenes
from training.vae import cosine_rate, psnr, reconstruction_loss, to_tensor, update_average

BATCH = 4
PEAK_RATE = 1e-3
ESTIMATED_FROM = (30, 400)  # steps t


@torch.no_grad()
def _quality(vae, unet, name: str, n: int = 100, t: int | None = None) -> float:
    data, pictures = Scenes(name), np.load(WORK / f"pictures_{name}.npy", mmap_mode="r")[:n]
    z = data.latents[:n].float()
    if t is not None:
        generator = torch.Generator().manual_seed(1)
        z = one_step_estimate(unet, z, torch.full((n,), t), data.states(torch.arange(n)), generator)
    return psnr(torch.cat([vae.decode(part).sample for part in z.split(25)]), to_tensor(pictures))


def tune(vae: AutoencoderKL, unet, minutes: float) -> AutoencoderKL:
    """Trains the decoder for `minutes` of wall-clock time and saves the result as work/vae_tuned."""
    torch.manual_seed(0)
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    unet.eval().requires_grad_(False)
    average = copy.deepcopy(vae).eval().requires_grad_(False)
    data, pictures = Scenes("train"), np.load(WORK / "pictures_train.npy", mmap_mode="r")
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    _report("before", average, unet)
    begun, logged, step = time.time(), time.time(), 0
    while (done := (time.time() - begun) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(PEAK_RATE, done, step, end=0.01)
        chosen = np.sort(rng.integers(len(pictures), size=BATCH))
        z = data.latents[chosen].float()
        if step % 2:
            t = torch.randint(*ESTIMATED_FROM, (BATCH,), generator=generator)
            z = one_step_estimate(unet, z, t, data.states(torch.from_numpy(chosen)), generator)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(z).sample
        loss = reconstruction_loss(decoded.float() - to_tensor(pictures[chosen]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_average(average, vae, step, 0.997)
        if time.time() - logged > 60:
            logged = time.time()
            print(f"decoder {done * minutes:4.1f} min, step {step}, loss {loss.item():.4f}", flush=True)
            average.save_pretrained(WORK / "vae_tuned")
    average.save_pretrained(WORK / "vae_tuned")
    _report(f"after {step} steps", average, unet)
    return average


def _report(when: str, vae, unet) -> None:
    exact = {name: round(_quality(vae, unet, name), 2) for name in ("validation", "held_out")}
    estimated = round(_quality(vae, unet, "validation", t=200), 2)
    print(f"decoder {when}: psnr of exact latents {exact}, of estimates at t = 200 {estimated} dB", flush=True)
