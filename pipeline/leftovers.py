"""Temporary files: their names, and what is left of them when a process dies. Standard library
only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator

__all__ = ["is_alive", "sweep_temporaries", "temporary_name"]

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.stylize-([0-9a-f]{8})\.tmp-(\d+)-[0-9a-f]{8}")
_HOUR, _DAY = 3600.0, 86400.0
_active: set[str] = set()  # names of the temporary files that this process is writing now


@contextlib.contextmanager
def temporary_name() -> Iterator[str]:
    """Yield a name for a temporary file that this process is writing now."""
    name = f".stylize-{_HOST}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    _active.add(name)
    try:
        yield name
    finally:
        _active.discard(name)


def sweep_temporaries(folder: str) -> None:
    """Remove the temporary files that dead processes left below a folder.

    A file of a living process stays for a day, because the process number may since belong to
    another process. A file of another machine stays for an hour.
    """
    for inner, _, names in os.walk(folder):
        for name in names:
            match = _TEMPORARY.fullmatch(name)
            if match and _is_stale(os.path.join(inner, name), match[1], int(match[2])):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(inner, name))


def _is_stale(path: str, host: str, pid: int) -> bool:
    try:
        age = abs(time.time() - os.stat(path).st_mtime)  # abs: the clock may have been set back
    except OSError:
        return False
    if host != _HOST:
        return age > _HOUR
    if pid == os.getpid():
        return os.path.basename(path) not in _active
    return not is_alive(pid) or age > _DAY


def is_alive(pid: int) -> bool:
    """Return whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
