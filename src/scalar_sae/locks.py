"""Locks for run directories: one process at a time. They are system locks, so they end with their owner, however it
ends.

    with held(out):                            # a second process is told who holds the lock, and since when
    with held(out, "results.json", wait=60):   # briefly: read, change, write

A file beside the lock file names the holder. With several workers (distributed.py), the first one holds the lock.
"""

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from scalar_sae.errors import UserError, one_line
from scalar_sae.io import leads, unwritable
from scalar_sae.readers import read_text


@contextmanager
def held(
    folder: Path,
    name: str = "",
    wait: float = 0.0,
    remedy: str = "wait until it ends, or choose another folder",
    option: str = "place",
) -> Generator[None]:
    """Keep other processes from a folder, or from one name in it, during the block. Nested calls in one process are
    allowed.

    Args:
        folder: the folder. It is created if missing, and removed again if it stays empty.
        name: the name within the folder to lock; empty locks the whole folder.
        wait: seconds to wait for another process.
        remedy: what the user can do if the other process does not end.
        option: the option that named the folder, for messages.

    Raises:
        UserError: another process holds the lock, or the lock cannot be created there.
    """
    if not leads():
        yield
        return
    lock_file, owner_file = (folder / f"{'.' if name else ''}{name}.{kind}" for kind in ("lock", "owner"))
    made = _made(folder, option)
    lock = FileLock(lock_file.absolute(), is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise UserError(f"{folder / name}: in use by {_owner(owner_file)}; {remedy}") from error
    except OSError as error:
        raise unwritable(folder, error, option) from error
    try:
        if lock.lock_counter == 1:
            _sign(owner_file)
        yield
    finally:
        if lock.lock_counter == 1:
            with suppress(OSError):
                owner_file.unlink()
                lock_file.unlink()  # a process waiting for it notices and creates a new one
        lock.release()
        for each in made:
            with suppress(OSError):  # the folder is not empty any more
                each.rmdir()


def _made(folder: Path, option: str) -> list[Path]:
    """Create a folder. Returns the folders that did not exist, innermost first."""
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{folder}: is no folder; choose another {option}") from error
    except OSError as error:
        raise unwritable(folder, error, option) from error
    return missing


def _sign(owner_file: Path) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    with suppress(OSError):  # only the message is less informative then
        owner_file.unlink(missing_ok=True)  # an unrelated file there might be a pipe
        owner_file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}", encoding="utf-8")


def _owner(owner_file: Path) -> str:
    try:
        return one_line(read_text(owner_file, "not there", 1000), 200) or "another process"
    except UserError:
        return "another process"
