"""The service over HTTP, in front of a dispatcher: stories, the OpenAI Images call, the queue, health, metrics, a page.

Every reply to a job carries its row of the job table as JSON in the header X-Job, what the replica reported in
X-Products. Errors are {"error": {"message", "type", "param", "code"}}, as clients of the OpenAI API expect them.
"""

import asyncio
import base64
import json
import math
import re
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException

from stlib.generation.job import MAX_LLM_TOKENS, MAX_PANELS, MAX_PROMPT_CHARS, MAX_STEPS
from stlib.queueing.job_table import OUTCOMES
from stlib.serving.dispatcher import Dispatcher, Reply
from stlib.serving.server import Guard, _error

STATUS = {"completed": 200, "rejected": 503, "timed_out": 504, "failed": 500, "cancelled": 499}
PAGE = Path(__file__).with_name("page.html")
MODEL = "storyteller"
Text = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class StoryRequest(BaseModel):
    """The fields of a StoryJob, and the seconds that the job may wait for its start."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str = Field("", max_length=MAX_PROMPT_CHARS, examples=["a fox and a red balloon"])
    captions: list[Text] | None = Field(None, min_length=1, max_length=MAX_PANELS)
    n_panels: int | None = Field(None, ge=1, le=MAX_PANELS)
    llm_tokens: int = Field(64, ge=1, le=MAX_LLM_TOKENS)
    exact_tokens: bool = False
    method: str | None = Field(None, description="left out: the server's choice")
    steps: int = Field(20, ge=1, le=MAX_STEPS)
    image_size: int | Literal["auto"] = "auto"
    guidance_scale: float | None = Field(None, ge=0, le=50)
    precision: str | None = None
    early_exit: bool = False
    seed: Seed = 0
    deadline_s: float | None = Field(None, ge=0)


class ImagesRequest(BaseModel):
    """The OpenAI Images call; fields that are not named here are ignored."""

    model_config = ConfigDict(strict=True)
    prompt: Text
    n: int = Field(1, ge=1, le=MAX_PANELS)
    size: str | None = Field(None, pattern=r"^(auto|\d{1,5}x\d{1,5})$", examples=["128x128"])
    response_format: Literal["b64_json"] | None = None
    model: str | None = None
    seed: Seed = 0
    num_inference_steps: int = Field(20, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0, le=50)

    @field_validator("size")
    @classmethod
    def square(cls, size: str | None) -> str | None:
        """The pictures are square."""
        if size and len(set(size.split("x"))) > 1:
            raise ValueError(f"{size}: the pictures are square, such as 128x128")
        return size

    def params(self) -> dict:
        """As a job with given captions, without the LLM."""
        side = (self.size or "auto").split("x")[0]
        return {"captions": [self.prompt] * self.n, "image_size": "auto" if side == "auto" else int(side),
                "steps": self.num_inference_steps, "guidance_scale": self.guidance_scale, "seed": self.seed}


def make_app(dispatcher: Dispatcher, token: str | None = None) -> FastAPI:
    """The application; the dispatcher is started before and stopped after. token: of every caller, but for OPEN."""

    @asynccontextmanager
    async def lifespan(app):
        dispatcher.reset()
        yield
        await dispatcher.drain()

    app = FastAPI(title="Storyteller", lifespan=lifespan, description="Stories told by an LLM and illustrated by a "
                  "latent diffusion model. Every reply says how long the job waited and was expected to wait.")
    app.add_middleware(Guard, token=token)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    observed = Observed(dispatcher)

    async def answer(request: Request, content, params: dict, method=None, deadline_s=None) -> Response:
        """Have the job done and send content(payload); a client that goes takes its waiting job with it."""
        try:
            dispatcher.check(params, method)
        except ValueError as error:
            return _refused(error)
        job = asyncio.ensure_future(dispatcher.submit(params, method=method, deadline_s=deadline_s))
        gone = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait([job, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not job.done():
            job.cancel()
            await asyncio.wait([job])
            return Response(status_code=STATUS["cancelled"])
        reply = job.result()
        observed.add(reply)
        return _reply(reply, content, dispatcher)

    @app.post("/stories", responses=DOCUMENTED)
    async def stories(body: StoryRequest, request: Request):
        """Tell a story and draw its panels (PNG, base64)."""
        params = body.model_dump(exclude_none=True, exclude={"deadline_s", "method"})
        return await answer(request, lambda payload: payload | {"panels": _base64(payload["panels"])}, params,
                            body.method, body.deadline_s)

    @app.post("/v1/images/generations", responses=DOCUMENTED)
    async def images(body: ImagesRequest, request: Request):
        """Draw pictures: the OpenAI Images call, in the same queue."""
        return await answer(request, lambda payload: {
            "created": int(time.time()), "output_format": "png",
            "data": [{"b64_json": panel} for panel in _base64(payload["panels"])]}, body.params())

    @app.get("/v1/models")
    async def models() -> dict:
        """What can be named as `model`; there is one."""
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": MODEL}]}

    @app.get("/queue")
    async def queue() -> dict:
        """The dispatcher's counts, their time integral since it started, and the wait to expect now (seconds)."""
        return _plain(dispatcher.queue() | {"expected_wait_s": dispatcher.expected_wait_s()})

    @app.get("/healthz")
    async def alive() -> dict:
        """The server answers."""
        return {"status": "alive"}

    @app.get("/health")
    @app.get("/readyz")
    async def ready():
        """A replica is up: it has loaded its models and done a real inference."""
        up = dispatcher.queue()["replicas"]
        return JSONResponse({"status": "ready" if up else "no replica is up", "replicas": up}, 200 if up else 503)

    @app.get("/metrics")
    async def metrics():
        """For Prometheus."""
        return Response(generate_latest(observed.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page():
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    return app


DOCUMENTED = {400: {"description": "not JSON"}, 401: {"description": "no token"}, 413: {"description": "too large"},
              422: {"description": "a field is refused"}, 500: {"description": "the job failed"},
              503: {"description": "the queue is full"}, 504: {"description": "the deadline passed in the queue"}}


class Observed:
    """What /metrics shows: the dispatcher's state at the scrape, and histograms of completed jobs by method."""

    def __init__(self, dispatcher: Dispatcher):
        self.dispatcher, self.registry = dispatcher, CollectorRegistry()
        self.registry.register(self)
        bounds = [0.1 * 2**i for i in range(12)]
        self.response, self.wait = (
            Histogram(f"job_{name}_seconds", text, ["method"], buckets=bounds, registry=self.registry)
            for name, text in (("response", "from arrival to finish"), ("wait", "from arrival to start")))

    def add(self, reply: Reply) -> None:
        """Count a job that has its outcome."""
        if reply.row["outcome"] == "completed":
            row = reply.row
            self.response.labels(row["method"]).observe(row["finish_s"] - row["arrival_s"])
            self.wait.labels(row["method"]).observe(row["start_s"] - row["arrival_s"])

    def collect(self):
        """Called by the registry at each scrape."""
        state = self.dispatcher.queue()
        for name in ("replicas", "busy", "waiting", "in_system"):
            yield GaugeMetricFamily(f"dispatcher_{name}", name.replace("_", " "), value=state[name])
        jobs = CounterMetricFamily("jobs", "jobs by outcome", labels=["outcome"])
        for outcome in OUTCOMES:
            jobs.add_metric([outcome], state[outcome])
        yield jobs


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _reply(reply: Reply, content, dispatcher: Dispatcher) -> Response:
    row, outcome = reply.row, reply.row["outcome"]
    headers = {"X-Job": json.dumps(_plain(row)), "X-Products": json.dumps(_plain(reply.products))}
    if outcome == "rejected":
        wait = dispatcher.expected_wait_s()
        headers["Retry-After"] = str(1 if math.isnan(wait) else max(1, math.ceil(wait)))
    if outcome != "completed":
        says = {"rejected": "the queue is full: try again later", "timed_out": "its deadline passed while it waited",
                "failed": f"the job failed: {reply.error}"}
        return _error(STATUS[outcome], says[outcome], headers=headers)
    times = {"wait": row["start_s"] - row["arrival_s"], "service": row["service_s"],
             "response": row["finish_s"] - row["arrival_s"],
             **{name.removesuffix("_s"): value for name, value in reply.products.items()
                if name.endswith("_s") and not name.startswith(("probe", "expected", "run", "service"))}}
    said = {"method": row["method"], "times_s": times, "expected_wait_s": reply.products.get("expected_wait_s")}
    return JSONResponse(content(reply.payload) | _plain(said), 200, headers)


async def _invalid(_, error: RequestValidationError) -> Response:
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return _error(400, f"the body is not JSON: {problem['ctx']['error']}")
    field = ".".join(str(part) for part in problem["loc"] if part != "body")
    return _error(422, f"{field or 'body'}: {problem['msg']}", field or None)


def _refused(error: ValueError) -> Response:
    """What the workload refuses; the message names the field."""
    named = [name for name in StoryRequest.model_fields if re.search(rf"\b{name}\b", str(error))]
    return _error(422, str(error), named[0] if named else None)


async def _http_error(_, error: HTTPException) -> Response:
    return _error(error.status_code, str(error.detail), headers=error.headers)


def _base64(panels: list[bytes]) -> list[str]:
    return [base64.b64encode(panel).decode() for panel in panels]


def _plain(value):
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
