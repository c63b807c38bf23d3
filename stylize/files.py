"""Writing a file whole or not at all. Standard library only."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["sync_folder", "write_atomic"]

_NO_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)
"""What file systems answer that sync only files, like shared folders of virtual machines."""


def write_atomic(
    path: str | os.PathLike[str],
    data: bytes | Callable[[BinaryIO], object],
    *,
    temporary: str | os.PathLike[str] | None = None,
    sync: bool = True,
    at: Callable[[str], None] = lambda step: None,
) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    `data` may be a function that writes to a file, so that not all of it is in memory at once.
    It writes a temporary file, by default beside the file, syncs it, renames it, and syncs the
    folder, which must exist. `temporary` must be on the same file system. Without `sync` a power
    cut may leave the file empty. `at` is told "temp-written" and "renamed", for tests that die in
    between. Raises `OSError`; no temporary file is left then, and the file at `path` is the old
    one, or the new one if only syncing the folder failed.
    """
    target = Path(path)
    if temporary is None:
        temporary = target.with_name(f".{secrets.token_hex(6)}.tmp-{os.getpid()}")
    try:
        with open(temporary, "xb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        at("temp-written")
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    at("renamed")
    if sync:
        sync_folder(target.parent)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames and removals in a local folder survive a power cut. Raises `OSError`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise
    finally:
        os.close(handle)
