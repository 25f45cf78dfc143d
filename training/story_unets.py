"""UNets whose panels know of each other: stacked in the channels, sharing self-attention, or one after another.

Each takes noisy latents [n, 4, 6, 16, 16], steps t [n], caption states [n, 4, 20, 384] and the clean latents, and
returns the velocity of the panels that it was given (all four, or the first ones).
"""

import copy
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from training.concepts import MODEL_DIR
from training.stories import PANELS
from training.text import WIDTH
from training.vae import LATENT_CHANNELS

TRUNK = (96, 160, 192)  # channels by level of the joint UNet
FEWER = 0.3  # of the joint UNet's updates see the first one to three panels only
LEVELS = 0.3  # the previous panel's noise at training, at most
FORGOTTEN = 0.1  # of the panels are told no previous one


def base() -> UNet2DConditionModel:
    """The illustrator's UNet, fp32."""
    return UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet").float()


class Joint(nn.Module):
    """All panels stacked in the channels of one UNet, told apart by an embedding that is added to their captions."""

    name, shared_noise, rate, batch = "joint", 0.0, 8e-4, 8

    def __init__(self, trunk: tuple[int, ...] = TRUNK):
        super().__init__()
        origin = base()
        self.unet = UNet2DConditionModel.from_config(origin.config | {
            "in_channels": PANELS * LATENT_CHANNELS, "out_channels": PANELS * LATENT_CHANNELS,
            "block_out_channels": trunk, "attention_head_dim": 8})
        known, own = origin.state_dict(), self.unet.state_dict()
        alike = {name: known[name] for name, value in own.items() if name in known and known[name].shape == value.shape}
        self.unet.load_state_dict(own | alike)  # the layers of the captions
        self.panel = nn.Parameter(torch.randn(PANELS, WIDTH) / 2)

    def forward(self, noisy, t, states, clean, generator):
        """The velocity of the first panels, of as many as there are states."""
        n, panels = states.shape[:2]
        told = (states + self.panel[:panels, None]).flatten(1, 2)
        absent = noisy.new_zeros(n, PANELS - panels, *noisy.shape[2:])
        x = torch.cat([noisy[:, :panels], absent], 1)
        return self.unet(x.flatten(1, 2), t, told).sample.unflatten(1, (PANELS, -1))[:, :panels]

    def panels(self, generator) -> int:
        """How many panels the next update sees."""
        if torch.rand(1, generator=generator) >= FEWER:
            return PANELS
        return int(torch.randint(1, PANELS, (1,), generator=generator))

    def load(self, folder: Path) -> None:
        """Takes the weights of an exported folder."""
        self.unet.load_state_dict(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
        self.panel.data.copy_(load_file(folder / "panel_embedding.safetensors")["panel_embedding"])

    def save(self, folder: Path) -> None:
        """Writes unet/ and panel_embedding.safetensors, fp16."""
        copy.deepcopy(self.unet).half().save_pretrained(folder / "unet")
        save_file({"panel_embedding": self.panel.detach().half()}, folder / "panel_embedding.safetensors")


class SharedAttention:
    """Self-attention whose keys and values are those of all panels of a story; batches are whole stories."""

    def __init__(self, plain):
        self.plain = plain

    def __call__(self, attn, hidden, encoder_hidden_states=None, attention_mask=None, temb=None, **options):
        if encoder_hidden_states is not None:
            return self.plain(attn, hidden, encoder_hidden_states, attention_mask, temb, **options)
        b, n, c = hidden.shape
        story = hidden.reshape(b // PANELS, PANELS * n, c)
        query, key, value = (project(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for project, x in
                             ((attn.to_q, hidden), (attn.to_k, story), (attn.to_v, story)))
        key, value = (x.repeat_interleave(PANELS, 0) for x in (key, value))
        out = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


class Consistent(nn.Module):
    """The illustrator's UNet on all panels in one batch, its self-attention shared; part of their noise is common."""

    name, shared_noise, rate, batch = "consistent", 0.9, 4e-4, 4

    def __init__(self):
        super().__init__()
        self.unet = base()
        self.unet.set_attn_processor({name: SharedAttention(one) for name, one in self.unet.attn_processors.items()})

    def forward(self, noisy, t, states, clean, generator):
        """The velocity of all panels."""
        t = t.repeat_interleave(PANELS)
        return self.unet(noisy.flatten(0, 1), t, states.flatten(0, 1)).sample.unflatten(0, (-1, PANELS))

    def panels(self, generator) -> int:
        """All."""
        return PANELS

    def load(self, folder: Path) -> None:
        """Takes the weights of an exported folder."""
        self.unet.load_state_dict(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))

    def save(self, folder: Path) -> None:
        """Writes unet/, fp16."""
        copy.deepcopy(self.unet).half().save_pretrained(folder / "unet")


class Autoregressive(Consistent):
    """The illustrator's UNet with the previous panel's latents as six more input channels; of the first panel zeros."""

    name, shared_noise, rate, batch = "autoregressive", 0.0, 4e-4, 4

    def __init__(self):
        nn.Module.__init__(self)
        self.unet = base()
        known = self.unet.conv_in
        self.unet.conv_in = nn.Conv2d(2 * LATENT_CHANNELS, known.out_channels, 3, padding=1)
        self.unet.register_to_config(in_channels=2 * LATENT_CHANNELS)
        with torch.no_grad():
            self.unet.conv_in.weight.zero_()[:, :LATENT_CHANNELS].copy_(known.weight)
            self.unet.conv_in.bias.copy_(known.bias)

    def forward(self, noisy, t, states, clean, generator):
        """The velocity of all panels, each told the clean one before it, at training noised or forgotten."""
        previous = torch.cat([torch.zeros_like(clean[:, :1]), clean[:, :-1]], 1)
        if self.training:
            shape = (*clean.shape[:2], 1, 1, 1)
            kept = torch.rand(shape, generator=generator) >= FORGOTTEN
            kept[:, 0] = False
            level = LEVELS * torch.rand(shape, generator=generator)
            previous = kept * (previous + level * torch.randn(clean.shape, generator=generator))
        return super().forward(torch.cat([noisy, previous], 2), t, states, clean, generator)


WIDTHS = {"joint_narrow": (64, 128, 160), "joint": TRUNK, "joint_wide": (128, 192, 256)}
KINDS = {kind.name: kind for kind in (Consistent, Autoregressive)} | {
    name: partial(Joint, trunk) for name, trunk in WIDTHS.items()}
