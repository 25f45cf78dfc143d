"""The first workload: stories told by an LLM and illustrated by an LDM."""

import io
import time
from collections.abc import Callable
from typing import ClassVar

from stlib.serving.workloads.protocol import Progress

PROBE_STEPS, PROBE_TOKENS = 2, 0  # what notebook 05 found best for at most 5 % of the mean job


class StoryWorkload:
    """Stories told and illustrated by a Storyteller; the parameters are the fields of a StoryJob.

    models, device, precision, llm_dtype: as in `Storyteller.from_pretrained`.
    probe_steps, probe_tokens: how often a probe repeats one guided denoising step of one picture, and one decoded
    token; of each kind the fastest counts.
    """

    name = "story"
    fields: ClassVar = {"prompt": "", "n_panels": ..., "captions": None, "llm_tokens": ..., "exact_tokens": False,
                        "steps": ..., "image_size": ..., "guidance_scale": ..., "seed": None}
    drawn_first = ("n_panels", "steps", "llm_tokens", "image_size", "guidance_scale")  # the committed jobs rest on it

    def __init__(self, models="embedded", device="auto", precision="fp32", llm_dtype="auto", *,
                 probe_steps: int = PROBE_STEPS, probe_tokens: int = PROBE_TOKENS):
        from stlib.generation import Storyteller  # seconds to import, which a sleeping replica need not wait for

        self.storyteller = Storyteller.from_pretrained(models, device, precision, llm_dtype)
        self.probe_steps, self.probe_tokens = probe_steps, probe_tokens
        self._step = self._token = None

    def load(self) -> None:
        """Load both models and do one small job; its last calls of LLM and denoiser are kept as the probe's pieces."""
        job = self._job({"prompt": "a fox", "captions": ["a fox"], "llm_tokens": 4, "exact_tokens": True, "steps": 2})
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

        Payload: story, captions, panels as PNG bytes. Products: tokens_run, steps_run, seconds by stage.
        """
        result = self.storyteller.tell(self._job(params), on_progress)
        payload = {"story": result.story, "captions": result.captions, "panels": [_png(p) for p in result.panels]}
        stages = {f"{stage}_s": sum(spent) if isinstance(spent, list) else spent
                  for stage, spent in result.timings.items() if stage != "total"}
        return payload, {"tokens_run": result.tokens_run, "steps_run": result.steps_run, **stages}

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

    @staticmethod
    def _job(params: dict):
        from stlib.generation import StoryJob

        unknown = set(params) - set(StoryJob.__dataclass_fields__)
        if unknown:
            raise ValueError(f"a story has no parameter {sorted(unknown)[0]!r}: it has "
                             f"{', '.join(StoryJob.__dataclass_fields__)}")
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


def _timed(call: Callable[[], None]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _png(panel) -> bytes:
    file = io.BytesIO()
    panel.save(file, "PNG", compress_level=1)
    return file.getvalue()
