"""One process at a time in a run directory. The lock is the system's, so it ends with its owner, however that ends.

    with held(out):                            # a second process is told who is there, and since when
    with held(out, "results.json", wait=60):   # for a moment: read, change, write

Beside the lock file lies another that says who holds it. Of several workers (distributed.py) the first holds the lock.
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
    """Keep other processes from a folder, or from one name in it, while the block runs; a block inside may ask again.

    Args:
        folder: made if it is not there, and removed again if nothing was put into it.
        name: what is held of it; by default all.
        wait: seconds to wait for another process.
        remedy: what the user can do if that one does not end.
        option: what named the folder, for messages.

    Raises:
        UserError: another process holds it, or the lock cannot be made there.
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
                lock_file.unlink()  # one who waits for it sees that it has gone, and makes another
        lock.release()
        for each in made:
            with suppress(OSError):  # it holds something now
                each.rmdir()


def _made(folder: Path, option: str) -> list[Path]:
    """Make a folder; returns those that were not there, the innermost first."""
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
    with suppress(OSError):  # a message is poorer then, and nothing else
        owner_file.unlink(missing_ok=True)  # what somebody put there may be a pipe
        owner_file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}", encoding="utf-8")


def _owner(owner_file: Path) -> str:
    try:
        return one_line(read_text(owner_file, "not there", 1000), 200) or "another process"
    except UserError:
        return "another process"
