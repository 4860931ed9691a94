"""Console output while a command works: progress and messages, on the error stream.

Progress is a bar at a terminal and under the cell of a notebook. In a log it is a line about every half minute
on the innermost stage. A separate thread writes these lines, so that a log shows progress during long steps and during
stages without steps.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from html import escape
from typing import Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Column

from scalar_sae.errors import one_line
from scalar_sae.io import leads

INTERVAL = 30.0
"""Seconds between two progress lines in a log."""
CELL_INTERVAL = 1.0
"""Seconds between two updates under a notebook cell."""
_WINDOW = 10
"""Number of lines over which the rate is averaged, since the speed of a stage may change."""

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Turn quiet mode on or off. It leaves out progress and messages and shows only results and errors."""
    global _quiet
    _quiet = quiet


def silence_libraries() -> None:
    """Let other libraries draw progress bars only at a terminal, and not in quiet mode.

    Call this before they are imported.
    """
    if _quiet or not _at_terminal():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


class Bar:
    """Progress of a stage: its share, its rate and an estimate of the time left.

    Args:
        what: name of the stage.
        total: sum of all steps; None if unknown, for example while something is loaded.
        done: the part of `total` that was done before and takes no time now.
    """

    def __init__(self, what: str, total: int | float | None = None, *, done: int | float = 0) -> None:
        shown = leads() and not _quiet
        self._progress: _Drawn | _Log | None = None
        if shown:
            kind = _Drawn if _at_terminal() else _Cell if _in_notebook() else _Log
            self._progress = kind(one_line(what), total, done)

    def __enter__(self) -> "Bar":
        """Start showing the progress. At a terminal, a stage within another stage is not shown."""
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Stop updating the progress and leave its last state visible."""
        if self._progress:
            self._progress.stop(finished=error is None)

    def step(self, n: int | float = 1, note: str | None = None) -> None:
        """Advance by `n`, optionally with a new note."""
        if self._progress:
            self._progress.step(n, None if note is None else one_line(note))


@contextmanager
def in_log(what: str) -> Generator[None]:
    """Progress of a stage in logs only, for work such as a download whose library draws its own bars at a terminal."""
    if _at_terminal():
        yield
    else:
        with Bar(what):
            yield


@contextmanager
def waiting_for_user() -> Generator[None]:
    """Write no progress lines to a log within the block, because the user is working, for example in a browser."""
    _beat.enter(None)
    try:
        yield
    finally:
        _beat.leave(None)


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which can rewrite the output of a cell."""
    return "ipykernel" in sys.modules and "IPython" in sys.modules


def _at_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _Drawn:
    """A bar at a terminal. In 80 columns the note is shortened, but not the time."""

    outermost: "ClassVar[_Drawn | None]" = None

    def __init__(self, what: str, total: int | float | None, done: int | float) -> None:
        self._progress = Progress(
            *_columns(), console=Console(stderr=True), speed_estimate_period=120, transient=total is None, expand=True
        )
        before: Any = done  # rich's types require an integer, but any number works
        self._task: TaskID = self._progress.add_task(what, total=total, completed=before, note="")

    def start(self) -> None:
        if _Drawn.outermost is None:
            _Drawn.outermost = self
            self._progress.start()

    def stop(self, *, finished: bool) -> None:
        if _Drawn.outermost is self:
            self._progress.stop()
            _Drawn.outermost = None

    @classmethod
    def console(cls) -> Console:
        """The error stream, on which a line stands above the bar that is drawn."""
        return cls.outermost._progress.console if cls.outermost else Console(stderr=True)

    def step(self, n: int | float, note: str | None) -> None:
        if note is None:
            self._progress.update(self._task, advance=n)
        else:
            self._progress.update(self._task, advance=n, note=note)


def _columns() -> list[ProgressColumn]:
    def cut(**sizes: Any) -> Column:
        return Column(no_wrap=True, overflow="ellipsis", **sizes)

    return [
        TextColumn("{task.description}", markup=False, table_column=cut(max_width=28)),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        Remaining(),
        TextColumn("left", table_column=cut(min_width=4)),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=cut(ratio=1)),
    ]


