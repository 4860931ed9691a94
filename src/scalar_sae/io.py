"""Where results live on disk: whole files or none, and an event log.

Contract: a file that exists under its final name is complete. Everything is written to a temporary name beside it
and renamed; a kill or a full disk leaves at most a `.partial` file, which nothing reads.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from scalar_sae.errors import UserError

PARTIAL = ".partial"


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


def cache_folder() -> Path:
    """Where downloads and conversions are kept: `$SCALAR_SAE_CACHE`, else the user's cache folder.

    A user without a home directory, as in some containers, has one in the folder for temporary files.
    """
    if chosen := os.environ.get("SCALAR_SAE_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "scalar-sae"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"scalar-sae-{os.getuid()}"


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
