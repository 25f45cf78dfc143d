"""What is asked for and what comes back: `StoryJob` and `StoryResult`."""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path

from PIL import Image

from stlib.generation.illustrator import METHODS
from stlib.generation.loading import PRECISIONS

MAX_PROMPT_CHARS = 1000
MAX_PANELS = 16
MAX_STEPS = 200
MAX_LLM_TOKENS = 1024
MIN_TOKENS_PER_PANEL = 4
IMAGE_SIZES = range(64, 2049, 8)
LATER_METHODS = ("joint", "autoregressive")


@dataclass(frozen=True)
class StoryJob:
    """One job: a prompt to be told and illustrated, or captions to be drawn.

    prompt: what the story is about; empty for captions alone (then no LLM runs).
    n_panels: sentences and pictures, 1 to 16; left out, the number of captions, or 4.
    captions: if given, they are drawn instead of the LLM's sentences.
    llm_tokens: the most tokens the LLM may decode, at least 4 a panel.
    exact_tokens: decode exactly `llm_tokens`, at least 1 a panel (a prompt and captions must be given).
    method: a name in METHODS.
    steps: denoising steps a picture, 1 to 200.
    image_size: pixels a side; left out or "auto": what the model was trained at.
    guidance_scale: classifier-free guidance; left out: the model's own; 1 or less: none.
    precision: of the LDM; left out: what the models were loaded in.
    early_exit: not there yet; must be False.
    seed: fixes the story and the pictures, 0 to 2**32 - 1.

    Raises ValueError with the value, what is allowed and the remedy.
    """

    prompt: str = ""
    n_panels: int | None = None
    captions: tuple[str, ...] | None = None
    llm_tokens: int = 64
    exact_tokens: bool = False
    method: str = "sequential"
    steps: int = 20
    image_size: int | str = "auto"
    guidance_scale: float | None = None
    precision: str | None = None
    early_exit: bool = False
    seed: int = 0

    def __post_init__(self):
        captions = None if self.captions is None else _captions(self.captions)
        n_panels = self.n_panels if self.n_panels is not None else len(captions or range(4))
        plain = {
            "prompt": _prompt("" if self.prompt is None else self.prompt, captions),
            "captions": captions,
            "n_panels": _integer("n_panels", n_panels, 1, MAX_PANELS),
            "llm_tokens": _integer("llm_tokens", self.llm_tokens, 1, MAX_LLM_TOKENS),
            "exact_tokens": bool(self.exact_tokens),
            "steps": _integer("steps", self.steps, 1, MAX_STEPS),
            "image_size": _image_size(self.image_size),
            "guidance_scale": _guidance_scale(self.guidance_scale),
            "seed": _integer("seed", self.seed, 0, 2**32 - 1),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        self._check_panels()
        check_method(self.method)
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(f"precision {self.precision!r} is not implemented: use one of {', '.join(PRECISIONS)}")
        if self.early_exit:
            raise ValueError("early_exit is not implemented yet: leave it False")

    def _check_panels(self):
        if self.captions is not None and len(self.captions) != self.n_panels:
            raise ValueError(
                f"{len(self.captions)} captions for n_panels = {self.n_panels}: give one caption a panel, "
                "or leave n_panels out"
            )
        needed = self.n_panels * (1 if self.exact_tokens else MIN_TOKENS_PER_PANEL)
        if self.prompt and self.llm_tokens < needed:
            raise ValueError(
                f"llm_tokens = {self.llm_tokens} for {self.n_panels} panels: a sentence needs at least "
                f"{needed // self.n_panels} of them, so give {needed} or more"
            )
        if self.exact_tokens and not (self.prompt and self.captions):
            raise ValueError(
                "exact_tokens cuts sentences off, so both a prompt (for the LLM) and captions (to draw) must be given"
            )


def check_method(name: str) -> None:
    """Raise ValueError unless `name` is an implemented method."""
    if name in LATER_METHODS and name not in METHODS:
        raise ValueError(f"method {name!r} is not implemented yet: use one of {', '.join(METHODS)}")
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: use one of {', '.join(METHODS)}")


def _integer(name, value, low, high) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value <= high:
        raise ValueError(f"{name} = {value!r}: give a whole number from {low} to {high}")
    return int(value)


def _prompt(prompt, captions) -> str:
    if not isinstance(prompt, str):
        raise ValueError(f"prompt is {prompt!r}: give a string")
    if not prompt.strip() and (captions is None or prompt):
        raise ValueError(f"prompt {prompt!r} is empty: say what the story is about, or give captions alone")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise ValueError(f"prompt has {len(prompt)} characters, at most {MAX_PROMPT_CHARS} are allowed: shorten it")
    return prompt


def _captions(captions) -> tuple[str, ...]:
    captions = (captions,) if isinstance(captions, str) else tuple(captions)
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip() or len(caption) > MAX_PROMPT_CHARS:
            raise ValueError(
                f"caption {str(caption)[:60]!r}: give text of 1 to {MAX_PROMPT_CHARS} characters for every panel"
            )
    return captions


def _image_size(size) -> int | str:
    if size is None or (isinstance(size, str) and size == "auto"):
        return "auto"
    size = _integer("image_size", size, IMAGE_SIZES[0], IMAGE_SIZES[-1])
    if size not in IMAGE_SIZES:
        raise ValueError(f"image_size = {size}: give a multiple of {IMAGE_SIZES.step}, or 'auto'")
    return size


def _guidance_scale(scale) -> float | None:
    if scale is None:
        return None
    if not isinstance(scale, Real) or not 0 <= scale <= 50:
        raise ValueError(f"guidance_scale = {scale!r}: allowed are 0 to 50; leave it out for the model's own")
    return float(scale)


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
    """

    story: str
    captions: tuple[str, ...]
    panels: list[Image.Image]
    timings: dict
    tokens_run: int
    steps_run: int
    job: StoryJob
    provenance: dict = field(default_factory=dict)

    def strip(self, gap: int = 4) -> Image.Image:
        """The panels side by side, `gap` white pixels between them."""
        width, height = self.panels[0].size
        strip = Image.new("RGB", (len(self.panels) * (width + gap) - gap, height), "white")
        for i, panel in enumerate(self.panels):
            strip.paste(panel, (i * (width + gap), 0))
        return strip

    def save(self, folder) -> Path:
        """Write story.txt, captions.txt, panel_1.png ..., strip.png and story.json into `folder`, all or nothing.

        Raises ValueError if `folder` is a file or a folder with something in it.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is there already and not an empty folder: name another one")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            self._write(partial)
            partial.chmod(0o755)
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial)
            raise
        return folder

    def _write(self, folder: Path) -> None:
        (folder / "story.txt").write_text(self.story + "\n", encoding="utf-8")
        (folder / "captions.txt").write_text("\n".join(self.captions) + "\n", encoding="utf-8")
        for i, panel in enumerate(self.panels, start=1):
            panel.save(folder / f"panel_{i}.png")
        self.strip().save(folder / "strip.png")
        facts = {
            "job": asdict(self.job),
            "story": self.story,
            "captions": self.captions,
            "tokens_run": self.tokens_run,
            "steps_run": self.steps_run,
            "timings": self.timings,
            "provenance": self.provenance,
        }
        (folder / "story.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
