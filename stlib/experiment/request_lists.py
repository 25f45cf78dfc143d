"""Published lists of image requests: what was asked for, when, and by when it was wanted."""

import ast
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field

from stlib.queueing.times import refuse_bad_times
from stlib.serving.workloads import StoryWorkload
from stlib.settings import Fields, within


class _Request(Fields):
    """The fields of a line that are read; others are left out."""

    model_config = ConfigDict(extra="ignore")
    prompt: str
    width: int | None = None
    height: int | None = None
    num_inference_steps: int
    n: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    request_id: Any = None
    timestamp: Annotated[float | None, Field(ge=0, description="seconds")] = None
    slo_ms: Annotated[float | None, Field(gt=0, description="milliseconds")] = None


def read_requests(path: str | Path) -> tuple[pd.DataFrame, np.ndarray | None, np.ndarray | None]:
    """The jobs, their arrivals (n,) in seconds from the first one's zero, and their deadlines (n,) in seconds.

    A line a request: `Request(request_id=1, prompt='a fox', width=512, height=512, num_inference_steps=20,
    timestamp=0.5, slo_ms=3000)`, or a JSON object of the same fields; timestamp and slo_ms in all lines or none
    (None then). Raises ValueError, with the line, for one that is neither, or that is no job.
    """
    requests, jobs = [], []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): name a list of requests") from error
    for i, line in enumerate(lines, start=1):
        if line.strip():
            with within(f"{path}, line {i}"):
                one = _Request(**_fields(line))
                size = "auto" if one.width is None else f"{one.width}x{one.height}"
                job = {"captions": (one.prompt,) * (one.n or 1), "n_panels": one.n or 1, "image_size": size,
                       "steps": one.num_inference_steps, "guidance_scale": one.guidance_scale, "seed": one.seed}
                requests, jobs = [*requests, one], [*jobs, StoryWorkload.check(job).model_dump()]
    if not requests:
        raise ValueError(f"{path} holds no request: give a line each")
    table = pd.DataFrame(jobs)[list(StoryWorkload.fields)].assign(job_id=range(len(jobs)), workload="story")
    arrival, deadline = (np.array([getattr(one, name) for one in requests], object) for name in ("timestamp", "slo_ms"))
    for name, values in (("timestamp", arrival), ("slo_ms", deadline)):
        if 0 < sum(value is not None for value in values) < len(values):
            raise ValueError(f"{path}: {name} is in some lines only: give it in all or none")
    arrival, deadline = (None if values[0] is None else values.astype(float) for values in (arrival, deadline))
    if arrival is not None:
        refuse_bad_times(arrival, lambda i: f"{path}, request {i}: timestamp {arrival[i]}")
    return table, arrival, None if deadline is None else deadline / 1000


def _fields(line: str) -> dict:
    """The fields of one line."""
    try:
        if line.lstrip().startswith("{"):
            return json.loads(line)
        [call] = ast.parse(line.strip()).body
        if call.value.func.id == "Request" and not call.value.args:
            return {one.arg: ast.literal_eval(one.value) for one in call.value.keywords}
    except (ValueError, SyntaxError, AttributeError, TypeError):
        pass
    raise ValueError(f"{line.strip()[:80]!r} is no request: give Request(prompt='...', width=..., height=..., "
                     "num_inference_steps=...), or a JSON object of these fields")
