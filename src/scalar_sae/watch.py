"""End a worker that would otherwise wait forever, because another one has died, has ended or waits for something else.

A collective operation waits for all workers, up to a day, since the first worker may have work of its own. Therefore
every worker reports to a shared store every few seconds that it is alive and which operation it waits in, and reads the
reports of the others. This runs in a separate thread. The store is the one that `torchrun` provides.
"""

import atexit
import json
import os
import socket
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import NoReturn

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented, but not exported

from scalar_sae.errors import reason
from scalar_sae.io import runs

BEAT = 5.0
"""Seconds between two reports."""
SILENT = 90.0
"""Seconds of silence after which a worker on another machine counts as dead."""
APART = 60.0
"""Seconds after which workers that all wait in different operations count as stuck."""


@dataclass(frozen=True)
class Beat:
    """The report of a worker."""

    host: str
    pid: int
    number: int = 0
    """Running number of the report."""
    operation: int = 0
    """Number of collective operations begun."""
    waits_in: str = ""
    """The operation that the worker waits in; empty while it works."""
    ended: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Waiting:
    """The collective operation that this worker is in."""

    operation = 0
    name = ""
    watch: threading.Thread | None = None


_now = Waiting()


@contextmanager
def waiting(name: str) -> Generator[None]:
    """Mark the block as a collective operation, which ends when all workers have reached it.

    The operation fails at once if the connection to a worker that ended breaks. The watch then gets time to report
    which.
    """
    _now.operation, _now.name = _now.operation + 1, name
    try:
        yield
    except RuntimeError:
        if _now.watch is not None:
            _now.watch.join(5 * BEAT)  # ends this process if a worker has ended or died
        raise
    finally:
        _now.name = ""


def start() -> None:
    """Watch the other workers until this process ends. Only works under `torchrun`, whose store it needs."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address and port:
        store = TCPStore(address, int(port), is_master=False)
        _now.watch = _Watch(store, dist.get_rank(), dist.get_world_size())
        _now.watch.start()


@dataclass(frozen=True)
class Seen:
    """The latest report of a worker."""

    beat: Beat
    heard: float
    """Time of the latest report."""
    since: float
    """Time since which the worker's state has been the same."""
    gone: bool = False
    """Whether its process no longer ran before the report was read, which is then its last one."""

    def then(self, beat: Beat, now: float, gone: bool = False) -> "Seen":
        """The record after another report."""
        did, does = ((one.operation, one.waits_in, one.ended) for one in (self.beat, beat))
        return Seen(beat, self.heard if beat == self.beat else now, self.since if does == did else now, gone)


def verdict(rank: int, seen: Sequence[Seen | None], now: float) -> str | None:
    """The reason why this worker should end, or None.

    Args:
        rank: index of this worker.
        seen: the latest report of every worker; None for a worker that has not begun.
        now: the current time.
    """
    everybody = [one for one in seen if one is not None]
    if len(everybody) < len(seen):
        return None
    mine = everybody[rank]
    waits = bool(mine.beat.waits_in) and now - mine.since > 2 * BEAT
    for other, one in enumerate(everybody):
        if one.beat.ended and waits and one.beat.operation < mine.beat.operation:
            return f"worker {other} ({one.beat}) has ended, and worker {rank} waits for it ({mine.beat.waits_in})"
        elsewhere = one.beat.host != mine.beat.host
        if not one.beat.ended and (one.gone or (elsewhere and now - one.heard > SILENT)):
            return f"worker {other} ({one.beat}) has died"
    doing = {(one.beat.operation, one.beat.waits_in) for one in everybody}
    if len(doing) > 1 and all(one.beat.waits_in and now - one.since > APART for one in everybody):
        where = ", ".join(f"worker {other} in {one.beat.waits_in}" for other, one in enumerate(everybody))
        return f"the workers wait for different things ({where}): they do not see the same files"
    return None


class _Watch(threading.Thread):
    def __init__(self, store: TCPStore, rank: int, n: int) -> None:
        super().__init__(daemon=True, name="watch")
        self._store, self._rank, self._n = store, rank, n
        self._prefix = f"scalar-watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._mine = Beat(socket.gethostname(), os.getpid())
        self._ending = threading.Event()
        self._say()
        atexit.register(self._end)

    def run(self) -> None:
        """Report and read reports until this process ends or must be ended."""
        seen: list[Seen | None] = [None] * self._n
        while not self._ending.wait(BEAT):
            try:
                self._say()
                gone = [one is not None and self._gone(one.beat) for one in seen]
                beats = [self._read(rank) for rank in range(self._n)]
            except RuntimeError as error:  # the store no longer exists
                if self._ending.is_set():
                    return
                _stop(f"worker {self._rank}: torchrun does not answer ({reason(error)})")
            now = time.monotonic()
            seen = [
                one.then(beat, now, ended) if one and beat else Seen(beat, now, now) if beat else None
                for one, beat, ended in zip(seen, beats, gone, strict=True)
            ]
            why = verdict(self._rank, seen, now)
            if why is not None and not self._ending.is_set():
                _stop(why)

    def _say(self) -> None:
        doing = {"operation": _now.operation, "waits_in": _now.name, "ended": self._ending.is_set()}
        self._mine = replace(self._mine, number=self._mine.number + 1, **doing)
        self._store.set(f"{self._prefix}/{self._rank}", json.dumps(asdict(self._mine)))

    def _read(self, rank: int) -> Beat | None:
        key = f"{self._prefix}/{rank}"
        return Beat(**json.loads(self._store.get(key))) if self._store.check([key]) else None

    def _gone(self, beat: Beat) -> bool:
        return beat.host == self._mine.host and not runs(beat.pid)

    def _end(self) -> None:
        self._ending.set()
        self.join(SILENT)  # the process would be aborted if it ended while this thread is in the store
        with suppress(RuntimeError):  # torchrun has ended
            self._say()


def _stop(why: str) -> NoReturn:
    """End this process, whose main thread waits in a place that no exception reaches."""
    os.write(2, f"scalar: {why}; the same command goes on from the last checkpoint\n".encode())
    os._exit(1)
