"""Files on disk: atomic writes, and an event log.

A file that exists under its final name is complete. Everything is written under a unique temporary name beside the
target, flushed to disk and renamed. A process that is killed leaves at most a `.partial` file. Nothing reads such
files, and the next process that writes there removes them. A target is only replaced by its own kind: a file never
replaces a folder, and a folder is only replaced by one that has all of its files.
"""

import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from scalar_sae.errors import UserError, quoted, reason
from scalar_sae.readers import parse_json, read_text

_HOST = re.sub(r"\W", "-", socket.gethostname())[:64]
SETTINGS = "settings.json"
"""Records how the tables in a folder were made (see `claim`)."""
_LOCKS = {".lock", ".owner"}
"""Files that locks.py creates in a folder in use."""
_TEMPORARY = re.compile(rf"\.{_HOST}\.(\d+)\.[0-9a-f]{{8}}\.partial")
_PROBE = 65_536
"""Number of bytes written to test whether a disk has any room."""


@contextmanager
def atomic_write(path: Path, option: str = "place") -> Generator[Path]:
    """Yield a temporary path (file or folder) that becomes `path` if the block succeeds.

    `option` is the command-line option that names the path, for messages.

    Raises:
        UserError: the disk is full, the folder cannot be written, or something else at `path` would be lost.
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        yield temporary
        _check_replaced(path, temporary, option)
        _permit(temporary)
        _to_disk(temporary)
        if temporary.is_dir():
            _replace_folder(path, temporary)
        else:
            temporary.replace(path)
        _to_disk_alone(path.parent)
    # the last two are how safetensors and torch report a failed write
    except (OSError, SafetensorError, RuntimeError) as error:
        _remove(temporary)
        raise unwritable(path, error, option) from error
    except BaseException:
        _remove(temporary)
        raise


def check_writable(path: Path, option: str = "--out", *, folder: bool = False) -> None:
    """Raise a UserError if a file, or a folder, cannot be written, before its content is computed.

    The test writes a file in the nearest existing folder and removes it at once. No folder is created.
    """
    place, missing = (path, list[str]()) if folder else (path.parent, [path.name])
    try:
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            kinds = ("no folder", "a folder") if folder else ("a folder or a device", "a file")
            raise UserError(f"{path}: is {kinds[0]}, and {kinds[1]} is to be written there; choose another {option}")
        while not os.path.lexists(place):
            place, missing = place.parent, [place.name, *missing]
        for name in missing:
            with suppress(FileNotFoundError):  # a name that is too long raises another error
                os.lstat(place / f"{name}.partial")
        probe = _temporary(place / "probe")
        try:
            probe.write_bytes(bytes(_PROBE))
        finally:
            with suppress(OSError):
                probe.unlink()
    except OSError as error:
        raise unwritable(path, error, option) from error


def unwritable(path: Path, error: Exception, option: str = "place") -> UserError:
    """The error for a file that could not be written, naming the option for its path."""
    return UserError(f"{path}: cannot be written ({_reason(error)}); free space or choose another {option}")


def _reason(error: BaseException) -> str:
    """The system's error behind an exception, if there is one. torch hides it behind an error of its own."""
    causes = [error]
    while (cause := causes[-1].__context__) is not None:
        causes.append(cause)
    said = (cause.strerror for cause in causes if isinstance(cause, OSError))
    return next(filter(None, said), reason(error))


def _temporary(path: Path) -> Path:
    """A temporary name beside a path, unique among processes and calls. Its length does not depend on the path's
    name.
    """
    return path.with_name(f".{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.partial")


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that no longer run on this machine."""
    for entry in list(os.scandir(folder)):
        found = _TEMPORARY.fullmatch(entry.name)
        if found and not runs(int(found[1])):
            _remove(folder / entry.name)


def runs(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process
        return True
    return True


def _check_replaced(path: Path, temporary: Path, option: str) -> None:
    """Raise a UserError if writing to a path would remove something of another kind."""
    if not os.path.lexists(path):
        return
    if not temporary.is_dir():
        if path.is_dir() or (path.exists() and not path.is_file()):
            kind = "folder" if path.is_dir() else "device or pipe"
            raise UserError(f"{path}: is a {kind}, and a file is to be written there; move it away")
        return
    if path.is_symlink() or not path.is_dir():
        raise UserError(f"{path}: is no folder, and one is to be written there; move it away")
    lost = sorted({entry.name for entry in path.iterdir()} - {entry.name for entry in temporary.iterdir()} - _LOCKS)
    if lost := [name for name in lost if not _TEMPORARY.fullmatch(name)]:
        names = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise UserError(f"{path}: holds {names}, which would be lost; move the folder away, or choose another {option}")


def _replace_folder(path: Path, temporary: Path) -> None:
    """Replace a folder, if there is one. The old one is restored if that fails."""
    aside = _temporary(path)
    if path.is_dir():
        path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        if aside.is_dir():
            aside.rename(path)
        raise
    _remove(aside)


def _permit(path: Path) -> None:
    """Give every file the permissions of an ordinary new file, because safetensors makes its files readable only by
    their owner.

    The permissions are copied from a new file, so they respect the user's umask.
    """
    files = [entry for entry in path.rglob("*") if entry.is_file()] if path.is_dir() else [path]
    private = [file for file in files if not file.stat().st_mode & 0o077]
    if private:
        ordinary = _temporary(path)
        ordinary.touch()
        mode = stat.S_IMODE(ordinary.stat().st_mode)
        ordinary.unlink()
        for file in private:
            file.chmod(mode)


def _to_disk(path: Path) -> None:
    """Flush a file, or a folder with all its content, to disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _to_disk(entry)
    _to_disk_alone(path)


