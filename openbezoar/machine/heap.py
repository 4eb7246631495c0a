"""What glibc does with freed memory, in a process that is ours (``manage``); elsewhere, and on
other systems, nothing happens.

Both ways are for large tensors on a CPU, where a page that is mapped afresh costs more than
the arithmetic on it.
"""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3

_managed = False  # another program's heap is its own


def manage() -> None:
    """Let the functions below act from here on: for a program that owns its process."""
    global _managed
    _managed = True


def keep_freed_blocks() -> None:
    """Keep freed memory for the next pass, which asks for the same again, rather than return it and
    have it mapped anew.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 64 << 20)
        # the most that it takes; setting one threshold stops it from raising this one by itself
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)


def give_back_large_blocks(size: int = 1 << 20) -> None:
    """Return blocks of ``size`` bytes or more to the system when they are freed.

    Left alone it keeps blocks of up to 32 MB in a heap of holes once one was freed, and a
    step of a large model on the CPU holds twice what its tensors take.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(M_TRIM_THRESHOLD, 128 << 10)  # as it is without having been set
        libc.mallopt(M_MMAP_THRESHOLD, size)
        libc.malloc_trim(ctypes.c_size_t(0))  # what loading left behind


def _glibc() -> ctypes.CDLL | None:
    if not _managed or sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
