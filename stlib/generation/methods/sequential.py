"""The panels one after another. The baseline."""

from collections.abc import Iterator

from stlib.generation.illustrator import Drawing, Method, draw_batch, panel_generators


def sequential(pipe, captions, options, seed, on_step) -> Iterator[Drawing]:
    """The panels one after another, independent of each other."""
    for caption, generator in zip(captions, panel_generators(seed, len(captions)), strict=True):
        yield draw_batch(pipe, [caption], [generator], options, on_step)


METHOD = Method(sequential)
