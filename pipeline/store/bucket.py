"""OUT on object storage: one put for each picture and each part, and no renames or appends.

A picture carries its row beside its bytes, so there is no journal: rows wait in memory until their
part is put, and what a killed run had not put is read from the pictures. Never imports torch, ray
or pyarrow.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from mmap import mmap
from typing import BinaryIO

from pipeline import objects, storage
from pipeline.addresses import split_options
from pipeline.crash import crash_point
from pipeline.objects import ChangedError, StorageError, Version
from pipeline.records import Pair, Result
from pipeline.store.lease import lives
from pipeline.store.medium import OWN, Found, Look, Seen, Times, free_name
from pipeline.store.metadata import attributes, carried, from_attributes
from pipeline.store.spool import Spool
from stylize.image import is_whole

__all__ = ["TIMES", "Bucket", "check_conditions"]

TIMES = Times(renew=30, dead=300, look=5, unsure=240)
"""When the lock of such an OUT is written again and given up."""

_WASTE = 100_000_000  # bytes of parts that are gone, in the temporary file, before it is begun anew
_LOG_SECONDS = 30.0
_MOST_UPDATED = 2**20  # bytes of run.json


class Bucket:
    """The `Medium` of an OUT like ``s3://bucket/prefix``.

    The pictures are known from one listing, which is made when the first is asked for.
    """

    is_remote = True

    def __init__(self, written: str) -> None:
        self._written = written
        self._listed: dict[str, Look] | None = None  # by output
        self._heads: dict[str, objects.Head] = {}  # of parts, by name
        self._parts: dict[str, _Part] = {}  # that were read, so that each is fetched once
        self._spool: Spool | None = None  # where they are
        self._lock = threading.Lock()

    def path(self, *names: str) -> str:
        return storage.join(self._written, "/".join(names))

    def absolute(self) -> str:
        return self._written

    def local_page(self) -> str:
        base = split_options(self._written)[0].rstrip("/")
        return f"{base.rpartition('/')[2]}-report"

    def has_folder(self, path: str) -> bool:
        return next(objects.listing(path), None) is not None

    def names(self, folder: str) -> list[str]:
        found = {name: head for name, head in objects.listing(folder) if "/" not in name}
        if folder == self.path("index"):
            self._heads = found
            self._forget_parts()
        return sorted(found)

    def outputs(self) -> Iterator[str]:
        yield from sorted(self._listing())

    def _listing(self) -> dict[str, Look]:
        if self._listed is None:
            self._listed = {
                name: Look(head.size, head.modified, head.etag)
                for name, head in objects.listing(self._written)
                if name.partition("/")[0] not in OWN
            }
        return self._listed

    def look(self, output: str) -> Look | None:
        return self._listing().get(output)

    def has_picture(self, output: str) -> bool:
        return output in self._listing()

    def is_as_recorded(self, look: Look, finished_at: str, etag: str) -> bool:
        return bool(look.etag) and look.etag == etag

    def found(
        self, output: str, pair: Pair | None, wanted: Callable[[Result], bool] = lambda _: True
    ) -> Found:
        try:
            head = objects.head(self.path(output))
            row = from_attributes(head.attributes, pair)
            if row is not None and row.output_bytes == head.size:
                # One put is whole or not at all, so the picture need not be read.
                return Found(replace(row, output_etag=head.etag), True)
            data = storage.read_bytes(self.path(output))
        except OSError:
            return Found(None, False)
        row = carried(data, pair)
        if row is None:
            return Found(None, False)
        row = replace(row, output_etag=head.etag)
        return Found(row, wanted(row) and is_whole(data))

    def has_copy(self, output: str, look: Look, row: Result) -> str | None:
        if not self.has_picture(output):
            return None
        found = self.found(output, None).row
        is_same = found is not None and found.output_sha256 == row.output_sha256
        return found.output_etag if found is not None and is_same else None

    def put_copy(self, output: str, data: bytes, look: Look, row: Result) -> str:
        is_painted = hashlib.sha256(data).hexdigest() == row.output_sha256
        beside = attributes(row) if is_painted else None
        etag = storage.put(self.path(output), data, attributes=beside)
        return etag if is_painted else ""

    def free_bytes(self) -> float:
        return float("inf")

    def read_part(self, name: str) -> bytes | mmap | str:
        head = self._heads.get(name) or objects.head(self.path("index", name))
        part = self._parts.get(name)
        if part is None or part.etag != head.etag:
            part = self._fetched(name, head)
            self._parts[name] = part
        return part.spool.read(part.at, part.size)

    def _fetched(self, name: str, head: objects.Head) -> _Part:
        """Fetch a part to the temporary file. Raises `OSError` and `StorageError`."""
        spool, at = self._place(head.size)
        try:
            write = functools.partial(_write, spool, at)
            objects.fetch(self.path("index", name), head, write)
        except ChangedError as error:  # as if it had been removed: whoever reads looks again
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
        return _Part(head.etag, spool, at, head.size)

    def _place(self, size: int) -> tuple[Spool, int]:
        with self._lock:
            self._spool = self._spool or Spool()
        return self._spool, self._spool.place(size)

    def _forget_parts(self) -> None:
        """Forget the parts that are gone, or all, if those fill too much of the file."""
        gone = self._parts.keys() - self._heads.keys()
        for name in gone:
            del self._parts[name]
        kept = sum(part.size for part in self._parts.values())
        if self._spool is not None and self._spool.size > 2 * kept + _WASTE:
            self._parts, self._spool = {}, None

    def put_part(self, name: str, data: bytes | Callable[[BinaryIO], object]) -> None:
        uri = self.path("index", name)
        if callable(data):
            with _spooling():
                spool, at = Spool(), 0
                size = spool.fill(data)
        else:
            size = len(data)
            spool, at = self._place(size)
            _write(spool, at, 0, data)
        crash_point("part-temp-written")
        try:
            version = objects.create(uri, spool.read(at, size))
        except FileExistsError as error:
            raise StorageError(
                f"{uri} is there already, so another run writes here; end one of them"
            ) from error
        except OSError as error:
            raise storage.storage_error(error, uri) from error
        self._heads[name] = head = objects.Head(size, version, time.time(), {})
        self._parts[name] = _Part(head.etag, spool, at, size)
        crash_point("part-renamed")

    def begin_index(self, name: str, data: bytes) -> None:
        if not self.names(self.path("index")):
            self.put_part(name, data)

    def set_aside(self, folder: str, name: str) -> None:
        source = storage.join(folder, name)
        target = free_name(name, self.names(self.path("_state", "damaged")))
        with contextlib.suppress(FileNotFoundError):
            storage.put(self.path("_state", "damaged", target), storage.read_bytes(source))
        storage.remove(source)

    def remove_leftovers(self, *, probes: bool) -> None:
        if not probes:
            return
        names = [name for name in self.names(self.path("_state")) if name.startswith("probe-")]
        objects.delete([self.path("_state", name) for name in names])

    def locks(self) -> _Locks:
        return _Locks(self._written, self.path("_state"))

    def update(
        self, path: str, change: Callable[[bytes | None], bytes | None], point: str = ""
    ) -> None:
        while True:
            before, version = None, None
            with contextlib.suppress(FileNotFoundError):
                before, head = objects.get(path, _MOST_UPDATED)
                version = head.version
            after = change(before)
            if after is None:
                return
            crash_point(f"{point}-temp-written")
            with contextlib.suppress(FileExistsError, ChangedError):
                if version is None:
                    objects.create(path, after)
                else:
                    objects.replace(path, after, version)
                crash_point(f"{point}-renamed")
                return

    def journal(self) -> _NoJournal:
        return _NoJournal()

    def log_file(self, path: str) -> _LogFile:
        return _LogFile(path)


@dataclass(frozen=True)
class _Part:
    """A part of the index, fetched."""

    etag: str
    spool: Spool
    at: int  # its place there
    size: int  # bytes


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    """Raise `StorageError` for what fails in the folder for temporary files."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the index has no room in the folder for temporary files: {error.strerror or error}; "
            "make room there, or set TMPDIR to another folder"
        ) from error


