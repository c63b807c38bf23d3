"""Reading, hashing and writing of files, for local paths and URIs alike.

Needs the standard library only, until a URI such as ``s3://`` loads obstore: see `objects`. A read
that fails raises `OSError`, which ends one pair; a write that fails, and a store that refuses or
does not answer, raise `StorageError`, which ends the run.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from pipeline import addresses, objects
from pipeline.crash import crash_point
from pipeline.leftovers import temporary_name
from pipeline.look_alikes import as_stored
from pipeline.objects import RefusedError, StorageError
from pipeline.side_by_side import side_by_side
from pipeline.text import quoted
from stylize.files import write_atomic

__all__ = [
    "SCHEMES",
    "OutsideError",
    "RefusedError",
    "StorageError",
    "absolute",
    "check_writable",
    "current_folder",
    "exists",
    "is_remote",
    "is_uri",
    "join",
    "local_path",
    "make_folder",
    "output_path",
    "put",
    "read",
    "read_bytes",
    "remove",
    "remove_all",
    "same_file",
    "sha256",
    "shown",
    "stat",
    "stats",
    "status",
    "storage_error",
    "unreadable",
    "uri_problem",
    "why_not_writable",
    "without_ending",
    "without_options",
]

SCHEMES = ("file", *addresses.SCHEMES)
"""The URI schemes that a manifest may name."""

_WORTH_LISTING = 40  # objects of one folder; fewer are asked for one by one

_MOST_BYTES = 2 * 2**30
"""The largest picture or manifest that is read."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

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


class OutsideError(Exception):
    """A write that a symbolic link inside OUT would lead out of it."""


def storage_error(error: OSError, path: str) -> StorageError:
    """Return a failed write as one line that says what failed and what to do about it."""
    fallback = f"{error.strerror or error}; fix that or choose another --out"
    reason = _REASONS.get(error.errno or 0, fallback)
    return StorageError(f"cannot write {os.path.basename(path.rstrip('/'))!r}: {reason}")


def unreadable(error: OSError, path: str) -> StorageError:
    """Return a failed read of OUT as one line that says what failed and what to do about it."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StorageError(
        f"cannot read {path!r}: {reason[:1].lower()}{reason[1:]}; check the path and who may "
        "read it"
    )


def current_folder() -> str:
    """Return where relative paths start; "/" where that folder was removed."""
    try:
        return os.getcwd()
    except OSError:
        return "/"


def absolute(path: str) -> str:
    """Return a path for processes that run in another folder; URIs are absolute already."""
    return path if is_uri(path) else os.path.abspath(path)


def is_uri(path: str) -> bool:
    """Return whether `path` has a scheme, like ``s3://bucket/key``."""
    return _URI.match(path) is not None


def is_remote(path: str) -> bool:
    """Return whether a path leads to object storage or the web, not to this machine's files."""
    return local_path(path) is None


def local_path(path: str) -> str | None:
    """Return `path`, or the local path that a ``file://`` URI names; None for other URIs."""
    if "://" not in path or not is_uri(path):
        return path
    parts = urllib.parse.urlsplit(path)
    return urllib.parse.unquote(parts.path) if parts.scheme.lower() == "file" else None


def why_not_writable(uri: str) -> str:
    """Return why results cannot be written to an address, or ""."""
    scheme = uri.partition("://")[0].lower()
    if scheme not in ("s3", "gs", "az"):
        return (
            f"results cannot be written to {scheme}://; choose a folder, or a bucket at s3://, "
            "gs:// or az://"
        )
    return addresses.problem(uri)


def same_file(a: str, b: str) -> bool:
    """Return whether two paths or URIs lead to the same existing file."""
    local_a, local_b = local_path(a), local_path(b)
    if local_a is None or local_b is None:
        return a == b
    try:
        return os.path.samefile(local_a, local_b)
    except OSError:
        return False


def join(folder: str, name: str) -> str:
    """Return `name` below `folder`. A name that is a URI or an absolute path stays as it is."""
    if is_uri(name) or os.path.isabs(name):
        return name
    if is_uri(folder):
        base, options = addresses.split_options(folder)
        return _without_dots(f"{base.rstrip('/')}/{name}") + options
    return os.path.join(folder, name)


