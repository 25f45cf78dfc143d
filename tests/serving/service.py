"""The service for tests: in a thread of the test, or as the command that a user starts."""

import asyncio
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import httpx
import psutil

from stlib import paths
from stlib.serving.api import make_app
from stlib.serving.dispatcher import Dispatcher
from stlib.serving.rules import read_menu
from stlib.serving.server import in_thread

QUICK = {"captions": ["a fox"], "steps": 1, "image_size": 64}  # a tenth of a second
LONG = {"captions": ["a fox"] * 4, "steps": 30}


class Caller:
    """Requests to a service at `url`."""

    url: str
    client: httpx.Client

    def queue(self) -> dict:
        return self.client.get("/queue").json()

    def send(self, body, **options):
        return self.client.post("/stories", json=body, **options)


class Served(Caller):
    """A dispatcher and its server on a free port, in a thread."""

    def __init__(self, replicas=1, workload="story", **options):
        options = {"menu": read_menu(),
                   "estimate": lambda params, method: 0.1 if params.get("steps") == 1 else 1.5} | options
        self.dispatcher = Dispatcher(workload, replicas, method="parallel", **options)
        self.stack = ExitStack()

    def __enter__(self):
        began = time.monotonic()
        self.stack.enter_context(self.dispatcher)
        self.start_s = time.monotonic() - began
        self.url = self.stack.enter_context(in_thread(make_app(self.dispatcher)))
        self.client = self.stack.enter_context(httpx.Client(base_url=self.url, timeout=60))
        return self

    def __exit__(self, *_):
        self.stack.close()


class Command(Caller):
    """`python -m stlib serve` on a free port."""

    def __init__(self, *options: str):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.process, self.url = start(port, *options), f"http://127.0.0.1:{port}"

    def __enter__(self):
        self.client = httpx.Client(base_url=self.url, timeout=60)
        until(self._ready, timeout_s=120)
        return self

    def __exit__(self, *_):
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def pss_mib(self) -> float:
        """Proportional set size of the command and all its processes, MiB: memory that is shared counts once."""
        tree = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return sum(one.memory_full_info().pss for one in tree) / 2**20

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.process.stdout.read()
        try:
            return self.client.get("/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


def start(port: int, *options: str) -> subprocess.Popen:
    """The command alone, its output piped."""
    return subprocess.Popen([sys.executable, "-m", "stlib", "serve", "--port", str(port), *options], cwd=paths.ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def a_hundred_go(served, ask):
    """A hundred clients ask, by `ask(caller)`, and go: their jobs are out of the system within 2 s, none was done."""
    before = served.queue()

    async def go():
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=60) as caller:
            tasks = [asyncio.ensure_future(ask(caller)) for _ in range(100)]
            while (await caller.get("/queue")).json()["offered"] < before["offered"] + 100:
                await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(go())
    gone = time.monotonic()
    until(lambda: served.queue()["in_system"] == 0)
    assert time.monotonic() - gone < 2.0
    after = served.queue()
    assert after["cancelled"] - before["cancelled"] == 100 and after["completed"] == before["completed"]


def until(condition, timeout_s=30.0):
    """Wait until condition() holds; a test that waits too long fails."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
