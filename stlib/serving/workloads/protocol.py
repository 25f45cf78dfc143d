"""What the served system asks of a workload.

The dispatcher, the job table and the predictions know workloads only by the members of `Workload`.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

Progress = Callable[[str, int, int], None]  # stage, done, total
Part = Callable[[dict], None]  # its fields, pickled on the way


class Cancelled(Exception):
    """Nobody waits for the job any more: raised by `on_progress`, it ends the job."""


class Request(Protocol):
    """A job as asked for over HTTP: a pydantic model with these members, whose docstring is shown at /docs."""

    method: str | None
    deadline_s: float | None

    def params(self) -> dict:
        """The job's parameters, as `Workload.run` takes them."""

    @classmethod
    def body(cls, params: dict, method: str | None, deadline_s: float | None) -> dict:
        """What a client sends (JSON) for a job of these parameters. Raises ValueError for one that it cannot carry."""

    def reply(self, payload) -> dict:
        """The reply's fields (JSON), from what `run` gave."""


class Workload(Protocol):
    """What the served system asks of a workload."""

    name: str
    routes: dict[str, type[Request]]  # by path: what is asked for there, over HTTP
    fields: dict[str, Any]  # of its jobs but the menu's, with what a mix may leave out; ... must be given
    shared: tuple[str, ...]  # cost terms that are the same under every method
    counts: dict[str, tuple[str, ...]]  # products that the run alone may tell, by the fields their law depends on;
    # the last field is the most that the product can be

    def load(self) -> None:
        """Load the models and do one small inference, so that the first job costs what later ones cost."""

    def check(self, params: dict) -> None:
        """Raise ValueError for parameters that no models could do. Left out, `validate` is asked."""

    def validate(self, params: dict) -> None:
        """Raise ValueError for parameters that `run` would refuse. Needs no loaded model."""

    def run(self, params: dict, on_progress: Progress | None = None, on_part: Part | None = None) -> tuple[Any, dict]:
        """Do one job; returns its payload and its products (plain values: what it took, seconds by stage).

        It calls on_progress often (a token, a denoising step) and lets what this raises end the job; on_part with each
        part of the payload that is of use by itself, when it is finished (a panel), if there are such parts.
        """

    def resolve(self, params: dict) -> dict:
        """The parameters with what these models make of those that were left open, as the cost terms take them."""

    @staticmethod
    def terms(job: Mapping) -> dict:
        """What a job's work is a sum of, each term with a price, numbers or arrays as of `job`, counts included."""

    @staticmethod
    def known(job: Mapping) -> dict:
        """The `counts` as the job says them beforehand, NaN where the run alone tells."""

    @staticmethod
    def ranged(job: Mapping) -> dict:
        """The fields, (n,) each, that are not extrapolated beyond the values that were measured."""

    def probe(self) -> float:
        """Seconds that a small fixed piece of the workload's own computation takes now: the machine's speed."""

    def weights_hash(self, options: Mapping = ...) -> str:
        """Of the weights that a job with these options of the menu uses, for the keys of what was measured."""


class LastCall:
    """The last call of a module in some work, `work()`, with its arguments, to be repeated afterwards."""

    def __init__(self, module, work: Callable):
        self.module = module
        with module.register_forward_pre_hook(self._keep, with_kwargs=True):
            work()

    def _keep(self, _, args, kwargs):
        self.args, self.kwargs = args, kwargs

    def repeat(self) -> float:
        """Its seconds. What its arguments hold, as an LLM's cache, is as the call before left it."""
        import torch

        began = time.monotonic()
        with torch.inference_mode():
            self.module(*self.args, **self.kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic() - began
