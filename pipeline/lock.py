"""Who may write to OUT, and what its first run fixed: the small files in OUT/_state.

Standard library and storage only.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from pipeline import storage
from pipeline.crash import crash_point

__all__ = ["Lock", "LockedError", "read_run", "write_run"]


class LockedError(Exception):
    """Another driver works on this OUT; the text names it and says what to do."""


class Lock:
    """The right to write to OUT, for one driver at a time, until `release` or death.

    ``flock`` on ``_state/lock``: the system frees it when its holder dies, so a lock that is left
    over is simply taken. Raises `LockedError`, or `StorageError` if OUT cannot be written.
    """

    def __init__(self, out: str, run_id: str) -> None:
        import fcntl

        folder = storage.join(storage.local_path(out) or out, "_state")
        storage.make_folder(folder)
        path = os.path.join(folder, "lock")
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.pread(self._handle, 10_000, 0)
                os.close(self._handle)
                raise LockedError(_refusal(out, text)) from None
            self._write({"pid": os.getpid(), "host": platform.node(), "run_id": run_id})
        except OSError as error:
            raise storage.storage_error(error, path) from error
        crash_point("lock-taken")

    def _write(self, holder: Mapping[str, Any]) -> None:
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps({**holder, "started": now}).encode(), 0)

    def release(self) -> None:
        """Let the next driver in. A second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _refusal(out: str, text: bytes) -> str:
    try:
        holder = json.loads(text)
        who = "process {pid} on {host} (run {run_id}, since {started})".format(**holder)
    except (ValueError, KeyError, TypeError):
        who = "another process, which has just begun"
    return f"{out!r} is in use by {who}; wait until it is done, stop it, or choose another --out"


def _run_path(out: str) -> str:
    return storage.join(out, "_state/run.json")


def read_run(out: str) -> dict[str, Any]:
    """What the first run fixed for OUT, {} before it. Raises `StorageError` if it is damaged."""
    path = _run_path(out)
    try:
        values = json.loads(storage.read_bytes(path))
        if not isinstance(values, dict):
            raise ValueError("no object")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise storage.unreadable(error, path) from error
    except ValueError as error:
        raise storage.StorageError(
            f"{path!r} is damaged ({error}); remove it, and the next run writes it again"
        ) from error
    return values


def write_run(out: str, values: Mapping[str, Any]) -> None:
    """Fix values for OUT, whole or not at all. Raises `StorageError`."""
    text = json.dumps(dict(values), indent=1, sort_keys=True)
    storage.put(_run_path(out), text.encode(), point="run-json")
