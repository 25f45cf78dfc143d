"""`Storyteller`: the LLM and the LDM together."""

import time
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import asdict

import diffusers
import torch
import transformers

from stlib.generation import illustrator
from stlib.generation.job import StoryJob, StoryResult
from stlib.generation.loading import PRECISIONS, choose_device, choose_llm_dtype, load_ldm, load_llm
from stlib.generation.story import Story, StoryWriter

EMBEDDED_SIZES = (64, 96, 128, 160)
EMBEDDED_GUIDANCE = 2.5
DEFAULT_SIZE, DEFAULT_GUIDANCE = 512, 7.5  # most pipelines' own, where a job leaves them to the pipeline


class Storyteller:
    """Tells and illustrates stories, one job at a time. Made by `from_pretrained`.

    A model is loaded when the first job needs it: captions alone need no LLM.
    """

    def __init__(self, models: dict, device: str, precision: str, llm_dtype: str):
        self.models, self.device, self.precision, self.llm_dtype = models, device, precision, llm_dtype
        self._writer = self._pipe = None

    @classmethod
    def from_pretrained(
        cls, models: str | dict = "embedded", device: str = "auto", precision: str = "fp32", llm_dtype: str = "auto"
    ) -> "Storyteller":
        """A storyteller over 'embedded' models, or {"llm": ..., "ldm": ...}: each 'embedded', a folder or a hub name.

        device: auto (CUDA when there), cpu, cuda. precision: the LDM's weights and arithmetic, fp32, fp16 or bf16.
        llm_dtype: the LLM's, or auto: bf16 where the processor computes in it.
        Hub tokens come from `hf auth login` or HF_TOKEN. Raises ValueError naming what is allowed.
        """
        models = {"llm": "embedded", "ldm": "embedded"} if models == "embedded" else models
        if not isinstance(models, dict) or not models or not set(models) <= {"llm", "ldm"}:
            raise ValueError(f"models = {models!r}: give 'embedded' or a dict with the keys llm and ldm")
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is not implemented: use one of {', '.join(PRECISIONS)}")
        if llm_dtype != "auto" and llm_dtype not in PRECISIONS:
            raise ValueError(f"llm_dtype {llm_dtype!r}: use auto or one of {', '.join(PRECISIONS)}")
        device = choose_device(device)
        llm_dtype = choose_llm_dtype(device) if llm_dtype == "auto" else llm_dtype
        models = {role: str(models.get(role, "embedded")) for role in ("llm", "ldm")}
        return cls(models, device, precision, llm_dtype)

    @property
    def writer(self) -> StoryWriter:
        """The LLM in its frame, loaded at first use."""
        if self._writer is None:
            self._writer = StoryWriter(*load_llm(self.models["llm"], self.device, self.llm_dtype))
        return self._writer

    @property
    def pipe(self):
        """The diffusers pipeline, loaded at first use."""
        if self._pipe is None:
            self._pipe = load_ldm(self.models["ldm"], self.device, self.precision)
        return self._pipe

    def load(self) -> "Storyteller":
        """Load both models now, so that the first job's times are like the others'."""
        _ = self.writer, self.pipe
        return self

    def tell(self, job: StoryJob, on_progress: Callable[[str, int, int], None] | None = None) -> StoryResult:
        """Do one job. on_progress(stage, done, total): stage 'story' counts tokens, 'pictures' the
        denoising steps of all panels.

        Raises ValueError for what these models cannot do (sizes, precision).
        """
        report = on_progress or (lambda stage, done, total: None)
        options = self._options(job)
        self._warn_of_language(job)
        pipe, writer = self.pipe, self.writer if job.prompt else None
        began = time.monotonic()
        story = Story((), 0, 0.0, 0.0)
        if writer:
            story = writer.write(job.prompt, job.n_panels, job.llm_tokens, job.seed, job.exact_tokens,
                                 lambda done, total: report("story", done, total))  # fmt: skip
        captions = job.captions or story.sentences
        drawing = self._draw(pipe, job, captions, options, report)
        timings = {
            "llm_prefill": story.prefill_s,
            "llm_decode": story.decode_s,
            "text_encoding": drawing.text_encoding_s,
            "denoising": drawing.denoising_s,
            "vae_decode": drawing.vae_decode_s,
            "total": time.monotonic() - began,
        }
        return StoryResult(" ".join(story.sentences), captions, drawing.panels, timings, story.tokens_run,
                           len(drawing.denoising_s), job, self.provenance())  # fmt: skip

    def check(self, job: StoryJob) -> None:
        """Raise ValueError for what these models cannot do (sizes, precision); loads nothing."""
        self._options(job)

    def _draw(self, pipe, job, captions, options, report):
        done = 0

        def on_step(panels):
            nonlocal done
            done += panels
            report("pictures", done, job.steps * job.n_panels)

        return illustrator.draw(pipe, job.method, captions, options, job.seed, on_step)

    def resolve(self, job: StoryJob) -> dict:
        """The job's fields with these models' own size and guidance where it leaves them open; loads nothing."""
        options = self._options(job)
        return asdict(job) | {"image_size": options.get("height", DEFAULT_SIZE),
                              "guidance_scale": options.get("guidance_scale", DEFAULT_GUIDANCE)}

    def _options(self, job: StoryJob) -> dict:
        """The pipeline's keyword arguments for this job."""
        if job.precision not in (None, self.precision):
            raise ValueError(
                f"precision {job.precision!r}: these models were loaded in {self.precision}; leave precision out, "
                f"or load with from_pretrained(precision=...), one of {', '.join(PRECISIONS)}"
            )
        embedded = self.models["ldm"] == "embedded"
        size = 128 if embedded and job.image_size == "auto" else job.image_size
        if embedded and size not in EMBEDDED_SIZES:
            raise ValueError(f"image_size = {size}: the embedded model draws {', '.join(map(str, EMBEDDED_SIZES))}")
        guidance = EMBEDDED_GUIDANCE if embedded and job.guidance_scale is None else job.guidance_scale
        options = {"num_inference_steps": job.steps}
        if size != "auto":
            options |= {"height": size, "width": size}
        if guidance is not None:
            options["guidance_scale"] = guidance
        return options

    def _warn_of_language(self, job: StoryJob) -> None:
        text = " ".join((job.prompt, *(job.captions or ())))
        letters = [char for char in text if char.isalpha()]
        foreign = [char for char in letters if "LATIN" not in unicodedata.name(char, "")]
        if "embedded" in self.models.values() and 2 * len(foreign) > len(letters):
            warnings.warn(f"{text[:40]!r} is not in Latin letters: the embedded models know English only", stacklevel=3)

    def provenance(self) -> dict:
        """Models, types, threads and versions."""
        return {
            "models": self.models,
            "device": self.device,
            "precision": self.precision,
            "llm_dtype": self.llm_dtype,
            "threads": torch.get_num_threads(),
            "versions": {module.__name__: module.__version__ for module in (torch, transformers, diffusers)},
        }
