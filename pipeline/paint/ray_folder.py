"""The folder of a Ray that is started here, and the guard that clears up should the driver die.

`kill -9` of a driver leaves Ray's agents for a minute, and its folder for good. The guard is a
small process of its own that waits for the driver's end, however it comes; `sweep` is for what
even the guard did not live to see. Standard library and psutil; never imports ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

__all__ = ["base_folder", "ray_folder", "sweep"]

_PREFIX = "stylize-"
_LOCK = "driver.lock"  # held by the driver for as long as it lives
_BASE_BYTES = 18  # a unix socket's path has 107 bytes, of which Ray's names and ours take 89
_FRESH = 60.0  # seconds; a younger folder may not be locked yet


def base_folder() -> str:
    """Where folders of Ray are made: the system's for temporary files, if its name is short."""
    base = tempfile.gettempdir()
    return base if len(base.encode()) <= _BASE_BYTES else "/tmp"


@contextlib.contextmanager
def ray_folder() -> Iterator[str]:
    """A new folder ``stylize-<pid>-…``; at the end, or at this process's death, it is removed
    and what still runs in it is killed. Folders of drivers that are dead are removed first."""
    base = base_folder()
    sweep(base)
    folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base)
    lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # It reads its standard input, which ends when this process does.
    guard = subprocess.Popen(
        [sys.executable, "-P", __file__, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C and a closed terminal are not for it
    )
    try:
        yield folder
    finally:
        os.close(lock)
        assert guard.stdin is not None
        guard.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(10)


def sweep(base: str) -> None:
    """Remove what dead drivers left in `base`: folders, and processes that still use them."""
    for name in os.listdir(base):
        folder = os.path.join(base, name)
        if name.startswith(_PREFIX) and _is_abandoned(folder):
            _clear(folder)


def _is_abandoned(folder: str) -> bool:
    path = os.path.join(folder, _LOCK)
    try:
        if time.time() - os.stat(path).st_mtime < _FRESH:
            return False
        lock = os.open(path, os.O_RDWR)
    except OSError:  # none of ours, or another user's
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _clear(folder: str) -> None:
    import psutil

    def users() -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if _is_rays(process, folder)]

    deadline = time.monotonic() + 5
    while (found := users()) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1)
    shutil.rmtree(folder, ignore_errors=True)


def _is_rays(process: psutil.Process, folder: str) -> bool:
    """Whether it is a process of the Ray in `folder`, and no person's look at its logs."""
    import psutil

    try:
        command = " ".join(process.cmdline())
        if "ray::" not in command and f"{os.sep}ray{os.sep}" not in command:
            return False
        return folder in command or any(f.path.startswith(folder) for f in process.open_files())
    except (psutil.Error, OSError):
        return False


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _clear(sys.argv[1])
