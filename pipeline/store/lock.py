"""The lock of an output folder: one process writes at a time. Standard library and storage only."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable

from pipeline.crash import crash_point
from pipeline.store.folder import OutFolder
from pipeline.store.medium import LockedError

__all__ = ["Lock", "LockedError"]


class Lock:
    """The right to write to OUT, until `release` or the end of the process.

    It is an ``flock`` on ``_state/lock``, which the system frees when its holder dies; on object
    storage a lease: see `lease`. Raises `LockedError`, or `StorageError` if OUT is not writable.
    """

    def __init__(
        self, out: OutFolder, run_id: str, say: Callable[[str], None] = lambda _: None
    ) -> None:
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        holder = {"pid": os.getpid(), "host": platform.node(), "run_id": run_id, "started": now}
        self._hold = out.medium.hold(holder, say)
        crash_point("lock-taken")

    def check(self) -> None:
        """Raise `StorageError` if another process may have taken the lock away."""
        self._hold.check()

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""
        self._hold.release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
