"""The first workload: stories told by an LLM and illustrated by an LDM."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from stlib.serving.workloads.protocol import LastCall, Part, Progress

PIXELS = 128  # the cost terms' images are in units of one picture of this side
SHORT_PROMPT = 16  # tokens; what a prompt has beyond them is a cost term
PROBE_STEPS = 2  # what notebook 05 found best for at most 5 % of the mean job


class StoryWorkload:
    """Stories told and illustrated by a Storyteller; the parameters are the fields of a StoryJob.

    models, device, precision, llm_dtype: as in `Storyteller.from_pretrained`; without an LLM a job has captions alone.
    """

    name = "story"
    shared = ("llm", "tokens", "sentence starts", "long prompt")
    counts: ClassVar = {"tokens_run": ("n_panels", "llm_tokens"), "panel_steps_run": ("n_panels", "steps")}
    fields: ClassVar = {"prompt": "", "n_panels": ..., "captions": None, "llm_tokens": ..., "exact_tokens": False,
                        "steps": ..., "image_size": ..., "guidance_scale": ..., "seed": None}
    drawn_first = ("n_panels", "steps", "llm_tokens", "image_size", "guidance_scale")  # the committed jobs rest on it

    def __init__(self, models="embedded", device="auto", precision="fp32", llm_dtype="auto"):
        # imported late: it takes seconds, which what only reads cost terms need not wait for
        from stlib.generation import Storyteller

        self.storyteller = Storyteller.from_pretrained(models, device, precision, llm_dtype)

    def load(self) -> None:
        """Load the models and do one small job; its last denoising step is kept, to be repeated."""
        teller, job = self.storyteller, {"captions": "a fox", "steps": 2}
        if teller.has_llm:
            job |= {"prompt": "a fox", "llm_tokens": 4, "exact_tokens": True}
        denoiser = getattr(teller.pipe, "unet", None) or teller.pipe.transformer
        self.step = LastCall(denoiser, lambda: teller.tell(self.check(job)))

    def validate(self, params: dict) -> None:
        """Raise ValueError for parameters that are no StoryJob or beyond these models."""
        self.storyteller.check(self.check(params))

    @staticmethod
    def check(params: dict):
        """The StoryJob of these parameters. Raises ValueError for those that are none, whatever the models."""
        from stlib.generation import StoryJob

        return StoryJob(**params)

    def run(self, params: dict, on_progress: Progress | None = None, on_part: Part | None = None) -> tuple[dict, dict]:
        """Tell one story; its parts are its panels: number, of how many, and the PNG.

        Payload: story, captions, panels as PNG bytes, text_tokens of the captions. Products: prompt_tokens, tokens_run,
        steps_run, panel_steps_run, seconds by stage.
        """
        from stlib.serving.workloads.story_requests import encoded

        job, panels = self.check(params), []

        def finished(number: int, panel) -> None:
            panels.append(encoded(panel, "PNG", compress_level=1))
            if on_part:
                on_part({"number": number, "of": job.n_panels, "png": panels[-1]})

        result = self.storyteller.tell(job, on_progress, finished)
        payload = {"story": result.story, "captions": result.captions, "panels": panels,
                   "text_tokens": self.storyteller.caption_tokens(result.captions)}
        stages = {f"{stage}_s": float(np.sum(spent)) for stage, spent in result.timings.items() if stage != "total"}
        counted = ("prompt_tokens", "tokens_run", "steps_run", "panel_steps_run")
        return payload, {name: getattr(result, name) for name in counted} | stages

    def probe(self) -> float:
        """The faster of PROBE_STEPS guided denoising steps of one picture."""
        return min(self.step.repeat() for _ in range(PROBE_STEPS))

    @property
    def routes(self) -> dict:
        """By path, what is asked for there over HTTP."""
        from stlib.serving.workloads.story_requests import ImagesRequest, StoryRequest

        return {"/stories": StoryRequest, "/v1/images/generations": ImagesRequest}

    @staticmethod
    def terms(job: Mapping) -> dict:
        """The physical terms of what a job costs, numbers or arrays (n,) as those of `job`.

        job: prompt, n_panels, image_size, guidance_scale, tokens_run, panel_steps_run and, where prompts are long,
        prompt_tokens.
        The terms of `shared` cost the same under every method; the others are the drawing's and cost by method: a
        constant, panels (text and pipeline), their pixels (VAE), steps (calls of the denoiser when it takes all panels
        at once), panel steps, and their pixels (a guided step is two passes).
        """
        llm, panels = _has_llm(job["prompt"]), job["n_panels"] * 1.0
        steps = job["panel_steps_run"] / panels
        area = _area(job["image_size"]) / PIXELS**2
        passes = 1 + np.greater(np.asarray(job["guidance_scale"], float), 1)  # left open: one
        extra = np.maximum(np.nan_to_num(job.get("prompt_tokens", 0.0)) - SHORT_PROMPT, 0)
        return {"llm": llm, "tokens": llm * job["tokens_run"], "sentence starts": llm * (panels - 1),
                "long prompt": llm * extra, "job": np.ones_like(panels), "panels": panels,
                "panel pixels": panels * area, "steps": steps, "panel steps": panels * steps,
                "panel step pixels": panels * steps * passes * area}

    @staticmethod
    def known(job: Mapping) -> dict:
        """The counts that a job says beforehand, NaN where only the run tells (a natural story's tokens).

        Steps are all that were asked for: a method with an early exit has a law of its own.
        """
        llm = _has_llm(job["prompt"])
        told = np.where((llm == 0) | np.asarray(job.get("exact_tokens", False), bool), 1.0, np.nan)
        return {"tokens_run": told * llm * np.asarray(job["llm_tokens"], float),
                "panel_steps_run": np.asarray(job["n_panels"], float) * np.asarray(job["steps"], float)}

    @staticmethod
    def ranged(job: Mapping) -> dict:
        """What is not extrapolated beyond the values that were measured, (n,) each."""
        if "auto" in (sizes := np.atleast_1d(np.asarray(job["image_size"], object)).tolist()):
            raise ValueError("image_size = 'auto' has no known number of pixels: give the mix or the rows the number")
        return {"image_size": np.sqrt(_area(np.array(sizes, object))),
                "passes": 1.0 + np.greater(np.asarray(job["guidance_scale"], float), 1)}

    def resolve(self, params: dict) -> dict:
        """The job's fields as `terms` takes them: what was left out or "auto" as these models will do it."""
        return self.storyteller.resolve(self.check(params))

    def weights_hash(self, options: Mapping = MappingProxyType({})) -> str:
        """As of `stlib.generation.weights_hash`: of what a job with these options, its method one, draws with."""
        from stlib.generation import METHODS, weights_hash

        return weights_hash(self.storyteller.models, METHODS[options.get("method", "sequential")].weights)


def _area(size):
    """Pixels of one size, a side or both as "96x128", or of many, (n,)."""
    sides = np.vectorize(lambda one: float(str(one).split("x")[0]) * float(str(one).split("x")[-1]), otypes=[float])
    return sides(size)


def _has_llm(prompt):
    """1 where a prompt makes the LLM run, 0 for captions alone; of one prompt or of many, (n,)."""
    return np.vectorize(lambda one: float(isinstance(one, str) and one != ""), otypes=[float])(prompt)
