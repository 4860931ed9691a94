"""The explorer's server: files of the page, and answers as lines of JSON while they are worked out.

A question is posted to `ask/NAME`. The answer is one line `{"answer": ...}` or `{"error": "..."}`, after any number of
lines `{"progress": share}`. Who hangs up stops the work. One thread computes at a time, because the model holds what is
spliced into it. A judge answers in a thread of its own, and the engine answers other questions meanwhile.

The page is there at once. The model is loaded in the thread that computes, and so are the libraries that it needs:
this module imports none of them. Until the model is there, the page shows what files.py knows. Questions to the model
wait, and a line `{"loading": true}` says so.
"""

import asyncio
import io
import json
import sys
import threading
import zipfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from scalar_sae.console import Bar, say
from scalar_sae.errors import UserError, one_line, reason
from scalar_sae.explorer.files import Kept, card
from scalar_sae.explorer.questions import QUESTIONS, Card, Question
from scalar_sae.loopback import LoopbackServer, RefusedError, application, page_routes
from scalar_sae.malloc import share_freed_memory, trim_malloc
from scalar_sae.readers import explained, parse_json
from scalar_sae.run_folder import is_run

if TYPE_CHECKING:
    from scalar_sae.explorer.answers import OnProgress
    from scalar_sae.explorer.subject import Subject

BODY_BYTES = 2**20
"""Of a question."""
REMEMBERED = 64
"""Answers that are kept, since a page asks again for what it showed before."""
_FILES = ("index.html", "page.css", "page.js")
_LIGHT = ("run", "card")
"""Questions for which nothing is computed."""
_FIRST = "run"
"""The question that a page asks first."""
_JUDGED = ("explain",)
"""Questions to a judge."""
_KEPT = ("run", "map")
"""Questions whose answers are kept in the run directory."""


class StoppedError(Exception):
    """Nobody waits for the answer any more."""


