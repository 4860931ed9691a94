"""Where results live on disk: whole files or none, an event log, a progress bar.

Contract: a file that exists under its final name is complete. Everything is written to a temporary name beside it
and renamed; a kill or a full disk leaves at most a `.partial` file, which nothing reads.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from safetensors import SafetensorError

from scalar_sae.errors import UserError

PARTIAL = ".partial"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Ask glibc not to hand freed buffers back to the system: getting them anew, zeroed, costs up to a third of the
    time of training and scoring on a CPU. Elsewhere nothing happens.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, 2**28)  # larger ones still go back
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def hand_back_freed_memory() -> None:
    """Between two stages whose buffers have other sizes: those of the second would not fit into what is kept."""
    if libc := _glibc():
        libc.malloc_trim(0)


@contextmanager
def freed_memory_handed_back() -> Generator[None]:
    """In the block buffers go back as soon as they are freed; before it, those that were kept; after it they are kept.

    For work whose buffers have other sizes than those before it.
    """
    hand_back_freed_memory()
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        keep_freed_memory()


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None


@contextmanager
def whole(path: Path, option: str = "--out") -> Generator[Path]:
    """Yield a temporary path (file or folder) that becomes `path` if the block succeeds; `option` is what named it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # the last two: how safetensors and torch fail to write
        _remove(temporary)
        raise unwritable(path, error, option) from error
    except BaseException:
        _remove(temporary)
        raise


def check_writable(path: Path) -> None:
    """Raise a UserError if a file cannot be written, before the work that it is to hold is done."""
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception, option: str = "--out") -> UserError:
    """What to tell the user of a file that could not be written, and which option names its place."""
    return UserError(f"{path}: cannot be written ({_reason(error)}); free space or choose another {option}")


def _reason(error: BaseException) -> str:
    """What the system says is wrong, if it said so: torch raises an error of its own after that."""
    causes = [error]
    while (cause := causes[-1].__context__) is not None:
        causes.append(cause)
    said = (cause.strerror for cause in causes if isinstance(cause, OSError))
    return next(filter(None, said), str(error).partition("\n")[0])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.is_file():  # no folder may be there for it to lie in
        path.unlink(missing_ok=True)


def leads() -> bool:
    """Whether this process prints and logs: of several workers (workers.py) the first one."""
    return os.environ.get("RANK", "0") == "0"


def write_text(path: Path, text: str, option: str = "--out") -> None:
    """Write a text file whole or not at all."""
    with whole(path, option) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, option: str = "--out") -> None:
    """Write a JSON file whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", option)


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Claim a folder for tables made in one way, or go on in the one that was claimed so: `settings.json` in it.

    Raises:
        UserError: the folder holds tables that were made otherwise.
    """
    path = folder / "settings.json"
    if path.is_file():
        differing = differences(json.loads(path.read_text(encoding="utf-8")), settings)
        if differing:
            raise UserError(f"{folder}: holds other tables ({'; '.join(differing)}); choose another --out")
    elif folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UserError(f"{folder}: exists and does not say how its tables were made; choose another --out")
    else:
        write_json(path, settings)


def differences(here: Any, asked: Any, where: str = "") -> list[str]:
    """Where two nested configs differ, in order, such as `train.saes.0.k: 10 here, 11 asked`."""
    if isinstance(here, list) and isinstance(asked, list) and len(here) == len(asked):
        here, asked = dict(enumerate(here)), dict(enumerate(asked))
    if isinstance(here, dict) and isinstance(asked, dict):
        return [
            found
            for key in sorted({*here, *asked})
            for found in differences(here.get(key), asked.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if here == asked else [f"{where}: {_short(here)} here, {_short(asked)} asked"]


def _short(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list | dict) else str(value)


class Events:
    """Appends one JSON object per line to `events.jsonl`, each with the time and a `kind`; tells `listeners` too."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.listeners: list[Callable[[str, dict[str, Any]], None]] = []

    def __call__(self, kind: str, **fields: Any) -> None:
        """Record an event."""
        if self._path is None or not leads():
            return
        line = json.dumps({"time": round(time.time(), 3), "kind": kind, **fields})
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror}); free space") from error
        for listener in self.listeners:
            listener(kind, fields)


class Bar:
    """A progress bar with elapsed time and an estimate of what is left; silent when not at a terminal's side."""

    def __init__(self, what: str, total: int | float, *, done: int = 0) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not leads(),
            speed_estimate_period=120,
        )
        self._task: TaskID = self._progress.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> "Bar":
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()

    def step(self, n: int | float = 1, note: str | None = None) -> None:
        """Advance by `n`, optionally with a new note at the end of the line."""
        if note is None:
            self._progress.update(self._task, advance=n)
        else:
            self._progress.update(self._task, advance=n, note=note)


def say(text: str) -> None:
    """One line for the user, beside the progress bars."""
    if leads():
        Console(stderr=True).print(text, highlight=False, markup=False)


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with `+` when it has changes; None outside one."""
    folder = Path(__file__).parent
    if not any((parent / ".git").exists() for parent in folder.parents):
        return None
    try:
        git = ["git", "-C", str(folder)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if dirty.strip() else "")


def versions() -> dict[str, str | None]:
    """What a result was computed with."""
    import platform

    import torch
    import transformers

    from scalar_sae._version import __version__

    return {
        "scalar_sae": __version__,
        "git": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
