"""The HTTP server around an application: its socket, its thread, its guard, the form of its errors."""

import hmac
import ipaddress
import json
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus

import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from starlette.datastructures import Headers

MAX_BODY = 64 * 2**10  # bytes
OPEN = ("/", "/healthz", "/readyz", "/health")  # need no token


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """A listening socket, taken before anything is loaded; of a name's addresses an IPv4 one before others.

    Raises ValueError for a port out of range, a host without an address, and one that others can reach without a
    token; RuntimeError if the address cannot be had.
    """
    if port not in range(2**16):
        raise ValueError(f"port = {port}: give 0 (any free one) to {2**16 - 1}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"host {host!r} has no address ({error}): give 127.0.0.1, ::1, 0.0.0.0 or an address of this "
                         "machine") from error
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    if not token and not ipaddress.ip_address(address[0]).is_loopback:
        raise ValueError(f"{host} can be reached from outside: set a token with --token or STORYTELLER_TOKEN")
    try:
        sock = socket.create_server(address, family=family, backlog=2048)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it only where the protocol is named
        return sock
    except OSError as error:
        raise RuntimeError(f"cannot listen on {host}, port {port} ({error.strerror}): free the port, or name another "
                           "--port, or an address of this machine with --host") from error


def url_of(sock: socket.socket) -> str:
    """Where a listening socket is reached from this machine."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: FastAPI, sock: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; then the jobs in flight finish and new ones are refused."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn, once down, raises again what it caught
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[sock])


@contextmanager
def in_thread(app: FastAPI):
    """Serve the application from a thread of its own, on a free port of this machine; gives its URL."""
    sock = listen("127.0.0.1", 0, None)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.run, [sock])
        try:
            while not server.started and not running.done():
                time.sleep(0.01)
            yield url_of(sock)
        finally:
            server.should_exit = True


class Guard:
    """Refuses callers without the token, bodies over MAX_BODY, compressed or no JSON by their type, before anything
    reads them. HEAD is answered as GET; the server leaves the body out.
    """

    def __init__(self, app, token: str | None = None):
        self.app, self.token = app, token

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        def refuse(status, message, **options):
            return error_response(status, message, **options)(scope, receive, send)

        headers, right = Headers(scope=scope), f"Bearer {self.token}".encode()
        given = headers.get("authorization", "").encode("latin-1")
        if self.token and scope["path"] not in OPEN and not hmac.compare_digest(given, right):
            return await refuse(401, "give the token: Authorization: Bearer ...", code="invalid_api_key")
        coding, kind = headers.get("content-encoding", "identity"), headers.get("content-type", "")
        if coding.lower() != "identity":
            return await refuse(415, f"Content-Encoding {coding} is not read: send the body uncompressed",
                                code="unsupported_content_encoding")
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MAX_BODY:
                return await refuse(413, f"the body has more than {MAX_BODY} bytes", code="body_too_large",
                                    headers={"Connection": "close"})
        if body and not re.match(r"application/([\w.-]+\+)?json\s*(;|$)", kind.lower()):
            return await refuse(415, f"Content-Type {kind!r} is not read: send JSON, as application/json",
                                code="unsupported_content_type")
        messages = iter([{"type": "http.request", "body": body}])

        async def again():
            return next(messages, None) or await receive()

        await self.app(scope | {"method": "GET"} if scope["method"] == "HEAD" else scope, again, send)


def error_response(status: int, message: str, param: str | None = None, code: str | None = None,
                   headers: dict | None = None) -> Response:
    """An error in the form of the OpenAI API; code: left out, invalid_ and the field, or the status in words."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = code or (f"invalid_{param}" if param else HTTPStatus(status).phrase.lower().replace(" ", "_"))
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Response(json.dumps(body), status, headers, "application/json")  # in ASCII, whatever the caller sent