def _to_disk_alone(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink(missing_ok=True)


def leads() -> bool:
    """Whether this process prints and logs. With several workers (distributed.py) that is the first one."""
    return os.environ.get("RANK", "0") == "0"


def write_text(path: Path, text: str, option: str = "place") -> None:
    """Write a text file atomically."""
    with atomic_write(path, option) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, option: str = "place") -> None:
    """Write a JSON file atomically. NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", option)


def cache_folder() -> Path:
    """The folder for downloads and conversions: `$SCALAR_SAE_CACHE`, else the user's cache folder.

    A user without a home directory, as in some containers, gets one in the folder for temporary files.
    """
    if chosen := os.environ.get("SCALAR_SAE_CACHE"):
        return Path(chosen)
    home = _home()
    return home / ".cache" / "scalar-sae" if home else Path(tempfile.gettempdir()) / f"scalar-sae-{os.getuid()}"


def give_libraries_a_cache() -> None:
    """Let libraries keep their downloads in our cache folder if the user has no home directory.

    They would otherwise create a folder called `~` in the current one. Call this before they are imported.
    """
    if _home() is None:
        os.environ.setdefault("HF_HOME", str(cache_folder() / "huggingface"))


def _home() -> Path | None:
    """The user's home directory; None if it is unknown, or if it has no cache and none can be created."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if (home / ".cache").is_dir() or os.access(home, os.W_OK) else None


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Claim a folder for tables with these settings, or continue in one that was claimed with the same settings.

    The settings are kept in `settings.json`.

    Raises:
        UserError: the folder holds tables that were made with other settings.
    """
    check_claim(folder, settings)
    path = folder / SETTINGS
    if not os.path.lexists(path):
        write_json(path, settings)


def check_claim(folder: Path, settings: dict[str, Any]) -> None:
    """Raise a UserError if a folder holds tables that were made with other settings. Nothing is written."""
    path = folder / SETTINGS
    if os.path.lexists(path):
        differing = differences(read_plain(path), settings)
        if differing:
            raise UserError(f"{folder}: holds other tables ({'; '.join(differing)}); choose another --out")
    elif folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise UserError(f"{folder}: exists and does not say how its tables were made; choose another --out")


def read_plain(path: Path) -> Any:
    """The plain values of a JSON file.

    Raises:
        UserError: it is damaged.
    """
    return parse_json(read_text(path, "no longer there; run the command again"), str(path))


def differences(here: Any, asked: Any, where: str = "") -> list[str]:
    """The differences between two nested configs, in order, such as `train.saes.0.k: 10 here, 11 asked`."""
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
    return f"{len(value)} entries" if isinstance(value, list | dict) else quoted(value).strip("'")


@contextmanager
def appending(path: Path, encoding: str = "utf-8") -> Generator[TextIO]:
    """Open a file for appending lines, creating it if necessary. A pipe or a device does not block.

    Raises:
        UserError: the path is a folder, a pipe or a device, or it cannot be written.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    try:
        number = os.open(path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise UserError(f"{path}: a pipe or device, expected a file; move it away")
        with os.fdopen(number, "a", encoding=encoding) as file:
            yield file
    except OSError as error:
        raise unwritable(path, error) from error


class Events:
    """An event log: one JSON object per line in `events.jsonl`, with the time and a `kind`. It also informs
    `listeners`.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.listeners: list[Callable[[str, dict[str, Any]], None]] = []

    def __call__(self, kind: str, **fields: Any) -> None:
        """Record an event."""
        if self._path is None or not leads():
            return
        line = json.dumps({"time": round(time.time(), 3), "kind": kind, **fields})
        with appending(self._path) as file:
            file.write(line + "\n")
        for listener in self.listeners:
            listener(kind, fields)
