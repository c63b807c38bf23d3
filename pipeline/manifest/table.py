"""Reading a csv, tsv, jsonl or Parquet file as columns of text; reader.py gives them meaning.

The text is kept in pyarrow's arrays, which take a fifth of the memory of Python's strings.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.records import join_styles
from pipeline.text import count, quoted, visible
from stylize.config import as_text

if TYPE_CHECKING:
    from pipeline.records import Pair

__all__ = [
    "AT_ONCE",
    "ENDINGS",
    "ManifestError",
    "Problem",
    "Row",
    "Table",
    "folder_of",
    "read_table",
]

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
"""The endings that a manifest's name may have."""

AT_ONCE = 8_192
"""How many rows are Python's objects at a time."""

_MOST_COLUMNS = 1_000
_MOST_PROBLEMS = 10_000  # a 10 MB file of rubbish must not become 5 million messages
_LONGEST_CELL = 1 << 20  # characters; the default limit of csv is 131072


_ADDED_BY_TOOLS = re.compile(r"__index_level_\d+__|Unnamed: 0")
"""Columns that hold the index of a pandas table."""


@dataclass(frozen=True)
class Problem:
    """One problem of a manifest, and its place."""

    row: int | None  # row of data, from 1
    line: int | None  # line of the file, from 1
    column: str  # "" unless it concerns a single column
    message: str

    @property
    def place(self) -> tuple[int, int]:
        """A key to sort by; problems without a place come first."""
        return self.line or 0, self.row or 0

    def __str__(self) -> str:
        places = []
        if self.line is not None:
            places.append(f"line {self.line}")
        elif self.row is not None:
            places.append(f"row {self.row}")
        if self.column:
            places.append(f"column {visible(self.column, 60)}")
        return ": ".join(filter(None, (", ".join(places), self.message)))


class ManifestError(Exception):
    """A manifest with problems.

    `problems` has them all, `pairs` the pairs of the rows without problems, and `rows` the number
    of all rows.
    """

    def __init__(
        self, problems: Iterable[Problem], pairs: Sequence[Pair] = (), rows: int = 0
    ) -> None:
        self.problems = list(problems)
        self.pairs = pairs
        self.rows = rows
        super().__init__("\n".join(str(problem) for problem in self.problems[:100]))

    def __reduce__(self) -> tuple[type[ManifestError], tuple[object, ...]]:
        return type(self), (self.problems, self.pairs, self.rows)


@dataclass(frozen=True)
class Row:
    """One row of data: the cells that are not empty, as text."""

    number: int  # from 1
    line: int | None
    cells: Mapping[str, str]

    @property
    def where(self) -> str:
        """The place of the row in words."""
        return f"row {self.number}" if self.line is None else f"line {self.line}"