class Explorer:
    """Answers questions about a subject, which is loaded in the thread that computes."""

    def __init__(self, load: "Callable[[], Subject]", kept: Kept | None = None) -> None:
        share_freed_memory()
        self._kept, self._state = kept, None if kept is None else kept.state()
        self._heavy, self._light, self._judged = (ThreadPoolExecutor(1) for _ in range(3))
        self._computing = threading.Lock()
        self._remembered: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self.subject: Future[Subject] = self._heavy.submit(lambda: self._yielding(self._loaded(load)))

    def answer(self, name: str, body: Any, on_progress: Callable[[float], object] = lambda share: None) -> Any:
        """The answer to a question.

        Raises:
            UserError: it is no question, or about something that is not there; or the subject cannot be loaded.
        """
        question = parsed(name, body)
        if (known := self.known(name, question)) is not None:
            return known
        if isinstance(question, Card):
            found = card(None if self._kept is None else self._kept.run, self.answer(_FIRST, {})["pairs"], question)
        else:
            subject = self.subject.result()
            with nullcontext() if name in _LIGHT else self._computing:
                found = _answers()[name](subject, question, on_progress)
        key = _key(name, question)
        with self._lock:
            self._remembered[key] = found
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        if name in _KEPT and self._kept is not None:
            self._kept.keep(key, found, self._state)
        return found

    def known(self, name: str, question: Question) -> Any:
        """The answer to a question that was answered before: by this server, or until the subject is loaded by the one
        before it. None if there is none.
        """
        key = _key(name, question)
        with self._lock:
            if key in self._remembered:
                self._remembered.move_to_end(key)
                return self._remembered[key]
        return self._kept_before(name, question) if not self.subject.done() else None

    def _kept_before(self, name: str, question: Question) -> Any:
        """The answer that is kept in the run directory, as that was when this server started."""
        kept = self._kept if name in _KEPT else None
        return None if kept is None else kept.find(_key(name, question), self._state)

    async def lines(self, name: str, body: Any) -> AsyncGenerator[bytes]:
        """The lines of an answer. Closing the generator stops the work.

        Raises:
            UserError: it is no question.
            RefusedError: there is no such question.
        """
        known = self.known(name, parsed(name, body))
        if known is not None:
            yield _line({"answer": known})
            return
        loop, lines = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]]()
        stopped = threading.Event()

        def tell(line: dict[str, Any]) -> None:
            if not stopped.is_set():
                loop.call_soon_threadsafe(lines.put_nowait, line)

        def progress(share: float) -> None:
            if stopped.is_set():
                raise StoppedError
            tell({"progress": round(share, 3)})

        waits = name not in _LIGHT and not self.subject.done()

        def work() -> None:
            try:
                if waits:
                    self.subject.result()
                    progress(0.0)
                tell({"answer": self.answer(name, body, progress)})
            except StoppedError:
                return
            except UserError as error:
                tell({"error": str(error)})
            except Exception as error:
                said = one_line(f"{type(error).__name__}: {reason(error)}")
                sys.stderr.write(f"scalar: {name}: {said}\n")
                tell({"error": f"{said}; a fault of scalar-sae: please report it"})
            finally:
                trim_malloc()  # once the answer is on its way

        if waits:
            tell({"loading": True})
        thread = self._light if name in _LIGHT else self._judged if name in _JUDGED else self._heavy
        future = thread.submit(work)
        try:
            while True:
                line = await lines.get()
                yield _line(line)
                if "answer" in line or "error" in line:
                    return
        finally:
            stopped.set()
            future.cancel()

    def _loaded(self, load: "Callable[[], Subject]") -> "Subject":
        import pyarrow as pa

        pa.set_memory_pool(pa.system_memory_pool())  # its own pool would keep some 50 MB that it has freed
        self._read_ahead()
        return load()

    def _read_ahead(self) -> None:
        """Read the tables of the first pair's cards. Once PyTorch is being imported, other threads make little way."""
        about = self._kept_before(_FIRST, parsed(_FIRST, {}))
        if about is not None and self._kept is not None:
            for end in ("up", "down"):
                with suppress(UserError):  # who asks for a card is told
                    card(self._kept.run, about["pairs"], Card(pair=about["pairs"][0]["key"], end=end, latent=0))

    def _yielding(self, subject: "Subject") -> "Subject":
        """The subject, with a judge that lets others compute until it has answered."""
        judge = subject.judge
        if judge is None:
            return subject

        def ask(question: str) -> str:
            self._computing.release()
            try:
                return judge.ask(question)
            finally:
                self._computing.acquire()

        return replace(subject, judge=judge._replace(ask=ask))

    async def soon(self, work: Callable[[], bytes]) -> bytes:
        """What some work returns, in the thread that computes."""
        return await asyncio.get_running_loop().run_in_executor(self._heavy, work)


def prepare(folder: Path) -> None:
    """Work out and keep what the page of a run shows at first, so that it need not wait for the model.

    Does nothing for a folder that is no run, or has no record that the page could show. What stands in the way is said
    and not raised, since the work before this is done. Ctrl-C ends the preparation alone.
    """
    kept = Kept(folder)
    state = kept.state()
    if not is_run(folder) or state is None:
        return
    try:
        _prepare(folder, kept, state)
    except KeyboardInterrupt:
        say("scalar explore is not prepared: interrupted")
    except Exception as error:
        say(f"scalar explore is not prepared: {reason(error)}")


def _prepare(folder: Path, kept: Kept, state: str) -> None:
    def shown_first(answer: Callable[[str, dict[str, str]], Any]) -> bool:
        about = answer(_FIRST, {})
        if about is None:
            return False
        pair = about["pairs"][0]
        return answer("map", {"pair": pair["key"], "ranking": pair["rankings"][0]}) is not None

    if shown_first(lambda name, body: kept.find(_key(name, parsed(name, body)), state)):
        return
    with Bar("prepare scalar explore", 1.0) as bar:
        from scalar_sae.explore.run import load_run
        from scalar_sae.explorer.subject import Subject

        subject, done = Subject.of_run(load_run(folder)), 0.0
        if not any(pair.records for pair in subject.pairs.values()):
            return
        explorer = Explorer(lambda: subject, kept)

        def progress(share: float) -> None:
            nonlocal done
            bar.step(share - done)
            done = share

        shown_first(lambda name, body: explorer.answer(name, body, progress))


