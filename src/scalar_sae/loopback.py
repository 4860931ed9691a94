"""ASGI servers for the user's own browser. Nobody else reaches them, and no other page speaks through them.

A server listens on 127.0.0.1. Its address holds a token, so that other users of the machine cannot guess it; there are
no cookies. A request must name this server as its Host, since a page of another site can point a name of its own at
127.0.0.1. What is posted must be JSON, and must come from a page of this server if the request says where it comes
from: browsers let other sites post forms, and say so in Origin. Bodies are small, and a request arrives in time.
"""

import asyncio
import json
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from scalar_sae.errors import UserError, reason

POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What a page of several files may load (https://www.w3.org/TR/CSP3): files that lie beside it, and no script or style
that stands in the page or in an attribute."""
SECONDS = 10.0
"""How long a request may take to arrive, from the first byte of its connection to its last."""
CONNECTIONS = 32
"""At the same time; more are closed at once."""

_HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Connection": "close",
}
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


class RefusedError(Exception):
    """A request that is not answered, and the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LoopbackServer:
    """Serves an ASGI application below `url`; `run` starts it, as a context manager it frees its port at the end."""

    def __init__(self, app: ASGIApp, port: int, body_bytes: int = 4096) -> None:
        """Take a port of this machine; 0 is any free one. Requests may have bodies of `body_bytes`.

        Raises:
            UserError: the port is taken.
        """
        self.socket = _bound(port)
        self.socket.listen()  # who asks before `run` is answered by it
        self.port: int = self.socket.getsockname()[1]
        self.token = secrets.token_urlsafe(16)
        hosts = [f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")]
        config = uvicorn.Config(
            _Guard(app, hosts, self.token, body_bytes), http=_Protocol, ws="none", lifespan="off", log_config=None,
            log_level="critical", access_log=False, server_header=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """The address to open, with its token."""
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    def run(self) -> None:
        """Answer requests until `stop` is called or the user presses Ctrl-C, which raises KeyboardInterrupt."""
        self._server.run(sockets=[self.socket])

    def stop(self) -> None:
        """End `run`, which may be in another thread."""
        self._server.should_exit = True

    def __enter__(self) -> "LoopbackServer":
        """Nothing is done yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the port."""
        self.socket.close()


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """An application whose errors are JSON: `{"error": "one line"}`."""
    handlers: dict[Any, Any] = {UserError: _refused, RefusedError: _refused, HTTPException: _refused}
    return Starlette(routes=routes, exception_handlers=handlers)


def page_routes(pages: dict[str, str]) -> list[Route]:
    """Routes to texts by file name; `index.html` is at `/`."""

    def route(name: str, text: str) -> Route:
        async def send(_: Request) -> Response:
            return Response(text, media_type=_KINDS[name[name.rindex(".") :]])

        return Route(f"/{name}".replace("/index.html", "/"), send)

    return [route(name, text) for name, text in pages.items()]


def check_port(port: int) -> None:
    """Raise a UserError if a server cannot have this port of this machine."""
    _bound(port).close()


def _bound(port: int) -> socket.socket:
    taken = socket.socket()
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
    except OSError as error:
        taken.close()
        raise UserError(f"--port {port}: {error.strerror}; choose another") from error
    return taken


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": str(error)}, error.status if isinstance(error, RefusedError) else 400)


class _Guard:
    """Lets requests through to an application that come from this server's own page, whole."""

    def __init__(self, app: ASGIApp, hosts: list[str], token: str, body_bytes: int) -> None:
        self._app, self._hosts, self._token, self._body_bytes = app, hosts, token, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Faults are one line on the error stream."""
        started = False

        async def send_safely(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            path, headers = self._checked(scope), Headers(scope=scope)
            if scope["method"] == "POST":
                receive = await self._posted(headers, receive)
            await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send_safely)
        except RefusedError as error:
            await JSONResponse({"error": str(error)}, error.status)(scope, receive, send_safely)
        except Exception as error:
            if not isinstance(error, OSError):
                sys.stderr.write(f"scalar: a request failed ({type(error).__name__}: {reason(error)})\n")
            if not started:
                await JSONResponse({"error": "the server failed; its terminal says why"}, 500)(
                    scope, receive, send_safely
                )

    def _checked(self, scope: Scope) -> str:
        """The path behind the token."""
        headers = Headers(scope=scope)
        if headers.getlist("host") not in [[host] for host in self._hosts]:
            raise RefusedError(421, "this server is for the browser on its own machine: open the address that it named")
        if scope["method"] not in ("GET", "POST"):
            raise RefusedError(405, "expected GET or POST")
        _, token, *rest = [*scope["path"].split("/", 2), ""]
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
            raise RefusedError(404, "no such page; open the address that the server named, with its token")
        return "/" + rest[0]

    async def _posted(self, headers: Headers, receive: Receive) -> Receive:
        """Read a body of JSON; returns what gives it to the application."""
        origins = headers.getlist("origin")
        if any(origin.removeprefix("http://") not in self._hosts for origin in origins):
            raise RefusedError(403, "another page cannot answer here")
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "expected application/json")
        length = headers.getlist("content-length")
        if len(length) != 1 or "transfer-encoding" in headers:
            raise RefusedError(411, "expected one Content-Length")
        if len(length[0]) > len(str(self._body_bytes)) or int(length[0]) > self._body_bytes:
            raise RefusedError(413, f"more than {self._body_bytes} bytes")
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "the request did not arrive")
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        try:
            json.loads(body := b"".join(parts))
        except (ValueError, RecursionError):
            raise RefusedError(400, "expected JSON") from None
        waiting = [body]

        async def receive_again() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await receive()

        return receive_again


class _Protocol(H11Protocol):
    """Closes connections of which there are too many, and those whose request does not arrive in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Look at the clock."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._timer = self.loop.call_later(SECONDS, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        arrived = self.cycle is not None and not self.cycle.more_body  # pyright: ignore[reportUnnecessaryComparison]
        if not arrived:
            self.transport.abort()
