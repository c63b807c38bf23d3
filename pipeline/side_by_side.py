"""Requests side by side, and waits that Ctrl-C ends. Standard library only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["AT_ONCE", "interruptible", "side_by_side"]

AT_ONCE = 32
"""How many requests are made at a time."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def side_by_side(
    work: Callable[[_T], _R],
    items: Sequence[_T],
    after: float | None = None,
    late: Callable[[], None] = lambda: None,
) -> list[_R]:
    """Return what `work` returns for each item, `AT_ONCE` of them at a time, in their order.

    `late` is called once if that takes more than `after` seconds. Raises what the first one that
    fails raises; nobody waits for the others then. A request to a store that does not answer takes
    minutes, and does not see Ctrl-C: so it is made by a thread that the end of the process does
    not wait for either.
    """
    answers: dict[int, _R] = {}
    errors: list[BaseException] = []
    waiting = iter(enumerate(items))
    changed = threading.Condition()
    threads = min(AT_ONCE, len(items))
    ended = 0

    def serve() -> None:
        nonlocal ended
        while True:
            with changed:
                number, item = next(waiting, (-1, None))
                if number < 0 or errors:
                    ended += 1
                    changed.notify()
                    return
            try:
                answers[number] = work(item)  # type: ignore[arg-type]
            except BaseException as error:
                with changed:
                    errors.append(error)
                    changed.notify()

    for _ in range(threads):
        threading.Thread(target=serve, daemon=True).start()
    with changed:
        if not changed.wait_for(lambda: errors or ended == threads, after):
            late()
        changed.wait_for(lambda: errors or ended == threads)
    if errors:
        raise errors[0]
    return [answers[number] for number in range(len(items))]


def interruptible(work: Callable[[], _R], after: float, late: Callable[[], None]) -> _R:
    """Return what `work` returns; a Ctrl-C while it works is seen at once.

    `late` is called if that takes more than `after` seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    return side_by_side(lambda _: work(), [None], after, late)[0]
