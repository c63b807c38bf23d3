"""Writing a file completely or not at all. Standard library only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_atomic"]


def write_atomic(
    path: str | os.PathLike[str], data: bytes, *, at: Callable[[str], None] | None = None
) -> None:
    """Write a file so that it is there completely or not at all, even after a power cut.

    Writes a temporary file beside it (`.<random>.tmp-<pid>`), then: fsync, rename, fsync of the
    folder, which must exist. `at` is called with "temp-written" and "renamed", for tests that kill
    the process at these points. Raises `OSError`, and leaves nothing behind then.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(6)}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if at:
            at("temp-written")
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if at:
        at("renamed")
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