@dataclass
class Table:
    """A whole manifest as columns of text. `columns` maps each name to the line that first has it.

    A cell that is empty or missing is "".
    """

    columns: dict[str, int | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was ignored, and why
    rows: int = 0
    lines: array[int] = field(default_factory=lambda: array("q"))  # of the rows; 0: not known
    _names: dict[str, None] = field(default_factory=dict)  # of the cells of `_waiting`
    _waiting: list[Sequence[str]] = field(default_factory=list)  # rows that are in no piece yet
    _pieces: list[tuple[int, dict[str, pa.Array]]] = field(default_factory=list)  # with their rows
    _whole: dict[str, pa.Array] = field(default_factory=dict)

    @property
    def is_hopeless(self) -> bool:
        """Whether reading stops because there are too many problems or columns."""
        return len(self.problems) >= _MOST_PROBLEMS or len(self.columns) > _MOST_COLUMNS

    def complain(
        self, message: str, line: int | None = None, column: str = "", row: int | None = None
    ) -> None:
        """Add a problem."""
        self.problems.append(Problem(row, line, column, message))

    def add_name(self, name: str) -> None:
        """Expect cells of this name."""
        self._names.setdefault(name)

    def add(self, line: int | None, cells: Mapping[str, str]) -> None:
        """Append a row by the names of its cells."""
        for name in cells:
            self.add_name(name)
        self.add_cells(line, [cells.get(name, "") for name in self._names])

    def add_cells(self, line: int | None, cells: Sequence[str]) -> None:
        """Append a row that has a cell for each name that was seen so far."""
        self.rows += 1
        self.lines.append(line or 0)
        self._waiting.append(cells)
        if len(self._waiting) == AT_ONCE:
            self._end_piece()

    def _end_piece(self) -> None:
        rows, full = self._waiting, len(self._names)
        if any(len(cells) < full for cells in rows):  # a name was new after them
            rows = [[*cells, *[""] * (full - len(cells))] for cells in rows]
        columns = map(_texts, zip(*rows, strict=True))
        self._pieces.append((len(rows), dict(zip(self._names, columns, strict=bool(rows)))))
        self._waiting = []

    def add_columns(self, first_line: int, columns: Mapping[str, pa.Array]) -> None:
        """Append rows by their columns; each row is a line. No other row was added before."""
        self._names.update(dict.fromkeys(columns))
        self.rows = len(next(iter(columns.values())))
        self.lines.extend(range(first_line, first_line + self.rows))
        self._pieces.append((self.rows, dict(columns)))

    def end(self) -> None:
        """Put the pieces together. No row is added afterwards."""
        self._end_piece()
        for name in self._names:
            parts = [
                columns.pop(name) if name in columns else _texts([""] * rows)
                for rows, columns in self._pieces
            ]
            self._whole[name] = pa.concat_arrays(parts)
        self._pieces = []

    def texts(self, name: str, rows: Sequence[int] | np.ndarray[Any, Any]) -> list[str]:
        """Return the cells of a column in some rows, which are counted from 0 here."""
        texts: list[str] = self.column(name, rows).to_pylist()
        return texts

    def column(self, name: str, rows: Sequence[int] | np.ndarray[Any, Any]) -> pa.Array:
        """Return the same as an array."""
        column = self._whole.get(name)
        if column is None:
            return _texts([""] * len(rows))
        return column.take(pa.array(rows, pa.int64()))

    def cells(
        self, names: Sequence[str], rows: Sequence[int] | np.ndarray[Any, Any]
    ) -> Iterator[tuple[tuple[str, str], ...]]:
        """Yield (name, text) of the cells of some columns that are not empty, for each row."""
        if not names:
            yield from [()] * len(rows)
            return
        known: dict[tuple[str, ...], tuple[tuple[str, str], ...]] = {}
        for texts in zip(*(self.texts(name, rows) for name in names), strict=True):
            if texts not in known:
                both = zip(names, texts, strict=True)
                known[texts] = tuple((name, text) for name, text in both if text)
            yield known[texts]

    def each_row(self) -> Iterator[Row]:
        """Yield all rows."""
        for first in range(0, self.rows, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, self.rows))
            for number, cells in zip(numbers, self.cells([*self._whole], numbers), strict=True):
                yield Row(number + 1, self.lines[number] or None, dict(cells))

    def row(self, number: int) -> Row:
        """Return a row by its number, which is counted from 1."""
        (cells,) = self.cells([*self._whole], [number - 1])
        return Row(number, self.lines[number - 1] or None, dict(cells))


def _texts(cells: Sequence[str]) -> pa.Array:
    """Return cells as an array, "" for those that are blank."""
    return pa.array([c if c and not c.isspace() else "" for c in cells], pa.large_string())


def folder_of(path: str) -> str:
    """Return the folder that the relative paths of a manifest start from."""
    return storage.join(path, os.pardir) if storage.is_uri(path) else os.path.dirname(path)


def read_table(path: str, data: bytes) -> Table:
    """Return the rows of a manifest's bytes, whose format is given by the ending of `path`.

    Bad content never raises: it becomes problems of the table.
    """
    name = storage.without_options(path)
    ending = name[name.rfind(".") :].lower()
    table = Table()
    if ending not in ENDINGS:
        table.complain(f"{quoted(path)} is not a manifest; its name must end in {_listed(ENDINGS)}")
        return table
    if not data.strip():
        table.complain("the manifest is empty; its first row must be: content,style")
        return table
    if ending == ".parquet":
        _read_parquet(data, table)
    elif (text := _decode(data, table)) is not None:
        if ending == ".jsonl":
            _read_jsonl(text, table)
        else:
            _read_delimited(text, table, "," if ending == ".csv" else "\t")
    table.end()
    if not table.rows and not table.problems:
        table.complain("the manifest has no rows; give each pair a row below the column names")
    if len(table.columns) > _MOST_COLUMNS:
        table.complain(f"more than {_MOST_COLUMNS} columns; reading stopped there")
    elif table.is_hopeless:
        table.complain(f"more than {_MOST_PROBLEMS} problems; reading stopped there")
    return table


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"


