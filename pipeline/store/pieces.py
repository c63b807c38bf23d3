"""Parts of the index read and written piece by piece, so that not all of one is in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.rows import PICTURE, SCHEMA, conform

__all__ = ["GROUP", "read_pieces", "with_pictures", "write_pieces"]

GROUP = 4096
"""Rows of a row group."""


def read_pieces(raw: pa.NativeFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of an open part. Raises what pyarrow raises for a damaged one."""
    with pq.ParquetFile(raw, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        there = None if columns is None else [name for name in columns if name in names]
        for group in range(file.num_row_groups):
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
