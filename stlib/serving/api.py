"""The service over HTTP, in front of a dispatcher: its workload's routes, the queue, health, metrics, a page.

Every reply to a job carries its row of the job table as JSON in the header X-Job, what the replica reported in
X-Products. Errors are {"error": {"message", "type", "param", "code"}}, as clients of the OpenAI API expect them.
"""

import asyncio
import json
import math
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic_core import to_jsonable_python
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from stlib.queueing.job_table import OUTCOMES
from stlib.serving.dispatcher import Dispatcher, Reply
from stlib.serving.server import Guard, error_response

# status, code and message of a job's other outcomes
UNFINISHED = {"rejected": (503, "queue_full", "the queue is full: try again later"),
              "timed_out": (504, "deadline_passed", "its deadline passed while it waited"),
              "failed": (500, "job_failed", "the job failed: {}")}
STALLED_S = 30.0
plain = partial(to_jsonable_python, inf_nan_mode="null")  # JSON has no NaN and no infinity
MODEL = {"id": "storyteller", "object": "model", "created": 0, "owned_by": "storyteller"}


def make_app(dispatcher: Dispatcher, token: str | None = None) -> FastAPI:
    """The application; the dispatcher is started before and stopped after. token: of every caller, but for OPEN."""

    @asynccontextmanager
    async def lifespan(app):
        dispatcher.reset()
        yield
        await dispatcher.drain()

    app = FastAPI(title="Storyteller", lifespan=lifespan, middleware=[Middleware(Guard, token=token)],
                  exception_handlers={RequestValidationError: _invalid, HTTPException: _http_error},
                  description="Every reply says how long the job waited and was expected to wait.")
    observed = Observed(dispatcher)

    async def answer(request: Request, body) -> Response:
        """Have the job done and send its reply; a client that goes takes its job with it."""
        told = asyncio.Queue() if getattr(body, "stream", False) else None
        job = asyncio.ensure_future(dispatcher.submit(
            body.params(), method=body.method, deadline_s=body.deadline_s,
            on_event=told and (lambda name, data: told.put_nowait((name, data)))))
        gone = asyncio.ensure_future(_disconnected(request))
        gone.add_done_callback(lambda _: job.cancel())  # does nothing to one that is done
        if told:
            job.add_done_callback(lambda _: told.put_nowait(None))
            if first := await told.get():  # else it was refused
                return EventStream(events(body, job, gone, told, first))
        try:
            reply = await job
        except ValueError as error:
            return _refused(error, type(body))
        except asyncio.CancelledError:
            return Response(status_code=499)  # which nobody reads
        finally:
            gone.cancel()
        return await _reply(reply, body, observed)

    async def events(body, job: asyncio.Future, gone: asyncio.Future, told: asyncio.Queue, event: tuple | None):
        """The job's events until it has ended, then its reply as the last one."""
        try:
            while event:
                name, data = event
                yield as_event(name, plain(body.part(data) if name == "part" else data))
                event = await told.get()
            if not job.cancelled():
                reply = await _reply(await job, body, observed)
                yield as_event("done" if reply.status_code == 200 else "error", json.loads(reply.body))
        finally:
            gone.cancel()

    for path, asked in dispatcher.workload.routes.items():
        @app.post(path, responses=DOCUMENTED, name=path, description=asked.__doc__)
        async def post(request: Request, body: asked):
            return await answer(request, body)

    @app.get("/v1/models")
    async def models() -> dict:
        """What can be named as `model`; there is one."""
        return {"object": "list", "data": [MODEL]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str):
        """The model of that name."""
        if name != MODEL["id"]:
            return error_response(404, f"there is no model {name!r}: use {MODEL['id']}", "model", "model_not_found")
        return MODEL

    @app.get("/v1/model_info")
    async def model_info() -> dict:
        """What SGLang's load client asks for before it begins."""
        return {"model_path": MODEL["id"], "is_generation": False}

    @app.get("/queue")
    async def queue() -> dict:
        """The dispatcher's counts, their time integral since it started, and the wait to expect now (seconds)."""
        return plain(dispatcher.queue() | {"expected_wait_s": dispatcher.expected_wait_s()})

    @app.get("/methods")
    async def methods() -> dict:
        """The menu: what a request may name as its `method`; left out, the service chooses."""
        return {"methods": dispatcher.names}

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
        return Response(generate_latest(observed), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page():
        if "/stories" not in dispatcher.workload.routes:
            return RedirectResponse("/docs")
        return HTMLResponse(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))

    return app


