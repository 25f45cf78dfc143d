"""The UNets whose panels know of each other, on the illustrator's weights before any training of their own."""

import pytest
import torch

from training.diffusion import noised
from training.stories import PANELS
from training.story_unets import KINDS, base

STATES = torch.randn(1, PANELS, 20, 384, generator=torch.Generator().manual_seed(1))
CLEAN = torch.randn(1, PANELS, 6, 16, 16, generator=torch.Generator().manual_seed(2))
T = torch.tensor([500])


def plain(noisy, states=STATES):
    """What the illustrator makes of each panel by itself."""
    return base()(noisy[0], T.expand(PANELS), states[0]).sample[None]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_tells_the_velocity_of_all_panels(kind):
    net = KINDS[kind]().train()
    noisy, t, target = noised(CLEAN, torch.Generator().manual_seed(3), net.shared_noise)
    found = net(noisy, t, STATES, CLEAN, torch.Generator().manual_seed(4))
    assert found.shape == target.shape == (1, PANELS, 6, 16, 16) and found.isfinite().all()


@torch.no_grad()
def test_panels_that_are_alike_share_attention_without_effect():
    one = torch.randn(1, 1, 6, 16, 16, generator=torch.Generator().manual_seed(5)).expand_as(CLEAN)
    states = STATES[:, :1].expand_as(STATES)
    net = KINDS["consistent"]().eval()
    assert torch.allclose(net(one, T, states, None, None), plain(one, states), atol=1e-4)
    assert not torch.allclose(net(CLEAN, T, STATES, None, None), plain(CLEAN), atol=1e-2)


@torch.no_grad()
def test_the_previous_panel_is_not_seen_before_training():
    net = KINDS["autoregressive"]().eval()
    assert torch.allclose(net(CLEAN, T, STATES, 5 * CLEAN, None), plain(CLEAN), atol=1e-4)


@torch.no_grad()
def test_panels_that_are_absent_have_no_say():
    net, other = KINDS["joint"]().eval(), CLEAN.clone()
    other[:, 2:] = 7
    two = [net(noisy, T, STATES[:, :2], None, None) for noisy in (CLEAN, other)]
    assert two[0].shape == (1, 2, 6, 16, 16) and torch.equal(*two)


def test_the_noise_of_a_story_is_shared_in_part():
    zero = torch.zeros(64, PANELS, 6, 16, 16)
    noisy, t, target = noised(zero, torch.Generator().manual_seed(6), 0.9)
    one, another = target[:, 0].flatten(1), target[:, 1].flatten(1)
    assert torch.corrcoef(torch.stack([one.flatten(), another.flatten()]))[0, 1] == pytest.approx(0.9, abs=0.03)
    assert noisy.shape == zero.shape and len(t) == 64