def _decode(data: bytes, table: Table) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        line = data.count(b"\n", 0, error.start) + 1
        table.complain(
            f"byte {error.start + 1} of the file is 0x{data[error.start]:02x} ({kind}); "
            "save the manifest as UTF-8",
            line=line,
        )
        return None


def _read_delimited(text: str, table: Table, delimiter: str) -> None:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        text, delimiter = _without_separator_line(text, delimiter)
        records = _records(text, table, delimiter)
        line, names = next(records, (1, []))
        header = _header(names, line, table, delimiter)
        if not header:
            return
        nameless = _Nameless(header)
        named = [number for number, name in enumerate(header) if name]
        is_plain = len(table.columns) == len(header)
        if is_plain and line == 1 and _read_unquoted(text, table, delimiter):
            return
        for name in table.columns:
            table.add_name(name)
        for line, cells in records:
            if table.is_hopeless:
                return
            if len(cells) != len(header):
                table.complain(
                    f"this row has {count(len(cells), 'cell')}, the header {len(header)}; "
                    "put a cell that holds a delimiter in quotation marks",
                    line=line,
                    row=table.rows + 1,
                )
                table.add(line, {})
                continue
            if is_plain:
                table.add_cells(line, cells)
            else:  # a column has no name, or two have the same
                nameless.see(cells)
                texts = ((header[number], cells[number]) for number in named)
                table.add(line, {name: text for name, text in texts if text.strip()})
        nameless.judge(table, line)
    finally:
        csv.field_size_limit(before)


def _read_unquoted(text: str, table: Table, delimiter: str) -> bool:
    """Read all rows quickly if each is a line that surely has no problem; return whether."""
    import pyarrow.csv as quick

    if '"' in text or text.count("\r") != text.count("\r\n"):
        return False
    names = [*table.columns]
    try:
        found = quick.read_csv(
            pa.py_buffer(text.encode()),
            quick.ReadOptions(column_names=names, skip_rows=1),
            quick.ParseOptions(delimiter=delimiter, quote_char=False, ignore_empty_lines=False),
            quick.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string())),
        )
    except pa.ArrowInvalid:  # a row lacks cells, or is very long
        return False
    whole = [column.combine_chunks() for column in found.columns]
    columns = [pc.if_else(pc.utf8_is_space(column), "", column) for column in whole]
    lengths = pc.min_max(functools.reduce(pc.add, map(pc.binary_length, columns)))
    if not lengths["min"].as_py() or lengths["max"].as_py() > _LONGEST_CELL:
        return False
    table.add_columns(2, dict(zip(names, columns, strict=True)))
    return True


