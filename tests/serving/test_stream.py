"""`POST /stories` with stream: true: server-sent events, and what becomes of streams whose end goes away."""

import asyncio
import json
import os
import signal
import socket
import time

import httpx
import numpy as np
import pytest
from service import Served, a_hundred_go, until

from stlib import report
from stlib.serving import api

ray = pytest.importorskip("ray")
UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=None)
ASKED = {"captions": ["a fox", "a cat", "a dog"], "steps": 4, "image_size": 64, "method": "sequential", "seed": 3}
ENDLESS = {"captions": ["a fox"] * 4, "steps": 200, "image_size": 160}


@pytest.fixture(scope="module")
def served(cluster):
    with Served() as one:
        yield one


def events(served, body) -> list[tuple]:
    """(name, data, seconds after it was asked for) of each."""
    told, began = [], time.monotonic()
    with served.client.stream("POST", "/stories", json=body | {"stream": True}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        for line in lines:
            if name := line.partition("event: ")[2]:
                told.append((name, json.loads(next(lines).removeprefix("data: ")), time.monotonic() - began))
    return told


def test_the_panels_come_as_they_are_finished_and_are_those_of_the_reply(served):
    whole = served.send(ASKED).json()
    told = events(served, ASKED)
    names = [name for name, *_ in told]
    assert names[:2] == ["queued", "started"] and names[-1] == "done" and set(names[2:-1]) == {"progress", "part"}
    assert told[0][1]["place"] == 1 and told[1][1] == {"replica": 0, "method": "sequential", "attempt": 1}
    parts = [(data, at) for name, data, at in told if name == "part"]
    assert [data["number"] for data, _ in parts] == [1, 2, 3] and {data["of"] for data, _ in parts} == {3}
    done, at = told[-1][1:]
    assert [data["png"] for data, _ in parts] == whole["panels"] == done["panels"]
    assert parts[0][1] < 0.6 * at
    assert done["times_s"]["first"] < 0.6 * done["times_s"]["service"] and done["story"] == whole["story"]
    progress = [data for name, data, _ in told if name == "progress"]
    assert progress[-1] == {"stage": "pictures", "done": 12, "total": 12}


def test_a_method_that_draws_all_at_once_shows_the_first_panel_last(served):
    told = events(served, ASKED | {"method": "parallel"})
    done = told[-1][1]
    assert [name for name, *_ in told][-4:] == ["part"] * 3 + ["done"]
    assert done["times_s"]["first"] > 0.8 * done["times_s"]["service"]


def test_what_is_refused_is_refused_as_ever(served):
    answer = served.send({"captions": [], "stream": True})
    assert answer.status_code == 422 and answer.json()["error"]["param"] == "captions"


def test_a_deadline_that_passes_ends_the_stream_with_its_error(served):
    async def both():
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as caller:
            ahead = asyncio.create_task(caller.post("/stories", json=ASKED | {"steps": 40}))
            while not (await caller.get("/queue")).json()["busy"]:
                await asyncio.sleep(0.01)
            late = await caller.post("/stories", json=ASKED | {"stream": True, "deadline_s": 0.05})
            return (await ahead).status_code, late

    status, late = asyncio.run(both())
    assert status == 200 and late.status_code == 200
    last = late.text.strip().splitlines()[-2:]
    assert last[0] == "event: error" and json.loads(last[1][6:])["error"]["code"] == "deadline_passed"


def test_a_hundred_streams_that_go(served):
    """All opened, one of them served: it stops at its next step, the others are never started."""
    async def one(caller):
        async with caller.stream("POST", "/stories", json=ENDLESS | {"stream": True}) as answer:
            async for _ in answer.aiter_lines():
                pass

    a_hundred_go(served, one)
    assert served.send(ASKED).status_code == 200


def test_a_stream_whose_client_takes_nothing_is_left(monkeypatch, capsys):
    monkeypatch.setattr(api, "STALLED_S", 0.1)

    async def events():
        yield api.as_event("queued", {})

    async def never(*_):
        await asyncio.Event().wait()

    stream = api.EventStream(events())
    asyncio.run(asyncio.wait_for(stream({"type": "http", "asgi": {"spec_version": "2.3"}}, never, never), 5))
    assert "a client stopped reading its stream and was left" in capsys.readouterr().err


def test_a_client_that_does_not_read_holds_nobody_up(served):
    """Its receive buffer is a few KiB; the panels are many times that."""
    before, body = served.queue(), json.dumps(ASKED | {"captions": ["a fox"] * 8, "steps": 3, "image_size": 160,
                                                       "stream": True})
    host, port = served.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((host, int(port)))
        client.sendall(f"POST /stories HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                       f"{len(body)}\r\n\r\n{body}".encode())
        until(lambda: served.queue()["in_system"] == 1)
        until(lambda: served.queue()["in_system"] == 0, timeout_s=60)
        assert served.send(ASKED).status_code == 200
    after = served.queue()
    assert after["offered"] - before["offered"] == 2
    assert sum(after[name] - before[name] for name in ("completed", "cancelled")) == 2


def test_a_replica_killed_while_it_streams(served):
    """The job is done again, its reader is told, and it ends once."""
    victim = ray.get(served.dispatcher.servers[0].handle.__ray_call__.remote(lambda replica: os.getpid()))
    before, names, killed = served.queue(), [], False
    with served.client.stream("POST", "/stories", json=ASKED | {"steps": 30, "stream": True}) as answer:
        for line in answer.iter_lines():
            name = line.partition("event: ")[2]
            names += [name] if name else []
            if name == "part" and not killed:
                os.kill(victim, signal.SIGKILL)
                killed = True
            elif killed and line.startswith("data: ") and names[-1] == "started":
                assert json.loads(line[6:])["attempt"] == 2
    assert names.count("started") == 2 and names.count("done") == 1 and names[-1] == "done"
    assert served.queue()["completed"] - before["completed"] == 1


@pytest.mark.slow
def test_streaming_costs_at_most_a_hundredth_of_a_job(served, record_summary):
    """Pairs of the same job, streamed and not, in turn first: the ratio of their service times."""
    job = ASKED | {"image_size": 128, "steps": 20, "captions": ["a fox"] * 4}
    seconds = {False: [], True: []}
    for pair in range(-1, 24):
        for streamed in ((False, True), (True, False))[pair % 2]:
            done = events(served, job)[-1][1] if streamed else served.send(job).json()
            if pair >= 0:
                seconds[streamed].append(done["times_s"]["service"])
    ratio, low, high = np.exp(report.mean_interval(np.log(seconds[True]) - np.log(seconds[False])))
    record_summary("streaming", {"ratio": ratio, "low": low, "high": high, "pairs": len(seconds[True])})
    assert ratio < 1.01
