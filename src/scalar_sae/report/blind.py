"""The page of a blind comparison, served to a browser on this machine; answers go to disk one by one."""

import json
import re
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from scalar_sae.errors import UserError
from scalar_sae.measures.blind import CHOICES, Answers, Examples, Pairs
from scalar_sae.report.environment import environment


class Comparison:
    """What one rater is asked, and what becomes of the answers."""

    def __init__(self, out: Path, rater: str) -> None:
        self.pairs = Pairs.read(out).pairs
        self.answers = Answers(out, rater)
        self._examples = {"a": Examples.read(out / "a"), "b": Examples.read(out / "b")}
        self._asked = time.monotonic()

    def question(self, number: int | None = None) -> dict[str, Any]:
        """A pair without names, by default the next one; `number` is None when all are answered.

        Raises:
            UserError: there is no such pair.
        """
        if number is None:
            number = self.answers.next(len(self.pairs))
        found: dict[str, Any] = {"number": number, "done": len(self.answers.choices), "total": len(self.pairs)}
        if number is None:
            return found
        self._check(number)
        found["answer"] = self.answers.choices.get(number)
        pair = self.pairs[number]
        sides = {"left": pair.left, "right": "b" if pair.left == "a" else "a"}
        self._asked = time.monotonic()
        for side, sae in sides.items():
            found[side] = self._examples[sae].of(pair.a if sae == "a" else pair.b)
        return found

    def answer(self, content: Any) -> None:
        """Keep an answer.

        Raises:
            UserError: not an answer to one of the pairs.
        """
        pair, choice = content.get("pair"), content.get("choice")
        if choice not in CHOICES:
            raise UserError(f"answer {choice!r}: expected one of {', '.join(CHOICES)}")
        self._check(pair)
        self.answers.add(pair, choice, time.monotonic() - self._asked)

    def _check(self, pair: Any) -> None:
        if not isinstance(pair, int) or not 0 <= pair < len(self.pairs):
            raise UserError(f"pair {pair!r}: expected a pair below {len(self.pairs)}")


def serve(comparison: Comparison, port: int) -> ThreadingHTTPServer:
    """A server on this machine alone; `serve_forever` starts it.

    Raises:
        UserError: the port is taken.
    """
    page = environment().get_template("blind.html.j2").render().encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._send(200, page, "text/html; charset=utf-8")
            elif self.path == "/question":
                self._send_json(200, comparison.question())
            elif number := re.fullmatch(r"/question/(\d+)", self.path):
                self._try(lambda: comparison.question(int(number[1])))
            else:
                self._send_json(404, {"error": "no such page"})

        def do_POST(self) -> None:
            self._try(self._answered)

        def _answered(self) -> dict[str, Any]:
            comparison.answer(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0)))))
            return comparison.question()

        def _try(self, reply: Callable[[], dict[str, Any]]) -> None:
            """Send a reply, or why there is none."""
            try:
                found = reply()
            except (UserError, ValueError, AttributeError) as error:
                self._send_json(400, {"error": str(error)})
            else:
                self._send_json(200, found)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the terminal for each request."""

        def _send_json(self, code: int, content: Any) -> None:
            self._send(code, json.dumps(content).encode(), "application/json")

        def _send(self, code: int, content: bytes, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; choose another") from error