def without_options(path: str) -> str:
    """Return a path or URI without what follows a ?, like ``?region=eu-west-1``."""
    return addresses.split_options(path)[0] if is_uri(path) else path


def uri_problem(uri: str) -> str:
    """Return what is wrong with a URI as it is written, or "". It does not repeat a secret."""
    scheme = uri.partition("://")[0].lower()
    if scheme not in SCHEMES:
        readable = ", ".join(f"{name}://" for name in SCHEMES)
        return f"{quoted(shown(uri))}: only {readable} can be read; copy the file to one of them"
    if scheme == "file":
        is_local = uri[len("file://") :].startswith(("/", "localhost/"))
        named = f"{quoted(uri)} names a host; write file:///path, or the path alone"
        return "" if is_local else named
    return addresses.problem(uri)


def shown(path: str) -> str:
    """Return a path or URI for a message, without the key or password that it may have."""
    return addresses.shown(path) if is_uri(path) else path


def without_ending(uri: str) -> str:
    """Return an address without the ending of its last name; its options stay."""
    base, options = addresses.split_options(uri)
    return os.path.splitext(base)[0] + options


def _without_dots(uri: str) -> str:
    """Return a URI with its . and .. followed, as far as there are folders to leave."""
    scheme, _, rest = uri.partition("://")
    parts: list[str] = []
    for part in rest.split("/"):
        if part == ".." and len(parts) > 1 and parts[-1] != "..":
            parts.pop()
        elif part != "." or not parts:
            parts.append(part)
    return f"{scheme}://{'/'.join(parts)}"


def output_path(out: str, output: str) -> str:
    """Return the path of a pair's `output`. Raises `OutsideError` if a link leads out of OUT."""
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


def read_bytes(path: str) -> bytes:
    """Return all bytes of a file. Raises `OSError`, also for a file over `_MOST_BYTES`."""
    local = as_stored(local_path(path))
    if local is None:
        return objects.get(path, _MOST_BYTES)[0]
    handle = os.open(local, os.O_RDONLY | os.O_NONBLOCK)  # does not wait at a pipe
    try:
        status = os.fstat(handle)
        _check_readable(local, status)
        most = max(status.st_size + 1, 65536)  # some file systems say 0 of a file that has bytes
        return b"".join(iter(functools.partial(os.read, handle, most), b""))
    finally:
        os.close(handle)


def read(path: str) -> tuple[str, bytes]:
    """Return what `stat` and `read_bytes` return; from object storage by a single request."""
    if is_remote(path):
        data, head = objects.get(path, _MOST_BYTES)
        return head.stat, data
    before = stat(path)  # before the bytes: a change in between is then seen
    return before, read_bytes(path)


def _check_readable(path: str, status: os.stat_result) -> None:
    """Raise `OSError` for a file that has no end or would fill the memory."""
    if S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, "it is a folder; name a picture", path)
    if not S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe or a device is not a picture; name a file", path)
    if status.st_size > _MOST_BYTES:
        size, limit = status.st_size / 2**30, _MOST_BYTES / 2**30
        raise OSError(errno.EFBIG, f"it has {size:.1f} GB; the limit is {limit:.0f} GB", path)


def stat(path: str) -> str:
    """Return ``<size>:<mtime in ns>``, or the ETag for the time, which tells changed bytes.

    Raises `OSError`.
    """
    local = local_path(path)
    if local is None:
        return objects.head(path).stat
    found = status(local)
    return f"{found.st_size}:{found.st_mtime_ns}"


def status(path: str) -> os.stat_result:
    """Return what the system says of a local file. Raises `OSError`."""
    return os.stat(path if path.isascii() else as_stored(path) or path)


def stats(paths: Collection[str]) -> dict[str, str]:
    """Return what `stat` returns for each of these URIs; those that are missing are left out.

    Objects that share a folder are listed, a thousand in a request. Others are asked for side by
    side.
    """
    folders: dict[str, set[str]] = {}
    for path in paths:
        folders.setdefault(path.rpartition("/")[0], set()).add(path)
    known: dict[str, str] = {}
    single: set[str] = set()
    for folder, members in folders.items():
        if len(members) < _WORTH_LISTING or folder.startswith("http"):
            single |= members
        else:
            listed, complete = _listed(folder, members)
            known |= listed
            single |= set() if complete else members - listed.keys()

    def ask(path: str) -> str:
        with contextlib.suppress(OSError):
            return objects.head(path).stat
        return ""

    ordered = sorted(single)
    answers = side_by_side(ask, ordered)
    return known | {path: text for path, text in zip(ordered, answers, strict=True) if text}