def _records(text: str, table: Table, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of each record that is not blank."""
    # A StringIO would take four bytes a character.
    lines = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = visible(str(error), 200)
            if "end of data" in reason:
                reason = "a quotation mark is not closed"
            elif "field larger" in reason:
                reason = f"a cell has over {_LONGEST_CELL} characters; is a quotation mark open?"
            table.complain(f"cannot be read: {reason}", line, row=table.rows + 1)
            return
        if "".join(cells).strip():
            yield line, cells


def _header(names: list[str], line: int, table: Table, delimiter: str) -> list[str]:
    # What pandas calls a column without a name, when it writes again what it read.
    names = ["" if _ADDED_BY_TOOLS.fullmatch(name.strip()) else name.strip() for name in names]
    if len(names) > _MOST_COLUMNS:
        table.complain(f"{len(names)} columns; the limit is {_MOST_COLUMNS}", line)
        return []
    others = [d for d in ",;\t" if d != delimiter and len(names) == 1 and d in names[0]]
    if others:
        table.complain(
            f"the columns are separated by {quoted(others[0])}; "
            f"use {quoted(delimiter)}, or rename the file (.csv: comma, .tsv: tab)",
            line=line,
        )
        return []
    for name in filter(None, names):
        if name in table.columns:
            table.complain("the column occurs twice; remove one", line=line, column=name)
        table.columns.setdefault(name, line)
    return names


def _without_separator_line(text: str, delimiter: str) -> tuple[str, str]:
    """Return the text without a first line like ``sep=;``, which Excel writes and reads, and the
    delimiter that it names. The line stays blank, so that the others keep their numbers."""
    match = re.match(r"sep=(.)(?=\r?\n|$)", text, re.IGNORECASE)
    return (text[match.end() :], match[1]) if match else (text, delimiter)


class _Nameless:
    """The columns of a table that have no name: leftovers of spreadsheets, and pandas' index."""

    def __init__(self, header: Sequence[str]) -> None:
        self._numbers = [number for number, name in enumerate(header) if not name]  # from 0
        self._have_text: set[int] = set()

    def see(self, cells: Sequence[str]) -> None:
        """Look at the cells of a row."""
        for number in self._numbers:
            cell = cells[number].strip() if number < len(cells) else ""
            if cell and not (number == 0 and cell.isdecimal()):
                self._have_text.add(number)

    def judge(self, table: Table, line: int) -> None:
        """Note what is ignored, and complain of columns that say something."""
        for number in self._numbers:
            if number in self._have_text:
                table.complain(
                    f"column {number + 1} has no name; give it one, like meta.NAME, or remove it",
                    line=next(iter(table.columns.values()), line),
                )
            elif number == 0:
                table.notes.append("column 1 has no name and is ignored: it is pandas' index")
        empty = [n for n in self._numbers if n and n not in self._have_text]
        if empty:
            table.notes.append(f"{count(len(empty), 'empty column')} without a name ignored")


def _read_jsonl(text: str, table: Table) -> None:
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip() or table.is_hopeless:
            continue
        repeated: list[str] = []
        try:
            value = json.loads(written, object_pairs_hook=functools.partial(_object, repeated))
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or "a value is too long or too deep"
            message = f"not JSON: {reason}: {quoted(written.strip())}; write one object a line"
            table.complain(message, line, row=table.rows + 1)
            value = {}
        if not isinstance(value, dict):
            message = f"not a JSON object: {quoted(written.strip())}; write one object a line"
            table.complain(message, line, row=table.rows + 1)
            value = {}
        for name in repeated:
            table.complain("the name occurs twice; remove one", line, name, table.rows + 1)
        _add_row(table, line, value.items())


def _object(repeated: list[str], items: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object as a dict; append the names that occur twice to `repeated`."""
    values = dict(items)
    if len(values) < len(items):
        names = Counter(name for name, _ in items)
        repeated += [name for name, times in names.items() if times > 1][:_MOST_COLUMNS]
    return values


def _read_parquet(data: bytes, table: Table) -> None:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        if len(names) > _MOST_COLUMNS:
            table.complain(f"{len(names)} columns; the limit is {_MOST_COLUMNS}")
            return
        for name in [name for name, times in Counter(names).items() if times > 1]:
            table.complain("the column occurs twice; remove one", column=name)
        if table.problems:
            return
        wanted = [name for name in names if not _ADDED_BY_TOOLS.fullmatch(name)]
        table.columns.update(dict.fromkeys(wanted))
        for name in sorted({*names} - {*wanted}):
            table.notes.append(f"the column {visible(name)} is ignored: it is pandas' index")
        values = file.read(wanted).to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        table.complain(f"the Parquet file cannot be read: {visible(reason, 200)}")
        return
    for cells in values:
        if not table.is_hopeless:
            _add_row(table, None, cells.items())


def _add_row(table: Table, line: int | None, cells: Iterable[tuple[str, object]]) -> None:
    """Append a row, each cell as text; a cell that has no text form is a problem."""
    number = table.rows + 1
    texts: dict[str, str] = {}
    for name, value in cells:
        table.columns.setdefault(name, line)
        if table.is_hopeless:
            break
        try:
            text = _cell(name, value)
            (name + text).encode()
        except UnicodeEncodeError:
            table.complain("half a surrogate pair, which is not text", line, name, number)
        except RecursionError:
            table.complain("the value is nested too deeply", line, name, number)
        except ValueError as error:
            table.complain(str(error), line, name, number)
        else:
            if text.strip():
                texts[name] = text
    table.add(line, texts)


def _cell(column: str, value: object) -> str:
    """Return a value of JSON or Parquet as the text of a csv cell. Raises `ValueError`."""
    if isinstance(value, bytes):
        return value.decode()
    if column.startswith("meta.") and isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str, ensure_ascii=False)
    if column == "style" and isinstance(value, list | tuple):
        return join_styles(as_text(column, style) for style in value)
    return as_text(column, value)
