"""The newest row of each pair, read piece by piece, so that not all rows are in memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.store.folder import OutFolder
from pipeline.store.pieces import (
    PART,
    UNREADABLE,
    fetch,
    is_damage,
    listed,
    open_part,
    read_part,
    read_pieces,
    read_segment,
    segments,
    with_pictures,
)
from pipeline.store.rows import EMPTY, PICTURE, Stamp, newest_positions, to_table

__all__ = ["Wanted", "read_newest"]

_Made = TypeVar("_Made")
_Numbers = np.ndarray[Any, np.dtype[np.int64]]

Wanted = Callable[[pa.Table], pa.Array]
"""Returns which rows of a table are wanted, as booleans. Of the columns it has those of `Stamp`;
`output_sha256` says only whether there is a picture."""


class _DamagedError(Exception):
    """A part cannot be read, which may show when other pieces were used already."""


def read_newest(
    out: OutFolder,
    columns: Sequence[str],
    use: Callable[[Iterator[pa.Table]], _Made],
    wanted: Wanted | None = None,
) -> _Made:
    """Return what `use` makes of the newest row of each pair, which it gets in pieces.

    It gets one piece at least, which may be empty, and is called again where something changes or
    turns out to be damaged meanwhile. A damaged part is left out with a warning. `columns` must
    have those of `PICTURE` or none. Raises `StorageError` if OUT cannot be read.
    """
    damaged: set[str] = set()
    misses = 0
    while True:
        try:
            return use(_Reading(out, damaged).pieces(columns, wanted))
        except _DamagedError:
            continue
        except OSError as error:
            # A merge has removed a part that was listed; its rows are in another part now.
            misses += 1
            if not isinstance(error, FileNotFoundError) or misses == 20:
                raise storage.unreadable(error, str(out)) from error


class _Reading:
    """One reading of the parts and journals that there are now."""

    def __init__(self, out: OutFolder, damaged: set[str]) -> None:
        self._out = out
        self._damaged = damaged
        self._journals = []
        # Journals first: a segment that is sealed meanwhile is then seen twice, never missed.
        for name in segments(out):
            with suppress(FileNotFoundError):
                self._journals.append(to_table(read_segment(os.path.join(out.journal, name))[0]))
        self._parts = [name for name in listed(out, out.index, PART) if name not in damaged]
        fetch(out, self._parts)

    def pieces(self, columns: Sequence[str], wanted: Wanted | None) -> Iterator[pa.Table]:
        """Yield the newest rows."""
        stamps = self._stamps()
        found = newest_positions(stamps)
        rows, pictures = (array.to_numpy().astype(np.int64) for array in found)
        if wanted is not None:
            chosen = wanted(stamps.take(pa.array(rows))).to_numpy(zero_copy_only=False)
            rows, pictures = rows[chosen], pictures[chosen]
        del stamps
        order = np.argsort(rows)
        rows, pictures = rows[order], pictures[order]
        other = rows != pictures
        elsewhere = self._taken(pictures[other]) if other.any() and PICTURE[0] in columns else None
        yield EMPTY.select(columns)
        place = np.cumsum(other) - 1  # of a row's picture in `elsewhere`
        for first, last, piece in self._pieces_with(rows, columns):
            moved = other[first:last]
            if elsewhere is not None and moved.any():
                at = np.where(moved, len(piece) + place[first:last], np.arange(len(piece)))
                both = pa.concat_tables([piece.select(PICTURE), elsewhere])
                piece = with_pictures(piece, both.take(pa.array(at)))
            yield piece

    def _stamps(self) -> pa.Table:
        """Return the columns that decide which row of a pair counts, for all rows."""
        tables = [EMPTY.select(Stamp._fields)]
        for table in self._each(lambda name: [read_part(self._out, name, Stamp._fields)]):
            *plain, field = [table.field(name) for name in Stamp._fields]  # the last is the hash
            painted = pc.greater(pc.binary_length(table[field.name]), 0)
            short = pc.if_else(pc.fill_null(painted, False), "yes", "")
            stamps = table.select([f.name for f in plain])
            tables.append(stamps.append_column(field, short))
        return pa.concat_tables(tables)

    def _taken(self, positions: _Numbers) -> pa.Table:
        """Return what describes the pictures of some rows, in the order of these."""
        order = np.argsort(positions)
        found = [piece for _, _, piece in self._pieces_with(positions[order], PICTURE)]
        whole = pa.concat_tables([EMPTY.select(PICTURE), *found])
        return whole.take(pa.array(np.argsort(order)))

    def _pieces_with(
        self, rows: _Numbers, columns: Sequence[str]
    ) -> Iterator[tuple[int, int, pa.Table]]:
        """Yield (first, last, table of rows[first:last]) until all rows were there.

        `rows` are positions among all rows, in order. Pieces without any are not read.
        """
        first = last = start = end = 0

        def wanted(count: int) -> bool:
            nonlocal first, last, start, end
            start, end = end, end + count
            first, last = last, int(np.searchsorted(rows, end))
            return last > first

        def of_part(name: str) -> Iterator[pa.Table]:
            with open_part(self._out, name) as raw:
                yield from read_pieces(raw, [*dict.fromkeys((*columns, "pair_id"))], wanted)

        def of_journal(table: pa.Table) -> list[pa.Table]:
            return [table] if wanted(len(table)) else []

        for piece in self._each(of_part, of_journal):
            yield first, last, piece.select(columns).take(pa.array(rows[first:last] - start))

    def _each(
        self,
        of_part: Callable[[str], Iterator[pa.Table] | list[pa.Table]],
        of_journal: Callable[[pa.Table], list[pa.Table]] = lambda table: [table],
    ) -> Iterator[pa.Table]:
        """Yield what is made of the journals and the parts, always in the same order."""
        for table in self._journals:
            yield from of_journal(table)
        for name in self._parts:
            try:
                yield from of_part(name)
            except UNREADABLE as error:
                if not is_damage(error):
                    raise
                self._damaged.add(name)
                warnings.warn(f"index/{name} is damaged and left out: {error}", stacklevel=2)
                raise _DamagedError from error
