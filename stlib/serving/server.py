"""The HTTP server around an application: its socket, its thread, its guard, the form of its errors."""

import hmac
import ipaddress
import signal
import socket
import threading
import time
from contextlib import contextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

MAX_BODY = 64 * 2**10  # bytes
OPEN = ("/", "/healthz", "/readyz", "/health")  # need no token


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """A listening socket, taken before anything is loaded.

    Raises ValueError for an address that others can reach without a token, RuntimeError if the port is taken.
    """
    if not token and not ipaddress.ip_address(socket.gethostbyname(host)).is_loopback:
        raise ValueError(f"{host} can be reached from outside: set a token with --token or STORYTELLER_TOKEN")
    try:
        return socket.create_server((host, port), backlog=2048)
    except OSError as error:
        raise RuntimeError(f"cannot listen on {host}:{port} ({error.strerror}): free the port, or name another "
                           "--port") from error


def run(app: FastAPI, sock: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; then the jobs in flight finish and new ones are refused."""
    import uvicorn

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn, once down, raises again what it caught
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[sock])


@contextmanager
def in_thread(app: FastAPI):
    """Serve the application from a thread of its own, on a free port of this machine; gives its URL."""
    import uvicorn

    sock = listen("127.0.0.1", 0, None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Guard:
    """Refuses callers without the token and bodies over MAX_BODY, before anything reads them."""

    def __init__(self, app, token: str | None = None):
        self.app, self.token = app, token

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if self.token and scope["path"] not in OPEN and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            return await _error(401, "give the token: Authorization: Bearer ...")(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MAX_BODY:
                too_large = _error(413, f"the body has more than {MAX_BODY} bytes", headers={"Connection": "close"})
                return await too_large(scope, receive, send)
        messages = iter([{"type": "http.request", "body": body}])

        async def again():
            return next(messages, None) or await receive()

        await self.app(scope, again, send)


def _error(status: int, message: str, param: str | None = None, headers: dict | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": status}}, status, headers)
