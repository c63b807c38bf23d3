"""Rows of the index: their schema, their conversions, and which row of a pair counts.

A row is a `Result`, a line of the journal, or a row of a table. Files belong to pieces.py.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Input, Result

__all__ = [
    "EMPTY",
    "PICTURE",
    "SCHEMA",
    "Stamp",
    "check",
    "clean",
    "conform",
    "from_line",
    "newest",
    "newest_positions",
    "repeated",
    "stamps",
    "to_line",
    "to_results",
    "to_table",
    "values",
]

_Value = TypeVar("_Value")

_INPUT = pa.struct([(name, pa.string()) for name in ("role", "path", "stat", "sha256")])
_STEP = pa.struct(
    [
        ("step", pa.int32()),
        ("seconds", pa.float32()),
        ("loss", pa.float32()),
        ("content_loss", pa.float32()),
        ("style_loss", pa.float32()),
        ("tv_loss", pa.float32()),
    ]
)
_UTC = pa.timestamp("us", tz="UTC")
_UNITS = {
    "output_bytes": "bytes",
    "width": "pixels",
    "height": "pixels",
    "steps": "optimiser iterations",
    "evaluations": "evaluations of loss and gradient",
    "loss_curve": "step: evaluations, seconds: s",
    "seconds": "s",
    "peak_memory": "bytes",
    "started_at": "UTC",
    "finished_at": "UTC",
}


def _schema() -> pa.Schema:
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    groups: list[tuple[str, pa.DataType]] = [
        ("pair_id key", text),
        ("row", whole),
        ("content style output", text),
        ("inputs", pa.list_(_INPUT)),
        ("output_sha256", text),
        ("output_bytes", whole),
        ("settings preset backbone weights_sha256", text),
        ("algorithm", pa.int32()),
        ("status error_type error_message", text),
        ("attempt", pa.int32()),
        ("notes", text),
        ("width height steps evaluations", pa.int32()),
        ("stop_reason", text),
        ("loss content_loss style_loss tv_loss", real),
        ("loss_curve", pa.list_(_STEP)),
        ("seconds", real),
        ("device dtype", text),
        ("threads batch", pa.int32()),
        ("host", text),
        ("peak_memory", whole),
        ("run_id", text),
        ("epoch seq", whole),
        ("version", text),
        ("schema_version", pa.int32()),
        ("started_at finished_at", _UTC),
        ("meta", pa.map_(text, text)),
        ("generated_id", pa.bool_()),
        ("output_etag", text),
        ("tile", pa.int32()),
        ("compile", pa.bool_()),
    ]
    fields = []
    for names, kind in groups:
        for name in names.split():
            unit = {"unit": _UNITS[name]} if name in _UNITS else None
            fields.append(pa.field(name, kind, metadata=unit))
    return pa.schema(fields)


SCHEMA: pa.Schema = _schema()
"""The columns of the index. Later versions only add columns, which may be null.

