"""One small face over local paths and URIs: read, stat, hash, and put in one piece.

The standard library, and pyarrow.fs once a URI such as ``s3://`` is named.
Reading raises `OSError`, which is a pair's trouble; a write that fails raises `StorageError`,
which is the run's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import time
import urllib.parse
from stat import S_ISDIR, S_ISREG
from typing import Any

from pipeline.crash import crash_point
from stylize.files import write_atomic

__all__ = [
    "SCHEMES",
    "OutsideError",
    "StorageError",
    "check_writable",
    "exists",
    "is_uri",
    "join",
    "local_path",
    "make_folder",
    "output_path",
    "put",
    "read_bytes",
    "remove",
    "same_file",
    "sha256",
    "space_at_end",
    "stat",
    "storage_error",
    "sweep_temporaries",
    "unreadable",
]

SCHEMES = ("file", "gs", "s3")
"""Schemes that a manifest may name."""

MOST_BYTES = 2 * 2**30
"""Of a file that is read as a picture or a manifest."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.stylize-([0-9a-f]{8})\.tmp-(\d+)-[0-9a-f]{8}")
_HOUR, _DAY = 3600.0, 86400.0
_active: set[str] = set()  # temporary files that this process is writing now

_REASONS = {
    errno.ENOSPC: "no space left; free some or choose another --out",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another --out",
    errno.EROFS: "the file system is read-only; make it writable or choose another --out",
    errno.EACCES: "permission denied; allow writing there or choose another --out",
    errno.EPERM: "the operation is not permitted; allow writing there or choose another --out",
    errno.ENOENT: "its folder is gone; put it back, or start again with another --out",
    errno.ENOTDIR: "a file stands where a folder is needed; move it or choose another --out",
    errno.EEXIST: "a file stands where a folder is needed; move it or choose another --out",
    errno.ESTALE: "its folder is gone; mount it again, or choose another --out",
}


class StorageError(Exception):
    """A write failed: disk full, read-only, refused, folder removed. The run cannot go on."""


class OutsideError(Exception):
    """A symbolic link inside OUT would lead a write out of it."""


def storage_error(error: OSError, path: str) -> StorageError:
    """The failed write as one line that says what failed and what to do about it."""
    fallback = f"{error.strerror or error}; see to it or choose another --out"
    reason = _REASONS.get(error.errno or 0, fallback)
    return StorageError(f"cannot write {os.path.basename(path.rstrip('/'))!r}: {reason}")


def unreadable(error: OSError, path: str) -> StorageError:
    """The failed reading of OUT as one line."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StorageError(
        f"cannot read {path!r}: {reason[:1].lower()}{reason[1:]}; see to it, or "
        "read it as the user who made it"
    )


def space_at_end(name: str) -> str:
    """What may be the reason that there is no file of a name, to be put behind the words."""
    return "; its name begins or ends with a space" if name != name.strip() else ""


def is_uri(path: str) -> bool:
    """Whether `path` has a scheme, like ``s3://bucket/key``."""
    return _URI.match(path) is not None


def local_path(path: str) -> str | None:
    """The path on this machine: `path` itself or what ``file://`` names; None for other URIs."""
    if not is_uri(path):
        return path
    parts = urllib.parse.urlsplit(path)
    return urllib.parse.unquote(parts.path) if parts.scheme.lower() == "file" else None


def same_file(a: str, b: str) -> bool:
    """Whether two paths or URIs are of one file that is there."""
    here, there = local_path(a), local_path(b)
    if here is None or there is None:
        return a == b
    try:
        return os.path.samefile(here, there)
    except OSError:
        return False


def join(folder: str, name: str) -> str:
    """`name` below `folder`, both a local path or a URI; a URI or absolute path stays as it is."""
    if is_uri(name) or os.path.isabs(name):
        return name
    if is_uri(folder):
        base, mark, query = folder.partition("?")
        return f"{base.rstrip('/')}/{name}{mark}{query}"
    return os.path.join(folder, name)


def output_path(out: str, output: str) -> str:
    """Where a pair's `output` lies below OUT. Raises `OutsideError` if a link leads out of it."""
    path = join(out, output)
    root, target = local_path(out), local_path(path)
    if root is not None and target is not None:
        real = os.path.realpath(root)
        if os.path.commonpath([real, os.path.realpath(target)]) != real:
            raise OutsideError(
                f"{output!r} leaves the output folder through a symbolic link; "
                "remove the link or name another output"
            )
    return path


@functools.lru_cache(maxsize=32)
def _open_filesystem(root: str) -> Any:
    import pyarrow.fs

    return pyarrow.fs.FileSystem.from_uri(root)[0]


