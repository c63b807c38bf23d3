"""The writer of OUT's Parquet index: its journal, parts, compaction and recovery.

Besides pieces.py and the reader of Parquet manifests, only this module reads or writes Parquet
files. rows.py defines what a row is and which row of a pair counts; reading.py reads the index.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.crash import crash_point
from pipeline.records import Result
from pipeline.shard import Shard
from pipeline.store.folder import OutFolder
from pipeline.store.pieces import (
    PART,
    UNREADABLE,
    by_row,
    column_names,
    encode,
    fetch,
    is_damage,
    listed,
    open_part,
    read_part,
    read_pieces,
    read_segment,
    segments,
    size,
    with_pictures,
    write_pieces,
)
from pipeline.store.rows import (
    EMPTY,
    PICTURE,
    SCHEMA,
    Stamp,
    check,
    clean,
    conform,
    newest_positions,
    repeated,
    to_line,
    to_table,
)
from pipeline.text import count

__all__ = ["Index"]

_MOST_PARTS = 16  # then they are merged; not at once, since a reader may just have listed them


class _DamagedError(Exception):
    """A part turned out to be damaged after a part of it was used."""


class Index:
    """The only writer of OUT's index, made under a `Lock`.

    Creating it recovers what earlier runs left and begins a new epoch. With `shard`, other shards
    write beside it: it leaves their journals alone, and merges parts only if `alone` says that it
    is the last. `run_id` then ends with the shard's name. A result is safe once `append` or
    `extend` returns: its line of the journal is on the disk. On object storage it is safe because
    its picture carries its row; a failure is safe after `seal`. `problems` says in words which
    files were damaged and moved to ``_state/damaged``. Raises `StorageError`.
    """

    def __init__(
        self,
        out: OutFolder,
        run_id: str,
        *,
        shard: Shard | None = None,
        alone: Callable[[], bool] = lambda: True,
        rows_per_part: int = 256,
        seconds_per_part: float = 30.0,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", run_id):
            raise ValueError(f"run_id is {run_id!r}; it must be letters, digits, _ . or -")
        self.run_id = run_id
        self.epoch = 1
        self.seq = 0
        self.problems: list[str] = []
        self._out = out
        self._shard = shard
        self._alone = alone
        self._rows_per_part = rows_per_part
        self._seconds_per_part = seconds_per_part
        self._segment = 0  # number of the newest segment or part of this run
        self._small: list[str] = []  # parts with few rows
        # The open segment:
        self._journal = out.medium.journal()
        self._begun = 0.0  # when it was opened, by the monotonic clock
        self._rows: list[Result] = []
        try:
            self._recover()
        except OSError as error:
            raise storage.unreadable(error, str(out)) from error

    def append(self, result: Result) -> Result:
        """Write one result: see `extend`."""
        return self.extend([result])[0]

    def extend(self, results: Sequence[Result]) -> list[Result]:
        """Write results to the journal; return them with run_id, epoch and seq.

        Raises `StorageError` if they could not be written, or if the open segment could not become
        a part. Results that an earlier call returned are in the journal in either case.
        """
        results = self._stamped(results)
        check(results)  # before anything is written
        # All lines are written and synced at once, because each sync takes 7 ms.
        self._write(b"".join(map(to_line, results)))
        crash_point("journal-synced")
        self.seq += len(results)
        self._rows += results
        self.seal_if_due()
        return results

    def seal_if_due(self) -> None:
        """Turn the open segment into a part if it is old or large. Raises `StorageError`."""
        late = time.monotonic() - self._begun >= self._seconds_per_part
        if self._rows and (late or len(self._rows) >= self._rows_per_part):
            self.seal()
            if self._out.medium.is_remote and len(self._small) >= _MOST_PARTS:
                self._join_small_parts()

    def restate(self, results: Sequence[Result]) -> None:
        """Write rows of finished pairs again, as a part, because some of their columns changed.

        The loss curves in the index are kept; those of `results` are ignored. The journal is not
        used, because it takes milliseconds a row: a row inserted at the top of a manifest of 40,000
        changes the number of every row below it. Raises `StorageError`.
        """
        self.seal()
        results = self._stamped(results)
        self._put_pieces(SCHEMA, lambda: self._with_curves(results))
        self.seq += len(results)

    def _with_curves(self, results: Sequence[Result]) -> Iterator[pa.Table]:
        """Yield results as tables, with the loss curves that the index has of their pairs."""
        left = {result.pair_id: result for result in results}
        at = SCHEMA.get_field_index("loss_curve")
        columns = ["pair_id", "loss_curve"]
        for piece in self._kept(self._parts(), lambda pair_id: pair_id in left, columns):
            table = to_table([left.pop(pair_id) for pair_id in piece["pair_id"].to_pylist()])
            yield table.set_column(at, SCHEMA.field(at), piece["loss_curve"])
        if left:
            yield to_table(list(left.values()))

    def add(self, table: pa.Table) -> None:
        """Add rows of another index as they are, as a part. Raises `StorageError`."""
        self.seal()
        self._put_next_part(conform(table, SCHEMA.names))

    def seal(self) -> None:
        """Turn the open segment into a part. Raises `StorageError`; the segment then stays."""
        if not self._journal.is_open:
            return
        if self._rows:
            self._put_part(self._segment_name(), to_table(self._rows))
            crash_point("part-written")
        self._rows = []
        self._journal.end()
        crash_point("journal-deleted")

    def compact(self, without: Collection[str] = ()) -> None:
        """Merge all parts into one that holds each pair once. Raises `StorageError`.

        Pairs whose ids are in `without` are left out. After a crash halfway they are back.
        """
        self.seal()
        self._merge(self._parts(), without)

    def close(self) -> None:
        """Seal the open segment, and merge parts where needed. Raises `StorageError`."""
        self.seal()
        if not self._alone():
            return
        for name in segments(self._out):  # of other shards, which are gone
            self._seal_left_over(name)
        if parts := self._parts_to_merge():
            self._merge(parts)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # Where it ends in trouble, another run may hold OUT on object storage by now.
            self.close() if error is None or not self._out.medium.is_remote else self.seal()
        except storage.StorageError:
            if error is None:  # otherwise that error is the news; the journal keeps the rows
                raise

    def _stamped(self, results: Sequence[Result]) -> list[Result]:
        return [
            clean(dataclasses.replace(result, run_id=self.run_id, epoch=self.epoch, seq=seq))
            for seq, result in enumerate(results, self.seq + 1)
        ]

    # --- the open segment of the journal ---

    def _segment_name(self) -> str:
        return f"{self.run_id}-{self._segment:06d}"

    def _next_segment(self) -> int:
        """Return a number that no part and no segment of this run has had."""
        used = [self._segment]
        for name in self._parts():
            match = PART.fullmatch(name)
            if match and match["run"] == self.run_id:
                used.append(int(match["segment"]))
        return max(used) + 1

    def _write(self, lines: bytes) -> None:
        try:
            if not self._journal.is_open:
                self._segment = self._next_segment()
                self._journal.begin(self._segment_name())
                self._begun = time.monotonic()
            self._journal.write(lines)
        except OSError as error:
            path = os.path.join(self._out.journal, f"{self._segment_name()}.jsonl")
            raise storage.storage_error(error, path) from error

    # --- parts ---

    def _parts(self) -> list[str]:
        return listed(self._out, self._out.index, PART)

    def _put_part(self, segment: str, table: pa.Table) -> None:
        name = f"part-{segment}.parquet"
        self._out.medium.put_part(name, encode(by_row(table)))
        self._note_size(name, table)

    def _note_size(self, name: str, table: pa.Table) -> None:
        if len(table) < self._rows_per_part:
            self._small.append(name)

    def _put_next_part(self, table: pa.Table) -> None:
        self._segment = self._next_segment()
        self._put_part(self._segment_name(), table)

    def _try_read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        """Return a part, or None after moving a damaged one to ``_state/damaged``."""
        try:
            return read_part(self._out, name, columns)
        except UNREADABLE as error:
            if not self._is_joined(name, error):
                self._put_aside(name, error)
            return None

    def _is_joined(self, name: str, error: Exception) -> bool:
        """Return whether a part is gone because another shard has joined its small parts.

        No pair of this shard has its row there.
        """
        return isinstance(error, FileNotFoundError) and not self._is_own(name)

    def _put_aside(self, name: str, error: Exception) -> None:
        """Move a damaged part to ``_state/damaged``. Raises `StorageError` for trouble of the
        system."""
        if not is_damage(error):
            raise storage.StorageError(f"index/{name} cannot be read: {error}") from error
        source = self._out.medium.read_part(name)
        length = size(source) if isinstance(source, str) else len(source)
        reason = "is empty" if length == 0 else f"is damaged ({str(error)[:100]})"
        self._out.medium.set_aside(self._out.index, name)
        self.problems.append(
            f"index/{name} {reason}; it is now in _state/damaged, and its rows are made again "
            "from the pictures that are whole"
        )

    # --- merging parts ---

    def _parts_to_merge(self) -> list[str]:
        """Return the parts that must not stay as they are.

        These are all parts if they are many or differ in their columns, because some readers take
        the columns of the first part for those of all. Otherwise they are the parts with a pair or
        a picture that occurs more than once.
        """
        parts = self._parts()
        if len(parts) > _MOST_PARTS:
            return parts
        ids: dict[str, pa.ChunkedArray] = {}  # by part
        outputs: dict[str, pa.ChunkedArray] = {}  # of its pictures
        headers = set()
        for name in parts:
            table = self._try_read(name, ["pair_id", "output", "output_sha256"])
            if table is None:
                continue
            painted = table.filter(pc.greater(pc.binary_length(table["output_sha256"]), 0))
            ids[name], outputs[name] = table["pair_id"], painted["output"]
            headers.add(column_names(self._out, name))
        if len(headers) > 1:
            return list(ids)
        twice: set[str] = set()
        for columns in (ids, outputs) if ids else ():
            chunks = [chunk for column in columns.values() for chunk in column.chunks]
            several = repeated(pa.chunked_array(chunks, pa.string()))
            twice |= {n for n, c in columns.items() if pc.any(pc.is_in(c, several)).as_py()}
        return [name for name in ids if name in twice]

    def _merge(self, parts: Collection[str], without: Collection[str] = ()) -> None:
        """Merge parts into one, which is written before the others are removed.

        A crash in between leaves rows twice with the same epoch and seq, and readers take either.
        """
        crash_point("compaction-begun")
        without = set(without)
        while names := [name for name in self._parts() if name in parts]:
            schema = self._schema_of(names)
            pieces = functools.partial(self._kept, names, lambda pair_id: pair_id not in without)
            with contextlib.suppress(_DamagedError):  # it was put aside: again, without it
                self._put_pieces(schema, pieces)
                break
        else:
            return
        self._remove_merged(names)

    def _remove_merged(self, names: Collection[str]) -> None:
        """Remove parts whose rows are in another."""
        crash_point("compaction-merged")
        self._small = [name for name in self._small if name not in names]
        for name in names:
            storage.remove(storage.join(self._out.index, name))
            crash_point("compaction-input-deleted")
        crash_point("compaction-inputs-deleted")

    def _join_small_parts(self) -> None:
        """Make one part of the small ones, all rows as they are, so that a slow run does not leave
        one part for each pair: reading the index takes a request for each part."""
        crash_point("compaction-begun")
        tables = {n: table for n in self._small if (table := self._try_read(n)) is not None}
        if tables:
            self._put_next_part(pa.concat_tables(tables.values(), promote_options="default"))
            self._remove_merged(tables)

    def _put_pieces(self, schema: pa.Schema, pieces: Callable[[], Iterator[pa.Table]]) -> None:
        """Write a part piece by piece, since loss curves of many pairs fill the memory."""
        self._segment = self._next_segment()
        write = functools.partial(write_pieces, schema=schema, pieces=pieces, order=by_row)
        self._out.medium.put_part(f"part-{self._segment_name()}.parquet", write)

    def _schema_of(self, parts: Iterable[str]) -> pa.Schema:
        """Return `SCHEMA` with the columns that later versions added to some parts."""
        unknown: dict[str, pa.Field] = {}
        for name in parts:
            with contextlib.suppress(*UNREADABLE):
                with open_part(self._out, name) as raw:
                    fields = {field.name: field for field in pq.read_schema(raw)}
                unknown |= {name: f for name, f in fields.items() if name not in SCHEMA.names}
        return pa.schema([*SCHEMA, *unknown.values()])

    def _kept(
        self,
        parts: Sequence[str],
        wanted: Callable[[str], bool],
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Yield the newest row of each pair that is wanted, each with its picture, in pieces.

        Damaged parts are put aside; raises `_DamagedError` if that shows after the first piece.
        """
        light = [*dict.fromkeys((*Stamp._fields, *PICTURE))]
        tables = {name: t for name in parts if (t := self._try_read(name, light)) is not None}
        table = pa.concat_tables([EMPTY.select(light), *(t.select(light) for t in tables.values())])
        ids = table["pair_id"].to_pylist()
        positions = zip(*(array.to_pylist() for array in newest_positions(table)), strict=True)
        chosen = sorted(pair for pair in positions if wanted(ids[pair[0]]))
        rows = [row for row, _ in chosen]
        pictures = table.select(PICTURE).take(pa.array([at for _, at in chosen], pa.int64()))
        del table, ids, chosen
        first = start = 0  # of the rows that are kept, and of all
        for name in tables:
            try:
                with open_part(self._out, name) as raw:
                    for piece in read_pieces(raw, columns):
                        last = bisect.bisect_left(rows, start + len(piece), first)
                        if last > first:
                            kept = piece.take(pa.array([row - start for row in rows[first:last]]))
                            yield with_pictures(kept, pictures.slice(first, last - first))
                        first, start = last, start + len(piece)
            except UNREADABLE as error:
                if not self._is_joined(name, error):
                    self._put_aside(name, error)
                    raise _DamagedError from error
                start += len(tables[name])

    # --- recovery ---

    def _recover(self) -> None:
        """Bring the files that earlier runs left into order, and find this run's epoch."""
        storage.make_folder(self._out.journal)
        empty = f"part-{self.run_id}-000000.parquet"
        self._out.medium.begin_index(empty, encode(EMPTY))
        latest, whole = 0, 0
        for name in segments(self._out):
            if self._is_own(name):
                self._seal_left_over(name)
            else:
                latest = max(latest, self._epoch_of_segment(name))
        names = self._out.medium.names(self._out.index)
        parts = [name for name in names if PART.fullmatch(name)]
        for name in names:
            if name not in parts:
                self.problems.append(f"index/{name!r} is not part of the index and is not read")
        fetch(self._out, parts)
        for name in parts:
            table = self._try_read(name, ["pair_id", "epoch", "seq", "output_sha256"])
            if table is not None:
                whole += 1
                if self._is_own(name):
                    self._note_size(name, table)
                latest = max(latest, pc.max(table["epoch"]).as_py() or 0 if len(table) else 0)
        self.epoch = latest + 1
        if not whole:  # all were damaged, or somebody removed them
            self._put_part(f"{self.run_id}-000000", EMPTY)

    def _is_own(self, name: str) -> bool:
        """Return whether a segment or part is this shard's, or any where there are no shards."""
        run = name.rpartition("-")[0]
        return self._shard is None or run.endswith(f".{self._shard.name}")

    def _epoch_of_segment(self, name: str) -> int:
        """Return the highest epoch of another shard's segment, which may become a part meanwhile:
        the parts are looked at later."""
        try:
            results, *_ = read_segment(os.path.join(self._out.journal, name))
        except FileNotFoundError:
            return 0
        return max((result.epoch for result in results), default=0)

    def _seal_left_over(self, name: str) -> None:
        """Turn a segment that an earlier run left into a part."""
        path = os.path.join(self._out.journal, name)
        segment = name.removesuffix(".jsonl")
        results, unreadable, torn = read_segment(path)
        if results and not self._is_sealed(segment, len(results)):
            self._put_part(segment, to_table(results))
            crash_point("part-written")
        if torn:
            self.problems.append(f"the last line of journal {name} was cut short; it is left out")
        if unreadable:
            lines = ", ".join(map(str, unreadable[:10]))
            self.problems.append(
                f"journal {name}: {count(len(unreadable), 'unreadable line')} ({lines}) left out; "
                "the file is kept in _state/damaged"
            )
            self._out.medium.set_aside(self._out.journal, name)
        else:
            storage.remove(path)
        crash_point("journal-deleted")

    def _is_sealed(self, segment: str, rows: int) -> bool:
        """Return whether the part of a segment is there already.

        A part is never written over, because duckdb and polars open a file twice to read it.
        """
        part = f"part-{segment}.parquet"
        table = self._try_read(part, ["pair_id"]) if part in self._parts() else None
        return table is not None and len(table) == rows
