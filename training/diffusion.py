"""The diffusion process and the sampler, shared by training, decoder tuning and contact sheets."""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from training.text import WIDTH
from training.vae import LATENT_CHANNELS

LATENT_SIZE = 16
FIRST_T = 20  # 20 trailing steps never go below t = 49
TILT = 0.8  # below 1: more training steps at high noise


def new_scheduler() -> DDIMScheduler:
    """v-prediction with a terminal signal-to-noise ratio of zero and trailing steps (Lin et al. 2024)."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    """The untrained UNet: three levels (16, 8 and 4 cells wide), cross-attention at the two lower ones."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 160), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=8, use_linear_projection=True,
        resnet_time_scale_shift="scale_shift", addition_embed_type="text", addition_embed_type_num_heads=8,
    )  # fmt: skip


ALPHA_BAR = new_scheduler().alphas_cumprod


def signal_and_noise(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) at the steps t [n], each [n, 1, 1, 1]."""
    a = ALPHA_BAR[t].view(-1, 1, 1, 1)
    return a.sqrt(), (1 - a).sqrt()


def noised(x0: torch.Tensor, generator: torch.Generator, shared: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Noisy latents, their steps t (stratified over a batch) and the velocity target (Salimans & Ho 2022).

    x0: [n, c, h, w], or stories [n, panels, c, h, w], whose panels have one t and `shared` of their noise's variance
    in common.
    """
    n = len(x0)
    u = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
    t = (FIRST_T + (1000 - FIRST_T) * u**TILT).long().clamp(max=999)
    noise = torch.randn(x0.shape, generator=generator)
    if shared:
        noise = shared**0.5 * torch.randn(x0[:, :1].shape, generator=generator) + (1 - shared) ** 0.5 * noise
    a, s = (one.view(-1, *[1] * (x0.ndim - 1)) for one in signal_and_noise(t))
    return a * x0 + s * noise, t, a * noise - s * x0


@torch.no_grad()
def one_step_estimate(unet, x0: torch.Tensor, t: torch.Tensor, states: torch.Tensor, generator: torch.Generator):
    """What the UNet takes the clean latents to be, seen noised to step t."""
    a, s = signal_and_noise(t)
    noisy = a * x0 + s * torch.randn(x0.shape, generator=generator)
    return a * noisy - s * unet(noisy, t, states).sample


@torch.no_grad()
def sample(unet, states: torch.Tensor, empty: torch.Tensor, seeds: list[int], steps: int = 20, guidance: float = 2.5):
    """DDIM latents for token states [n, 20, 384]; `empty` [1, 20, 384] are the empty caption's; one seed a picture."""
    shape = (1, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    out = []
    for x, cond in zip(torch.cat(noise).split(24), states.split(24), strict=True):
        scheduler = new_scheduler()
        scheduler.set_timesteps(steps)
        both = torch.cat([empty.expand(len(cond), -1, -1), cond])
        for t in scheduler.timesteps:
            free, guided = unet(torch.cat([x, x]), t, both).sample.chunk(2)
            x = scheduler.step(free + guidance * (guided - free), t, x).prev_sample
        out.append(x)
    return torch.cat(out)
