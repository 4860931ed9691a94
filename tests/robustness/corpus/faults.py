"""What goes wrong in the process of a command while it works, at a chosen moment."""

import errno
import os
import signal
from collections.abc import Callable
from typing import Any


def nobody_visits() -> None:
    """A page that is served is left at once, as by Ctrl-C."""
    from scalar_sae.loopback import LoopbackServer

    def leave(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    LoopbackServer.run = leave


def no_hub() -> None:
    """Nothing is uploaded."""
    from scalar_sae.saes import hub

    hub.upload = lambda folder, repository, private: f"hf://{repository}"


def together(*faults: list[Any]) -> None:
    """Several faults, each its name and arguments."""
    for name, *arguments in faults:
        globals()[name](*arguments)


def eager() -> None:
    """Whatever is written now and then is written at every opportunity."""
    from scalar_sae.scoring.rankings import unfinished
    from scalar_sae.training import loop

    loop.CHECKPOINT_SECONDS = unfinished.SELDOM = -1.0
    unfinished.WORTH = 0.0


def _at_writing(number: int, act: Callable[[], None]) -> None:
    """Do something when a file is brought to the disk for the `number`th time, from 0."""
    seen, fsync = 0, os.fsync

    def instead(file: int) -> None:
        nonlocal seen
        seen += 1
        if seen == number + 1:
            act()
        fsync(file)

    os.fsync = instead


def disk_full(number: int) -> None:
    """There is no room for the `number`th file, as file systems that allocate late say at fsync."""

    def act() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _at_writing(number, act)


def largest_file(size: int) -> None:
    """Writing beyond so many bytes of a file fails."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def ended_twice(number: int) -> None:
    """SIGTERM arrives twice while the `number`th file is written."""

    def act() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    _at_writing(number, act)
