"""The panels one after another. The baseline."""

from stlib.generation.illustrator import Drawing, Method, draw_batch, one_after_another, panel_generators


def sequential(pipe, captions, options, seed, on_step) -> Drawing:
    """The panels one after another, independent of each other."""
    return one_after_another([
        draw_batch(pipe, [caption], [generator], options, on_step)
        for caption, generator in zip(captions, panel_generators(seed, len(captions)), strict=True)])


METHOD = Method(sequential)
