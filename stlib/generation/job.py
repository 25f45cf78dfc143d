"""What is asked for and what comes back: `StoryJob` and `StoryResult`."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from stlib import paths
from stlib.generation.early_exit import EarlyExit
from stlib.generation.engine import ENGINES
from stlib.generation.methods import METHODS
from stlib.generation.quantization import PRECISIONS
from stlib.settings import FieldError, Fields, many, one_of, whole

MAX_CHARS, MAX_PANELS = 1000, 16
MIN_TOKENS_PER_PANEL = 4
SIZES = "a multiple of 8 from 64 to 2048, two of them as 96x128 (width x height), or 'auto'"
UNREADABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


def _readable(text):
    """Refuses what a tokenizer or a UTF-8 file cannot hold: half a surrogate pair, NUL and its like."""
    if isinstance(text, str) and (odd := UNREADABLE.search(text)):
        raise ValueError(f"character {odd.start()} is {odd[0]!r}, a control character or half a surrogate: take it out")
    if isinstance(text, str) and len(text) > MAX_CHARS:
        raise ValueError(f"{len(text)} characters, at most {MAX_CHARS} are allowed: shorten it")
    return text


def _visible(text: str) -> bool:
    """Whether there is anything to read in it: not spaces and invisible characters alone."""
    return any(map(str.isprintable, text.replace(" ", "")))


def _says_something(text: str) -> str:
    if not _visible(text):
        raise ValueError("it is empty: give text")
    return text


def sides(size: int | str) -> tuple[int, int]:
    """Width and height in pixels of a size: a side, or both as "96x128"."""
    return tuple(map(int, size.split("x"))) if isinstance(size, str) else (size, size)


def _square(given):
    """A square's size is its side."""
    both = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", given) if isinstance(given, str) else None
    return int(both[1]) if both and both[1] == both[2] else given


def _drawable(size):
    known = isinstance(size, int) or re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", str(size))
    if size not in ("auto", None) and not (known and all(64 <= one <= 2048 and one % 8 == 0 for one in sides(size))):
        raise ValueError(f"give {SIZES}")
    return size


Text = Annotated[str, BeforeValidator(_readable),
                 Field(max_length=MAX_CHARS, description=f"text of at most {MAX_CHARS} characters")]
FullText = Annotated[Text, AfterValidator(_says_something), Field(min_length=1)]
Panels, Steps, Seed = whole(1, MAX_PANELS), whole(1, 200), whole(0, 2**32 - 1)
Guidance = Annotated[float | None, Field(ge=0, le=50, description="0 to 50; left out: the model's own")]
Size = Annotated[int | str | None, BeforeValidator(_square), AfterValidator(_drawable), Field(description=SIZES)]
Strength = Annotated[float | None, Field(gt=0, le=1, description="above 0, at most 1; of autoregressive only")]


