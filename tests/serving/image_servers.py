"""Servers of the OpenAI Images call that are not ours, whose queues are known: they sleep, and draw a dot."""

import json
import queue
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
STEP_S = {1: 0.167, 2: 0.183, 4: 0.240, 8: 0.425}  # published, of a step with so many requests in it, at 512 pixels


class Places:
    """k places and one queue, first come first served; service_s(body) seconds each."""

    def __init__(self, k, service_s):
        self.waiting, self.service_s = queue.SimpleQueue(), service_s
        for _ in range(k):
            threading.Thread(target=self._work, daemon=True).start()

    def serve(self, body):
        done = threading.Event()
        self.waiting.put((body, done))
        done.wait()

    def _work(self):
        while True:
            body, done = self.waiting.get()
            time.sleep(self.service_s(body))
            done.set()


class StepWise:
    """Continuous batching: at every step those that wait join, up to `most`; a step takes what its number makes it."""

    def __init__(self, most=8, scale=1.0):
        self.waiting, self.most, self.scale = queue.SimpleQueue(), most, scale
        threading.Thread(target=self._work, daemon=True).start()

    def step_s(self, together):
        return self.scale * float(np.interp(together, list(STEP_S), list(STEP_S.values())))

    def serve(self, body):
        done = threading.Event()
        self.waiting.put([body["num_inference_steps"], done])
        done.wait()

    def _work(self):
        here = []
        while True:
            if not here:
                here.append(self.waiting.get())
            while len(here) < self.most and not self.waiting.empty():
                here.append(self.waiting.get())
            time.sleep(self.step_s(len(here)))
            for one in here:
                one[0] -= 1
                if one[0] == 0:
                    one[1].set()
            here = [one for one in here if one[0]]


@contextmanager
def serving(engine, *, answer=None, token=None, certificate=None):
    """The URL of a server in front of an engine. answer(handler, n, body): what it does instead, if True."""
    count = {"n": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status, content, **headers):
            text = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": len(text)}.items():
                self.send_header(name, str(value))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):
            self.reply(200, {"data": []})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body)
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                return self.reply(401, {"error": "no token"})
            count["n"] += 1
            if answer and answer(self, count["n"], body):
                return None
            engine.serve(body)
            return self.reply(200, {"data": [{"b64_json": DOT}] * body["n"]})

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 256

    seen, server = [], Server(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
