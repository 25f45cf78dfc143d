"""What the service survives: overload, clients that go, faults in the model, a killed replica, SIGTERM."""

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from service import LONG, QUICK, Command, Served, a_hundred_go, start, until

from stlib.queueing.job_table import OUTCOMES

ray = pytest.importorskip("ray")
UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=None)
DRAWN = {"captions": ["a fox"], "steps": 6}
ENDLESS = {"captions": ["a fox"] * 4, "steps": 200, "image_size": 160}  # a minute or more


@pytest.fixture(scope="module")
def served(cluster):
    with Served(2, routing="jsq") as one:
        yield one


def both_at_once(served, body) -> list:
    """Two requests side by side: under jsq one on each replica."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(served.send, [body] * 2))


def test_a_hundred_clients_that_go(served):
    """All at once, two of whose jobs run: these stop at their next step, those that wait are never started."""
    a_hundred_go(served, lambda caller: caller.post("/stories", json=ENDLESS))
    assert [answer.status_code for answer in both_at_once(served, QUICK)] == [200, 200]


@pytest.mark.parametrize("kind, says", [("nan", "not a number"), ("exception", "out of memory")])
def test_a_fault_of_the_model_fails_that_job_alone(served, kind, says):
    """The next call of one replica's denoiser goes wrong."""
    def break_next_call(replica):
        import torch

        def fault(module, given, output):
            hook.remove()
            if kind == "exception":
                raise RuntimeError("out of memory")
            return tuple(torch.full_like(one, float("nan")) for one in output)

        hook = replica.workload.storyteller.pipe.unet.register_forward_hook(fault)

    ray.get(served.dispatcher.servers[0].handle.__ray_call__.remote(break_next_call))
    answers = sorted(both_at_once(served, DRAWN), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [200, 500]
    assert says in answers[1].json()["error"]["message"]
    assert [answer.status_code for answer in both_at_once(served, DRAWN)] == [200, 200]


@pytest.mark.slow
def test_a_replica_killed_under_load(served):
    """Every request is answered once; the job in flight is done again, as its row says."""
    before = served.queue()
    victim = ray.get(served.dispatcher.servers[0].handle.__ray_call__.remote(lambda replica: os.getpid()))
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(served.send, LONG) for _ in range(8)]
        until(lambda: served.queue()["in_system"] == 8)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: served.queue()["replicas"] == 1)
        until(lambda: served.queue()["replicas"] == 2, timeout_s=90)
        back_s = time.monotonic() - killed
        answers = [answer.result() for answer in answers]
    assert [answer.status_code for answer in answers] == [200] * 8
    assert sorted('"attempt": 2' in answer.headers["X-Job"] for answer in answers) == [False] * 7 + [True]
    after = served.queue()
    assert after["offered"] - before["offered"] == 8 == after["completed"] - before["completed"]
    assert back_s < 10 + 2 * served.start_s  # the process itself starts, and loads beside a busy replica


@pytest.mark.slow
def test_overload_is_refused_at_once_and_passes():
    """Poisson arrivals at three times what a replica does, until 100 are refused; then SIGTERM with jobs in flight."""
    with Command("--method", "parallel", "--max-waiting", "8") as command:
        for _ in range(10):  # the last counts
            began = time.monotonic()
            assert command.send(DRAWN).status_code == 200
            service_s = time.monotonic() - began
        before, before_mib = command.queue(), command.pss_mib()
        answers, spent = asyncio.run(overload(command.url, rate=3 / service_s, refusals=100))
        counts, refused = Counter(answer.status_code for answer in answers), np.array([
            seconds for answer, seconds in zip(answers, spent, strict=True) if answer.status_code == 503])
        assert set(counts) == {200, 503} and counts[503] >= 100
        assert np.quantile(refused, 0.99) < 0.1
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers if answer.status_code == 503)
        after = command.queue()
        assert {name: after[name] - before[name] for name in ("offered", *OUTCOMES)} == dict.fromkeys(OUTCOMES, 0) | {
            "offered": len(answers), "completed": counts[200], "rejected": counts[503]}
        assert command.send(DRAWN).status_code == 200
        assert command.pss_mib() < 1.02 * before_mib
        ends_in_order(command)


async def overload(url: str, rate: float, refusals: int) -> tuple[list, list]:
    """Answers and their seconds, of jobs sent at `rate` whatever becomes of them until so many are refused."""
    rng, answers, spent = np.random.default_rng(3), [], []

    async def send(caller):
        began = time.monotonic()
        answers.append(await caller.post("/stories", json=DRAWN))
        spent.append(time.monotonic() - began)

    async with httpx.AsyncClient(base_url=url, limits=UNLIMITED, timeout=60) as caller, asyncio.TaskGroup() as group:
        while sum(answer.status_code == 503 for answer in answers) < refusals:
            await asyncio.sleep(rng.exponential(1 / rate))
            group.create_task(send(caller))
    return answers, spent


def ends_in_order(command: Command) -> None:
    """SIGTERM: jobs in flight, running and waiting, finish; new ones are refused; exit 0."""
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(httpx.post, f"{command.url}/stories", json=LONG, timeout=60) for _ in range(3)]
        until(lambda: command.queue()["in_system"] == 3)
        command.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{command.url}/stories", json=QUICK)
        assert [job.result().status_code for job in jobs] == [200] * 3
    assert command.process.wait(timeout=30) == 0


def test_a_taken_port_ends_the_command_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(taken.getsockname()[1])
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "another --port" in output
