"""The lock of an output folder: one process writes at a time, or one for each shard. Standard
library and storage only."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Callable, Mapping

from pipeline import storage
from pipeline.crash import crash_point
from pipeline.objects import ChangedError
from pipeline.shard import Shard
from pipeline.store.folder import OutFolder
from pipeline.store.lease import Lease, watched
from pipeline.store.medium import Locks, Seen
from pipeline.text import count

__all__ = ["Lock", "LockedError", "at_work", "runs_at_work"]

_WHOLE = "lock"  # the lock of all of OUT, not of a shard
_SHARD = re.compile(r"lock-(\d+)-of-(\d+)")


class LockedError(Exception):
    """Another process is writing to this OUT. The message names it and says what to do."""

    passes_soon = False  # it is a shard that only tidies up after all others


class Lock:
    """The right to write to OUT, or to write the pairs of one shard, until `release` or the end of
    the process.

    It is a lease: ``_state/lock`` for the whole of OUT, ``_state/lock-i-of-n`` for a shard. Whoever
    takes one looks for rivals before and after: so two that begin at once never both go on. Raises
    `LockedError`, or `StorageError` if OUT is not writable.
    """

    def __init__(
        self,
        out: OutFolder,
        run_id: str,
        shard: Shard | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._out = out
        self._shard = shard
        self._locks = out.medium.locks()
        self._say = say
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        self._holder = {"pid": os.getpid(), "host": platform.node(), "run_id": run_id}
        self._holder |= {"started": now, **({"shard": str(shard)} if shard else {})}
        self._lease: Lease | None = None
        self._is_alone = shard is None
        storage.make_folder(out.state)
        try:
            self._acquire(f"lock-{shard.name}" if shard else _WHOLE)
        except OSError as error:
            self.release()
            raise storage.storage_error(error, out.lock) from error
        except LockedError:
            self.release()
            raise
        crash_point("lock-taken")

    def _acquire(self, own: str) -> None:
        while self._lease is None:
            names = [n for n in _names(self._locks) if n == own or self._is_rival(n)]
            seen, held = watched(self._locks, names, self._say)
            if held:
                raise _refusal(self._out, self._shard, seen)
            try:
                # One that is dead, or only seems so, must learn that it has lost its lock.
                for name, one in seen.items():
                    if name != own and one.state is not None:
                        self._lease_of(name, one).release()
                self._lease = self._lease_of(own, seen.get(own, Seen()))
            except ChangedError:
                continue
        rivals = {n: self._locks.look(n) for n in _names(self._locks) if self._is_rival(n)}
        if any(one.lives is not False for one in rivals.values()):
            raise _refusal(self._out, self._shard, rivals)

    def _lease_of(self, name: str, seen: Seen) -> Lease:
        return Lease(str(self._out), self._locks, name, self._holder, seen)

    def _is_rival(self, name: str) -> bool:
        """Return whether a lock must not be held beside ours."""
        if self._shard is None:
            return name != _WHOLE
        return name == _WHOLE or _count_of(name) != self._shard.count

    def alone(self) -> bool:
        """Return whether no other process writes to OUT; then none begins until `release`.

        A shard gives its own lock back, and writes no more rows.
        """
        while not self._is_alone:
            self.release()
            try:
                if (seen := self._locks.look(_WHOLE)).lives is not False:
                    return False
                self._lease = self._lease_of(_WHOLE, seen)
                if not self._others():
                    self._is_alone = True
                    break
                self.release()
                # Another that ended meanwhile may have found the whole lock taken: by this one.
                if self._others():
                    return False
            except (ChangedError, OSError):
                return False
        return True

    def _others(self) -> bool:
        names = (name for name in _names(self._locks) if name != _WHOLE)
        return any(self._locks.look(name).lives is not False for name in names)

    def check(self) -> None:
        """Raise `StorageError` if another process may have taken the lock away."""
        if self._lease is not None:
            self._lease.check()

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def at_work(out: OutFolder) -> list[str]:
    """Return who writes to OUT now, in words: one run, or some shards of it."""
    return [_in_words(name, one) for name, one in _held(out).items()]


def runs_at_work(out: OutFolder) -> list[str]:
    """Return the ids of the runs that write to OUT now."""
    return [str(one.holder["run_id"]) for one in _held(out).values() if "run_id" in one.holder]


def _held(out: OutFolder) -> dict[str, Seen]:
    """Return the locks that are held, in order.

    This only tells somebody who looks, so that the clock of whoever wrote a lock may be believed.
    """
    locks = out.medium.locks()
    try:
        seen = {name: locks.look(name) for name in sorted(_names(locks), key=_numbers)}
    except OSError:
        return {}
    return {name: one for name, one in seen.items() if _is_held(one, locks.times.dead)}


def _is_held(seen: Seen, dead: float) -> bool:
    return seen.age < dead if seen.lives is None else seen.lives


def _names(locks: Locks) -> list[str]:
    return [name for name in locks.names() if name == _WHOLE or _SHARD.fullmatch(name)]


def _numbers(name: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", name)]


def _count_of(name: str) -> int:
    match = _SHARD.fullmatch(name)
    return int(match[2]) if match else 1


def _in_words(name: str, seen: Seen) -> str:
    """Return in words who holds a lock."""
    who = _process(seen.holder)
    match = _SHARD.fullmatch(name)
    return f"shard {match[1]}/{match[2]}: {who}" if match else who


def _process(holder: Mapping[str, object]) -> str:
    try:
        return "process {pid} on {host} (run {run_id}, since {started})".format(**holder)
    except KeyError:
        return "another process, which has just started"


def _refusal(out: OutFolder, shard: Shard | None, seen: Mapping[str, Seen]) -> LockedError:
    """Return why a lock cannot be had, and what to do about it."""
    names = [name for name in sorted(seen, key=_numbers) if seen[name].lives is not False]
    held = {name: seen[name] for name in names}
    same = f"lock-{shard.name}" if shard else _WHOLE
    shards = [name for name in held if name not in (same, _WHOLE)]
    if shards:
        n = _count_of(shards[0])
        wanted = "all of it" if shard is None else f"shard {shard}"
        return LockedError(
            f"{str(out)!r} is in use by {count(len(shards), 'shard')} of {n} "
            f"({_in_words(shards[0], held[shards[0]])}), and {wanted} cannot be painted beside "
            f"them; use --shard I/{n}, wait until they are done, or choose another --out"
        )
    if shard is not None and same in held:
        return LockedError(
            f"{str(out)!r} has its {_in_words(same, held[same])}; wait until it is done, stop it, "
            "or choose another shard"
        )
    holder = held[_WHOLE].holder if _WHOLE in held else {}
    error = LockedError(
        f"{str(out)!r} is in use by {_process(holder)}; wait until it is done, stop it, or choose "
        "another --out"
    )
    error.passes_soon = shard is not None and "shard" in holder
    return error
