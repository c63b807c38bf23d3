"""A lock of OUT: a record that its holder writes again and again.

Another process takes over the lock of one that is dead: at once if that was a process of this
machine, else after the record has not changed for `Times.dead` by its own clock. Never imports
torch, ray or pyarrow.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from pipeline.leftovers import is_alive
from pipeline.objects import ChangedError, StorageError
from pipeline.store.medium import Locks, Seen

__all__ = ["Lease", "lives", "origin", "watched"]


class Lease:
    """One lock of OUT, held until `release`; a thread renews it.

    `seen` is how the lock was when nobody held it. Raises `ChangedError` if somebody was faster,
    `OSError` and `StorageError`.
    """

    def __init__(
        self, out: str, locks: Locks, name: str, holder: Mapping[str, object], seen: Seen
    ) -> None:
        self._out = out
        self._locks = locks
        self._holder = {**origin(), **holder}
        self._beats = 0
        self._lost = ""
        self._trouble = ""
        self._ended = threading.Event()
        self._renewed = time.monotonic()
        self._held = locks.take(name, self._record(), seen)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _record(self) -> bytes:
        self._beats += 1
        return json.dumps({**self._holder, "beat": self._beats}).encode()

    def _renew(self) -> None:
        times = self._locks.times
        while not self._ended.wait(times.renew):
            began = time.monotonic()
            try:
                self._held = self._locks.renew(self._held, self._record())
            except ChangedError:
                self._lost = (
                    f"{self._out} was taken over by another run, because this one was not seen "
                    f"for {_span(times.dead)}; what is finished is kept"
                )
                return
            except (StorageError, OSError) as error:
                self._trouble = f": {error}"
            else:
                self._renewed, self._trouble = began, ""

    def check(self) -> None:
        """Raise `StorageError` if another process may have taken the lock."""
        if self._lost:
            raise StorageError(self._lost)
        silent = time.monotonic() - self._renewed
        if silent > self._locks.times.unsure:
            raise StorageError(
                f"the lock of {self._out} could not be renewed for {silent:.0f} s{self._trouble}; "
                "run again when the store answers"
            )

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(5)
        with contextlib.suppress(StorageError, OSError):
            self.check()
            self._locks.drop(self._held)


def watched(
    locks: Locks, names: Sequence[str], say: Callable[[str], None]
) -> tuple[dict[str, Seen], bool]:
    """Return what a look at some locks shows, and whether one of them is held.

    It takes up to `Times.dead`, until each has shown whether its holder lives. `say` is told when
    it takes long. Raises `OSError` and `StorageError`.
    """
    seen = {name: locks.look(name) for name in names}
    began, told, times = time.monotonic(), False, locks.times
    while not any(one.lives for one in seen.values()):
        unknown = [name for name, one in seen.items() if one.lives is None]
        waited = time.monotonic() - began
        if not unknown or waited >= times.dead:
            return seen, False
        if not told and waited >= times.look:
            told = True
            host = seen[unknown[0]].holder.get("host", "another machine")
            say(f"{host} holds it; waiting to see whether it is alive: {_span(times.dead)} at most")
        time.sleep(min(times.look, times.dead / 10))
        for name in unknown:
            now = locks.look(name)
            if now.lives is None and now.state != seen[name].state:
                return {**seen, name: now}, True
            seen[name] = now
    return seen, True


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


# --- who holds a lock ---


def origin() -> dict[str, object]:
    """Return what tells this process from all others of this and of other machines."""
    return {"machine": _machine(), "born": _born(os.getpid())}


def lives(holder: Mapping[str, object]) -> bool | None:
    """Return whether the process that wrote a record is alive; None where it is elsewhere."""
    pid = holder.get("pid")
    if not _machine() or holder.get("machine") != _machine() or not isinstance(pid, int):
        return None
    # Where it began at another time, the number belongs to another process since.
    return is_alive(pid) and holder.get("born") == _born(pid)


def _machine() -> str:
    """Return what tells this machine, or this container on it, from all others."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _born(pid: int) -> str:
    """Return when a process of this machine began, in ticks since the machine did."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        # The name of the program, in parentheses, may have spaces in it.
        return file.read().rpartition(b")")[2].split()[19].decode()
    return ""
