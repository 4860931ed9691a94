"""Control of glibc's freed buffers: keep them for the next step of a loop, or return them between stages."""

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # from glibc's malloc.h


def keep_freed_memory() -> None:
    """Ask glibc not to return freed buffers to the system. Does nothing on other systems.

    Getting buffers anew, zeroed, takes up to a third of the time of training and scoring on a CPU.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, 2**28)  # larger buffers are still returned
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def trim_malloc() -> None:
    """Return freed buffers between two stages whose buffers differ in size, since those of the second would not fit
    into them.
    """
    if libc := _glibc():
        libc.malloc_trim(0)


def share_freed_memory() -> None:
    """Ask glibc for one heap for all threads that start later, so that each can use what another has freed.

    For servers, whose threads mostly wait. By default every thread has a heap of its own.
    """
    if libc := _glibc():
        libc.mallopt(_M_ARENA_MAX, 1)


@contextmanager
def freed_memory_handed_back() -> Generator[None]:
    """Return kept buffers before the block, return buffers as soon as they are freed within it, and keep them again
    afterwards.

    For work whose buffers differ in size from those before it.
    """
    trim_malloc()
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        keep_freed_memory()


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
