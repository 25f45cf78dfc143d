"""Jobs that sleep: they time the dispatcher and drive crash tests."""

import math
import time
from typing import ClassVar

from stlib.serving.workloads.protocol import Part, Progress

SLICE_S = 0.05  # after each it tells its progress


class SleepWorkload:
    """Jobs that sleep for `seconds`: they time the dispatcher and drive crash tests."""

    name = "sleep"
    routes: ClassVar = {}
    fields: ClassVar = {"seconds": ...}

    def load(self) -> None:
        """Nothing to load."""

    def validate(self, params: dict) -> None:
        """Raise ValueError unless `seconds` is a number from 0 to 3600."""
        seconds = params.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= 3600:
            raise ValueError(f"seconds = {seconds!r}: a sleeping job takes from 0 to 3600")

    def run(self, params: dict, on_progress: Progress | None = None, on_part: Part | None = None) -> tuple[None, dict]:
        """Sleep; the product is `slept_s`."""
        began, slices = time.monotonic(), math.ceil(params["seconds"] / SLICE_S)
        for i in range(slices):
            time.sleep(max(0.0, min((i + 1) * SLICE_S, params["seconds"]) - (time.monotonic() - began)))
            if on_progress:
                on_progress("sleep", i + 1, slices)
        return None, {"slept_s": time.monotonic() - began}

    def probe(self) -> float:
        """A sleep of a millisecond."""
        began = time.monotonic()
        time.sleep(0.001)
        return time.monotonic() - began

    def weights_hash(self, options=None) -> str:
        """Of no weights."""
        return "none"
