"""`Storyteller`: the LLM and the LDM together."""

import time
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property, partial

import diffusers
import torch
import transformers
from PIL import Image

from stlib.generation import engine, loading
from stlib.generation.early_exit import fresh
from stlib.generation.illustrator import Method, as_one
from stlib.generation.job import StoryJob, StoryResult, sides
from stlib.generation.methods import METHODS
from stlib.generation.models import NO_LLM
from stlib.generation.quantization import PRECISIONS, refuse
from stlib.generation.story import Story, StoryWriter, check_context, prompt_ids
from stlib.settings import FieldError, known

MAX_PROMPT_TOKENS = 256  # of the LLM's; the frame takes about 120 and a story at most 1024 of the embedded LLM's 8192
EMBEDDED_SIZES = (64, 96, 128, 160)
EMBEDDED_GUIDANCE = 2.5
DEFAULT_GUIDANCE = 7.5  # most pipelines' own, where a job leaves it to the pipeline


class Storyteller:
    """Tells and illustrates stories, one job at a time. Made by `from_pretrained`.

    A model is loaded when the first job needs it: captions alone need no LLM.
    """

    def __init__(self, models: dict, device: str, precision: str, llm_dtype: str):
        self.models, self.device, self.precision, self.llm_dtype = models, device, precision, llm_dtype
        self._pipes, self._writers = {}, {}

    @classmethod
    def from_pretrained(cls, models: str | dict = "embedded", device: str = "auto", precision: str = "fp32",
                        llm_dtype: str = "auto") -> "Storyteller":
        """A storyteller over 'embedded' models, or {"llm": ..., "ldm": ...}: each 'embedded', a folder or a hub name.

        An llm of None, or 'none', is not there: captions are drawn, and a prompt is refused.

        device: auto (CUDA when there), cpu, cuda. precision: a name in `quantization.PRECISIONS`, of the LDM's weights
        and arithmetic; one that quantizes is the LLM's, too. llm_dtype: what the LLM computes in, fp32, fp16 or bf16,
        or auto: bf16 where the processor computes in it.
        Hub tokens come from `hf auth login` or HF_TOKEN. Raises ValueError naming what is allowed.
        """
        models = dict.fromkeys(("llm", "ldm"), "embedded") if models == "embedded" else models
        if not isinstance(models, dict) or not models or not set(models) <= {"llm", "ldm"}:
            raise ValueError(f"models = {models!r}: give 'embedded' or a dict with the keys llm and ldm")
        known("precision", precision, PRECISIONS)
        known("llm_dtype", llm_dtype, ("auto", *(name for name, one in PRECISIONS.items() if not one.quantize)))
        device = loading.choose_device(device)
        refuse(precision, device)
        llm_dtype = loading.choose_llm_dtype(device) if llm_dtype == "auto" else llm_dtype
        models = {role: str(models.get(role, "embedded") or NO_LLM) for role in ("llm", "ldm")}
        return cls(models, device, precision, llm_dtype)

    @property
    def has_llm(self) -> bool:
        """Whether there is an LLM to tell a prompt's story."""
        return self.models["llm"] != NO_LLM

    @property
    def writer(self) -> StoryWriter:
        """The LLM of most jobs in its frame, loaded at first use."""
        return self.writer_of(self.precision)

    def writer_of(self, precision: str) -> StoryWriter:
        """The LLM in this precision, if it is one that quantizes, in its frame, loaded at first use."""
        precision = precision if PRECISIONS[precision].quantize else "fp32"
        if precision not in self._writers:
            loaded = loading.load_llm(self.models["llm"], self.device, self.llm_dtype, precision)
            self._writers[precision] = StoryWriter(*loaded)
        return self._writers[precision]

    @property
    def pipe(self):
        """The diffusers pipeline of most jobs, loaded at first use."""
        return self.pipe_of(Method.weights, self.precision)

    def pipe_of(self, weights: str, precision: str, engine: str = "torch"):
        """The pipeline with these weights, of the embedded ones, in this precision, loaded at first use."""
        key = weights if self.models["ldm"] == "embedded" else Method.weights, precision, engine
        if key not in self._pipes:
            self._pipes[key] = (
                loading.converted(self.pipe_of(weights, "fp32"), precision) if engine == "openvino" else
                loading.load_ldm(self.models["ldm"], self.device, precision) if key[0] == Method.weights else
                loading.with_unet(self.pipe_of(Method.weights, precision), weights, precision))
        return self._pipes[key]

    def lacks(self, method: str) -> str:
        """What these models lack to draw by a method; empty for nothing. Loads no weights."""
        return "" if self.models["ldm"] == "embedded" else METHODS[method].lacks(self._parts)

    @cached_property
    def _parts(self) -> dict:
        return loading.parts(self.models["ldm"])

    def prompt_tokens(self, prompt: str) -> int:
        """How many of the LLM's tokens a prompt is; loads the tokenizer alone."""
        return len(prompt_ids(self._reader[0], prompt))

    def caption_tokens(self, captions: Sequence[str]) -> int:
        """How many of the text encoder's tokens captions are, those that it cuts off included."""
        return sum(map(len, self.pipe.tokenizer(list(captions)).input_ids))

    @cached_property
    def _reader(self):
        return loading.load_tokenizer(self.models["llm"])

    @cached_property
    def _sizes(self) -> Sequence[int]:
        """Pixels of each side of the pictures that a job may ask for and these models draw."""
        if self.models["ldm"] == "embedded":
            return EMBEDDED_SIZES
        multiple, _ = self._of_files
        return [size for size in range(64, 2049, 8) if size % multiple == 0]

    @cached_property
    def _of_files(self) -> tuple[int, int]:
        return loading.picture_sizes(self.models["ldm"])

    def load(self) -> "Storyteller":
        """Load the models now, so that the first job's times are like the others'."""
        _ = self.pipe, self.has_llm and self.writer
        return self

    def tell(self, job: StoryJob, on_progress: Callable[[str, int, int], None] | None = None,
             on_panel: Callable[[int, Image.Image], None] | None = None) -> StoryResult:
        """Do one job. on_progress(stage, done, total): stage 'story' counts tokens, 'pictures' the
        denoising steps of all panels. on_panel(number, picture): called for each panel, in order, once it is finished.

        Raises ValueError for what these models cannot do (sizes, precision).
        """
        report, hand_out = on_progress or (lambda stage, done, total: None), on_panel or (lambda number, panel: None)
        self.check(job)
        self._warn_of_language(job)
        precision = job.precision or self.precision
        pipe = self.pipe_of(METHODS[job.method].weights, precision, job.engine)
        writer = self.writer_of(precision) if job.prompt else None
        began = time.monotonic()
        story = Story() if writer is None else writer.write(
            job.prompt, job.n_panels, job.llm_tokens, job.seed, job.exact_tokens, partial(report, "story"))
        captions, steps_done = job.captions or story.sentences, 0

        def on_step(panels):
            nonlocal steps_done
            steps_done += panels
            report("pictures", steps_done, job.steps * job.n_panels)

        pipe.scheduler = fresh(pipe.scheduler, job.early_exit)
        drawings = []
        with closing(METHODS[job.method].draw(pipe, captions, self._options(job), job.seed, on_step)) as finished:
            for drawing in finished:
                for number, panel in enumerate(drawing.panels, sum(len(one.panels) for one in drawings) + 1):
                    hand_out(number, panel)
                drawings.append(drawing)
        drawing = as_one(drawings)
        timings = {"llm_prefill": story.prefill_s, "llm_decode": story.decode_s,
                   "text_encoding": drawing.text_encoding_s, "denoising": drawing.denoising_s,
                   "vae_decode": drawing.vae_decode_s, "total": time.monotonic() - began}
        made = self.provenance() | {"precision": precision, "engine": job.engine}
        return StoryResult(" ".join(story.sentences), captions, drawing.panels, timings, story.tokens_run,
                           len(drawing.denoising_s), job, made, story.prompt_tokens, steps_done)

    def check(self, job: StoryJob) -> None:
        """Raise FieldError, a ValueError, for what these models cannot do; loads no weights."""
        if job.precision:
            refuse(job.precision, self.device)
        engine.refuse(job.engine, job.precision or self.precision, job.method, self.device)
        if lacking := self.lacks(job.method):
            raise FieldError(f"method = {job.method!r}: {lacking}", "method")
        most = METHODS[job.method].most_panels
        if most and job.n_panels > most:
            raise FieldError(f"n_panels = {job.n_panels}: {job.method} was trained for at most {most}", "n_panels")
        if job.strength is not None and self.models["ldm"] == "embedded":
            raise FieldError(f"strength = {job.strength}: the embedded models tell a panel the latents of the last one "
                             "and start from none: leave it out", "strength")
        for side in () if job.image_size == "auto" else sides(job.image_size):
            if side not in self._sizes:
                nearest = sorted(sorted(self._sizes, key=lambda one: abs(one - side))[:4])
                raise FieldError(f"image_size = {job.image_size}: these models do not draw it; the nearest sizes that "
                                 f"they draw are {', '.join(map(str, nearest))}", "image_size")
        if job.prompt and not self.has_llm:
            raise FieldError(f"prompt = {job.prompt[:30]!r}, but no LLM is loaded: give captions alone, or serve with "
                             "--llm", "prompt")
        if not job.prompt or (self.models["llm"] == "embedded" and len(job.prompt.encode()) <= MAX_PROMPT_TOKENS):
            return  # a token is at least a byte: no need to load the tokenizer
        tokens = self.prompt_tokens(job.prompt)
        if tokens > MAX_PROMPT_TOKENS:
            raise FieldError(f"prompt has {tokens} tokens of the LLM, at most {MAX_PROMPT_TOKENS} are allowed: shorten "
                             "it (emoji and other scripts than Latin take several tokens a character)", "prompt")
        check_context(*self._reader, job.prompt, job.n_panels, job.llm_tokens)

    def resolve(self, job: StoryJob) -> dict:
        """The job's fields with these models' own size and guidance where it leaves them open; loads nothing."""
        options = self._options(job)
        width, height = (options.get(side) or self._of_files[1] for side in ("width", "height"))
        return job.model_dump() | {"image_size": width if width == height else f"{width}x{height}",
                                   "guidance_scale": options.get("guidance_scale", DEFAULT_GUIDANCE),
                                   "prompt_tokens": self.prompt_tokens(job.prompt) if job.prompt else 0}

    def _options(self, job: StoryJob) -> dict:
        """The pipeline's keyword arguments for this job."""
        own = {"height": 128, "width": 128, "guidance_scale": EMBEDDED_GUIDANCE}
        auto = job.image_size == "auto"
        size = {} if auto else dict(zip(("width", "height"), sides(job.image_size), strict=True))
        given = {name: getattr(job, name) for name in ("guidance_scale", "strength") if getattr(job, name) is not None}
        return {"num_inference_steps": job.steps} | (own if self.models["ldm"] == "embedded" else {}) | size | given

    def _warn_of_language(self, job: StoryJob) -> None:
        text = " ".join((job.prompt, *(job.captions or ())))
        latin = ["LATIN" in unicodedata.name(char, "") for char in text if char.isalpha()]
        if "embedded" in self.models.values() and 2 * sum(latin) < len(latin):
            warnings.warn(f"{text[:40]!r} is not in Latin letters: the embedded models know English only", stacklevel=3)

    def provenance(self) -> dict:
        """Models, types, threads and versions."""
        return {"models": self.models, "device": self.device, "precision": self.precision, "llm_dtype": self.llm_dtype,
                "threads": torch.get_num_threads(),
                "versions": {module.__name__: module.__version__ for module in (torch, transformers, diffusers)}}
