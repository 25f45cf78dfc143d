"""All panels at once."""

from collections.abc import Iterator

from stlib.generation.illustrator import Drawing, Method, draw_batch, panel_generators


def parallel(pipe, captions, options, seed, on_step) -> Iterator[Drawing]:
    """All panels in one batch. The same pictures as `sequential`, up to rounding."""
    yield draw_batch(pipe, list(captions), panel_generators(seed, len(captions)), options, on_step)


METHOD = Method(parallel)
