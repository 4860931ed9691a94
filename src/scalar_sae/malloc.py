"""What glibc does with freed buffers: kept for the next step of a loop, or handed back between stages."""

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Ask glibc not to hand freed buffers back to the system: getting them anew, zeroed, costs up to a third of the
    time of training and scoring on a CPU. Elsewhere nothing happens.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, 2**28)  # larger ones still go back
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def trim_malloc() -> None:
    """Between two stages whose buffers have other sizes: those of the second would not fit into what is kept."""
    if libc := _glibc():
        libc.malloc_trim(0)


@contextmanager
def freed_memory_handed_back() -> Generator[None]:
    """In the block buffers go back as soon as they are freed; before it, those that were kept; after it they are kept.

    For work whose buffers have other sizes than those before it.
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
