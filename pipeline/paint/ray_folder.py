"""The folder of a Ray that is started here, and the guard that clears up if the driver dies.

A driver that is killed with -9 leaves Ray's agents running for a minute, and its folder for good.
The guard is a small process that waits for the driver's end, whichever way it comes, and then
clears up. `sweep` removes what was left when the guard died, too. Uses the standard library and
psutil; never imports ray.
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

__all__ = [
    "BASES",
    "LEAST_FREE",
    "NoFolderError",
    "base_folder",
    "is_copy_of_working_dir",
    "ray_folder",
    "sweep",
]

_PREFIX = "stylize-"
_LOCK = "driver.lock"  # held by the driver for as long as it lives
_BASE_BYTES = 18  # a unix socket's path has 107 bytes, of which Ray's names and ours take 89
BASES = ("/tmp", "/var/tmp", "/dev/shm")  # where TMPDIR is too long, or cannot be written
LEAST_FREE = 50_000_000  # bytes, for Ray's logs
_FRESH = 60.0  # seconds; a younger folder may not be locked yet


_COPIES = "/runtime_resources/working_dir_files/"
"""Where a node of Ray keeps what ``ray job submit --working-dir`` sent, until it removes it."""


class NoFolderError(Exception):
    """There is no folder in which Ray can run. The text names those that were tried."""


def is_copy_of_working_dir(path: str) -> bool:
    """Return whether a path is in a folder that Ray has copied, and will remove."""
    return _COPIES in os.path.realpath(path)


def base_folder() -> str:
    """Return where Ray's folders are made: the first short and writable one of TMPDIR and others.

    Raises `NoFolderError`.
    """
    refused = []
    for base in dict.fromkeys((os.environ.get("TMPDIR", ""), *BASES)):
        if not base:
            continue
        size = len(os.fsencode(base))
        if size > _BASE_BYTES:
            refused.append(f"{base} is {size} bytes long and Ray has room for {_BASE_BYTES}")
        elif not os.access(base, os.W_OK | os.X_OK):
            refused.append(f"{base} cannot be written")
        elif (free := shutil.disk_usage(base).free) < LEAST_FREE:
            refused.append(
                f"{base} has {free / 1e6:.0f} MB free and Ray needs {LEAST_FREE / 1e6:.0f}"
            )
        else:
            return base
    reasons = ", ".join(refused)
    raise NoFolderError(
        f"{reasons}; make room, or set TMPDIR to a writable folder with a short name"
    )


@contextlib.contextmanager
def ray_folder() -> Iterator[str]:
    """Make a new folder ``stylize-<pid>-…``.

    At the end, or when this process dies, the folder is removed and whatever still runs in it is
    killed. Folders of dead drivers are removed first.
    """
    base = base_folder()
    sweep(base)
    folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base)
    lock = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # The guard reads its standard input, which ends when this process does.
    guard = subprocess.Popen(
        [sys.executable, "-P", __file__, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # so that Ctrl-C and a closed terminal do not reach it
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
    """Remove what dead drivers left in `base`: folders, and the processes that still use them."""
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
    except OSError:  # not one of these folders, or another user's
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
    while (processes := users()) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=1)
    shutil.rmtree(folder, ignore_errors=True)


def _is_rays(process: psutil.Process, folder: str) -> bool:
    """Return whether a process belongs to the Ray in `folder`. A person may be reading its logs,
    with a process of their own."""
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
