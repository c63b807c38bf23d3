"""OUT on a disk of this machine or a mounted one: `flock`, renames and a journal that is synced.

Never imports torch, ray or pyarrow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import BinaryIO

from pipeline import storage
from pipeline.crash import crash_point
from pipeline.records import Pair, Result
from pipeline.store.medium import OWN, Found, Look
from pipeline.store.metadata import carried
from stylize.files import sync_folder
from stylize.image import is_whole

__all__ = ["Disk"]


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
        if os.path.isdir(index):
            return
        prepared = os.path.join(state, "index")
        storage.put(os.path.join(prepared, name), data, point="part", temp_folder=state)
        try:
            os.rename(prepared, index)
            sync_folder(os.path.dirname(index))
        except OSError as error:
            raise storage.storage_error(error, index) from error

    def set_aside(self, folder: str, name: str) -> None:
        damaged = self.path("_state", "damaged")
        storage.make_folder(damaged)
        target, number = os.path.join(damaged, name), 1
        while os.path.exists(target):
            number += 1
            target = os.path.join(damaged, f"{name}.{number}")
        try:
            os.replace(os.path.join(folder, name), target)
        except OSError as error:
            raise storage.storage_error(error, target) from error

    def remove_leftovers(self, *, probes: bool) -> None:
        storage.sweep_temporaries(self._root)
        if not probes:
            return
        for name in os.listdir(self.path("_state")):
            if name.startswith("probe-"):
                storage.remove(self.path("_state", name))

    def lease(self, holder: Mapping[str, object], say: Callable[[str], None]) -> None:
        return None

    def journal(self) -> _Journal:
        return _Journal(self.path("_state", "journal"))

    def log_file(self, path: str) -> _LogFile:
        return _LogFile(path)


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

    def close(self) -> None:
        pass