def _write(spool: Spool, at: int, place: int, data: bytes) -> None:
    """Write bytes of a part, which begins at `at`. Raises `StorageError`."""
    with _spooling():
        spool.write(at + place, data)


@dataclass(frozen=True)
class _Held:
    uri: str
    version: Version


class _Locks:
    """The `Locks` of a prefix: objects that are created on condition that there is none, and
    replaced on condition that they still are what their holder wrote last."""

    def __init__(self, out: str, folder: str) -> None:
        self.times = TIMES
        self._out = out
        self._folder = folder
        self._is_checked = False

    def names(self) -> list[str]:
        names = []
        for name, _ in objects.listing(self._folder, after="loc"):
            if not name.startswith("lock"):
                break
            names.append(name)
        return names

    def look(self, name: str) -> Seen:
        try:
            data, head = objects.get(storage.join(self._folder, name), 100_000)
        except FileNotFoundError:
            return Seen()
        try:
            holder = json.loads(data)
        except ValueError:
            holder = None
        holder = holder if isinstance(holder, dict) else {}
        return Seen(head.version, holder, lives(holder), time.time() - head.modified)

    def take(self, name: str, record: bytes, seen: Seen) -> _Held:
        uri = storage.join(self._folder, name)
        if isinstance(seen.state, Version):
            return _Held(uri, objects.replace(uri, record, seen.state))
        try:
            version = objects.create(uri, record)
        except FileExistsError as error:
            raise ChangedError(name) from error
        if not self._is_checked:
            check_conditions(self._out, uri)
            self._is_checked = True
        return _Held(uri, version)

    def renew(self, held: object, record: bytes) -> _Held:
        assert isinstance(held, _Held)
        return _Held(held.uri, objects.replace(held.uri, record, held.version))

    def drop(self, held: object) -> None:
        assert isinstance(held, _Held)
        objects.delete([held.uri])


