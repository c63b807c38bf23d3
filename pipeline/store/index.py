"""The Parquet index of OUT: journal, parts, compaction, recovery, reading.

The only module that touches pyarrow.parquet, beside the reader of Parquet manifests. What a row
is, and which row of a pair counts, is in rows.py; the lock and run.json are in lock.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.crash import crash_point
from pipeline.records import Result
from pipeline.store.folder import OutFolder
from pipeline.store.rows import (
    EMPTY,
    SCHEMA,
    clean,
    conform,
    from_line,
    only_newest,
    to_line,
    to_results,
    to_table,
)
from stylize.files import sync_folder

__all__ = ["Index", "read_curves", "read_index", "read_results"]

_NAME = re.compile(r"part-(?P<run>.+)-(?P<segment>\d+)\.parquet")
_SEGMENT = re.compile(r".+-\d+\.jsonl")
_UNREADABLE = (pa.ArrowException, OSError, ValueError)
_FEW = 16  # parts; a merge takes parts away, which a reader may just have listed
_LIGHT = [name for name in SCHEMA.names if name != "loss_curve"]


def _open(path: str) -> pa.NativeFile:
    """By bytes, for pyarrow takes no text that is not UTF-8. Not Python's file: its buffers need
    the interpreter, which may have ended before pyarrow's threads do."""
    return pa.OSFile(os.fsencode(path), "rb")


def _read_part(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All columns of a part, or `columns`. Raises one of `_UNREADABLE` for a damaged part.

    An `OSError` with an errno is no damage but the system's trouble (too many open files, …).
    """
    with _open(path) as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        wanted = None if columns is None else [name for name in names if name in columns]
        return conform(file.read(wanted), SCHEMA.names if columns is None else columns)


def _is_damage(error: Exception) -> bool:
    return not isinstance(error, MemoryError) and getattr(error, "errno", None) is None


def _columns(path: str) -> tuple[str, ...]:
    with _open(path) as raw:
        return tuple(pq.read_schema(raw).names)


def _by_row(table: pa.Table) -> pa.Table:
    """In the manifest's order; without a row number, as in a part of another version, last."""
    return table.sort_by([("row", "ascending"), ("pair_id", "ascending")])


def _encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=4096, write_page_checksum=True)
    return bytes(sink.getvalue())


def _read_segment(path: str) -> tuple[list[Result], list[int], bool]:
    """Its results, the lines that cannot be read, and whether the last one was cut short."""
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    torn = lines.pop() != b""
    results, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            result = from_line(line)
            to_table([result])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, pa.ArrowException):
            bad.append(number)
        else:
            results.append(result)
    return results, bad, torn


def _listed(folder: str, pattern: re.Pattern[str]) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if pattern.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _load(out: OutFolder, columns: Sequence[str]) -> pa.Table:
    """Return the newest row of each pair, from parts and journals. A driver may be writing."""
    for attempt in range(20):
        try:
            tables = _load_once(out, columns)
            break
        except OSError as error:
            # A compaction took a part away; what it held is elsewhere.
            if not isinstance(error, FileNotFoundError) or attempt == 19:
                raise storage.unreadable(error, str(out)) from error
    return _by_row(only_newest(pa.concat_tables([EMPTY.select(columns), *tables])))


def _load_once(out: OutFolder, columns: Sequence[str]) -> list[pa.Table]:
    tables = []
    # Journals first: a segment that is sealed meanwhile is then seen twice, never missed.
    for name in _listed(out.journal, _SEGMENT):
        with contextlib.suppress(FileNotFoundError):
            tables.append(to_table(_read_segment(os.path.join(out.journal, name))[0]))
    for name in _listed(out.index, _NAME):
        try:
            tables.append(_read_part(os.path.join(out.index, name), columns))
        except _UNREADABLE as error:
            if not _is_damage(error):
                raise
            warnings.warn(f"index/{name} is damaged and left out: {error}", stacklevel=4)
    return [table.select(columns) for table in tables]


