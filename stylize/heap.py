"""The heap of glibc: what one evaluation freed is kept for the next.

By default every large block comes from the kernel and goes back to it, and the first touch of each
of its pages is a fault: at 512 px 80,000 of them an evaluation, an eighth of its time, at 1024 px
a third. Other C libraries have no such switches, and are left as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

__all__ = ["kept"]

_SWITCHES = (
    (-8, 1, 0),  # M_ARENA_MAX: heaps among which threads are shared out; 0 leaves it to glibc
    (-4, 0, 65536),  # M_MMAP_MAX: blocks that come from the kernel one by one
    (-3, 2**25, 2**25),  # M_MMAP_THRESHOLD: the size, bytes, from which they do
    (-1, -1, 2**26),  # M_TRIM_THRESHOLD: free bytes that go back to it; -1: none do
)
"""Each switch's number in malloc.h, its value in here and its value afterwards: glibc's default or,
where that grows with what a process asks for (until it is set), what it grows to."""


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """While in here freed blocks stay with this process; afterwards they go back to the kernel."""
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
        libc.gnu_get_libc_version  # noqa: B018
    except (OSError, AttributeError):
        return None
    return libc
