"""The files of the index: parts, whole or piece by piece, and segments of the journal."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import Result
from pipeline.side_by_side import side_by_side
from pipeline.store.folder import OutFolder
from pipeline.store.rows import PICTURE, SCHEMA, conform, from_line, to_table

__all__ = [
    "GROUP",
    "PART",
    "UNREADABLE",
    "by_row",
    "column_names",
    "encode",
    "fetch",
    "is_damage",
    "listed",
    "open_part",
    "read_part",
    "read_pieces",
    "read_segment",
    "segments",
    "size",
    "with_pictures",
    "write_pieces",
]

GROUP = 4096
"""Rows of a row group."""

PART = re.compile(r"part-(?P<run>.+)-(?P<segment>\d+)\.parquet")
SEGMENT = re.compile(r".+-\d+\.jsonl")

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What reading a part raises; `is_damage` tells damage from trouble of the system."""


def listed(out: OutFolder, folder: str, pattern: re.Pattern[str]) -> list[str]:
    """Return the names in a folder of OUT that match a pattern, sorted."""
    return [name for name in out.medium.names(folder) if pattern.fullmatch(name)]


def segments(out: OutFolder) -> list[str]:
    """Return the segments of OUT's journal; there is none on object storage."""
    return [] if out.medium.is_remote else listed(out, out.journal, SEGMENT)


def fetch(out: OutFolder, names: Sequence[str]) -> None:
    """Fetch the parts that will be read, side by side; on a disk there is nothing to fetch."""

    def ask(name: str) -> None:
        with contextlib.suppress(OSError):  # told when the part is read
            out.medium.read_part(name)

    if out.medium.is_remote:
        side_by_side(ask, names)


def open_part(out: OutFolder, name: str) -> pa.NativeFile:
    """Open a part for pyarrow.

    A path goes as bytes, because pyarrow refuses text that is not UTF-8. It is not a Python file
    object, because pyarrow's threads may outlive the interpreter that such an object needs.
    """
    source = out.medium.read_part(name)
    if isinstance(source, str):
        return pa.OSFile(os.fsencode(source), "rb")
    return pa.BufferReader(source)


def read_part(out: OutFolder, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return some columns of a part, by default all.

    Raises one of `UNREADABLE`; `is_damage` tells damage from trouble of the system.
    """
    with open_part(out, name) as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        wanted = None if columns is None else [name for name in names if name in columns]
        return conform(file.read(wanted), SCHEMA.names if columns is None else columns)


def size(path: str) -> int:
    """Return the bytes of a local file, 0 if there is none."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def is_damage(error: Exception) -> bool:
    """Return whether one of `UNREADABLE` means a damaged file, and no trouble of the system."""
    # An error with an errno comes from the system, as when too many files are open.
    return not isinstance(error, MemoryError) and getattr(error, "errno", None) is None


def column_names(out: OutFolder, name: str) -> tuple[str, ...]:
    """Return the columns that a part has. Raises one of `UNREADABLE`."""
    with open_part(out, name) as raw:
        return tuple(pq.read_schema(raw).names)


def encode(table: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=GROUP, write_page_checksum=True)
    return bytes(sink.getvalue())


def by_row(table: pa.Table) -> pa.Table:
    """Sort rows into the order of the manifest; those without a row number come last."""
    return table.sort_by([("row", "ascending"), ("pair_id", "ascending")])


def read_segment(path: str) -> tuple[list[Result], list[int], bool]:
    """Return a segment's results, its unreadable lines, and whether its last line is cut short."""
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    torn = lines.pop() != b""
    results, unreadable = [], []
    for number, line in enumerate(lines, 1):
        try:
            result = from_line(line)
            to_table([result])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, pa.ArrowException):
            unreadable.append(number)
        else:
            results.append(result)
    return results, unreadable, torn


def read_pieces(
    raw: pa.NativeFile,
    columns: Sequence[str] | None = None,
    wanted: Callable[[int], bool] = lambda rows: True,
) -> Iterator[pa.Table]:
    """Yield the row groups of an open part. Raises what pyarrow raises for a damaged one.

    `wanted` is told how many rows the next group has, and returns whether it is to be read.
    """
    with pq.ParquetFile(raw, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        there = None if columns is None else [name for name in columns if name in names]
        for group in range(file.num_row_groups):
            if wanted(file.metadata.row_group(group).num_rows):
                yield conform(file.read_row_group(group, there), columns or SCHEMA.names)


def with_pictures(table: pa.Table, pictures: pa.Table) -> pa.Table:
    """Return a table with the columns of `PICTURE` that it has replaced."""
    for name in PICTURE:
        if name in table.column_names:
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.field(name), pictures[name])
    return table


def write_pieces(
    file: BinaryIO,
    schema: pa.Schema,
    pieces: Callable[[], Iterator[pa.Table]],
    order: Callable[[pa.Table], pa.Table],
) -> None:
    """Write tables as one Parquet file; each of its row groups is put in order.

    Columns that a table lacks are null there.
    """
    waiting, rows = [], 0
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for piece in itertools.chain(pieces(), [None]):
            if piece is not None:
                waiting.append(_with_columns(piece, schema))
                rows += len(piece)
            if rows >= GROUP or (piece is None and rows):
                writer.write_table(order(pa.concat_tables(waiting)), row_group_size=GROUP)
                waiting, rows = [], 0


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)