def _answers() -> "dict[str, Callable[[Subject, Any, OnProgress], Any]]":
    """What the engine answers. Importing it takes seconds, which the thread that loads the subject has spent."""
    from scalar_sae.explorer.answers import ANSWERS

    return ANSWERS


def parsed(name: str, body: Any) -> Question:
    """A question from its name and body.

    Raises:
        UserError: the body does not fit.
        RefusedError: there is no such question.
    """
    if name not in QUESTIONS:
        raise RefusedError(404, "no such question")
    try:
        return QUESTIONS[name].model_validate_json(json.dumps(body))
    except ValidationError as error:
        raise UserError(f"{name}: {explained(error)}") from error


def _key(name: str, question: Question) -> str:
    return f"{name} {question.model_dump_json()}"


def _line(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def static(name: str) -> str:
    """The text of a built file of the page."""
    return (files("scalar_sae.explorer") / "static" / name).read_text(encoding="utf-8")


def data(live: bool, answers: dict[str, Any], state: str = "") -> str:
    """The script that a page starts with: whether there is a server behind it, answers that it need not ask for, and
    the state that it opens with.
    """
    content = json.dumps({"live": live, "answers": answers, "state": state}, separators=(",", ":"), allow_nan=False)
    return f"var explorer = {content};\n"


class Export(BaseModel):
    """What a page asks to be written to disk."""

    model_config = ConfigDict(extra="forbid", strict=True)

    asked: list[str]
    """Questions that it has the answers of, each `NAME BODY`."""
    state: str
    """The part of its address behind `#`."""


def exported(explorer: Explorer, wanted: Export) -> bytes:
    """A ZIP file of a folder whose `index.html` opens from disk and shows what was asked before.

    Raises:
        UserError: something else was asked.
    """
    answers: dict[str, Any] = {}
    for key in wanted.asked:
        name, _, body = key.partition(" ")
        answers[key] = explorer.answer(name, parse_json(body, "export"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name in (*_FILES, "licenses.txt"):
            file.writestr(f"explorer/{name}", static(name))
        file.writestr("explorer/data.js", data(False, answers, wanted.state))
    return content.getvalue()


class ExplorerServer(LoopbackServer):
    """Serves the page at once. It ends when the subject cannot be loaded."""

    def __init__(self, explorer: Explorer, routes: Sequence[BaseRoute], port: int) -> None:
        super().__init__(application(routes), port, BODY_BYTES)
        self._loading = explorer.subject
        self._loading.add_done_callback(lambda loading: self.stop() if loading.exception() else None)

    def run(self) -> None:
        """Answer requests until the user presses Ctrl-C, which raises KeyboardInterrupt.

        Raises:
            UserError: the subject cannot be loaded.
        """
        try:
            super().run()
        finally:
            self._loading.result()  # who ends it meanwhile learns of damaged files too


def serve(load: "Callable[[], Subject]", port: int, kept: Kept | None = None) -> ExplorerServer:
    """A server on this machine alone; `run` starts it. What it is about is loaded meanwhile.

    Args:
        load: loads what the page is about.
        port: a port of this machine; 0 is any free one.
        kept: the answers in the run directory, if the page is about a run.

    Raises:
        UserError: the port is taken.
    """
    explorer = Explorer(load, kept)

    async def ask(request: Request) -> Response:
        name, body = request.path_params["name"], await request.json()
        parsed(name, body)
        return StreamingResponse(explorer.lines(name, body), media_type="application/x-ndjson")

    pages = {name: static(name) for name in _FILES} | {"data.js": data(True, {})}

    async def export(request: Request) -> Response:
        try:
            wanted = Export.model_validate(await request.json())
        except ValidationError as error:
            raise UserError(f"export: {explained(error)}") from error
        return Response(await explorer.soon(lambda: exported(explorer, wanted)), media_type="application/zip")

    posted = [Route("/ask/{name}", ask, methods=["POST"]), Route("/export", export, methods=["POST"])]
    return ExplorerServer(explorer, [*page_routes(pages), *posted], port)