def read_index(out: OutFolder | str | os.PathLike[str]) -> pa.Table:
    """The newest row of each pair of OUT, with every column of `SCHEMA`, in the manifest's order;
    safe during a run.

    A part that cannot be read is left out with a warning. Raises `FileNotFoundError` where there
    is no such folder, `StorageError` where it cannot be read.
    """
    folder = out if isinstance(out, OutFolder) else OutFolder(out)
    if not folder.exists:
        raise FileNotFoundError(errno.ENOENT, "there is no such output folder", folder.written)
    return _load(folder, SCHEMA.names)


def read_results(out: OutFolder) -> dict[str, Result]:
    """pair_id -> newest result, in the manifest's order. Loss curves are not read: ()."""
    return {result.pair_id: result for result in to_results(_load(out, _LIGHT))}


def read_curves(
    out: OutFolder, pair_ids: Collection[str]
) -> dict[str, tuple[tuple[Any, ...], ...]]:
    """The loss curves that `read_results` leaves out, of some pairs."""
    table = read_index(out).select(["pair_id", "loss_curve"])
    table = table.filter(pc.is_in(table["pair_id"], pa.array(pair_ids, pa.string())))
    return {
        row["pair_id"]: tuple(tuple(step.values()) for step in row["loss_curve"] or ())
        for row in table.to_pylist()
    }


