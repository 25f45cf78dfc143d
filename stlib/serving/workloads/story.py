"""The first workload: stories told by an LLM and illustrated by an LDM."""

import base64
import io
import re
import time
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from PIL import Image
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from stlib.generation import StoryJob, Storyteller
from stlib.generation.fields import FieldError, Fields, FullText, whole
from stlib.generation.job import Guidance, Panels, Seed, Size, Steps
from stlib.serving.workloads.protocol import Progress

PROBE_STEPS, PROBE_TOKENS = 2, 0  # what notebook 05 found best for at most 5 % of the mean job
NOT_DONE = {  # fields of Images servers that would change the pictures: the values that ask for what is done anyway
    "stream": (False,), "partial_images": (0,), "response_format": ("b64_json",), "quality": ("auto", "standard"),
    "background": ("auto", "opaque"), "negative_prompt": ("",), "generator_device": ("cpu",), "loras": ([],),
    **dict.fromkeys(("num_images", "num_images_per_prompt", "num_outputs_per_prompt"), (1,)),
    **dict.fromkeys(("style", "image", "images", "image_url", "mask", "input_fidelity", "strength", "width", "height",
                     "resolution", "aspect_ratio", "true_cfg_scale", "cfg_scale", "guidance_rescale", "steps",
                     "clip_skip", "eta", "sampler", "sampler_name", "scheduler", "sigmas", "timesteps", "lora",
                     "controlnet", "prompt_2", "negative_prompt_2", "diffusers_kwargs", "extra_args"), ()),
}
Method = Annotated[str | None, Field(description="a method's name; left out: the server's choice")]
Deadline = Annotated[float | None, Field(ge=0, description="the seconds, 0 or more, in which the job must start")]


def _side(size):
    """The OpenAI API names both sides."""
    square = re.fullmatch(r"([0-9]{1,5})x\1", size) if isinstance(size, str) else None
    if not square and size != "auto":
        raise ValueError("the pictures are square: give a size such as 128x128, or auto")
    return int(square[1]) if square else size


class StoryRequest(StoryJob):
    """Tell a story and draw its panels (PNG, base64): the fields of a StoryJob, and when it must start."""

    method: Method = None
    deadline_s: Deadline = None

    def params(self) -> dict:
        """The fields of the StoryJob that are given, but for the method."""
        return self.model_dump(exclude_none=True, exclude={"method", "deadline_s"})

    def reply(self, payload: dict) -> dict:
        """The panels as PNG in base64."""
        return payload | {"panels": [base64.b64encode(panel).decode() for panel in payload["panels"]]}


class ImagesRequest(Fields):
    """Draw pictures: the OpenAI Images call, in the same queue. Fields that cannot change the pictures are ignored."""

    model_config = ConfigDict(extra="ignore")
    prompt: FullText
    n_panels: Panels = Field(1, alias="n")
    image_size: Annotated[Size, BeforeValidator(_side), WithJsonSchema({"type": ["string", "null"]})] = Field(
        "auto", alias="size", examples=["128x128"])
    steps: Steps = Field(None, alias="num_inference_steps")
    guidance_scale: Guidance = None
    seed: Seed = None
    output_format: Annotated[Literal["png", "jpeg", "webp"] | None, Field(description="png, jpeg or webp")] = "png"
    output_compression: whole(0, 100) = 100
    method: Method = None
    deadline_s: Deadline = None

    def __init__(self, /, **given):
        for name in given.keys() & NOT_DONE.keys():
            if given[name] is not None and given[name] not in NOT_DONE[name]:
                allowed = "".join(f"give {value!r}, or " for value in NOT_DONE[name])
                raise FieldError(f"{name} = {str(given[name])[:40]!r} is not done here: {allowed}leave it out", name)
        super().__init__(**given)
        if self.output_format == "png" and self.output_compression < 100:
            raise FieldError(f"output_compression = {self.output_compression}: PNG takes 100 alone; or give "
                             "output_format jpeg or webp", "output_compression")

    def params(self) -> dict:
        """As a job with given captions, without the LLM."""
        job = self.model_dump(exclude_none=True, include={"image_size", "steps", "guidance_scale", "seed"})
        return job | {"captions": [self.prompt] * self.n_panels}

    def reply(self, payload: dict) -> dict:
        """The pictures in base64, and their size as drawn."""
        pictures = [Image.open(io.BytesIO(panel)) for panel in payload["panels"]]
        coded = payload["panels"] if self.output_format == "png" else [
            encoded(picture, self.output_format, quality=self.output_compression) for picture in pictures]
        return {"created": int(time.time()), "output_format": self.output_format,
                "size": "{}x{}".format(*pictures[0].size),
                "data": [{"b64_json": base64.b64encode(picture).decode()} for picture in coded]}


class StoryWorkload:
    """Stories told and illustrated by a Storyteller; the parameters are the fields of a StoryJob.

    models, device, precision, llm_dtype: as in `Storyteller.from_pretrained`.
    probe_steps, probe_tokens: how often a probe repeats one guided denoising step of one picture, and one decoded
    token; of each kind the fastest counts.
    """

    name = "story"
    routes: ClassVar = {"/stories": StoryRequest, "/v1/images/generations": ImagesRequest}

    def __init__(self, models="embedded", device="auto", precision="fp32", llm_dtype="auto", *,
                 probe_steps: int = PROBE_STEPS, probe_tokens: int = PROBE_TOKENS):
        self.storyteller = Storyteller.from_pretrained(models, device, precision, llm_dtype)
        self.probe_steps, self.probe_tokens = probe_steps, probe_tokens
        self._step = self._token = None

    def load(self) -> None:
        """Load both models and do one small job; its last calls of LLM and denoiser are kept as the probe's pieces."""
        job = StoryJob("a fox", captions="a fox", llm_tokens=4, exact_tokens=True, steps=2)
        teller = self.storyteller.load()
        denoiser = getattr(teller.pipe, "unet", None) or teller.pipe.transformer
        with _LastCall(denoiser) as self._step, _LastCall(teller.writer.model) as self._token:
            teller.tell(job)

    def validate(self, params: dict) -> None:
        """Raise ValueError for parameters that are no StoryJob or beyond these models."""
        self.storyteller.check(StoryJob(**params))

    def run(self, params: dict, on_progress: Progress | None = None) -> tuple[dict, dict]:
        """Tell one story.

        Payload: story, captions, panels as PNG bytes. Products: prompt_tokens, tokens_run, steps_run, seconds by stage.
        """
        result = self.storyteller.tell(StoryJob(**params), on_progress)
        panels = [encoded(panel, "PNG", compress_level=1) for panel in result.panels]
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
        with torch.inference_mode():
            self.module(*self.args, **self.kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _timed(call: Callable[[], None]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    """The picture as a file of that format."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()
