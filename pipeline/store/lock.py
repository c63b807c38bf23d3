"""The lock of an output folder: one process writes at a time, or one for each shard. Standard
library and storage only."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping

from pipeline import storage
from pipeline.crash import crash_point
from pipeline.shard import Shard
from pipeline.store.folder import OutFolder
from pipeline.store.medium import LockedError, in_words, refusal
from pipeline.text import count

__all__ = ["Lock", "LockedError", "at_work", "changing", "runs_at_work"]

_SHARD = re.compile(r"lock-(\d+)-of-(\d+)")
_PATIENCE = 0.5  # seconds: whoever looks whether a lock is held holds it for a moment


class Lock:
    """The right to write to OUT, or to write the pairs of one shard, until `release` or the end of
    the process.

    It is an ``flock`` on ``_state/lock``: exclusive for the whole of OUT, shared among the shards
    of one number, each of which holds ``_state/lock-i-of-n``, too. The system frees it when its
    holder dies, so a lock file that is left over does no harm. On object storage it is a lease:
    see `lease`; there are no shards. Raises `LockedError`, or `StorageError` if OUT is not
    writable.
    """

    def __init__(
        self,
        out: OutFolder,
        run_id: str,
        shard: Shard | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._shard = shard
        self._handles: list[int] = []  # that of the whole lock is the first
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        self._holder = {"pid": os.getpid(), "host": platform.node(), "run_id": run_id}
        self._holder["started"] = now
        if shard is not None and out.medium.is_remote:
            raise storage.StorageError(
                f"--shard {shard}: several drivers cannot share {str(out)!r} on object storage; "
                "give each part of the manifest an --out of its own, or one on a shared disk"
            )
        self._lease = out.medium.lease(self._holder, say)
        if self._lease is None:
            self._lock_files(out)
        crash_point("lock-taken")

    def _lock_files(self, out: OutFolder) -> None:
        storage.make_folder(out.state)
        try:
            self._acquire(out)
        except OSError as error:
            self.release()
            raise storage.storage_error(error, out.lock) from error
        except LockedError:
            self.release()
            raise

    def _acquire(self, out: OutFolder) -> None:
        if not self._take(out.lock, shared=self._shard is not None):
            raise _refusal(out, self._shard)
        if self._shard is not None:
            self._holder["shard"] = str(self._shard)
            if not self._take(out.shard_lock(self._shard.name), shared=False):
                raise _refusal(out, self._shard)
            others = [name for name in _held_shards(out) if _count_of(name) != self._shard.count]
            if others:
                raise _refusal(out, self._shard)
        self._write(self._handles[-1])

    def _take(self, path: str, *, shared: bool) -> bool:
        import fcntl

        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._handles.append(handle)
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    return False
                time.sleep(_PATIENCE / 10)
            else:
                return True

    def _write(self, handle: int) -> None:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(self._holder).encode(), 0)

    def alone(self) -> bool:
        """Return whether no other process writes to OUT; then none begins until `release`."""
        import fcntl

        if self._shard is None:
            return True
        try:
            fcntl.flock(self._handles[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # the shared lock may be lost now, and nothing is written any more
            return False
        self._write(self._handles[0])
        return True

    def check(self) -> None:
        """Raise `StorageError` if another process may have taken the lock away."""
        if self._lease is not None:
            self._lease.check()

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""
        if self._lease is not None:
            self._lease.release()
        while self._handles:
            os.close(self._handles.pop())

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextlib.contextmanager
def changing(out: OutFolder) -> Iterator[None]:
    """Keep other shards from making ``run.json`` or ``index/`` meanwhile. Raises `StorageError`."""
    import fcntl

    if out.medium.is_remote:
        yield  # there are no shards
        return
    try:
        handle = os.open(out.shard_lock("changes"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise storage.storage_error(error, out.lock) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def at_work(out: OutFolder) -> list[str]:
    """Return who writes to OUT now, in words: one run, or some shards of it."""
    return [_holder(out, name) for name in _held(out)]


def runs_at_work(out: OutFolder) -> list[str]:
    """Return the ids of the runs that write to OUT now."""
    return [str(facts["run_id"]) for name in _held(out) if (facts := _read(out, name))]


def _held(out: OutFolder) -> list[str]:
    if out.medium.is_remote:
        return ["lock"] if _read(out, "lock") else []
    shards = _held_shards(out)
    return shards or (["lock"] if _is_held(os.path.join(out.state, "lock")) else [])


def _held_shards(out: OutFolder) -> list[str]:
    """Return the names of the locks of shards that are held, in order."""
    try:
        names = [name for name in os.listdir(out.state) if _SHARD.fullmatch(name)]
    except OSError:
        return []
    held = [name for name in names if _is_held(os.path.join(out.state, name))]
    return sorted(held, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


def _count_of(name: str) -> int:
    return int(name.rpartition("-")[2])


def _is_held(path: str) -> bool:
    """Return whether another process, or this one, holds a lock. It is taken for a moment."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _read(out: OutFolder, name: str) -> Mapping[str, object]:
    try:
        facts = json.loads(storage.read_bytes(storage.join(out.state, name)))
        return facts if isinstance(facts, dict) else {}
    except (ValueError, OSError):
        return {}


def _holder(out: OutFolder, name: str) -> str:
    """Return in words who holds a lock."""
    who = in_words(_read(out, name))
    match = _SHARD.fullmatch(name)
    return f"shard {match[1]}/{match[2]}: {who}" if match else who


def _refusal(out: OutFolder, shard: Shard | None) -> LockedError:
    """Return why a lock cannot be had, and what to do about it."""
    held = _held_shards(out)
    same = f"lock-{shard.name}" if shard else ""
    others = [name for name in held if shard and _count_of(name) != shard.count]
    if same in held and not others:
        return LockedError(
            f"{str(out)!r} has its {_holder(out, same)}; wait until it is done, stop it, or choose "
            "another shard"
        )
    theirs = others or ([] if shard else held)
    if theirs:
        n = _count_of(theirs[0])
        wanted = "all of it" if shard is None else f"shard {shard}"
        return LockedError(
            f"{str(out)!r} is in use by {count(len(theirs), 'shard')} of {n} "
            f"({_holder(out, theirs[0])}), and {wanted} cannot be painted beside them; use --shard "
            f"I/{n}, wait until they are done, or choose another --out"
        )
    holder = _read(out, "lock")
    error = refusal(str(out), holder)
    error.passing = shard is not None and "shard" in holder
    return error
