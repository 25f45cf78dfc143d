"""A server that is not ours, known by the OpenAI Images call alone: a target of `replay`, and a doer of one request."""

import ssl
import time
from typing import Annotated, Any, Literal

import httpx
import numpy as np
from pydantic import Field

from stlib.serving.replica import error_text
from stlib.serving.rules import UNSTARTED, Reply
from stlib.serving.workloads.story import StoryWorkload
from stlib.settings import Fields

METHOD = "server"  # what its requests are done by, in costs and job tables
BUSY = (429, 503)  # it refuses for now
# a connection for each request: one that is used again may be slower (40 ms, where its end sends a reply in two pieces)
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)


class Server(Fields):
    """Where a server is and what every request says beside its job: the model's name, `fields` of its own.

    trip_s: seconds that a request takes on its way, outside the server's places. The jobs are stories of captions
    alone; a job is one request, its panels the pictures asked for (n).
    """

    url: Annotated[str, Field(pattern=r"^https?://[^/\s]+.*[^/]$", description="as http://127.0.0.1:8000/v1")]
    model: str | None = None
    fields: dict[str, Any] = Field(default_factory=dict)
    trip_s: Annotated[float, Field(ge=0)] = 0.0
    workload: Literal["story"] = "story"


class ImagesServer:
    """The server, as a target of `replay` with the same members as a dispatcher's, and as a doer of `measure`.

    Of a job it tells the answer alone: start, finish and replica stay unknown. An answer of BUSY is a job rejected;
    one that is no success, holds other than n pictures, or does not come in timeout_s, failed, whatever its status.
    token: a bearer's. ca: a file of certificates to trust.
    """

    name = "story"

    def __init__(self, server: Server, token: str | None = None, ca: str | None = None, timeout_s: float = 600.0):
        self.server, self.route = server, f"{server.url}/images/generations"
        self._options = {"headers": {"Authorization": f"Bearer {token}"} if token else {}, "timeout": timeout_s,
                         "verify": ssl.create_default_context(cafile=ca), "limits": LIMITS}
        self._one = httpx.Client(**self._options)

    def check(self, params: dict, method: str | None = None) -> None:
        """Raise ValueError for a job that the Images call cannot carry."""
        StoryWorkload.check(params)
        self.body(params)

    def body(self, params: dict) -> dict:
        """What is sent for a job of these parameters; a guidance scale of 1 is left to the server.

        Raises ValueError for a job that the Images call cannot carry.
        """
        from stlib.serving.workloads.story_requests import ImagesRequest  # imported late: it takes seconds

        params = {name: value for name, value in params.items() if name != "guidance_scale" or value not in (None, 1)}
        own = {"response_format": "b64_json"} | ({"model": self.server.model} if self.server.model else {})
        return ImagesRequest.body(params, None, None) | own | self.server.fields

    def reset(self) -> None:
        """Begin a run: time zero is now. Raises RuntimeError if nothing answers there."""
        try:
            self._one.get(f"{self.server.url}/models", timeout=10)  # any answer will do, not all have this
        except httpx.HTTPError as error:
            raise RuntimeError(f"no server at {self.server.url} ({error_text(error)}): start it, or give --url, "
                               "--ca") from error
        self._client, self.zero_s = httpx.AsyncClient(**self._options), time.monotonic()

    def trip_s(self, n: int = 20) -> float:
        """The median seconds of n requests without work."""
        spans = []
        for _ in range(n):
            began = time.monotonic()
            self._one.get(f"{self.server.url}/models")
            spans.append(time.monotonic() - began)
        return float(np.median(spans))

    async def submit(self, params: dict, *, method: str | None = None, deadline_s: float | None = None, job_id: int,
                     scheduled_s: float) -> Reply:
        """Send a job; returns when it is answered, whatever the answer is."""
        row = UNSTARTED | {"job_id": job_id, "workload": self.name, "scheduled_s": scheduled_s,
                           "arrival_s": time.monotonic() - self.zero_s, "method": METHOD}
        try:
            answer = await self._client.post(self.route, json=self.body(params))
            outcome, error = judged(answer, len(params["captions"]))
        except httpx.HTTPError as problem:
            outcome, error = "failed", error_text(problem)
        return Reply(row | {"outcome": outcome}, error=error)

    async def drain(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def __call__(self, row: dict) -> dict:
        """Do one request; returns its seconds, `run_s`, and 1 as `probe_s`: nothing tells the server's speed.

        Raises RuntimeError for an answer that is not its pictures.
        """
        body, began = self.body({name: value for name, value in row.items() if value is not None}), time.monotonic()
        try:
            answer = self._one.post(self.route, json=body)
            error = judged(answer, body["n"])[1]
        except httpx.HTTPError as problem:
            error = error_text(problem)
        if error:
            raise RuntimeError(f"{self.route}: {error}")
        return {"run_s": time.monotonic() - began, "probe_s": 1.0}


def judged(answer: httpx.Response, n: int) -> tuple[str, str | None]:
    """The outcome of a request for n pictures, and what was wrong, None if nothing was."""
    said = f"{answer.status_code}, {answer.text[:200]!r}"
    if answer.status_code in BUSY:
        return "rejected", said
    try:
        pictures = answer.json()["data"] if answer.is_success else ()
        whole = [one for one in pictures if one.get("b64_json") or one.get("url")]
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = []
    return ("completed", None) if len(whole) == n else ("failed", f"{said} is not the {n} pictures asked for")


def counted(outcomes, errors) -> str:
    """What became of requests, in words: how many of each outcome, and the first error."""
    names, counts = np.unique(np.asarray(outcomes, str), return_counts=True)
    first = next((one for one in errors if isinstance(one, str)), None)
    return ", ".join(f"{n} {name}" for name, n in zip(names, counts, strict=True)) + (f"; the first error: {first}" if
                                                                                     first else "")
