"""The variational autoencoder: 128-px pictures to 6 x 16 x 16 latents and back."""

import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import parallel

LATENT_CHANNELS = 6
CROP = 64  # px
CROP_SHARE = 0.7  # of the time is spent on crops: many cheap steps first, whole pictures later
BATCH = 4  # crops a process; half as many whole pictures
PEAK_RATE = 1.5e-3
KL_WEIGHT = 4e-4


def new_vae() -> AutoencoderKL:
    """An untrained VAE with 8-px cells; its 16 x 16 level is wide, since that is cheap and holds the shapes."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(16, 32, 64, 96), layers_per_block=1, latent_channels=LATENT_CHANNELS, norm_num_groups=8,
        sample_size=128, mid_block_add_attention=False, scaling_factor=1.0,
    )  # fmt: skip


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """Pictures [n, h, w, 3] uint8 to [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(difference: torch.Tensor) -> torch.Tensor:
    """L1, L1 of the image gradients (edges) and squared error."""
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return difference.abs().mean() + 0.5 * (across + down) + 2 * difference.square().mean()


def psnr(reconstructed: torch.Tensor, original: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio of pictures in [-1, 1], dB."""
    error = ((reconstructed.clamp(-1, 1) - original) / 2).square().mean((1, 2, 3))
    return (-10 * torch.log10(error)).mean().item()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """Pictures through the mean latents and back."""
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x.split(25)])


def update_average(average: torch.nn.Module, model: torch.nn.Module, step: int, decay: float, every: int = 4) -> None:
    """Moves an exponential moving average of the weights, every few steps."""
    if step % every == 0:
        kept = min(decay, 1 - 8 / (step + 16)) ** every
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - kept)


def cosine_rate(peak: float, done: float, step: int, end: float = 0.03, warmup: int = 100) -> float:
    """The learning rate after a share `done` of the time: warm-up, then a cosine from `peak` to `end * peak`."""
    return peak * min(1, (step + 1) / warmup) * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done)))


def _batch(pictures: np.ndarray, rng: np.random.Generator, crops: bool) -> torch.Tensor:
    chosen = pictures[np.sort(rng.integers(len(pictures), size=BATCH if crops else BATCH // 2))]
    if crops:  # at whole latent cells, and more often of the lower half, where the subjects stand
        top, left = 8 * int(9 * rng.random() ** 0.6), 8 * rng.integers(9)
        chosen = chosen[:, top : top + CROP, left : left + CROP]
    return to_tensor(chosen)


def _loss(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        latent = vae.encode(x).latent_dist
        mean, logvar = latent.mean.float(), latent.logvar.float()
        decoded = vae.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean)).sample
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction_loss(decoded.float() - x) + KL_WEIGHT * kl


def _work(pictures: Path, n: int, validation: Path, minutes: float, checkpoint: Path) -> None:
    torch.manual_seed(0)
    vae = new_vae()
    average = copy.deepcopy(vae).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    spent, step = _resume(checkpoint, vae, average, optimizer)
    rng = np.random.default_rng([step, parallel.rank()])
    torch.manual_seed(1 + step + 1_000_000 * parallel.rank())
    known = np.load(pictures, mmap_mode="r")[:n]
    held = to_tensor(np.load(validation, mmap_mode="r")[:100])
    begun, logged, saved = time.time() - spent, time.time(), time.time()
    while (done := parallel.from_first((time.time() - begun) / (60 * minutes))) < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(PEAK_RATE, done, step)
        loss = _loss(vae, _batch(known, rng, done < CROP_SHARE))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(list(vae.parameters()))
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_average(average, vae, step, 0.997)
        if parallel.rank() == 0 and time.time() - logged > 60:
            logged = time.time()
            quality = psnr(reconstruct(average, held), held)
            print(f"vae {done * minutes:5.1f} min, step {step}, loss {loss.item():.4f}, {quality:.2f} dB", flush=True)
        if parallel.rank() == 0 and time.time() - saved > 300:
            saved = time.time()
            _save(checkpoint, vae, average, optimizer, saved - begun, step)
    if parallel.rank() == 0:
        _save(checkpoint, vae, average, optimizer, time.time() - begun, step)
        print(f"vae done: {step} steps, {psnr(reconstruct(average, held), held):.2f} dB", flush=True)


def train(pictures: Path, n: int, validation: Path, minutes: float, checkpoint: Path, workers: int = 2) -> None:
    """Trains a VAE on the first `n` pictures of a file [m, 128, 128, 3] for `minutes` of wall-clock time.

    Writes `checkpoint` every five minutes and resumes from it; `validation` is a file of pictures, too.
    """
    parallel.run(_work, workers, pictures, n, validation, minutes, checkpoint)


def _resume(checkpoint: Path, vae, average, optimizer) -> tuple[float, int]:
    if not checkpoint.exists():
        return 0.0, 0
    state = torch.load(checkpoint)
    vae.load_state_dict(state["vae"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["spent"], state["step"]


def _save(path: Path, vae, average, optimizer, spent: float, step: int) -> None:
    state = {"vae": vae.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    temporary = path.with_suffix(".tmp")
    torch.save(state | {"spent": spent, "step": step}, temporary)
    temporary.rename(path)


def trained_vae(checkpoint: Path) -> AutoencoderKL:
    """The moving average of the weights in a checkpoint of `train`."""
    vae = new_vae()
    vae.load_state_dict(torch.load(checkpoint)["average"])
    return vae.eval()


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents: torch.Tensor) -> AutoencoderKL:
    """Folds a half whitening of the latents [n, c, 16, 16] into the 1x1 convolutions, so that scaling_factor is 1.

    W = diag(1/g) C^(-1/4) diag(1/s) (z - mu), with C the channels' correlation, s their deviations and g the
    deviations after the first two factors; its inverse goes into `post_quant_conv`.
    """
    c = latents.shape[1]
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    mu = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.corrcoef(flat))
    print("eigenvalues of the latents' correlation", [round(v, 3) for v in values.tolist()], flush=True)
    w = vectors @ torch.diag(values.clamp(min=0.02) ** -0.25) @ vectors.T @ torch.diag(1 / flat.std(1))
    w = torch.diag(1 / (w @ (flat - mu[:, None])).std(1)) @ w
    before, after = vae.quant_conv, vae.post_quant_conv
    kernel, bias = before.weight[:c, :, 0, 0].double(), before.bias[:c].double()
    before.weight[:c, :, 0, 0] = (w @ kernel).float()
    before.bias[:c] = (w @ (bias - mu)).float()
    before.bias[c:] += 2 * torch.diag(w).abs().log().float()
    kernel, bias = after.weight[:, :, 0, 0].double(), after.bias.double()
    after.bias.copy_((bias + kernel @ mu).float())
    after.weight[:, :, 0, 0] = (kernel @ torch.linalg.inv(w)).float()
    return vae