class _Log:
    """The progress lines of a stage in a log."""

    def __init__(self, what: str, total: int | float | None, done: int | float) -> None:
        self._what, self._total, self._done, self._note = what, total, done, ""
        self._began = time.monotonic()
        self._past = deque([(self._began, done)], maxlen=_WINDOW)

    def start(self) -> None:
        _beat.enter(self)

    def stop(self, *, finished: bool) -> None:
        _beat.leave(self)
        if finished and (taken := time.monotonic() - self._began) >= INTERVAL:
            say(f"{self._what}: done in {duration(taken)}")

    def step(self, n: int | float, note: str | None) -> None:
        self._done += n
        self._note = self._note if note is None else note

    def speak(self) -> None:
        """Write a progress line."""
        say(self._line(time.monotonic()))

    def _line(self, now: int | float) -> str:
        before, done = self._past[0]
        self._past.append((now, self._done))
        after = f"; {self._note}" if self._note else ""
        if not self._total:
            return f"{self._what}: at it for {duration(now - self._began)}{after}"
        share = self._done / self._total
        rate = (self._done - done) / max(now - before, 1e-9)
        left = duration((self._total - self._done) / rate) if rate > 0 else "unknown time"
        per_minute = 60 * rate / self._total
        return f"{self._what}: {percent(share)}, {percent(per_minute)} a minute, {left} left{after}"


class _Cell(_Log):
    """A bar under a notebook cell that is redrawn in place. Short stages leave no bar.

    The bar is an element of HTML, which every front end draws without widgets. A front end without HTML shows it as
    text.
    """

    def start(self) -> None:
        self._next, self._shown = self._began + CELL_INTERVAL, None

    def stop(self, *, finished: bool) -> None:
        if self._shown is not None:
            taken = duration(time.monotonic() - self._began)
            share = 1.0 if finished else self._share()
            self._show(share, f"{self._what}: {'done in' if finished else 'stopped after'} {taken}")

    def step(self, n: int | float, note: str | None) -> None:
        super().step(n, note)
        if (now := time.monotonic()) >= self._next:
            self._next = now + CELL_INTERVAL
            self._show(self._share(), self._line(now))

    def _share(self) -> float | None:
        return min(1.0, self._done / self._total) if self._total else None

    def _show(self, share: float | None, line: str) -> None:
        from IPython.display import display

        value = "" if share is None else f' value="{share:.4f}"'
        drawn = "" if share is None else f"[{'#' * round(20 * share):.<20}] "
        data = {
            "text/plain": drawn + line,
            "text/html": f'<progress max="1"{value} aria-label="{escape(self._what)}"></progress> {escape(line)}',
        }
        if self._shown is None:
            self._shown: Any = display(data, raw=True, display_id=True)
        else:
            self._shown.update(data, raw=True)


class Beat:
    """Writes a line for the innermost stage every `INTERVAL` seconds. Its thread runs while there is a stage."""

    def __init__(self) -> None:
        self._stages: list[_Log | None] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, stage: _Log | None) -> None:
        """Begin a stage. None is a stage that writes nothing."""
        self._stages.append(stage)
        if self._thread is None:
            self._over.clear()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def leave(self, stage: _Log | None) -> None:
        """End a stage."""
        self._stages.remove(stage)
        if self._thread is not None and not self._stages:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._over.wait(INTERVAL):
            for stage in self._stages[-1:]:
                if stage is not None:
                    stage.speak()


_beat = Beat()


def percent(share: int | float) -> str:
    """A share as a percentage, with one more digit for small shares."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def duration(seconds: int | float) -> str:
    """A duration in one or two units, such as `3 h 20 min`."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"


def say(text: str) -> None:
    """Show the user one line, beside the progress."""
    if leads() and not _quiet:
        _Drawn.console().print(one_line(text), highlight=False, markup=False, emoji=False, soft_wrap=True)


def tell(*lines: str) -> None:
    """Write lines of a command's result to the output stream."""
    for line in lines:
        print(one_line(line))  # noqa: T201


@cache
def say_once(text: str) -> None:
    """Show the user one line, only the first time in this process."""
    say(text)
