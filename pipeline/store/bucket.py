"""OUT on object storage: one put for each picture and each part, and no renames or appends.

A picture carries its row beside its bytes, so there is no journal: rows wait in memory until their
part is put, and what a killed run had not put is read from the pictures. Never imports torch, ray
or pyarrow.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import BinaryIO

from pipeline import objects, storage
from pipeline.crash import crash_point
from pipeline.objects import StorageError
from pipeline.records import Pair, Result
from pipeline.store.lease import Lease
from pipeline.store.medium import OWN, Found, Look
from pipeline.store.metadata import carried, from_attributes
from stylize.image import is_whole

__all__ = ["Bucket"]

_KEPT_BYTES = 300_000_000  # of parts that were read, so that each is fetched once
_LOG_SECONDS = 30.0


class Bucket:
    """The `Medium` of an OUT like ``s3://bucket/prefix``.

    The pictures are known from one listing, which is made when the first is asked for.
    """

    is_remote = True

    def __init__(self, written: str) -> None:
        self._written = written
        self._listed: dict[str, Look] | None = None  # by output
        self._etags: dict[str, str] = {}  # of parts, by name
        self._parts: dict[tuple[str, str], bytes] = {}  # by name and ETag

    def path(self, *names: str) -> str:
        return storage.join(self._written, "/".join(names))

    def absolute(self) -> str:
        return self._written

    def local_page(self) -> str:
        base = objects.split_options(self._written)[0].rstrip("/")
        return f"{base.rpartition('/')[2]}-report"

    def has_folder(self, path: str) -> bool:
        return next(objects.listing(path), None) is not None

    def names(self, folder: str) -> list[str]:
        found = {name: head for name, head in objects.listing(folder) if "/" not in name}
        if folder == self.path("index"):
            self._etags = {name: head.etag for name, head in found.items()}
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

    def free_bytes(self) -> float:
        return float("inf")

    def read_part(self, name: str) -> bytes | str:
        version = (name, self._etags.get(name, ""))
        if version not in self._parts:
            data = storage.read_bytes(self.path("index", name))
            if sum(map(len, self._parts.values())) + len(data) > _KEPT_BYTES:
                self._parts.clear()
            self._parts[version] = data
        return self._parts[version]

    def put_part(self, name: str, data: bytes | Callable[[BinaryIO], object]) -> None:
        data = storage.as_bytes(data)
        crash_point("part-temp-written")
        uri = self.path("index", name)
        try:
            etag = objects.create(uri, data).etag
        except FileExistsError as error:
            raise StorageError(
                f"{uri} is there already, so another run writes here; end one of them"
            ) from error
        except OSError as error:
            raise storage.storage_error(error, uri) from error
        self._etags[name] = etag
        self._parts[name, etag] = data
        crash_point("part-renamed")

    def begin_index(self, name: str, data: bytes) -> None:
        if not self.names(self.path("index")):
            self.put_part(name, data)

    def set_aside(self, folder: str, name: str) -> None:
        source = storage.join(folder, name)
        taken = self.names(self.path("_state", "damaged"))
        target, number = name, 1
        while target in taken:
            number += 1
            target = f"{name}.{number}"
        with contextlib.suppress(FileNotFoundError):
            storage.put(self.path("_state", "damaged", target), storage.read_bytes(source))
        storage.remove(source)

    def remove_leftovers(self, *, probes: bool) -> None:
        if not probes:
            return
        names = [name for name in self.names(self.path("_state")) if name.startswith("probe-")]
        objects.delete([self.path("_state", name) for name in names])

    def lease(self, holder: Mapping[str, object], say: Callable[[str], None]) -> Lease:
        return Lease(self._written, self.path("_state", "lock"), holder, say)

    def journal(self) -> _Nothing:
        return _Nothing()

    def log_file(self, path: str) -> _LogFile:
        return _LogFile(path)


class _Nothing:
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
        self._put = time.monotonic()
        self._seconds = _LOG_SECONDS

    def add(self, line: str) -> None:
        self._lines.append(line)
        if time.monotonic() - self._put >= self._seconds:
            self._write()

    def close(self) -> None:
        self._seconds = 0
        self._write()

    def _write(self) -> None:
        self._put = time.monotonic()
        with contextlib.suppress(OSError, StorageError):
            storage.put(self._path, "".join(self._lines).encode("utf-8", "backslashreplace"))
