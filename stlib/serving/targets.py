"""A served system behind HTTP, as a target of `replay`: the same members as a dispatcher's."""

import json
import time

import httpx
import numpy as np

from stlib.queueing.job_table import JOB_COLUMNS, OUTCOMES
from stlib.serving.replica import error_text
from stlib.serving.rules import Reply
from stlib.serving.workloads import make_workload
from stlib.settings import known

TIMES = ("arrival_s", "start_s", "finish_s")
COUNTED = ("offered", *OUTCOMES, "job_seconds", "elapsed_s")


class HttpTarget:
    """The service at `url`, one of its workload's routes takes the jobs.

    Its times, on its own clock, are brought to the run's by when GET /queue is answered: right to half a round trip.
    timeout_s: a job without an answer for so long has none.
    """

    def __init__(self, url: str, route: str = "/stories", token: str | None = None, timeout_s: float = 3600.0,
                 workload: str = "story"):
        self.name, self.workload, self._before = workload, make_workload(workload), {}
        self.asked = self.workload.routes[known("route", route, self.workload.routes)]
        self.url, self.route, self.timeout_s = url, route, timeout_s
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._reader = httpx.Client(base_url=url, headers=self.headers, timeout=10)

    def check(self, params: dict, method: str | None = None) -> None:
        """Raise ValueError for a job that the workload refuses, or that the route cannot carry."""
        self.workload.validate(params)
        self.asked.body(params, method, None)

    def reset(self) -> None:
        """Begin a run: time zero is now. Raises RuntimeError if the service is away, or jobs are in its system."""
        state = min((self._state() for _ in range(5)), key=lambda one: one["trip_s"])
        if state["in_system"]:
            raise RuntimeError(f"{state['in_system']:.0f} jobs are in the service's system: wait for them first")
        # a server closes a connection that idles for 5 s: one closed while it is used again loses a job
        limits = httpx.Limits(keepalive_expiry=2.0, max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=self.timeout_s, limits=limits)
        self._before, self.zero_s = self._state(), time.monotonic()
        self._ahead_s = state["elapsed_s"] + self.zero_s - (state["asked_s"] + state["trip_s"] / 2)  # of its clock

    async def submit(self, params: dict, *, method: str | None = None, deadline_s: float | None = None,
                     job_id: int, scheduled_s: float) -> Reply:
        """Send a job; returns when it is answered, an error too. Raises for an answer that is none, of any kind."""
        limit = None if deadline_s == np.inf else deadline_s
        answer = await self._client.post(self.route, json=self.asked.body(params, method, limit))
        if "X-Job" not in answer.headers:
            raise RuntimeError(f"{answer.status_code}, {answer.text[:200]}")
        told, products = (_told(answer.headers[name]) for name in ("X-Job", "X-Products"))
        row = {name: told[name] if dtype == "category" else np.dtype(dtype).type(told[name])
               for name, dtype in JOB_COLUMNS.items()}
        if row["outcome"] not in OUTCOMES or not isinstance(row["method"], str | float):
            raise ValueError(f"outcome {row['outcome']!r}, method {row['method']!r}: no row of a job table")
        row |= {name: row[name] - self._ahead_s for name in TIMES} | {"job_id": job_id, "scheduled_s": scheduled_s}
        return Reply(row, None, products, None if answer.is_success else answer.json()["error"]["message"])

    async def drain(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def queue(self) -> dict:
        """The service's state; its counts, job_seconds and elapsed_s are those since `reset`."""
        state = self._state()
        return state | {name: state[name] - self._before.get(name, 0) for name in COUNTED}

    def _state(self) -> dict:
        """The service's state, when it was asked for (`asked_s`, monotonic) and the seconds until it was answered."""
        began = time.monotonic()
        try:
            state = self._reader.get("/queue").raise_for_status().json()
            state |= {name: float(state[name]) for name in (*COUNTED, "in_system")}
        except (httpx.HTTPError, ValueError, TypeError, KeyError) as error:
            raise RuntimeError(f"no service at {self.url} ({error_text(error)}): start one with python -m stlib serve"
                               ) from error
        return state | {"asked_s": began, "trip_s": time.monotonic() - began}


def _told(header: str) -> dict:
    """What a header tells (JSON), NaN where that is null; raises for anything but fields."""
    return {name: np.nan if value is None else value for name, value in json.loads(header).items()}