def _filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path on it. The key is taken as written, spaces too."""
    base, mark, query = uri.partition("?")
    scheme, _, path = base.partition("://")
    bucket = path.partition("/")[0]
    try:
        return _open_filesystem(f"{scheme.lower()}://{bucket}{mark}{query}"), path.lstrip("/")
    except ValueError as error:  # ArrowInvalid
        raise OSError(errno.EINVAL, f"cannot use {scheme}://{bucket}: {error}") from error


def _info(uri: str) -> Any:
    filesystem, key = _filesystem(uri)
    info = filesystem.get_file_info(key)
    if not info.is_file:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri)
    return info


def read_bytes(path: str) -> bytes:
    """All bytes of a file, of `MOST_BYTES` at most. Raises `OSError`."""
    local = local_path(path)
    if local is not None:
        _check_readable(local)
        with open(local, "rb") as file:
            return file.read()
    filesystem, key = _filesystem(path)
    with filesystem.open_input_file(key) as stream:
        return bytes(stream.read())


def _check_readable(path: str) -> None:
    """Raise `OSError` for what has no end or would fill the memory."""
    found = os.stat(path)
    if not (S_ISREG(found.st_mode) or S_ISDIR(found.st_mode)):
        raise OSError(errno.EINVAL, "a pipe or a device is no picture; name a file", path)
    if found.st_size > MOST_BYTES:
        size, limit = found.st_size / 2**30, MOST_BYTES / 2**30
        raise OSError(errno.EFBIG, f"it has {size:.1f} GB; the limit is {limit:.0f} GB", path)


def stat(path: str) -> str:
    """``<size>:<mtime in ns>``: while it stays, the bytes are taken as the same. `OSError`."""
    local = local_path(path)
    if local is not None:
        found = os.stat(local)
        return f"{found.st_size}:{found.st_mtime_ns}"
    info = _info(path)
    return f"{info.size}:{info.mtime_ns}"


def exists(path: str) -> bool:
    """Whether a file (not a folder) is there. Raises `OSError` only for storage that refuses."""
    local = local_path(path)
    if local is not None:
        return os.path.isfile(local)
    try:
        _info(path)
    except FileNotFoundError:
        return False
    return True


def sha256(path: str) -> str:
    """SHA-256 of a file's bytes, hex. Raises `OSError`."""
    local = local_path(path)
    if local is None:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    _check_readable(local)
    with open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(path: str) -> None:
    """Raise `StorageError` now where `put` could not write later; local paths only."""
    local = local_path(path)
    if local is not None:
        beside = os.path.join(os.path.dirname(local), f".stylize-probe-{secrets.token_hex(4)}")
        put(beside, b"")
        remove(beside)


def put(
    path: str,
    data: bytes,
    *,
    point: str = "",
    temp_folder: str | None = None,
    sync: bool = True,
) -> None:
    """Write a file so that it is there whole or not at all, surviving a power cut.

    Locally: a temporary file beside it (or in `temp_folder`, on the same file system), fsync,
    rename, fsync of the folder; folders are made as needed. On object storage: one put. `point`
    names the crash points ``<point>-temp-written`` and ``<point>-renamed``. Without `sync` a power
    cut may leave it empty, for what is soon made again.
    Raises `StorageError`; what stood at `path` is then still there.
    """
    local = local_path(path)
    try:
        if local is not None:
            _put_local(local, data, point, temp_folder, sync)
            return
        filesystem, key = _filesystem(path)
        if filesystem.type_name not in ("s3", "gcs", "abfs"):  # those have no folders
            filesystem.create_dir(os.path.dirname(key), recursive=True)
        with filesystem.open_output_stream(key) as stream:
            stream.write(data)
    except OSError as error:
        raise storage_error(error, path) from error


def _put_local(path: str, data: bytes, point: str, temp_folder: str | None, sync: bool) -> None:
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    name = f".stylize-{_HOST}.tmp-{os.getpid()}-{secrets.token_hex(4)}"

    def at(step: str) -> None:
        if point:
            crash_point(f"{point}-{step}")

    _active.add(name)
    try:
        temporary = os.path.join(temp_folder or folder, name)
        write_atomic(path, data, temporary=temporary, sync=sync, at=at)
    finally:
        _active.discard(name)


def make_folder(path: str) -> None:
    """Make a local folder and its parents. Raises `StorageError`."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def remove(path: str) -> None:
    """Remove a local file if it is there. Raises `StorageError`."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise storage_error(error, path) from error


def sweep_temporaries(out: str) -> int:
    """Remove temporary files that dead processes left below OUT; returns how many.

    A file of a living process stays for a day (its number may since belong to another process),
    one of another machine for an hour. Object storage has none.
    """
    root = local_path(out)
    if root is None:
        return 0
    removed = 0
    for folder, _, names in os.walk(root):
        for name in names:
            match = _TEMPORARY.fullmatch(name)
            if match and _is_stale(os.path.join(folder, name), match[1], int(match[2])):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))
                    removed += 1
    return removed


def _is_stale(path: str, host: str, pid: int) -> bool:
    try:
        age = abs(time.time() - os.stat(path).st_mtime)  # abs: the clock may have been set back
    except OSError:
        return False
    if host != _HOST:
        return age > _HOUR
    if pid == os.getpid():
        return os.path.basename(path) not in _active
    return not _is_alive(pid) or age > _DAY


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
