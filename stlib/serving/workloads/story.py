"""The first workload: stories told by an LLM and illustrated by an LDM."""

import io
import time
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import pandas as pd

from stlib.serving.workloads.protocol import Progress

PIXELS = 128  # the cost terms' images are in units of one picture of this side
SHORT_PROMPT = 16  # tokens; what a prompt has beyond them is a cost term
PROBE_STEPS, PROBE_TOKENS = 2, 0  # what notebook 05 found best for at most 5 % of the mean job


class StoryWorkload:
    """Stories told and illustrated by a Storyteller; the parameters are the fields of a StoryJob.

    models, device, precision, llm_dtype: as in `Storyteller.from_pretrained`.
    probe_steps, probe_tokens: how often a probe repeats one guided denoising step of one picture, and one decoded
    token; of each kind the fastest counts.
    """

    name = "story"
    shared = ("llm", "tokens", "sentence starts", "long prompt")
    counts: ClassVar = {"tokens_run": ("n_panels", "llm_tokens")}
    fields: ClassVar = {"prompt": "", "n_panels": ..., "captions": None, "llm_tokens": ..., "exact_tokens": False,
                        "steps": ..., "image_size": ..., "guidance_scale": ..., "seed": None}
    drawn_first = ("n_panels", "steps", "llm_tokens", "image_size", "guidance_scale")  # the committed jobs rest on it

    def __init__(self, models="embedded", device="auto", precision="fp32", llm_dtype="auto", *,
                 probe_steps: int = PROBE_STEPS, probe_tokens: int = PROBE_TOKENS):
        from stlib.generation import (
            Storyteller,  # seconds to import, which what only reads cost terms need not wait for
        )

        self.storyteller = Storyteller.from_pretrained(models, device, precision, llm_dtype)
        self.probe_steps, self.probe_tokens = probe_steps, probe_tokens
        self._step = self._token = None

    def load(self) -> None:
        """Load both models and do one small job; its last calls of LLM and denoiser are kept as the probe's pieces."""
        job = self._job({"prompt": "a fox", "captions": "a fox", "llm_tokens": 4, "exact_tokens": True, "steps": 2})
        teller = self.storyteller.load()
        denoiser = getattr(teller.pipe, "unet", None) or teller.pipe.transformer
        with _LastCall(denoiser) as self._step, _LastCall(teller.writer.model) as self._token:
            teller.tell(job)

    def validate(self, params: dict) -> None:
        """Raise ValueError for parameters that are no StoryJob or beyond these models."""
        self.storyteller.check(self._job(params))

    @staticmethod
    def check(params: dict) -> None:
        """Raise ValueError for parameters that are no StoryJob, whatever the models."""
        StoryWorkload._job(params)

    def run(self, params: dict, on_progress: Progress | None = None) -> tuple[dict, dict]:
        """Tell one story.

        Payload: story, captions, panels as PNG bytes. Products: prompt_tokens, tokens_run, steps_run, seconds by stage.
        """
        result = self.storyteller.tell(self._job(params), on_progress)
        panels = [_png(panel) for panel in result.panels]
        payload = {"story": result.story, "captions": result.captions, "panels": panels}
        stages = {f"{stage}_s": sum(spent) if isinstance(spent, list) else spent
                  for stage, spent in result.timings.items() if stage != "total"}
        return payload, {"prompt_tokens": result.prompt_tokens, "tokens_run": result.tokens_run,
                         "steps_run": result.steps_run, **stages}

    def probe(self) -> float:
        """The fastest of `probe_steps` denoising steps and of `probe_tokens` tokens, added up."""
        pieces = self.pieces(self.probe_steps, self.probe_tokens)
        return sum(min(seconds) for seconds in pieces.values() if seconds)

    def pieces(self, steps: int, tokens: int) -> dict[str, list[float]]:
        """Seconds of each of `steps` denoising steps and `tokens` tokens, run in alternation."""
        spent = {"step": [], "token": []}
        for i in range(max(steps, tokens)):
            if i < steps:
                spent["step"].append(_timed(self._step.repeat))
            if i < tokens:
                spent["token"].append(_timed(self._token.repeat))
        return spent

    @property
    def routes(self) -> dict:
        """By path, what is asked for there over HTTP."""
        from stlib.serving.workloads.story_requests import ImagesRequest, StoryRequest

        return {"/stories": StoryRequest, "/v1/images/generations": ImagesRequest}

    @staticmethod
    def terms(job: Mapping) -> dict:
        """The physical terms of what a job costs, numbers or arrays (n,) as those of `job`.

        job: prompt, n_panels, steps, image_size, guidance_scale, tokens_run and, where prompts are long, prompt_tokens.
        The terms of `shared` cost the same under every method; the others are the drawing's and cost by method: a
        constant, panels (text and pipeline), their pixels (VAE), steps (calls of the denoiser when it takes all panels
        at once), panel steps, and their pixels (a guided step is two passes).
        """
        llm, panels, steps = _has_llm(job["prompt"]), job["n_panels"] * 1.0, job["steps"] * 1.0
        area, passes = (job["image_size"] / PIXELS) ** 2, 1 + np.greater(job["guidance_scale"], 1)
        extra = np.maximum(np.nan_to_num(job.get("prompt_tokens", 0.0)) - SHORT_PROMPT, 0)
        return {"llm": llm, "tokens": llm * job["tokens_run"], "sentence starts": llm * (panels - 1),
                "long prompt": llm * extra, "job": np.ones_like(panels), "panels": panels,
                "panel pixels": panels * area, "steps": steps, "panel steps": panels * steps,
                "panel step pixels": panels * steps * passes * area}

    @staticmethod
    def known(job: Mapping) -> dict:
        """The counts that a job says beforehand, NaN where only the run tells (a natural story's tokens)."""
        llm = _has_llm(job["prompt"])
        told = np.where((llm == 0) | np.asarray(job["exact_tokens"], bool), 1.0, np.nan)
        return {"tokens_run": told * llm * np.asarray(job["llm_tokens"], float)}

    @staticmethod
    def ranged(job: Mapping) -> dict:
        """What is not extrapolated beyond the values that were measured, (n,) each."""
        if "auto" in (sizes := np.atleast_1d(np.asarray(job["image_size"], object)).tolist()):
            raise ValueError("image_size = 'auto' has no known number of pixels: give the mix or the rows the number")
        return {"image_size": np.array(sizes, float),
                "passes": 1.0 + np.greater(np.asarray(job["guidance_scale"], float), 1)}

    def resolve(self, params: dict) -> dict:
        """The job's fields as `terms` takes them: what was left out or "auto" as these models will do it."""
        return self.storyteller.resolve(self._job(params))

    def weights_hash(self, method: str | None = None) -> str:
        """As of `stlib.generation.weights_hash`; every method draws with the same weights."""
        from stlib.generation import weights_hash

        return weights_hash(self.storyteller.models)

    @staticmethod
    def _job(params: dict):
        from stlib.generation import StoryJob

        return StoryJob(**params)


class _LastCall:
    """Keeps the arguments of a module's last call within a `with`, to repeat that call afterwards."""

    def __init__(self, module):
        self.module, self.args, self.kwargs = module, (), {}

    def __enter__(self):
        self._hook = self.module.register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self._hook.remove()

    def _keep(self, module, args, kwargs):
        self.args, self.kwargs = args, kwargs

    def repeat(self) -> None:
        """An LLM's cache grew by the tokens of the call, so they are taken off first."""
        if "past_key_values" in self.kwargs:
            self.kwargs["past_key_values"].crop(-self.args[0].shape[1])
        import torch

        with torch.inference_mode():
            self.module(*self.args, **self.kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _has_llm(prompt):
    """1 where a prompt makes the LLM run, 0 for captions alone; of one prompt or of many, (n,)."""
    if prompt is None or isinstance(prompt, str):
        return float(bool(prompt))
    prompts = np.asarray(prompt, object)
    return pd.Series(prompts.ravel()).fillna("").astype(bool).to_numpy(float).reshape(prompts.shape)


def _timed(call: Callable[[], None]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _png(panel) -> bytes:
    file = io.BytesIO()
    panel.save(file, "PNG", compress_level=1)
    return file.getvalue()
