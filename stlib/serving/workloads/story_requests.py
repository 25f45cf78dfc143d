"""What is asked of the story workload over HTTP: the fields of a story, and the OpenAI Images call."""

import base64
import io
import time
from typing import Annotated, Literal

from PIL import Image
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from stlib.generation import StoryJob
from stlib.generation.job import FullText, Guidance, Panels, Seed, Size, Steps
from stlib.serving.workloads.asked import Asked
from stlib.settings import FieldError, whole

NOT_DONE = {  # fields of Images servers that would change the pictures: the values that ask for what is done anyway
    "stream": (False,), "partial_images": (0,), "response_format": ("b64_json",), "quality": ("auto", "standard"),
    "background": ("auto", "opaque"), "negative_prompt": ("",), "generator_device": ("cpu",), "loras": ([],),
    **dict.fromkeys(("num_images", "num_images_per_prompt", "num_outputs_per_prompt"), (1,)),
    **dict.fromkeys(("style", "image", "images", "image_url", "mask", "input_fidelity", "strength", "width", "height",
                     "resolution", "aspect_ratio", "true_cfg_scale", "cfg_scale", "guidance_rescale", "steps",
                     "clip_skip", "eta", "sampler", "sampler_name", "scheduler", "sigmas", "timesteps", "lora",
                     "controlnet", "prompt_2", "negative_prompt_2", "diffusers_kwargs", "extra_args"), ())}

CELL = 8  # pixels a side


def _both(size):
    """The OpenAI API names both sides."""
    if not isinstance(size, str):
        raise ValueError("give both sides, such as 128x128 or 96x128, or auto")
    return size


class StoryRequest(Asked, StoryJob):
    """Tell a story and draw its panels (PNG, base64): the fields of a StoryJob, and when it must start.

    With "stream": true the reply is a stream of server-sent events: queued, started, progress, part (a panel), done.
    """

    stream: Annotated[bool | None, Field(description="true: server-sent events, each panel as it is finished")] = False

    def params(self) -> dict:
        """The fields of the StoryJob that are given, but for the method."""
        return self.model_dump(exclude_none=True, exclude={*Asked.model_fields, "stream"})

    @staticmethod
    def part(part: dict) -> dict:
        """A panel's number, of how many, and the PNG in base64."""
        return part | {"png": base64.b64encode(part["png"]).decode()}

    def reply(self, payload: dict) -> dict:
        """The panels as PNG in base64."""
        panels = [base64.b64encode(panel).decode() for panel in payload["panels"]]
        return {name: payload[name] for name in ("story", "captions")} | {"panels": panels}


class ImagesRequest(Asked):
    """Draw pictures: the OpenAI Images call, in the same queue. Fields that cannot change the pictures are ignored."""

    model_config = ConfigDict(extra="ignore")
    prompt: FullText
    n_panels: Panels = Field(1, alias="n")
    image_size: Annotated[Size, BeforeValidator(_both), WithJsonSchema({"type": ["string", "null"]})] = Field(
        "auto", alias="size", examples=["128x128"])
    steps: Steps = Field(None, alias="num_inference_steps")
    guidance_scale: Guidance = None
    seed: Seed = None
    output_format: Annotated[Literal["png", "jpeg", "webp"] | None, Field(description="png, jpeg or webp")] = "png"
    output_compression: whole(0, 100) = 100

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

    @classmethod
    def body(cls, params: dict, method: str | None, deadline_s: float | None) -> dict:
        """What a client sends for a job of these parameters; the Images call draws a job's first caption only.

        Raises ValueError for a job that the Images call cannot carry.
        """
        if params.get("prompt"):
            raise ValueError("the Images call takes captions alone, no prompt for the LLM: use /stories")
        size, captions = params.get("image_size", "auto"), params["captions"]
        return super().body(params | {"prompt": captions[0], "n_panels": len(captions),
                                      "image_size": size if isinstance(size, str) else f"{size}x{size}"},
                            method, deadline_s)

    def reply(self, payload: dict) -> dict:
        """The pictures in base64, their size as drawn, and `usage`: the text encoder's tokens, and cells of latents."""
        pictures = [Image.open(io.BytesIO(panel)) for panel in payload["panels"]]
        coded = payload["panels"] if self.output_format == "png" else [
            encoded(picture, self.output_format, quality=self.output_compression) for picture in pictures]
        cells = sum(picture.width * picture.height for picture in pictures) // CELL**2
        return {"created": int(time.time()), "output_format": self.output_format,
                "size": "{}x{}".format(*pictures[0].size),
                "usage": {"input_tokens": payload["text_tokens"], "output_tokens": cells,
                          "total_tokens": payload["text_tokens"] + cells,
                          "input_tokens_details": {"text_tokens": payload["text_tokens"], "image_tokens": 0}},
                "data": [{"b64_json": base64.b64encode(picture).decode()} for picture in coded]}


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    """The picture as a file of that format."""
    picture.save(file := io.BytesIO(), form, **options)
    return file.getvalue()
