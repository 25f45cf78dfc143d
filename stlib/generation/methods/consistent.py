"""All panels in one batch whose self-attention reads every panel of the story; part of their noise is common."""

from collections.abc import Iterator
from contextlib import contextmanager

from stlib.generation.illustrator import Drawing, Method, draw_batch, panel_generators, starting_noise

SHARED_NOISE = 0.9  # of the variance


def consistent(pipe, captions, options, seed, on_step, shared_noise: float = SHARED_NOISE) -> Iterator[Drawing]:
    """All panels in one batch that read each other. Works on any pipeline with a UNet, untrained."""
    *own, common = panel_generators(seed, len(captions) + 1)
    noise = starting_noise(pipe, own, options, common, shared_noise)
    with shared_attention(pipe.unet, len(captions)):
        drawing = draw_batch(pipe, list(captions), own, options | {"latents": noise}, on_step)
    yield drawing


class SharedAttention:
    """Self-attention whose keys and values are those of all panels of a story; a batch is whole stories."""

    def __init__(self, plain, panels: int):
        self.plain, self.panels = plain, panels

    def __call__(self, attn, hidden_states, *args, **options):
        """As of diffusers' attention processors; hidden_states: [stories x panels, cells, width]."""
        n, cells, width = hidden_states.shape
        story = hidden_states.reshape(n // self.panels, self.panels * cells, width)
        return self.plain(attn, hidden_states, story.repeat_interleave(self.panels, 0))


@contextmanager
def shared_attention(unet, panels: int, kind=SharedAttention) -> Iterator[dict]:
    """The UNet's self-attention is shared by so many panels until the end; yields those processors by name."""
    plain = dict(unet.attn_processors)
    shared = {name: kind(one, panels) for name, one in plain.items() if name.endswith("attn1.processor")}
    unet.set_attn_processor(plain | shared)
    try:
        yield shared
    finally:
        unet.set_attn_processor(plain)


METHOD = Method(consistent, weights="consistent", lacks=lambda parts: "" if "unet" in parts else (
    "consistent shares the self-attention of a UNet, and this pipeline has none"))
