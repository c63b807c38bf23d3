"""Handling of the signals that ask a process to end. Standard library only."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["Handlers", "repeat", "when_told_to_end"]

_Handler = Callable[[int, FrameType | None], object]


class Handlers:
    """Sends SIGINT, SIGTERM and SIGHUP to one function; restores the earlier handlers at the end.

    A `KeyboardInterrupt` could get lost, because Python ignores exceptions in finalizers.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler
        self._before: dict[signal.Signals, _Handler | int | None] = {}

    def install(self) -> None:
        """Take the signals, even from code that took them since. Acts in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in self._NUMBERS:
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # nohup asked for this
                before = signal.signal(number, self._handler)
                self._before.setdefault(number, before)

    def __enter__(self) -> Handlers:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def repeat(work: Callable[[], object], every: float) -> None:
    """Do some work every `every` seconds, until a signal asks the process to end.

    The work in hand is finished first. A second signal raises `KeyboardInterrupt` at once.
    """
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    with Handlers(stop):
        while not stopping.is_set():
            work()
            stopping.wait(every)


def when_told_to_end(work: Callable[[], object]) -> None:
    """From now on do some work, in a thread of its own, for each SIGTERM, which does nothing else.

    This is for a process whose main thread may be busy outside of Python, where no handler runs.
    Acts in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)

    def wait() -> None:
        while numbers := os.read(read, 1):
            if numbers[0] == signal.SIGTERM:
                work()

    threading.Thread(target=wait, daemon=True).start()
