"""The lock of an output folder: one process writes at a time. Standard library and storage only."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping

from pipeline import storage
from pipeline.crash import crash_point
from pipeline.store.folder import OutFolder

__all__ = ["Lock", "LockedError"]


class LockedError(Exception):
    """Another process is writing to this OUT. The message names it and says what to do."""


class Lock:
    """The right to write to OUT, until `release` or the end of the process.

    It is an ``flock`` on ``_state/lock``. The system frees it when its holder dies, so a lock file
    that is left over does no harm. Raises `LockedError`, or `StorageError` if OUT is not writable.
    """

    def __init__(self, out: OutFolder, run_id: str) -> None:
        import fcntl

        storage.make_folder(out.state)
        try:
            self._handle = os.open(out.lock, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.pread(self._handle, 10_000, 0)
                os.close(self._handle)
                raise LockedError(_refusal(str(out), text)) from None
            self._write({"pid": os.getpid(), "host": platform.node(), "run_id": run_id})
        except OSError as error:
            raise storage.storage_error(error, out.lock) from error
        crash_point("lock-taken")

    def _write(self, holder: Mapping[str, object]) -> None:
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps({**holder, "started": now}).encode(), 0)

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _refusal(out: str, text: bytes) -> str:
    try:
        holder = json.loads(text)
        who = "process {pid} on {host} (run {run_id}, since {started})".format(**holder)
    except (ValueError, KeyError, TypeError):
        who = "another process, which has just started"
    return f"{out!r} is in use by {who}; wait until it is done, stop it, or choose another --out"
