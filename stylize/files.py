"""Writing a file whole or not at all. Standard library only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_atomic"]


def write_atomic(
    path: str | os.PathLike[str], data: bytes, *, at: Callable[[str], None] | None = None
) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Temporary file beside it (`.<random>.tmp-<pid>`), fsync, rename, fsync of the folder; the
    folder must exist. `at` is told "temp-written" and "renamed", for tests that die in between.
    Raises `OSError`; nothing is left behind then.
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