class StoryJob(Fields):
    """One job: a prompt to be told and illustrated, or captions to be drawn. None is as if left out.

    prompt: what the story is about, of at most 1000 characters, and 256 tokens of the LLM's where one is at hand to
        count them (Storyteller.check); empty for captions alone (then no LLM runs).
    n_panels: sentences and pictures, 1 to 16; left out, the number of captions, or 4.
    captions: if given, they are drawn instead of the LLM's sentences; one string is one caption. The pipeline cuts
        off what its text encoder cannot hold (embedded: beyond 20 tokens).
    llm_tokens: the most tokens the LLM may decode, at least 4 a panel.
    exact_tokens: decode exactly `llm_tokens`, at least 1 a panel (a prompt and captions must be given).
    method: a name in METHODS.
    steps: denoising steps a picture, 1 to 200.
    image_size: pixels a side, or width and height as "96x128"; left out or "auto": what the model was trained at.
    guidance_scale: classifier-free guidance; left out: the model's own; 1 or less: none.
    precision: of the LDM; left out: what the storyteller was made with. Another one is loaded at its first job.
    engine: what computes the denoiser: torch, or openvino (an optional extra, on a CPU).
    strength: of autoregressive on a pipeline without a UNet told the last panel: how much noise is put on that panel
        before it is drawn over, above 0, at most 1 (nothing of it is left); left out: 0.8.
    early_exit: an `EarlyExit` or its fields, such as {"step": 12}: denoising ends when its rule is met; left out or
        False: after all steps.
    seed: fixes the story and the pictures, 0 to 2**32 - 1.

    Raises FieldError, a ValueError with the value, what is allowed and the remedy.
    """

    prompt: Annotated[Text, Field(examples=["a fox and a red balloon"])] = ""
    n_panels: Panels = None
    captions: Annotated[many(FullText) | None, Field(
        max_length=MAX_PANELS, description=f"a text for each of 1 to {MAX_PANELS} panels")] = None
    llm_tokens: whole(1, 1024) = 64
    exact_tokens: Annotated[bool | None, Field(description="True or False")] = False
    method: one_of("method", METHODS) = "sequential"
    steps: Steps = 20
    image_size: Size = "auto"
    guidance_scale: Guidance = None
    precision: one_of("precision", PRECISIONS) = None
    engine: one_of("engine", ENGINES) = "torch"
    strength: Strength = None
    early_exit: Annotated[EarlyExit | None, BeforeValidator(lambda given: None if given is False else given)] = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self):
        if self.n_panels is None:
            self.__dict__["n_panels"] = len(self.captions or range(4))
        if not _visible(self.prompt) and (self.captions is None or self.prompt):
            raise FieldError(f"prompt {self.prompt[:30]!r} is empty: say what to tell, or give captions", "prompt")
        if self.captions and len(self.captions) != self.n_panels:
            raise FieldError(f"{len(self.captions)} captions for n_panels = {self.n_panels}: give one caption a panel, "
                             "or leave n_panels out", "n_panels")
        each = 1 if self.exact_tokens else MIN_TOKENS_PER_PANEL
        if self.prompt and self.llm_tokens < each * self.n_panels:
            raise FieldError(f"llm_tokens = {self.llm_tokens} for {self.n_panels} panels: a sentence needs at least "
                             f"{each} of them, so give {each * self.n_panels} or more", "llm_tokens")
        if self.strength is not None and self.method != "autoregressive":
            raise FieldError(f"strength = {self.strength} with {self.method}: it is of autoregressive, leave it out",
                             "strength")
        if self.exact_tokens and not (self.prompt and self.captions):
            raise FieldError("exact_tokens cuts sentences off: give a prompt, and captions to be drawn", "exact_tokens")
        return self


@dataclass(frozen=True)
class StoryResult:
    """A told and illustrated story.

    story: the LLM's text; empty if no LLM ran.
    captions: what was drawn, one a panel.
    panels: PIL images, in the captions' order.
    timings: seconds: `llm_prefill`, `llm_decode`, `text_encoding`, `denoising` (a list, one entry a denoising
        step), `vae_decode`, `total`.
    tokens_run: tokens the LLM decoded. steps_run: denoising steps run (one step of a batch counts once).
    job: the job as it was asked for. provenance: models, types and versions that made this.
    prompt_tokens: tokens of the prompt that the LLM read. panel_steps_run: denoising steps of all panels, each counted
        by itself.
    """

    story: str
    captions: tuple[str, ...]
    panels: list[Image.Image]
    timings: dict
    tokens_run: int
    steps_run: int
    job: StoryJob
    provenance: dict = field(default_factory=dict)
    prompt_tokens: int = 0
    panel_steps_run: int = 0

    def strip(self, gap: int = 4) -> Image.Image:
        """The panels side by side, `gap` white pixels between them."""
        white = np.full((self.panels[0].height, gap, 3), 255, np.uint8)
        return Image.fromarray(np.hstack([part for panel in self.panels for part in (white, panel)][1:]))

    def save(self, folder) -> Path:
        """Write story.txt, captions.txt, panel_1.png ..., strip.png and story.json into `folder`, all or nothing.

        Raises ValueError if `folder` is a file or a folder with something in it.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is there already and not an empty folder: name another one")
        with paths.whole(folder) as partial:
            partial.mkdir()
            (partial / "story.txt").write_text(self.story + "\n", encoding="utf-8")
            (partial / "captions.txt").write_text("\n".join(self.captions) + "\n", encoding="utf-8")
            for i, panel in enumerate(self.panels, start=1):
                panel.save(partial / f"panel_{i}.png")
            self.strip().save(partial / "strip.png")
            told = vars(self) | {"job": self.job.model_dump()}
            del told["panels"]
            (partial / "story.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder
