"""Small web servers for the user's own browser. Nobody else reaches them, and no other page speaks through it.

They listen on 127.0.0.1. A request must name this server as its Host, since a page of another site can point a name of
its own at 127.0.0.1. What changes something must be JSON, and come from a page of this server if it says where it comes
from: browsers let other sites post forms, and tell so in Origin. Bodies are small, and a connection ends in time.
"""

import json
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from scalar_sae.errors import UserError, reason
from scalar_sae.report.environment import POLICY

BODY_BYTES = 4096
"""Of a request."""
SECONDS = 10.0
"""How long a connection may take, from its first byte to its last."""
CONNECTIONS = 32
"""At the same time; more are closed at once."""

_HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

Reply = Callable[[str, Any], Any]
"""From a path, and the JSON that was posted there (None: nothing was), to JSON."""


class RefusedError(Exception):
    """A request that is not answered, and the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LoopbackServer(ThreadingHTTPServer):
    """Serves a few files and a function of JSON; `serve_forever` starts it.

    The function raises `RefusedError` or `UserError` for what it does not answer; it is called by several threads.
    """

    def __init__(self, pages: dict[str, str], reply: Reply, port: int) -> None:
        """`pages` are texts by file name; `index.html` is at `/`.

        Raises:
            UserError: the port is taken.
        """
        self.pages = {f"/{name}".replace("/index.html", "/"): (name, text.encode()) for name, text in pages.items()}
        self.reply = reply
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise _taken(port, error) from error
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, if not too many run."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Until the request's time is over."""
        timer = threading.Timer(SECONDS, _hang_up, [request])
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line of what went wrong here; nothing of clients that went away."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            sys.stderr.write(f"scalar: a request failed ({type(error).__name__}: {reason(error)})\n")


def check_port(port: int) -> None:
    """Raise a UserError if a server cannot have this port of this machine."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(("127.0.0.1", port))
    except OSError as error:
        raise _taken(port, error) from error


def _taken(port: int, error: OSError) -> UserError:
    return UserError(f"--port {port}: {error.strerror}; choose another")


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it ended by itself


class _Handler(BaseHTTPRequestHandler):
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    @property
    def _server(self) -> LoopbackServer:
        assert isinstance(self.server, LoopbackServer)
        return self.server

    def do_GET(self) -> None:
        self._answer(lambda: None)

    def do_POST(self) -> None:
        self._answer(self._posted)

    def _answer(self, content: Callable[[], Any]) -> None:
        """Send a page, a reply, or why there is neither."""
        try:
            self._check_host()
            if self.command == "GET" and self.path in self._server.pages:
                name, text = self._server.pages[self.path]
                return self._send(200, text, _KINDS[name[name.rindex(".") :]])
            status, found = 200, self._server.reply(self.path, content())
        except RefusedError as error:
            status, found = error.status, {"error": str(error)}
        except UserError as error:
            status, found = 400, {"error": str(error)}
        return self._send(status, json.dumps(found).encode(), "application/json")

    def _check_host(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self._server.hosts]:
            raise RefusedError(421, "this server is for the browser on its own machine: open the address that it named")

    def _posted(self) -> Any:
        """The JSON that was sent."""
        origins = self.headers.get_all("Origin", [])
        if any(origin.removeprefix("http://") not in self._server.hosts for origin in origins):
            raise RefusedError(403, "another page cannot answer here")
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(415, "expected application/json")
        length = self.headers.get_all("Content-Length", [])
        if len(length) != 1 or self.headers.get("Transfer-Encoding") is not None:
            raise RefusedError(411, "expected one Content-Length")
        if not (length[0].isascii() and length[0].isdecimal()):
            raise RefusedError(400, "Content-Length: expected a number of bytes")
        if len(length[0]) > len(str(BODY_BYTES)) or int(length[0]) > BODY_BYTES:
            raise RefusedError(413, f"more than {BODY_BYTES} bytes")
        try:
            return json.loads(self.rfile.read(int(length[0])))
        except (ValueError, RecursionError):
            raise RefusedError(400, "expected JSON") from None

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal for each request."""

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
