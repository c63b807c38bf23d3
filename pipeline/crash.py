"""Named points at which a test makes the process kill itself. Standard library only."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

__all__ = ["crash_point"]


def crash_point(name: str, before: Callable[[], object] | None = None) -> None:
    """SIGKILL this process if ``STYLIZE_CRASH_AT`` is ``name``, or ``name:FLAGFILE``.

    With a flag file it happens once over all processes: the one that creates the file dies.
    `before` runs just ahead of the kill, for damage that only a half-finished write can leave.
    """
    wanted = os.environ.get("STYLIZE_CRASH_AT")
    if not wanted:
        return
    point, _, flag = wanted.partition(":")
    if point != name:
        return
    if flag:
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    if before is not None:
        before()
    os.kill(os.getpid(), signal.SIGKILL)
