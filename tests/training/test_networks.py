"""The networks: shapes, the diffusion identity, and that standardising the latents changes no picture."""

import numpy as np
import torch

from training.diffusion import ALPHA_BAR, FIRST_T, noised, signal_and_noise
from training.report import nearest
from training.vae import LATENT_CHANNELS, cosine_rate, new_vae, reconstruct, standardise, to_tensor


def test_velocity_gives_back_the_clean_latents():
    x0 = torch.randn(32, LATENT_CHANNELS, 16, 16)
    noisy, t, velocity = noised(x0, torch.Generator().manual_seed(0))
    a, s = signal_and_noise(t)
    torch.testing.assert_close(a * noisy - s * velocity, x0, atol=1e-4, rtol=1e-4)
    assert t.min() >= FIRST_T and t.max() <= 999
    assert ALPHA_BAR[-1] < 1e-7  # nothing of the picture is left at the last step


def test_standardising_keeps_pictures_and_normalises_latents():
    torch.manual_seed(0)
    vae = new_vae().eval()
    pictures = torch.rand(8, 3, 64, 64) * 2 - 1
    before = reconstruct(vae, pictures)
    with torch.no_grad():
        standardise(vae, vae.encode(pictures).latent_dist.mean)
        latents = vae.encode(pictures).latent_dist.mean
    torch.testing.assert_close(reconstruct(vae, pictures), before, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(LATENT_CHANNELS), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(LATENT_CHANNELS), atol=1e-3, rtol=0)


def test_learning_rate_warms_up_and_ends_low():
    rates = [cosine_rate(1.0, done, step) for done, step in ((0.0, 0), (0.1, 1000), (0.5, 5000), (1.0, 9000))]
    assert rates[0] == 0.01 and rates[1] > rates[2] > rates[3]
    assert abs(rates[3] - 0.03) < 1e-9


def test_nearest_scene_is_found():
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 256, (50, 128, 128, 3), dtype=np.uint8)
    noisy = np.clip(scenes[[7, 31]].astype(int) + rng.integers(-9, 10, (2, 128, 128, 3)), 0, 255).astype(np.uint8)
    at, distance = nearest(noisy, scenes, batch=20)
    assert at.tolist() == [7, 31] and distance.max() < 5
    assert to_tensor(scenes[:1]).shape == (1, 3, 128, 128)
