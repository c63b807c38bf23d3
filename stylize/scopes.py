"""Process-wide switches that are changed only while they are needed. Standard library only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

__all__ = ["Shared"]


class Shared:
    """A process-wide change that several threads may need at the same time.

    The first thread to enter makes the change, and the last one to leave undoes it: if each thread
    restored what it found, one could undo the change while another still relies on it.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._users = 0
        self._current: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._current = self._change()
                self._current.__enter__()
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._current is not None:
                current, self._current = self._current, None
                current.__exit__(None, None, None)
