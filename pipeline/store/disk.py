"""OUT on a disk of this machine or a mounted one: renames, and a journal that is synced.

Never imports torch, ray or pyarrow.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from pipeline import storage
from pipeline.crash import crash_point
from pipeline.leftovers import sweep_temporaries
from pipeline.objects import ChangedError
from pipeline.records import Pair, Result
from pipeline.store.lease import lives
from pipeline.store.medium import OWN, Found, Look, Seen, Times, free_name
from pipeline.store.metadata import carried
from stylize.files import sync_folder
from stylize.image import is_whole

__all__ = ["TIMES", "Disk"]

TIMES = Times(renew=5, dead=30, look=1, unsure=math.inf)
"""When the lock of such an OUT is written again and given up."""


class Disk:
    """The `Medium` of an OUT that is a folder."""

    is_remote = False

    def __init__(self, written: str, root: str) -> None:
        self._written = written
        self._root = root

    def path(self, *names: str) -> str:
        return os.path.join(self._root, *names)

    def absolute(self) -> str:
        return os.path.abspath(self._root)

    def local_page(self) -> str:
        return self._root

    def has_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def outputs(self) -> Iterator[str]:
        # Links are not followed, because their targets do not belong to OUT.
        for folder, folders, names in os.walk(self._root):
            if folder == self._root:
                folders[:] = [name for name in folders if name not in OWN]
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                if not os.path.islink(path):
                    yield os.path.relpath(path, self._root).replace(os.sep, "/")

    def look(self, output: str) -> Look | None:
        try:
            status = storage.status(os.path.join(self._root, output))
        except OSError:
            return None
        return Look(status.st_size, status.st_mtime_ns / 1e9)

    def has_picture(self, output: str) -> bool:
        return os.path.isfile(self.path(*output.split("/")))

    def is_as_recorded(self, look: Look, finished_at: str, etag: str) -> bool:
        finished = datetime.fromisoformat(finished_at).timestamp()
        return look.modified <= finished + 1

    def found(
        self, output: str, pair: Pair | None, wanted: Callable[[Result], bool] = lambda _: True
    ) -> Found:
        try:
            data = storage.read_bytes(self.path(*output.split("/")))
        except OSError:
            data = b""
        row = carried(data, pair)
        return Found(row, row is not None and wanted(row) and is_whole(data))

    def has_copy(self, output: str, look: Look, row: Result) -> str | None:
        there = self.look(output)
        if there is None or there.size != look.size:
            return None
        return "" if abs(there.modified - look.modified) < 1e-3 else None

    def put_copy(self, output: str, data: bytes, look: Look, row: Result) -> str:
        target = storage.output_path(self.absolute(), output)
        storage.put(target, data)
        modified = round(look.modified * 1e9)
        os.utime(target, ns=(modified, modified))
        return ""

    def free_bytes(self) -> float:
        return shutil.disk_usage(self._root).free

    def read_part(self, name: str) -> bytes | str:
        return self.path("index", name)

    def put_part(self, name: str, data: bytes | Callable[[BinaryIO], object]) -> None:
        # The temporary file is not in index/, because readers take every file there for a part.
        storage.put(self.path("index", name), data, point="part", temp_folder=self.path("_state"))

    def begin_index(self, name: str, data: bytes) -> None:
        # The folder appears in one step, because duckdb and polars fail on one without parts.
        index, state = self.path("index"), self.path("_state")
        prepared = os.path.join(state, "index")
        try:
            with self._changing():
                if os.path.isdir(index):
                    return
                path = os.path.join(prepared, name)
                storage.put(path, data, point="part", temp_folder=state)
                os.rename(prepared, index)
                sync_folder(os.path.dirname(index))
        except OSError as error:
            raise storage.storage_error(error, index) from error

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep others from making ``run.json`` or ``index/`` inside the block. Raises `OSError`."""
        storage.make_folder(self.path("_state"))
        handle = os.open(self.path("_state", "lock-changes"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(handle, wait=math.inf)
            yield
        finally:
            os.close(handle)

    def update(
        self, path: str, change: Callable[[bytes | None], bytes | None], point: str = ""
    ) -> None:
        with self._changing():
            before = None
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                before = storage.read_bytes(path)
            after = change(before)
            if after is not None:
                storage.put(path, after, point=point)

    def set_aside(self, folder: str, name: str) -> None:
        damaged = self.path("_state", "damaged")
        storage.make_folder(damaged)
        target = os.path.join(damaged, free_name(name, self.names(damaged)))
        try:
            os.replace(os.path.join(folder, name), target)
        except OSError as error:
            raise storage.storage_error(error, target) from error

    def remove_leftovers(self, *, probes: bool) -> None:
        sweep_temporaries(self._root)
        if not probes:
            return
        for name in os.listdir(self.path("_state")):
            if name.startswith("probe-"):
                storage.remove(self.path("_state", name))

    def locks(self) -> _Locks:
        return _Locks(self.path("_state"))

    def journal(self) -> _Journal:
        return _Journal(self.path("_state", "journal"))

    def log_file(self, path: str) -> _LogFile:
        return _LogFile(path)


@dataclass(frozen=True)
class _Held:
    path: str
    handle: int
    record: bytes


class _Locks:
    """The `Locks` of a folder: files that are locked with `flock` and written again as well.

    The system frees the former at once when a process dies. But there are network disks where it
    does nothing, or nothing between machines, and nobody can tell: so a lock that is free by
    `flock` and was not given back is watched like one on object storage.
    """

    def __init__(self, folder: str) -> None:
        self.times = TIMES
        self._folder = folder

    def names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._folder) if name.startswith("lock")]
        except FileNotFoundError:
            return []

    def look(self, name: str) -> Seen:
        try:
            handle = os.open(os.path.join(self._folder, name), os.O_RDONLY)
        except (FileNotFoundError, PermissionError):
            return Seen()
        try:
            is_free = _flock(handle, shared=True)
            return _seen(_read(handle), time.time() - os.fstat(handle).st_mtime, is_free)
        finally:
            os.close(handle)

    def take(self, name: str, record: bytes, seen: Seen) -> _Held:
        path = os.path.join(self._folder, name)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _flock(handle, wait=_PATIENCE) or _seen(_read(handle)).state != seen.state:
                raise ChangedError(name)
            return self.renew(_Held(path, handle, _read(handle)), record)
        except BaseException:
            os.close(handle)
            raise

    def renew(self, held: object, record: bytes) -> _Held:
        assert isinstance(held, _Held)
        if _read(held.handle) != held.record:
            raise ChangedError(held.path)
        # One write, over all of it: a reader never sees a half of it.
        record = record.ljust(len(held.record))
        os.pwrite(held.handle, record, 0)
        os.fsync(held.handle)  # so that other machines see it
        return _Held(held.path, held.handle, record)

    def drop(self, held: object) -> None:
        assert isinstance(held, _Held)
        holder = json.loads(held.record)
        del holder["machine"]
        try:
            with contextlib.suppress(ChangedError):
                self.renew(held, json.dumps(holder).encode())
        finally:
            os.close(held.handle)