def check_conditions(out: str, uri: str) -> None:
    """Raise `StorageError` if the store ignores conditions: there, two runs could not be kept
    apart. `uri` is an existing object below OUT, which is removed if they are ignored."""
    kept = 0
    with contextlib.suppress(FileExistsError):
        objects.create(uri, b"{}")
        kept += 1
    with contextlib.suppress(ChangedError):
        objects.replace(uri, b'{"condition": "ignored"}', Version('"0"', "1"))
        kept += 1
    if kept:
        objects.delete([uri])
        raise StorageError(
            f"{out}: this store ignores conditions on writes (If-None-Match, If-Match), "
            "so two runs at once could not be kept apart; choose a store that has them, or a "
            "folder, for --out"
        )


class _NoJournal:
    """The `Journal` of object storage: the pictures carry their rows."""

    def __init__(self) -> None:
        self.is_open = False

    def begin(self, segment: str) -> None:
        self.is_open = True

    def write(self, lines: bytes) -> None:
        pass

    def end(self) -> None:
        self.is_open = False


class _LogFile:
    """A log that is put whole, now and then: nothing can be added to an object."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lines: list[str] = []
        self._seconds = _LOG_SECONDS
        self._timer: threading.Timer | None = None
        self._putting = threading.Lock()

    def add(self, line: str) -> None:
        self._lines.append(line)
        if self._seconds == 0:
            self.flush()
        elif self._timer is None:
            self._timer = threading.Timer(self._seconds, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        self._seconds = 0
        self.flush()

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._putting, contextlib.suppress(OSError, StorageError):
            self._timer = None
            storage.put(self._path, "".join(self._lines).encode("utf-8", "backslashreplace"))