class Index:
    """The one writer of OUT's index: made under a `Lock`, it recovers what earlier runs left and
    begins a new epoch; append results, close it.

    A result is safe once `append` or `extend` returns: its line in the journal is on the disk.
    `problems` says in words what was found damaged and set aside into ``_state/damaged``. Raises
    `StorageError`.
    """

    def __init__(
        self,
        out: OutFolder,
        run_id: str,
        *,
        rows_per_part: int = 256,
        seconds_per_part: float = 30.0,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", run_id):
            raise ValueError(f"run_id is {run_id!r}; it must be letters, digits, _ . or -")
        self.run_id = run_id
        self._out = out
        self.epoch = 1
        self.seq = 0
        self.problems: list[str] = []
        self._rows_per_part = rows_per_part
        self._seconds_per_part = seconds_per_part
        self._tables: list[pa.Table] = []  # of the open segment
        self._rows = 0  # in them
        self._handle = -1
        self._size = 0  # bytes of the open segment that are known to be whole
        self._segment = 0
        self._begun = 0.0
        try:
            self._recover()
        except OSError as error:
            raise storage.unreadable(error, str(out)) from error

    def append(self, result: Result) -> Result:
        """`extend` by one."""
        return self.extend([result])[0]

    def extend(self, results: Sequence[Result]) -> list[Result]:
        """Write results to the journal and return them as written: with run_id, epoch and seq.

        Raises `StorageError`, and then these or earlier results may not be in a part yet; what
        an earlier call returned is in the journal in any case.
        """
        results = self._stamped(results)
        # Impossible values raise here. All lines go to the disk at once: that takes 7 ms.
        table, lines = to_table(results), b"".join(map(to_line, results))
        self._write(lines)
        crash_point("journal-synced")
        self.seq += len(results)
        self._tables.append(table)
        self._rows += len(results)
        late = time.monotonic() - self._begun >= self._seconds_per_part
        if late or self._rows >= self._rows_per_part:
            self.seal()
        return results

    def restate(self, results: Sequence[Result]) -> None:
        """Write rows again that are there but for some columns, as a part of their own, with the
        loss curves that they have, whatever `results` say. Raises `StorageError`.

        Not through the journal, for that takes milliseconds a row: who puts a row at the top of
        a manifest of 40,000 changes the number of each.
        """
        self.seal()
        results = self._stamped(results)
        curves = _load(self._out, SCHEMA.names).select(["pair_id", "loss_curve"]).combine_chunks()
        table = to_table(results)
        places = pc.index_in(table["pair_id"], value_set=curves["pair_id"])
        at = SCHEMA.get_field_index("loss_curve")
        table = table.set_column(at, SCHEMA.field(at), curves["loss_curve"].take(places))
        self._segment = self._next_segment()
        self._put_part(f"{self.run_id}-{self._segment:06d}", _by_row(table))
        self.seq += len(results)

    def _stamped(self, results: Sequence[Result]) -> list[Result]:
        return [
            clean(dataclasses.replace(one, run_id=self.run_id, epoch=self.epoch, seq=seq))
            for seq, one in enumerate(results, self.seq + 1)
        ]

    def seal(self) -> None:
        """Turn the open segment into a part. Raises `StorageError`; the segment then stays."""
        if self._handle < 0:
            return
        name = f"{self.run_id}-{self._segment:06d}"
        if self._tables:
            self._put_part(name, _by_row(pa.concat_tables(self._tables)))
            crash_point("part-written")
        os.close(self._handle)
        self._handle, self._tables, self._rows = -1, [], 0
        storage.remove(self._segment_path())
        crash_point("journal-deleted")

    def compact(self, without: Collection[str] = ()) -> None:
        """Merge all parts into one that holds each pair once. Raises `StorageError`.

        Pairs named in `without` are left out (and after a crash in between come back).
        """
        self.seal()
        self._merge(self._parts(), without)

    def close(self) -> None:
        """Seal, and merge what must not stay as it is. Raises `StorageError`."""
        self.seal()
        if parts := self._to_merge():
            self._merge(parts)

    def _merge(self, parts: Collection[str], without: Collection[str] = ()) -> None:
        """Parts become one, which is written before the others are removed: a crash in between
        leaves rows twice, with the same epoch and seq, and readers take one of them."""
        crash_point("compaction-begun")
        tables = {name: t for name in parts if (t := self._try_read(name)) is not None}
        if not tables:
            return
        merged = only_newest(pa.concat_tables(tables.values(), promote_options="default"))
        if without:
            ids = pa.array(sorted(without), pa.string())
            merged = merged.filter(pc.invert(pc.is_in(merged["pair_id"], ids)))
        self._segment = self._next_segment()
        self._put_part(f"{self.run_id}-{self._segment:06d}", _by_row(merged))
        crash_point("compaction-merged")
        for name in tables:
            storage.remove(os.path.join(self._out.index, name))
            crash_point("compaction-input-deleted")
        crash_point("compaction-inputs-deleted")

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except storage.StorageError:
            if error is None:  # else the first error says it; the journal keeps the rows
                raise

    # --- the open segment ---

    def _segment_path(self) -> str:
        return os.path.join(self._out.journal, f"{self.run_id}-{self._segment:06d}.jsonl")

    def _write(self, line: bytes) -> None:
        try:
            if self._handle < 0:
                self._begin_segment()
            elif os.fstat(self._handle).st_nlink == 0:
                raise FileNotFoundError(2, "the journal was removed during the run")
            half = line[: len(line) // 2]
            crash_point("journal-half-written", lambda: os.write(self._handle, half))
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        except OSError as error:
            if self._handle >= 0:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, self._size)  # the torn tail
            raise storage.storage_error(error, self._segment_path()) from error
        self._size += len(line)

    def _begin_segment(self) -> None:
        # The journal's folder stands since `_recover`; where it is gone, so are the pictures.
        self._segment = self._next_segment()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._handle = os.open(self._segment_path(), flags, 0o644)
        sync_folder(self._out.journal)
        crash_point("journal-begun")
        self._size, self._begun = 0, time.monotonic()

    def _next_segment(self) -> int:
        """A number that no part and no segment of this run has had."""
        used = [self._segment]
        for name in self._parts():
            match = _NAME.fullmatch(name)
            if match and match["run"] == self.run_id:
                used.append(int(match["segment"]))
        return max(used) + 1

    # --- parts ---

    def _parts(self) -> list[str]:
        return _listed(self._out.index, _NAME)

    def _put_part(self, name: str, table: pa.Table) -> None:
        # The temporary file stays out of index/, where readers take everything that they find.
        path = os.path.join(self._out.index, f"part-{name}.parquet")
        storage.put(path, _encode(table), point="part", temp_folder=self._out.state)

    def _to_merge(self) -> list[str]:
        """All parts where they are many or have not the same columns (some readers go by those of
        the first), else the ones with a pair or a picture that is there twice."""
        parts = self._parts()
        if len(parts) > _FEW:
            return parts
        held, columns = {}, set()
        for name in parts:
            table = self._try_read(name, ["pair_id", "output", "output_sha256"])
            if table is not None:
                painted = table.filter(pc.greater(pc.binary_length(table["output_sha256"]), 0))
                pairs = [("pair", pair_id) for pair_id in table["pair_id"].to_pylist()]
                held[name] = pairs + [("picture", path) for path in painted["output"].to_pylist()]
                columns.add(_columns(os.path.join(self._out.index, name)))
        if len(columns) > 1:
            return list(held)
        count = Counter(itertools.chain.from_iterable(held.values()))
        return [name for name in held if any(count[one] > 1 for one in held[name])]

    def _try_read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        path = os.path.join(self._out.index, name)
        try:
            return _read_part(path, columns)
        except _UNREADABLE as error:
            if not _is_damage(error):
                raise storage.StorageError(f"index/{name} cannot be read: {error}") from error
            size = os.path.getsize(path) if os.path.exists(path) else 0
            reason = "is empty" if size == 0 else f"is damaged ({str(error)[:100]})"
            self._set_aside(path)
            self.problems.append(
                f"index/{name} {reason}; it is now in _state/damaged, and the pictures of its "
                "rows are taken over where they are whole"
            )
            return None

    def _set_aside(self, path: str) -> None:
        folder = self._out.damaged
        storage.make_folder(folder)
        target, number = os.path.join(folder, os.path.basename(path)), 1
        while os.path.exists(target):
            number += 1
            target = os.path.join(folder, f"{os.path.basename(path)}.{number}")
        try:
            os.replace(path, target)
        except OSError as error:
            raise storage.storage_error(error, target) from error

    # --- recovery ---

    def _recover(self) -> None:
        storage.make_folder(self._out.journal)
        self._begin_folder()
        for name in _listed(self._out.journal, _SEGMENT):
            self._seal_left_over(name)
        strays = set(os.listdir(self._out.index)) - set(self._parts())
        for name in sorted(strays):
            self.problems.append(f"index/{name!r} is no part of the index and is not read")
        seen = 0
        for name in self._parts():
            table = self._try_read(name, ["pair_id", "epoch", "seq", "output_sha256"])
            if table is not None and len(table):
                seen = max(seen, pc.max(table["epoch"]).as_py() or 0)
        self.epoch = seen + 1
        if not self._parts():  # all were set aside, or removed by hand
            self._put_part(f"{self.run_id}-000000", EMPTY)

    def _begin_folder(self) -> None:
        """Make index/ with an empty part in it, at once: a folder without a part is an error to
        duckdb and polars."""
        if os.path.isdir(self._out.index):
            return
        made = os.path.join(self._out.state, "index")
        part = os.path.join(made, f"part-{self.run_id}-000000.parquet")
        storage.put(part, _encode(EMPTY), point="part", temp_folder=self._out.state)
        try:
            os.rename(made, self._out.index)
            sync_folder(os.path.dirname(self._out.index))
        except OSError as error:
            raise storage.storage_error(error, self._out.index) from error

    def _is_sealed(self, name: str, rows: int) -> bool:
        """Whether a segment's part is there already: a part is never written over, for duckdb and
        polars open a file twice while they read it."""
        part = f"part-{name}.parquet"
        table = self._try_read(part, ["pair_id"]) if part in self._parts() else None
        return table is not None and len(table) == rows

    def _seal_left_over(self, name: str) -> None:
        path = os.path.join(self._out.journal, name)
        results, bad, torn = _read_segment(path)
        if results and not self._is_sealed(name.removesuffix(".jsonl"), len(results)):
            self._put_part(name.removesuffix(".jsonl"), _by_row(to_table(results)))
            crash_point("part-written")
        if torn:
            self.problems.append(f"the last line of journal {name} was cut short; it is left out")
        if bad:
            lines = ", ".join(map(str, bad[:10]))
            self.problems.append(
                f"journal {name}: {len(bad)} unreadable line(s) ({lines}) left out; "
                "the file is kept in _state/damaged"
            )
            self._set_aside(path)
        else:
            storage.remove(path)
        crash_point("journal-deleted")
