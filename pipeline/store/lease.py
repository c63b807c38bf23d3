"""The lock of an OUT on object storage: an object that its holder writes again and again.

It is created on condition that there is none, and replaced on condition that it is still the one
that its holder wrote last. Never imports torch, ray or pyarrow.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping

from pipeline import objects
from pipeline.objects import ChangedError, StorageError, Version
from pipeline.store.medium import refusal

__all__ = ["Lease", "Times", "check_conditions"]


class Times:
    """When a lease is renewed and given up, seconds. A test has less patience."""

    renew = 30.0
    dead = 300.0  # unchanged for so long, by the observer's clock
    look = 5.0  # how often an observer looks
    unsure = 240.0  # so long after its last renewal a holder no longer writes


class Lease:
    """The `Hold` on an OUT on object storage.

    A thread renews it. The lease of a process that is gone is taken over: at once if it was a
    process of this machine, else after it has not changed for `Times.dead`.
    Raises `LockedError`, and `StorageError` where the store has no conditional writes.
    """

    def __init__(
        self, out: str, uri: str, holder: Mapping[str, object], say: Callable[[str], None]
    ) -> None:
        self._out = out
        self._uri = uri
        self._holder = {**holder, "machine": _machine()}
        self._beats = 0
        self._lost = ""
        self._trouble = ""
        self._ended = threading.Event()
        self._renewed = 0.0  # by the monotonic clock
        self._version = self._take(say)
        check_conditions(out, uri)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    # --- taking it ---

    def _text(self) -> bytes:
        self._beats += 1
        return json.dumps({**self._holder, "beat": self._beats}).encode()

    def _take(self, say: Callable[[str], None]) -> Version:
        while True:
            with contextlib.suppress(FileExistsError, ChangedError):
                dead = self._dead_version(say)
                text, self._renewed = self._text(), time.monotonic()
                if dead is not None:
                    return objects.replace(self._uri, text, dead)
                return objects.create(self._uri, text)

    def _dead_version(self, say: Callable[[str], None]) -> Version | None:
        """Return the version of a lease whose holder is dead, None where there is no lease.

        Raises `LockedError` as soon as the holder shows a sign of life.
        """
        first, holder = self._look()
        if first is None or _is_gone(holder):
            return first
        began, told = time.monotonic(), False
        while time.monotonic() - began < Times.dead:
            if not told and time.monotonic() - began >= Times.look:
                told = True
                say(
                    f"{self._out} is held by {holder.get('host', 'another machine')}; waiting "
                    f"whether it still lives: {Times.dead / 60:.0f} minutes at most"
                )
            time.sleep(min(Times.look, Times.dead / 10))
            now, _ = self._look()
            if now is None:
                return None
            if now != first:
                raise refusal(self._out, holder)
        return first

    def _look(self) -> tuple[Version | None, Mapping[str, object]]:
        """Return the version and the holder of the lease that is there; None and {} for none."""
        try:
            data, head = objects.get(self._uri, 100_000)
        except FileNotFoundError:
            return None, {}
        try:
            holder = json.loads(data)
        except ValueError:
            holder = {}
        return head.version, holder if isinstance(holder, dict) else {}

    # --- keeping it ---

    def _renew(self) -> None:
        while not self._ended.wait(Times.renew):
            began = time.monotonic()
            try:
                self._version = objects.replace(self._uri, self._text(), self._version)
            except ChangedError:
                self._lost = (
                    f"{self._out} was taken over by another run, because this one was not seen "
                    f"for {Times.dead / 60:.0f} minutes; what is finished is kept"
                )
                return
            except (StorageError, OSError) as error:
                self._trouble = f": {error}"
            else:
                self._renewed, self._trouble = began, ""

    def check(self) -> None:
        if self._lost:
            raise StorageError(self._lost)
        silent = time.monotonic() - self._renewed
        if silent > Times.unsure:
            raise StorageError(
                f"the lock of {self._out} could not be renewed for {silent:.0f} s{self._trouble}; "
                "run again when the store answers"
            )

    def release(self) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(5)
        with contextlib.suppress(StorageError, OSError):
            self.check()
            objects.delete([self._uri])


def check_conditions(out: str, uri: str) -> None:
    """Raise `StorageError` if the store ignores conditions: there, two runs could not be kept
    apart. `uri` is an object below OUT that is there, and goes if they are ignored."""
    kept = 0
    with contextlib.suppress(FileExistsError):
        objects.create(uri, b"{}")
        kept += 1
    with contextlib.suppress(ChangedError):
        objects.replace(uri, b'{"condition": "ignored"}', Version('"0"', "1"))
        kept += 1
    if kept:
        objects.delete([uri])
        raise StorageError(
            f"{out}: this store ignores conditions on writes (If-None-Match, If-Match), "
            "so two runs at once could not be kept apart; choose a store that has them, or a "
            "folder, for --out"
        )


def _machine() -> str:
    """Return what tells this machine, and where it has containers this one, from all others."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _is_gone(holder: Mapping[str, object]) -> bool:
    """Return whether a holder was a process of this machine that has ended."""
    pid = holder.get("pid")
    if not _machine() or holder.get("machine") != _machine() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