class EventStream(StreamingResponse):
    """Server-sent events; a client that does not read for STALLED_S is left."""

    def __init__(self, events):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope, receive, send):
        """As of Starlette's."""
        async def in_time(message):
            await asyncio.wait_for(send(message), STALLED_S)

        try:
            await super().__call__(scope, receive, in_time)
        except TimeoutError:
            print("a client stopped reading its stream and was left", file=sys.stderr)


def as_event(name: str, data: dict) -> str:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


DOCUMENTED = {400: {"description": "not JSON"}, 401: {"description": "no token"}, 413: {"description": "too large"},
              415: {"description": "compressed, or no JSON by its type"},
              422: {"description": "a field is refused"}, 500: {"description": "the job failed"},
              503: {"description": "the queue is full"}, 504: {"description": "the deadline passed in the queue"}}


class Observed(CollectorRegistry):
    """What /metrics shows: the dispatcher's state at the scrape, and histograms of completed jobs by method."""

    def __init__(self, dispatcher: Dispatcher):
        super().__init__()
        self.dispatcher, bounds = dispatcher, [0.1 * 2**i for i in range(12)]
        self.seconds = {name: Histogram(f"job_{name}_seconds", f"from arrival to {end}", ["method"], buckets=bounds,
                                        registry=self) for name, end in (("response", "finish"), ("wait", "start"))}

    def collect(self):
        """Called at each scrape."""
        state = self.dispatcher.queue()
        for name in ("replicas", "busy", "waiting", "in_system"):
            yield GaugeMetricFamily(f"dispatcher_{name}", name.replace("_", " "), value=state[name])
        ratio = GaugeMetricFamily("job_speed_ratio", "measured over estimated seconds of the latest jobs",
                                  labels=["method"])
        for method, value in state.get("speed_ratio", {}).items():
            ratio.add_metric([method], value)
        for name in ("told_wait_s", "real_wait_s"):
            if state.get(name) is not None:
                yield GaugeMetricFamily(f"job_{name.removesuffix('_s')}_seconds", "mean of the last hour's jobs",
                                        value=state[name])
        yield ratio
        jobs = CounterMetricFamily("jobs", "jobs by outcome", labels=["outcome"])
        for outcome in OUTCOMES:
            jobs.add_metric([outcome], state[outcome])
        yield from (jobs, *super().collect())


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _reply(reply: Reply, body, observed: Observed) -> Response:
    row, outcome = reply.row, reply.row["outcome"]
    headers = {"X-Job": json.dumps(plain(row)), "X-Products": json.dumps(plain(reply.products))}
    if outcome == "rejected":
        headers["Retry-After"] = str(math.ceil(max(1, observed.dispatcher.expected_wait_s())))  # NaN is not above 1
    if outcome != "completed":
        status, code, says = UNFINISHED[outcome]
        return error_response(status, says.format(reply.error), code=code, headers=headers)
    times = {"wait": row["start_s"] - row["arrival_s"], "service": row["service_s"],
             "response": row["finish_s"] - row["arrival_s"],
             **{name.removesuffix("_s"): value for name, value in reply.products.items()
                if name.endswith("_s") and not name.startswith(("probe", "expected", "run", "service"))}}
    for name, histogram in observed.seconds.items():
        histogram.labels(row["method"]).observe(times[name])
    said = {"method": row["method"], "times_s": times, "expected_wait_s": reply.products["expected_wait_s"]}
    if reply.products.get("extrapolated"):
        said["extrapolated"] = True
    content = await asyncio.to_thread(body.reply, reply.payload)  # it may encode pictures
    return JSONResponse(content | plain(said), 200, headers)


async def _invalid(_, error: RequestValidationError) -> Response:
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    if problem["type"] == "json_invalid":
        return error_response(400, f"the body is not JSON: {cause}", code="invalid_json")
    if isinstance(cause, ValueError):
        return _refused(cause)
    return error_response(422, "the body must be a JSON object of fields", code="invalid_body")


def _refused(error: ValueError, asked: type | None = None) -> Response:
    """What a workload refuses; a field is named as the caller named it."""
    field, message = getattr(error, "field", None), str(error)
    if asked and field in asked.model_fields and (alias := asked.model_fields[field].alias):
        field, message = alias, message.replace(field, alias)
    return error_response(422, message, field)


async def _http_error(_, error: HTTPException) -> Response:
    return error_response(error.status_code, str(error.detail), headers=error.headers)
