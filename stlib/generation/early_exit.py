"""Early exit: a job's pictures are what the denoiser predicts them to be, as soon as a rule is met.

Works on any diffusers pipeline as it is: the scheduler's step keeps the predicted clean latents (x0), and the callback
at the end of a step replaces the latents by them and interrupts the loop. What is in one batch ends together, when all
of it meets the rule: the panels of parallel and consistent, the whole of joint, each panel of sequential and
autoregressive.
"""

from functools import wraps
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator

from stlib.settings import FieldError, Fields, whole

BINS = 16  # a side, of the histogram of two predictions


class EarlyExit(Fields):
    """When denoising ends, by one of three rules.

    step: after so many steps. change: when the predicted x0 moved by less than this from one step to the next,
    relative to its norm. information: when two predictions in a row share so much information, nats a latent value.
    least: steps before which the last two rules are not asked; the first predictions may all be the mean.
    """

    step: whole(1, 200) = None
    change: Annotated[float | None, Field(gt=0, lt=2)] = None
    information: Annotated[float | None, Field(gt=0, lt=np.log(BINS))] = None
    least: whole(1, 200) = 1

    @model_validator(mode="after")
    def _one(self):
        if sum(value is not None for value in (self.step, self.change, self.information)) != 1:
            raise FieldError("give one of step, change and information", "early_exit")
        return self

    def met(self, n_steps: int, last: torch.Tensor | None, x0: torch.Tensor) -> bool:
        """Whether the prediction after `n_steps` will do, for all of a batch. last: the one before it, if any."""
        if self.step is not None:
            return n_steps >= self.step
        if last is None or n_steps < self.least:
            return False
        if self.change is not None:
            return bool((relative_change(last, x0) < self.change).all())
        return bool((mutual_information(last, x0) > self.information).all())


def relative_change(last: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """The distance of two predictions over the norm of the second, (n,)."""
    return (x0 - last).flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1)


def mutual_information(last: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """Of the latent values at the same places of two predictions, nats, (n,): plug-in, of BINS x BINS quantile bins.

    Quantile bins make it blind to scale and shift; with m values its bias is about (BINS - 1)^2 / 2m.
    """
    found = []
    for one, other in zip(last.flatten(1).cpu().float(), x0.flatten(1).cpu().float(), strict=True):
        ranks = [values.argsort().argsort() * BINS // len(values) for values in (one, other)]
        joint = torch.bincount(ranks[0] * BINS + ranks[1], minlength=BINS**2).reshape(BINS, BINS) / len(one)
        apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
        found.append((joint * (joint / apart).log().nan_to_num(neginf=0.0)).sum())
    return torch.stack(found)


def fresh(scheduler, rule: EarlyExit | None = None):
    """A scheduler as this one, without its state (which they carry), that keeps its predicted x0 if there is a rule."""
    other = type(scheduler).from_config(scheduler.config)
    if rule:
        Watch(other, rule)
    return other


class Watch:
    """What a scheduler predicts, step by step; it is the scheduler's `watch`."""

    def __init__(self, scheduler, rule: EarlyExit):
        self.scheduler, self.rule, plain = scheduler, rule, scheduler.step
        self.begin()

        @wraps(plain)  # pipelines look which arguments it takes
        def step(*args, return_dict=True, **options):
            result = plain(*args, return_dict=True, **options)
            self.n_steps, self.last, self.x0 = self.n_steps + 1, self.x0, self._predicted(result)
            return result if return_dict else (result.prev_sample,)

        scheduler.step, scheduler.watch = step, self

    def begin(self) -> None:
        """A drawing begins."""
        self.n_steps, self.last, self.x0 = 0, None, None

    def met(self) -> bool:
        """Whether the last step's prediction will do."""
        return self.rule.met(self.n_steps, self.last, self.x0)

    def _predicted(self, result) -> torch.Tensor:
        x0, config = getattr(result, "pred_original_sample", None), self.scheduler.config
        if x0 is None and (config.get("predict_x0") or config.get("algorithm_type", "").endswith("dpmsolver++")):
            x0 = self.scheduler.model_outputs[-1]  # the multistep solvers'
        if x0 is None:
            raise FieldError(f"early_exit with {type(self.scheduler).__name__}: it says no predicted x0; use DDIM, "
                             "Euler, DPM-Solver++ or UniPC, or leave early_exit out", "early_exit")
        return x0
