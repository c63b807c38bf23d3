"""Named points at which a test makes a process end badly, or wait. Standard library only.

``STYLIZE_CRASH_AT`` holds orders ``POINT[@PAIR][!END][:FILE]``, separated by ``;``. An order with
PAIR is for that pair only. END is one of `ENDS`, by default ``kill``. An order with FILE is carried
out once: by the process that creates the file. With ``!wait:FILE`` every process waits there until
the file exists. ``STYLIZE_CRASH_LOG`` names a file that gets a line ``POINT PAIR`` for each point
that any process passes, before it ends or waits there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping

__all__ = ["ENDS", "POINTS", "crash_point"]

POINTS: Mapping[str, str] = {
    "lock-taken": "driver",
    "run-json-temp-written": "driver",
    "run-json-renamed": "driver",
    "pair-begun": "worker",
    "picture-temp-written": "worker",
    "picture-renamed": "worker",
    "record-returned": "driver",
    "journal-begun": "driver",
    "journal-half-written": "driver",
    "journal-synced": "driver",
    "part-temp-written": "driver",
    "part-renamed": "driver",
    "part-written": "driver",
    "journal-deleted": "driver",
    "compaction-begun": "driver",
    "compaction-merged": "driver",
    "compaction-input-deleted": "driver",
    "compaction-inputs-deleted": "driver",
}
"""The points between two writes, in the order of a run, and which process passes each."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def _hang() -> None:
    while True:
        time.sleep(60)


def _raise() -> None:
    raise RuntimeError("this pair raises whenever it is tried")


def _eat() -> None:
    blocks = []
    for _ in range(512):  # 8 GB; more would harm other programs
        blocks.append(b"\1" * 2**24)
        time.sleep(0.005)  # slow enough for a monitor that looks ten times a second
    raise MemoryError("nobody stopped it")


def _starve() -> None:
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limits[1]))
    try:
        _eat()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


ENDS: Mapping[str, Callable[[], None]] = {
    "kill": _kill,
    "segfault": _segfault,
    "hang": _hang,
    "raise": _raise,
    "memory": _starve,
    "eat": _eat,
}
"""The ways to end, by name.

`memory` takes memory until the system refuses more; `eat` until something kills the process.
"""


def crash_point(
    name: str, before: Callable[[], object] | None = None, *, pair_id: str = ""
) -> None:
    """End the process here, or wait, if ``STYLIZE_CRASH_AT`` says so.

    `before` runs just before that, to leave what only a half-finished write can leave. Raises
    `ValueError` for an unknown order.
    """
    if log := os.environ.get("STYLIZE_CRASH_LOG"):
        _note(log, f"{name} {pair_id}\n")
    for order in filter(None, os.environ.get("STYLIZE_CRASH_AT", "").split(";")):
        action, _, file = order.partition(":")
        place, _, end = action.partition("!")
        point, _, only_pair = place.partition("@")
        if point not in POINTS or (end or "kill") not in (*ENDS, "wait"):
            raise ValueError(f"STYLIZE_CRASH_AT: unknown point or end in {action!r}")
        if point != name or only_pair not in ("", pair_id):
            continue
        if end == "wait":
            _wait(file)
        elif _is_first(file):
            if before is not None:
                before()
            ENDS[end or "kill"]()


def _note(path: str, line: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(handle, line.encode())  # one write, so that lines of several processes do not mix
    finally:
        os.close(handle)


def _wait(file: str) -> None:
    while not os.path.exists(file):
        time.sleep(0.05)


def _is_first(file: str) -> bool:
    """Create the file; return whether this process is the first to do so."""
    if not file:
        return True
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