_PATIENCE = 0.5  # seconds: whoever looks whether a lock is held holds it for a moment


def _read(handle: int) -> bytes:
    return os.pread(handle, 100_000, 0)


def _seen(record: bytes, age: float = 0.0, is_free: bool = True) -> Seen:
    try:
        holder = json.loads(record)
        is_ours = "machine" in holder
    except (ValueError, TypeError):
        holder, is_ours = {}, False
    if not is_ours and is_free:  # given back, or of a version that relied on `flock`
        return Seen()
    return Seen(record, holder, True if not is_free else lives(holder), age)


def _flock(handle: int, *, shared: bool = False, wait: float = 0.0) -> bool:
    """Lock a file until its handle is closed; return whether that was possible.

    Return True on a disk that has no such locks. Raises `OSError`.
    """
    import fcntl

    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_PATIENCE / 10)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                return True
            raise


class _Journal:
    """Segments of lines, each synced before `write` returns."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._path = ""
        self._handle = -1  # -1: none is open
        self._size = 0  # bytes that are known to be whole

    @property
    def is_open(self) -> bool:
        return self._handle >= 0

    def begin(self, segment: str) -> None:
        # The index made the folder. If it is gone, the pictures are gone, too, so it is not made
        # again here.
        self._path = os.path.join(self._folder, f"{segment}.jsonl")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._handle = os.open(self._path, flags, 0o644)
        self._size = 0
        try:
            sync_folder(self._folder)
        except OSError:
            self._undo()
            raise
        crash_point("journal-begun")

    def write(self, lines: bytes) -> None:
        try:
            if os.fstat(self._handle).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "the journal was removed during the run")
            half = lines[: len(lines) // 2]
            crash_point("journal-half-written", lambda: os.write(self._handle, half))
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        except OSError:
            self._undo()
            raise
        self._size += len(lines)

    def _undo(self) -> None:
        """Remove the half-written line."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, self._size)

    def end(self) -> None:
        os.close(self._handle)
        self._handle = -1
        storage.remove(self._path)


class _LogFile:
    def __init__(self, path: str) -> None:
        self._path = path

    def add(self, line: str) -> None:
        with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as file:
            file.write(line)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