The units are in the metadata of the fields.
"""

EMPTY: pa.Table = pa.Table.from_batches([], SCHEMA)
"""A table without rows. `SCHEMA.empty_table()` would import pandas if it is installed: 0.4 s."""

PICTURE = ("key", "output_sha256", "output_bytes", "output_etag")
"""The columns that describe the picture."""


class Stamp(NamedTuple):
    """The columns that decide which row of a pair counts."""

    pair_id: str
    epoch: int
    seq: int
    output: str
    output_sha256: str | None


def newest(rows: Iterable[Stamp]) -> list[tuple[int, int]]:
    """Return (position of its newest row, position of the row of its picture) for each pair.

    The newest row has the highest epoch and seq; clocks do not count. Both positions are usually
    the same. They differ after a failed attempt, which leaves the picture of an earlier row in
    place: the failed row then gets the columns `PICTURE` of that picture, so that dropping the
    earlier row loses nothing.

    A pair whose picture another pair has painted over is left out. This happens when the settings
    of a pair without an id are edited, because that gives the pair another id.
    """
    positions: dict[str, tuple[int, int]] = {}  # by pair id
    latest: dict[str, Stamp] = {}  # by pair id
    painted: dict[tuple[str, str], int] = {}  # (pair id, output) -> position of the picture's row
    painters: dict[str, str] = {}  # output -> id of the pair that painted it last
    for position, row in sorted(enumerate(rows), key=lambda item: _age(item[1])):
        picture = (row.pair_id, row.output)
        if row.output_sha256:
            painted[picture] = position
            painters[row.output] = row.pair_id
        positions[row.pair_id] = (position, painted.get(picture, position))
        latest[row.pair_id] = row
    return [
        positions[row.pair_id]
        for row in latest.values()
        if not row.output_sha256 or painters[row.output] == row.pair_id
    ]


def _age(row: Stamp) -> tuple[int, int, bool]:
    # Two rows with the same epoch and seq are a row and its merged copy. The copy may have got the
    # picture of an earlier row, so the row with a picture counts as newer.
    return row.epoch or 0, row.seq or 0, bool(row.output_sha256)


def stamps(table: pa.Table) -> Iterator[Stamp]:
    """Yield the stamp of each row of a table."""
    columns = [table[name].to_pylist() for name in Stamp._fields]
    return (Stamp(*values) for values in zip(*columns, strict=True))


def newest_positions(table: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Return what `newest` returns for the rows of a table, as two arrays.

    Most pairs have one row, and an output of their own. Only the others are looked at one by one.
    """
    care = pc.or_(
        pc.is_in(table["pair_id"], value_set=repeated(table["pair_id"])),
        pc.is_in(table["output"], value_set=repeated(table["output"])),
    ).combine_chunks()  # before version 26, pyarrow crashes over a column without a chunk
    plain = pc.indices_nonzero(pc.invert(care))
    at = pc.indices_nonzero(care).to_pylist()
    picked = newest(stamps(table.select(Stamp._fields).take(pa.array(at, pa.uint64()))))
    rows, pictures = (
        pa.array([at[position[column]] for position in picked], pa.uint64()) for column in (0, 1)
    )
    return pa.concat_arrays([plain, rows]), pa.concat_arrays([plain, pictures])


def repeated(column: pa.ChunkedArray) -> pa.Array:
    """Return the values that occur more than once in a column."""
    counts = pc.value_counts(column)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def _usual(kind: pa.DataType) -> tuple[tuple[type, ...], int]:
    """Return the usual types of a column's values, and the bits of whole numbers."""
    if pa.types.is_integer(kind):
        return (int, NoneType), kind.bit_width
    if pa.types.is_floating(kind):
        return (float, NoneType), 0
    if pa.types.is_boolean(kind):
        return (bool, NoneType), 0
    return ((tuple if pa.types.is_list(kind) else dict if pa.types.is_map(kind) else str),), 0


_AT_ONCE = 16_384  # rows
_NAMES = SCHEMA.names
_TEXTS = [field.name for field in SCHEMA if pa.types.is_string(field.type)]
_FIELDS = {f.name: f for f in dataclasses.fields(Result) if f.name in _NAMES}
_USUAL = [_usual(field.type) for field in SCHEMA]
_values_of = operator.attrgetter(*_NAMES)
_texts_of = operator.attrgetter(*_TEXTS)


def to_line(result: Result) -> bytes:
    """Return a result as one line of the journal."""
    values = dict(zip(_NAMES, _values_of(result), strict=True))
    return json.dumps({**values, "meta": dict(result.meta)}).encode() + b"\n"


def from_line(line: bytes) -> Result:
    """Return the result of a line of the journal.

    Raises `ValueError`, `TypeError` or `KeyError` for a line that is cut short or not a result.
    """
    values = {k: v for k, v in json.loads(line).items() if k in _FIELDS}
    values["inputs"] = tuple(Input(*item) for item in values.get("inputs", ()))
    values["loss_curve"] = tuple(tuple(step) for step in values.get("loss_curve", ()))
    return Result(**values)


def to_table(results: Sequence[Result]) -> pa.Table:
    """Return results as a table. Raises what pyarrow raises for values of a wrong type."""
    columns = [_column(name, [getattr(r, name) for r in results]) for name in _NAMES]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _column(name: str, values: list[Any]) -> pa.Array:
    if name == "meta":
        values = [[(str(k), str(v)) for k, v in meta.items()] for meta in values]
    elif name in ("started_at", "finished_at"):
        values = [_moment(text) for text in values]
    return pa.array(values, type=SCHEMA.field(name).type)


def check(results: Sequence[Result]) -> None:
    """Raise what `to_table` raises for values of a wrong type.

    It is asked only where a type is not the usual one: to prepare its columns takes 0.3 ms or more,
    even for one row.
    """
    if not all(map(_is_usual, results)):
        to_table(results)


