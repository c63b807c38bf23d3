"""Reading the index of OUT, safe while a run writes: the newest row of each pair."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Result
from pipeline.store.folder import OutFolder
from pipeline.store.newest import Wanted, read_newest
from pipeline.store.pieces import by_row
from pipeline.store.rows import SCHEMA, to_results

__all__ = [
    "read_columns",
    "read_curves",
    "read_failures",
    "read_index",
    "read_results",
    "read_sample",
    "read_statuses",
]

_BLOCK = 256  # rows of a sample that lie together
_LIGHT = [name for name in SCHEMA.names if name != "loss_curve"]


def read_index(out: OutFolder | str | os.PathLike[str]) -> pa.Table:
    """Return the newest row of each pair of OUT, with every column of `SCHEMA`.

    The rows are in the order of the manifest. Reading is safe during a run. A part that is damaged
    is left out with a warning. Raises `FileNotFoundError` if there is no such folder, and
    `StorageError` if it cannot be read.
    """
    folder = out if isinstance(out, OutFolder) else OutFolder(out)
    if not folder.exists:
        raise FileNotFoundError(errno.ENOENT, "there is no such output folder", folder.written)
    return _load(folder, SCHEMA.names)


def read_results(out: OutFolder, only: pa.Array | None = None) -> dict[str, Result]:
    """Return the newest result of each pair by pair id, in the order of the manifest.

    `only` are the ids that are wanted, by default all. Loss curves are not read: they are ().
    Raises `StorageError` if OUT cannot be read.
    """
    wanted = None if only is None else lambda rows: pc.is_in(rows["pair_id"], value_set=only)
    return {result.pair_id: result for result in to_results(_load(out, _LIGHT, wanted))}


def read_sample(out: OutFolder, most: int) -> list[Result]:
    """Return the newest results of at most so many pairs from all over the index.

    Raises `StorageError` if OUT cannot be read.
    """

    def wanted(rows: pa.Table) -> pa.Array:
        blocks = np.arange(len(rows)) // _BLOCK  # what lies together is quickly read
        return pa.array(blocks % max(1, -(-len(rows) // most)) == 0)

    return list(to_results(_load(out, _LIGHT, wanted)))


def read_columns(out: OutFolder, columns: Sequence[str]) -> pa.Table:
    """Return the newest row of each pair with its id, its row number and some columns.

    None of these describes the picture: see `PICTURE`. Raises `StorageError` if OUT cannot be read.
    """
    return _load(out, [*dict.fromkeys(("pair_id", "row", *columns))])


def read_statuses(out: OutFolder) -> dict[str, str]:
    """Return the status of each pair by pair id: much less than its row. Raises `StorageError`."""
    table = read_columns(out, ["status"])
    return dict(zip(table["pair_id"].to_pylist(), table["status"].to_pylist(), strict=True))


def read_failures(out: OutFolder) -> list[Result]:
    """Return the newest results of the pairs that failed. Raises `StorageError`."""
    rows = read_columns(out, ["status"])
    failed = rows.filter(pc.not_equal(rows["status"], "ok"))["pair_id"].combine_chunks()
    return list(read_results(out, failed).values()) if len(failed) else []


def read_curves(
    out: OutFolder, pair_ids: Collection[str]
) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Return the loss curves of some pairs by pair id. Raises what `read_index` raises."""
    table = read_index(out).select(["pair_id", "loss_curve"])
    table = table.filter(pc.is_in(table["pair_id"], pa.array(pair_ids, pa.string())))
    return {
        row["pair_id"]: tuple(tuple(step.values()) for step in row["loss_curve"] or ())
        for row in table.to_pylist()
    }


def _load(out: OutFolder, columns: Sequence[str], wanted: Wanted | None = None) -> pa.Table:
    """Return the newest row of each pair, from parts and journals."""
    return by_row(read_newest(out, columns, pa.concat_tables, wanted))