def _listed(folder: str, members: Collection[str]) -> tuple[dict[str, str], bool]:
    """Return the stats of the members of a folder by listing it, and whether that gives all.

    Listing stops where the folder holds ten times as much as is asked for.
    """
    options = addresses.split_options(min(members))[1]
    names = {addresses.split_options(path)[0].rpartition("/")[2]: path for path in members}
    first, last = min(names), max(names)
    stats = {}
    # One name is left out by `after`, so it begins just before the first.
    for seen, (name, head) in enumerate(objects.listing(folder + options, after=first[:-1])):
        if name in names:
            stats[names[name]] = head.stat
        if name > last:
            break
        if seen > 10 * len(names) + 1000:
            return stats, False
    return stats, True


def exists(path: str) -> bool:
    """Return whether a file (not a folder) exists. Raises `OSError` if the storage refuses."""
    local = as_stored(local_path(path))
    if local is not None:
        return os.path.isfile(local)
    try:
        objects.head(path)
    except FileNotFoundError:
        return False
    return True


def sha256(path: str) -> str:
    """Return the SHA-256 of a file's bytes in hex. Raises `OSError`."""
    local = as_stored(local_path(path))
    if local is None:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    _check_readable(local, os.stat(local))
    with open(local, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(path: str) -> None:
    """Raise `StorageError` if `put` could not write a file. Only local paths are checked."""
    local = local_path(path)
    if local is not None:
        probe = os.path.join(os.path.dirname(local), f".stylize-probe-{secrets.token_hex(4)}")
        put(probe, b"")
        remove(probe)


def put(
    path: str,
    data: bytes | Callable[[BinaryIO], object],
    *,
    point: str = "",
    temp_folder: str | None = None,
    sync: bool = True,
    attributes: Mapping[str, str] | None = None,
) -> str:
    """Write a file so that it is whole or not there at all, even after a power cut.

    A local file is written to a temporary file beside it (or in `temp_folder`, on the same file
    system), synced and renamed; folders are made as needed. Object storage gets a single put, with
    `attributes`. Return the ETag, "" on a disk.

    On a disk `data` may be a function that writes to a file. `point` names the crash points
    ``<point>-temp-written`` and ``<point>-renamed``: before and after the put. Without `sync` a
    power cut may leave the file empty: that is for files which are quickly made again. Raises
    `StorageError`; the file that was at `path` is then still there.
    """
    local = local_path(path)
    try:
        if local is not None:
            _put_local(local, data, point, temp_folder, sync)
            return ""
        _at(point, "temp-written")
        assert not callable(data)
        etag = objects.put(path, data, attributes)
        _at(point, "renamed")
        return etag
    except OSError as error:
        raise storage_error(error, path) from error


def _at(point: str, step: str) -> None:
    if point:
        crash_point(f"{point}-{step}")


def _put_local(
    path: str,
    data: bytes | Callable[[BinaryIO], object],
    point: str,
    temp_folder: str | None,
    sync: bool,
) -> None:
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    with temporary_name() as name:
        temporary = os.path.join(temp_folder or folder, name)
        write_atomic(path, data, temporary=temporary, sync=sync, at=lambda s: _at(point, s))


def make_folder(path: str) -> None:
    """Make a local folder and its parents; object storage has none. Raises `StorageError`."""
    try:
        if not is_remote(path):
            os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def remove(path: str) -> None:
    """Remove a file if it is there. Raises `StorageError`."""
    try:
        if is_remote(path):
            objects.delete([path])
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise storage_error(error, path) from error


def remove_all(paths: Sequence[str]) -> None:
    """Remove files of one place; objects a thousand in a request. Raises `StorageError`."""
    if paths and is_remote(paths[0]):
        objects.delete(paths)
        return
    for path in paths:
        remove(path)
