"""What a process does when it is asked to end. Standard library only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Handlers"]


class Handlers:
    """SIGINT, SIGTERM and SIGHUP go to one function; what was there before comes back.

    A KeyboardInterrupt instead would be lost where Python ignores exceptions, as in finalizers.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, handler: Callable[[int, FrameType | None], None]) -> None:
        self._handler = handler
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals, again if others took them meanwhile; from the main thread alone."""
        if threading.current_thread() is threading.main_thread():
            for number in self._NUMBERS:
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # nohup
                before = signal.signal(number, self._handler)
                self._before.setdefault(number, before)

    def __enter__(self) -> Handlers:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
