"""Keeping freed memory in glibc's heap from one evaluation to the next.

By default every large block comes from the kernel and goes back to it, and the first access to each
of its pages causes a page fault: 80,000 per evaluation at 512 px, which take an eighth of its time,
and a third at 1024 px. Other C libraries have no such switches and are left as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

__all__ = ["kept"]

_SWITCHES = (
    (-8, 1, 0),  # M_ARENA_MAX: number of heaps for all threads; 0: glibc decides
    (-4, 0, 65536),  # M_MMAP_MAX: number of blocks that come straight from the kernel
    (-3, 2**25, 2**25),  # M_MMAP_THRESHOLD: size from which blocks do, bytes
    (-1, -1, 2**26),  # M_TRIM_THRESHOLD: free bytes that are returned to the kernel; -1: never
)
"""For each switch: its number in malloc.h, and its values inside `kept` and afterwards. The last
is glibc's default or, for a default that adapts to the process until it is set, its upper limit."""


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep freed blocks in this process while in here; return them to the kernel afterwards."""
    libc = _glibc()
    if libc is None:
        yield
        return
    for name, inside, _ in _SWITCHES:
        libc.mallopt(name, inside)
    try:
        yield
    finally:
        for name, _, outside in _SWITCHES:
            libc.mallopt(name, outside)
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018  # raises unless it is glibc
    except (OSError, AttributeError):
        return None
    return libc