def _is_usual(result: Result) -> bool:
    """Return whether each value surely is what its column has."""
    for value, (types, bits) in zip(_values_of(result), _USUAL, strict=True):
        if type(value) not in types or (bits and (value or 0).bit_length() >= bits):
            return False
    if any(type(source) is not Input for source in result.inputs):
        return False
    if result.loss_curve:
        pa.array(result.loss_curve, _STEP)
    _moment(result.started_at)
    _moment(result.finished_at)
    return {str}.issuperset(map(type, itertools.chain(*result.inputs)))


def _moment(text: str) -> datetime.datetime | None:
    return datetime.datetime.fromisoformat(text) if text else None


def clean(result: Result) -> Result:
    """Return a result whose texts Parquet can store.

    Surrogates, which come from file names that are not UTF-8, become visible escapes.
    """
    meta, inputs = result.meta, result.inputs
    if all(map(_is_plain, itertools.chain(_texts_of(result), *inputs, meta, meta.values()))):
        return result
    changes: dict[str, Any] = {
        name: _escaped(value) for name, value in zip(_TEXTS, _texts_of(result), strict=True)
    }
    changes["meta"] = {_escaped(key): _escaped(value) for key, value in meta.items()}
    changes["inputs"] = tuple(Input(*map(_escaped, source)) for source in inputs)
    return dataclasses.replace(result, **changes)


def _is_plain(value: object) -> bool:
    return not isinstance(value, str) or value.isascii()


def _escaped(value: _Value) -> _Value | str:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def to_results(table: pa.Table) -> Iterator[Result]:
    """Yield the rows of a table as results, without loss curves."""
    for start in range(0, len(table), _AT_ONCE):  # columns as lists take more than as arrays
        yield from _to_results(table.slice(start, _AT_ONCE))


def _to_results(table: pa.Table) -> Iterator[Result]:
    columns = []
    for name in _FIELDS:
        column = values(table, name)
        if pa.types.is_string(SCHEMA.field(name).type):
            # Most repeat few texts. This keeps one string in memory for each, not 40,000.
            column = [*map({}.setdefault, column, column)]
        elif name == "inputs":
            column = [tuple(Input(*texts) for texts in inputs) for inputs in column]
        columns.append(column)
    for row in zip(*columns, strict=True):
        yield Result(*row)


def values(table: pa.Table, name: str) -> list[Any]:
    """Return a column as values of that field of `Result`; nulls become the field's default.

    Only `inputs` is a list of tuples with the fields of `Input`, which are quicker made.
    """
    if name == "loss_curve":
        return [()] * len(table)
    return _values(table[name].combine_chunks(), name, _FIELDS[name].default)


def _values(array: pa.Array, name: str, default: object) -> list[Any]:
    if name == "inputs":
        return _input_values(array)
    if name == "meta":
        if not len(array.keys):  # as in most
            return [{} for _ in range(len(array))]
        return [dict(items or ()) for items in array.to_pylist()]
    if pa.types.is_timestamp(array.type):
        # pc.strftime takes 18 times as long.
        text = array.cast(pa.timestamp("us")).cast(pa.string())
        text = pc.binary_replace_slice(text, 10, 11, "T")
        array = pc.binary_join_element_wise(text, "+00:00", "")
    if pa.types.is_string(array.type):
        default = ""
    found: list[Any] = array.to_pylist()
    if array.null_count and isinstance(default, int | str):
        return [default if value is None else value for value in found]
    return found


def _input_values(array: pa.Array) -> list[list[tuple[str, ...]]]:
    flat = array.flatten()
    columns = [_values(flat.field(field.name), field.name, "") for field in _INPUT]
    inputs = list(zip(*columns, strict=True))
    ends = np.cumsum(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False))
    return [inputs[start:end] for start, end in itertools.pairwise([0, *ends.tolist()])]


def conform(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return a table, perhaps of another version, with `columns` first.

    Missing columns are null; unknown ones stay, at the end. Raises `ValueError` for a table that
    has no pair ids, and what pyarrow raises for columns of a wrong type.
    """
    if "pair_id" not in table.column_names:
        raise ValueError("there is no column pair_id")
    arrays = []
    for name in columns:
        field = SCHEMA.field(name)
        if name in table.column_names:
            arrays.append(table[name].cast(field.type))
        else:
            arrays.append(pa.nulls(len(table), field.type))
    unknown = [name for name in table.column_names if name not in SCHEMA.names]
    fields = [SCHEMA.field(n) for n in columns] + [table.field(n) for n in unknown]
    arrays += [table[name] for name in unknown]
    return pa.table(arrays, schema=pa.schema(fields))
