"""Tuning of the VAE's decoder alone: the encoder stays, so all latents and the UNet stay valid.

Half of the latents are exact and half are the UNet's one-step estimates of them, so that the decoder learns to mend
the UNet's blur.
"""

import copy
import time

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import parallel
from training.concepts import WORK
from training.diffusion import one_step_estimate
from training.unet import Scenes, trained_unet
from training.vae import cosine_rate, psnr, reconstruction_loss, to_tensor, update_average

BATCH = 2  # a process
PEAK_RATE = 1e-3
ESTIMATED_FROM = (30, 400)  # steps t


@torch.no_grad()
def _quality(vae, unet, name: str, n: int = 50, t: int | None = None) -> float:
    data, pictures = Scenes(name), np.load(WORK / f"pictures_{name}.npy", mmap_mode="r")[:n]
    z = data.latents[:n].float()
    if t is not None:
        generator = torch.Generator().manual_seed(1)
        z = one_step_estimate(unet, z, torch.full((n,), t), data.states(torch.arange(n)), generator)
    return psnr(torch.cat([vae.decode(part).sample for part in z.split(25)]), to_tensor(pictures))


class Decoding:
    """The tuned VAE with its moving average, and what it learns from: exact latents and the UNet's estimates."""

    def __init__(self):
        self.unet = trained_unet(WORK / "unet.pt").requires_grad_(False)
        self.vae = AutoencoderKL.from_pretrained(WORK / "vae").requires_grad_(False)
        self.vae.decoder.requires_grad_(True)
        self.average = copy.deepcopy(self.vae).eval().requires_grad_(False)
        self.parameters = list(self.vae.decoder.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
        self.data, self.pictures = Scenes("train"), np.load(WORK / "pictures_train.npy", mmap_mode="r")
        self.rng = np.random.default_rng(parallel.rank())
        self.generator = torch.Generator().manual_seed(parallel.rank())
        self.step = 0

    def latents(self, chosen: np.ndarray) -> torch.Tensor:
        """Latents [n, c, 16, 16] of these scenes: exact at every other step, else as the UNet estimates them."""
        z = self.data.latents[chosen].float()
        if self.step % 2 == 0:
            return z
        t = torch.randint(*ESTIMATED_FROM, (len(z),), generator=self.generator)
        return one_step_estimate(self.unet, z, t, self.data.states(torch.from_numpy(chosen)), self.generator)

    def update(self, rate: float) -> float:
        """One optimiser step; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        chosen = np.sort(self.rng.integers(len(self.pictures), size=BATCH))
        z = self.latents(chosen)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = self.vae.decode(z).sample
        loss = reconstruction_loss(decoded.float() - to_tensor(self.pictures[chosen]))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        update_average(self.average, self.vae, self.step, 0.997)
        return loss.item()


def _work(minutes: float) -> None:
    state, first = Decoding(), parallel.rank() == 0
    if first:
        _report("before", state.average, state.unet)
    begun = logged = time.time()
    while (done := parallel.from_first((time.time() - begun) / (60 * minutes))) < 1:
        loss = state.update(cosine_rate(PEAK_RATE, done, state.step, end=0.01))
        if first and time.time() - logged > 60:
            logged = time.time()
            print(f"decoder {done * minutes:4.1f} min, step {state.step}, loss {loss:.4f}", flush=True)
    if first:
        state.average.save_pretrained(WORK / "vae_tuned")
        _report(f"after {state.step} steps", state.average, state.unet)


def tune(minutes: float, workers: int = 2) -> None:
    """Trains the decoder for `minutes` of wall-clock time and saves the result as work/vae_tuned."""
    parallel.run(_work, workers, minutes)


def _report(when: str, vae, unet) -> None:
    exact = {name: round(_quality(vae, unet, name), 2) for name in ("validation", "held_out")}
    estimated = round(_quality(vae, unet, "validation", t=200), 2)
    print(f"decoder {when}: psnr of exact latents {exact}, of estimates at t = 200 {estimated} dB", flush=True)
