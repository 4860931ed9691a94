"""The page of a blind comparison, served to a browser on this machine; answers go to disk one by one."""

import re
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.blind import CHOICES, Answers, Choice, Examples, Pairs
from scalar_sae.loopback import LoopbackServer, RefusedError, application, page_routes
from scalar_sae.readers import explained
from scalar_sae.report.environment import viewer
from scalar_sae.report.text import token_text


class Posted(BaseModel):
    """An answer as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pair: int
    choice: Choice
    before: Choice | None = None
    """The answer to this pair that the page knew of: another tab may have given one since."""


class Comparison:
    """What one rater is asked, and what becomes of the answers. One thread at a time is in it."""

    def __init__(self, out: Path, rater: str) -> None:
        self.pairs = Pairs.read(out).pairs
        self.answers = Answers(out, rater, len(self.pairs))
        self._examples = {
            "a": Examples.read(out / "a", [pair.a for pair in self.pairs]),
            "b": Examples.read(out / "b", [pair.b for pair in self.pairs]),
        }
        self._asked: dict[int, float] = {}
        self._lock = threading.Lock()

    def question(self, number: int | None = None) -> dict[str, Any]:
        """A pair without names, by default the next one; `number` is None when all are answered.

        Raises:
            UserError: there is no such pair.
        """
        with self._lock:
            return self._question(number)

    def answer(self, content: Any) -> dict[str, Any]:
        """Keep an answer; returns the next question.

        Raises:
            UserError: not an answer to one of the pairs.
            RefusedError: another tab has answered since the page asked.
        """
        try:
            posted = Posted.model_validate(content)
        except ValidationError as error:
            raise UserError(f"{explained(error)}; expected a pair and one of {', '.join(CHOICES)}") from error
        self._check(posted.pair)
        with self._lock:
            here = self.answers.choices.get(posted.pair)
            if here != posted.before:
                raise RefusedError(
                    409, f"pair {posted.pair + 1} was answered in another window ({here}); Backspace goes back"
                )
            asked = self._asked.get(posted.pair, time.monotonic())
            self.answers.add(posted.pair, posted.choice, time.monotonic() - asked)
            return self._question(None)

    def _question(self, number: int | None) -> dict[str, Any]:
        choices = self.answers.choices
        if number is None:
            number = next((pair for pair in range(len(self.pairs)) if pair not in choices), None)
        found: dict[str, Any] = {"number": number, "done": len(choices), "total": len(self.pairs)}
        if number is None:
            return found
        self._check(number)
        found["answer"] = choices.get(number)
        pair = self.pairs[number]
        sides = {"left": pair.left, "right": "b" if pair.left == "a" else "a"}
        self._asked[number] = time.monotonic()
        for side, sae in sides.items():
            examples = self._examples[sae].of(pair.a if sae == "a" else pair.b)
            for example in examples:
                example["tokens"] = [(token_text(text), share) for text, share in example["tokens"]]
            found[side] = examples
        return found

    def _check(self, pair: int) -> None:
        if not 0 <= pair < len(self.pairs):
            raise UserError(f"pair {pair}: expected a pair below {len(self.pairs)}")


def serve(comparison: Comparison, port: int) -> LoopbackServer:
    """A server on this machine alone; `run` starts it.

    Raises:
        UserError: the port is taken.
    """

    def question(request: Request) -> Response:
        number = request.path_params.get("number")
        return JSONResponse(comparison.question(number if number is None else _pair(number)))

    async def answer(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(comparison.answer, await request.json()))

    routes = [
        Route("/question", question),
        Route("/question/{number}", question),
        Route("/answer", answer, methods=["POST"]),
    ]
    return LoopbackServer(application([*page_routes(viewer("blind")), *routes]), port)


def _pair(number: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", number):
        raise RefusedError(404, "no such page")
    return int(number)
