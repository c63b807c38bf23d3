"""Rows of the index: the schema, which row of a pair counts, records <-> lines <-> tables.

May import pyarrow, but never pyarrow.parquet: files are index.py's.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Input, Result

__all__ = [
    "EMPTY",
    "SCHEMA",
    "Stamp",
    "clean",
    "conform",
    "from_line",
    "newest",
    "only_newest",
    "to_line",
    "to_results",
    "to_table",
]

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
    ]
    fields = []
    for names, kind in groups:
        for name in names.split():
            unit = {"unit": _UNITS[name]} if name in _UNITS else None
            fields.append(pa.field(name, kind, metadata=unit))
    return pa.schema(fields)


SCHEMA: pa.Schema = _schema()
"""Columns of the index. They are only ever added, nullable; units are in the fields' metadata."""

EMPTY: pa.Table = pa.Table.from_batches([], SCHEMA)
"""No rows. Not `SCHEMA.empty_table()`, which imports pandas where there is one: 0.4 s."""

_STANDING = ("key", "output_sha256", "output_bytes")  # what a row says about the picture


class Stamp(NamedTuple):
    """What decides which row of a pair counts."""

    pair_id: str
    epoch: int
    seq: int
    output: str
    output_sha256: str | None


def newest(rows: Iterable[Stamp]) -> list[tuple[int, int]]:
    """For each pair: (position of its newest row, position of the row whose picture stands).

    Newest is by epoch and seq, never by a clock. A failed attempt leaves the picture of an
    earlier row where it is; such a row gets key, output_sha256 and output_bytes of that picture,
    so that dropping the earlier row loses nothing. For all other rows both positions are one.
    A row whose picture another pair has painted over since does not count at all: pairs without
    an id get another one when their settings are edited.
    """
    kept: dict[str, tuple[int, int]] = {}
    latest: dict[str, Stamp] = {}
    stands: dict[tuple[str, str], int] = {}
    painters: dict[str, str] = {}  # of the picture at each output
    for position, row in sorted(enumerate(rows), key=lambda item: _age(item[1])):
        picture = (row.pair_id, row.output)
        if row.output_sha256:
            stands[picture] = position
            painters[row.output] = row.pair_id
        kept[row.pair_id] = (position, stands.get(picture, position))
        latest[row.pair_id] = row
    return [
        kept[row.pair_id]
        for row in latest.values()
        if not row.output_sha256 or painters[row.output] == row.pair_id
    ]


def _age(row: Stamp) -> tuple[int, int, bool]:
    # Two rows of one epoch and seq are a row and its copy by a compaction, which may know more.
    return row.epoch or 0, row.seq or 0, bool(row.output_sha256)


def only_newest(table: pa.Table) -> pa.Table:
    """The rows that `newest` keeps, each saying which picture stands."""
    columns = [table[name].to_pylist() for name in Stamp._fields]
    kept = newest(Stamp(*values) for values in zip(*columns, strict=True))
    if len(kept) == len(table) and all(row == picture for row, picture in kept):
        return table
    result = table.take([row for row, _ in kept])
    pictures = [picture for _, picture in kept]
    for name in _STANDING:
        position = result.schema.get_field_index(name)
        result = result.set_column(position, table.field(name), table[name].take(pictures))
    return result


_FIELDS = {f.name: f for f in dataclasses.fields(Result) if f.name in SCHEMA.names}


def to_line(result: Result) -> bytes:
    """A result as one line of the journal."""
    values = {name: getattr(result, name) for name in _FIELDS}
    values["inputs"] = [dataclasses.astuple(item) for item in result.inputs]
    values["meta"] = dict(result.meta)
    return json.dumps(values).encode() + b"\n"


def from_line(line: bytes) -> Result:
    """Raises ValueError, TypeError or KeyError for a line that is torn or no result."""
    values = {k: v for k, v in json.loads(line).items() if k in _FIELDS}
    values["inputs"] = tuple(Input(*item) for item in values.get("inputs", ()))
    values["loss_curve"] = tuple(tuple(step) for step in values.get("loss_curve", ()))
    return Result(**values)


def to_table(results: Sequence[Result]) -> pa.Table:
    """Results as rows of `SCHEMA`. Raises what pyarrow raises for a value of another type."""
    columns = [_column(name, [getattr(r, name) for r in results]) for name in SCHEMA.names]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _column(name: str, values: list[Any]) -> pa.Array:
    if name == "inputs":
        values = [[dataclasses.asdict(item) for item in inputs] for inputs in values]
    elif name == "meta":
        values = [[(str(k), str(v)) for k, v in meta.items()] for meta in values]
    elif name in ("started_at", "finished_at"):
        values = [datetime.datetime.fromisoformat(text) if text else None for text in values]
    return pa.array(values, type=SCHEMA.field(name).type)


def clean(result: Result) -> Result:
    """Half surrogate pairs (of file names that are no UTF-8) made visible: Parquet has no room."""

    def mend(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace").decode()
        return value

    changed = {name: mend(getattr(result, name)) for name in _FIELDS}
    changed["meta"] = {mend(k): mend(v) for k, v in result.meta.items()}
    changed["inputs"] = tuple(
        Input(*map(mend, (i.role, i.path, i.stat, i.sha256))) for i in result.inputs
    )
    return Result(**changed)


def to_results(table: pa.Table) -> Iterator[Result]:
    """The rows as records, without loss curves."""
    columns = []
    for name, field in _FIELDS.items():
        if name == "loss_curve":
            columns.append([()] * len(table))
            continue
        columns.append(_values(table[name].combine_chunks(), name, field.default))
    for values in zip(*columns, strict=True):
        yield Result(*values)


def _values(array: pa.Array, name: str, default: Any) -> list[Any]:
    """A column as the values that `Result` has; nulls become the field's default."""
    if name == "inputs":
        return _input_values(array)
    if name == "meta":
        return [dict(items or ()) for items in array.to_pylist()]
    if pa.types.is_timestamp(array.type):
        array = pc.strftime(array, format="%Y-%m-%dT%H:%M:%S+00:00")
    if pa.types.is_string(array.type):
        # Most columns repeat few values: each is then one string in memory, not 40,000.
        coded = array.fill_null("").dictionary_encode()
        words = coded.dictionary.to_pylist()
        return [words[code] for code in coded.indices.to_pylist()]
    values: list[Any] = array.to_pylist()
    if array.null_count and isinstance(default, int):
        return [default if value is None else value for value in values]
    return values


def _input_values(array: pa.Array) -> list[Any]:
    flat = array.flatten()
    columns = [_values(flat.field(field.name), field.name, "") for field in _INPUT]
    inputs = iter([Input(*values) for values in zip(*columns, strict=True)])
    lengths = pc.list_value_length(array).fill_null(0).to_pylist()
    return [tuple(itertools.islice(inputs, length)) for length in lengths]


def conform(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """A part of another version: missing columns become null, unknown ones stay at the end."""
    if "pair_id" not in table.column_names:
        raise ValueError("it has no pair_id")
    arrays = []
    for name in columns:
        field = SCHEMA.field(name)
        if name in table.column_names:
            arrays.append(table[name].cast(field.type))
        else:
            arrays.append(pa.nulls(len(table), field.type))
    more = [name for name in table.column_names if name not in SCHEMA.names]
    fields = [SCHEMA.field(n) for n in columns] + [table.field(n) for n in more]
    arrays += [table[name] for name in more]
    return pa.table(arrays, schema=pa.schema(fields))
