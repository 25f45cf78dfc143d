"""What the served system asks of a workload.

The dispatcher, the job table and the predictions know workloads only by the members of `Workload`.
"""

from collections.abc import Callable
from typing import Any, Protocol

Progress = Callable[[str, int, int], None]  # stage, done, total


class Cancelled(Exception):
    """Nobody waits for the job any more: raised by `on_progress`, it ends the job."""


class Workload(Protocol):
    """What the served system asks of a workload."""

    name: str

    def load(self) -> None:
        """Load the models and do one small inference, so that the first job costs what later ones cost."""

    def validate(self, params: dict) -> None:
        """Raise ValueError for parameters that `run` would refuse. Needs no loaded model."""

    def run(self, params: dict, on_progress: Progress | None = None) -> tuple[Any, dict]:
        """Do one job; returns its payload and its products (plain values: what it took, seconds by stage).

        It calls on_progress often (a token, a denoising step) and lets what this raises end the job.
        """

    def probe(self) -> float:
        """Seconds that a small fixed piece of the workload's own computation takes now: the machine's speed."""
