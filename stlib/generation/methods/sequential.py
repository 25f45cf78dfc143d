"""The panels one after another. The baseline."""

from stlib.generation.illustrator import Drawing, Method, draw_batch, panel_generators


def sequential(pipe, captions, options, seed, on_step) -> Drawing:
    """The panels one after another, independent of each other."""
    drawings = [draw_batch(pipe, [caption], [generator], options, on_step)
                for caption, generator in zip(captions, panel_generators(seed, len(captions)), strict=True)]
    return Drawing([panel for d in drawings for panel in d.panels], sum(d.text_encoding_s for d in drawings),
                   [s for d in drawings for s in d.denoising_s], sum(d.vae_decode_s for d in drawings))


METHOD = Method(sequential)
