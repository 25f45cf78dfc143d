"""What a load generator's clock hides: the same requests to the same server, timed as others do and as we do."""

import asyncio
import sys
import time

import numpy as np
import pandas as pd
import pytest

from stlib import paths
from stlib.queueing.simulation import run_jobs
from stlib.serving.images_server import ImagesServer, Server
from stlib.serving.replay import replay

sys.path.append(str(paths.ROOT / "tests" / "serving"))
from image_servers import Places, serving

N, SERVICE_S, RHO, ALLOWED = 400, 0.1, 0.9, 2


def requests(n=N):
    return pd.DataFrame({"job_id": range(n), "workload": "story", "captions": [("a fox",)] * n, "n_panels": 1,
                         "steps": 4, "image_size": 64})


def behind_a_semaphore(url, arrival_s):
    """Mean response of a client that lets `ALLOWED` requests through and starts each clock only then."""
    server = ImagesServer(Server(url=url))

    async def run():
        server.reset()
        door, spans = asyncio.Semaphore(ALLOWED), []

        async def one(i, at):
            await asyncio.sleep(server.zero_s + at - time.monotonic())
            async with door:
                began = time.monotonic()
                await server.submit({"captions": ("a fox",), "steps": 4, "image_size": 64}, job_id=i, scheduled_s=at)
                spans.append(time.monotonic() - began)

        await asyncio.gather(*(one(i, at) for i, at in enumerate(arrival_s)))
        await server.drain()
        return float(np.mean(spans))

    return asyncio.run(run())


def mean_response(url, arrival_s):
    table, _ = replay(requests(), arrival_s, ImagesServer(Server(url=url)), progress=False)
    assert (table["outcome"] == "completed").all()
    return float((table["reply_s"] - table["scheduled_s"]).mean())


@pytest.mark.slow
def test_a_fixed_cadence_and_a_clock_behind_a_semaphore_hide_the_queue(record_summary):
    """A place that takes 0.1 s, load 0.9: by Lindley's recursion ours is right, the two others are far too short."""
    poisson = np.random.default_rng(3).exponential(SERVICE_S / RHO, N).cumsum()
    cadence = np.arange(1, N + 1) * SERVICE_S / RHO
    with serving(Places(1, lambda body: SERVICE_S)) as (url, _):
        ours, even, late = mean_response(url, poisson), mean_response(url, cadence), behind_a_semaphore(url, poisson)
    rows = run_jobs(poisson[None], np.full((1, N, 1), SERVICE_S), np.empty((1, 0)), 1)
    true = float((rows.finish - poisson).mean())
    record_summary("clocks", {"true_s": true, "scheduled_s": ours, "fixed_cadence_s": even, "semaphore_s": late})
    assert ours == pytest.approx(true, rel=0.15)
    assert even < 0.7 * true and late < 0.85 * true
