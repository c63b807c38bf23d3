"""Reading a manifest as pairs; every problem is named with its line, column and remedy.

Rows with usual names are decided without looking at each letter. Any other row is read with care.
Never imports torch or ray.
"""

from __future__ import annotations

import difflib
import os
import string
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.manifest.names import (
    check_pattern,
    default_id,
    default_output,
    id_problem,
    named_output,
    output_problem,
    plain_id,
    plain_stem,
    plain_stems,
    plain_suffix,
)
from pipeline.manifest.pairs import (
    Cells,
    Manifest,
    Settings,
    kept,
    parse,
    setting_columns,
)
from pipeline.manifest.table import (
    AT_ONCE,
    ManifestError,
    Problem,
    Row,
    Table,
    folder_of,
    read_table,
)
from pipeline.records import split_styles
from pipeline.text import folded, quoted, visible
from stylize.config import (
    SETTINGS,
    StyleConfig,
    as_text,
    depth_problem,
    format_of,
    masks_problem,
    side_problem,
    style_masks_problem,
)

__all__ = ["COLUMNS", "Manifest", "read_manifest"]

COLUMNS = ("content", "style", "id", "output", *SETTINGS)
"""Every column that a manifest may have, besides those that begin with ``meta.``."""


def read_manifest(
    path: str, *, defaults: Mapping[str, str] | None = None, name: str = ""
) -> Manifest:
    """Return every row of a csv, tsv, jsonl or Parquet manifest as a `Pair`.

    `defaults` are settings in text form, as options give them. Precedence: StyleConfig's defaults
    < the preset of `defaults` < the rest of `defaults` < the row's preset < the row's cells. A
    row's preset replaces the one in `defaults`. An empty cell counts as not given. `name` is a
    pattern for the outputs of rows that name none, see `names.named_output`.
    Raises `ManifestError` with all problems at once, and with the pairs of the rows without any.
    """
    try:
        data = storage.read_bytes(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        name = quoted(storage.shown(path))
        message = f"the manifest {name} cannot be read: {reason}"
        raise ManifestError([Problem(None, None, "", message)]) from error
    table = read_table(path, data)
    del data
    reader = _Reader(table, folder_of(path), defaults or {}, name)
    pairs = reader.read()
    if reader.problems:
        problems = sorted(reader.problems, key=lambda problem: problem.place)
        raise ManifestError(problems, pairs, table.rows)
    return pairs


class _Reader:
    """Turns rows into pairs, and keeps the ids and outputs that each row must have for itself."""

    def __init__(
        self, table: Table, folder: str, options: Mapping[str, str], name: str = ""
    ) -> None:
        self.table = table
        self.name = name
        self.problems = table.problems
        given: dict[str, Any] = {}
        for option, text in options.items():
            value, message = parse(option, text)
            if message:
                self._say(None, "", f"option {visible(option, 60)}: {message}")
            else:
                given[option] = value
        self.settings = Settings(given, folder)
        self._ids: dict[str, int] = {}  # -> number of the row
        self._outputs: dict[str, tuple[int, str]] = {}  # by folded name
        self._plain: dict[tuple[Cells, str], str] = {}  # -> format; "": needs care
        self._plain_styles: dict[str, str] = {}  # -> stems; "": needs care

    def read(self) -> Manifest:
        """Return the pairs of the rows without problems. The others are in `problems`."""
        table = self.table
        if table.is_hopeless or not self._check_columns(table.columns, bool(table.rows)):
            return Manifest(table, self.settings)
        if not self.problems and (pairs := self._read_quickly()) is not None:
            return pairs
        broken = {problem.row for problem in self.problems}
        made: list[tuple[int, str, str]] = []
        for row in table.each_row():
            if (row.cells or row.number not in broken) and (names := self._read(row)):
                made.append((row.number - 1, *names))
        self._check_folders()
        rows, ids, outputs = zip(*made, strict=True) if made else ((), (), ())
        return Manifest(table, self.settings, rows, ids, outputs)

    # --- rows with usual names ---

    def _read_quickly(self) -> Manifest | None:
        """Return the pairs if no row has a problem, else None.

        What each row must have for itself is compared by hashes. Where two are equal, the rows are
        to be read with care, one after another.
        """
        ids, outputs = _Column(), _Column()
        for first in range(0, self.table.rows, AT_ONCE):
            made = [
                self._usual_names(*fields) or self._read(self.table.row(number))
                for number, fields in enumerate(self._fields(first), first + 1)
            ]
            names = [each for each in made if each is not None]
            ids.add([pair_id for pair_id, _ in names])
            outputs.add([output for _, output in names], folded)
            if self.problems:
                break
        self._ids, self._outputs = {}, {}
        if self.problems or ids.repeats or outputs.repeats or outputs.holds_a_folder:
            self.problems.clear()
            return None
        rows = np.arange(self.table.rows)
        return Manifest(self.table, self.settings, rows, ids.whole(), outputs.whole())

    def _fields(self, first: int) -> Iterator[tuple[str, str, str, str, Cells]]:
        """Yield content, style, id, output and settings of the rows of a piece."""
        rows = np.arange(first, min(first + AT_ONCE, self.table.rows))
        columns = [self.table.texts(name, rows) for name in ("content", "style", "id", "output")]
        cells = self.table.cells(setting_columns(self.table), rows)
        return zip(*columns, cells, strict=True)

    def _usual_names(
        self, content: str, style: str, own_id: str, own_output: str, cells: Cells
    ) -> tuple[str, str] | None:
        """Return id and output of a row that surely has no problem by itself, else None."""
        photo = plain_stem(content)
        styles = kept(self._plain_styles, style, plain_stems)
        if self.name or not (photo and styles):
            return None
        if own_id and not plain_id(own_id):
            return None
        suffix = plain_suffix(own_output) if own_output else ""
        format = kept(self._plain, (cells, suffix), lambda key: self._plain_format(*key))
        if not format or (own_output and not suffix):
            return None
        pair_id = own_id or default_id(content, style, dict(cells))
        return pair_id, own_output or f"images/{photo}.{styles}.{pair_id}.{format}"

    def _plain_format(self, cells: Cells, suffix: str) -> str:
        """Return the format of outputs with these settings, "" if rows that have them need care.

        `suffix` is the ending of the row's own output.
        """
        config = self.settings.resolve(cells).config
        if config is None:
            return ""
        if config.style_blend or config.mask or config.style_mask or config.init_path:
            return ""
        if suffix and "format" in dict(cells):
            return ""
        suffix = suffix or f".{config.format}"
        bad = side_problem(suffix, config.side) or depth_problem(suffix, config.bits)
        return "" if bad else format_of(suffix)

    # --- the whole table ---

    def _check_columns(self, columns: Mapping[str, int | None], has_rows: bool) -> bool:
        """Name unknown and missing columns; return whether the rows can be read at all."""
        missing = [name for name in ("content", "style") if name not in columns]
        if columns and missing:
            line = next(iter(columns.values()))
            message = f"there is no column {' and no column '.join(missing)}"
            message += "; a manifest needs at least the columns content,style, in lower case"
            message += f", and this one begins with {quoted(','.join(columns))}"
            self._say(line, "", message)
        if len(missing) == 2:  # most likely there is no header, and the names are data
            return False
        for name, line in columns.items():
            if name and name not in COLUMNS and not (name.startswith("meta.") and name[5:]):
                near = difflib.get_close_matches(name.lower()[:64], COLUMNS, 1, cutoff=0.0)[0]
                message = f"there is no such column; the nearest is {near}"
                if not name.startswith("meta"):
                    message += " (to pass a column of your own through, call it meta.NAME)"
                self._say(line, name, message)
        if self.name and (message := check_pattern(self.name, ("row", *COLUMNS, *columns))):
            self._say(None, "", f"option name: {message}")
            return False
        return has_rows and not missing

    def _check_folders(self) -> None:
        """Name the outputs that lie below another output, which cannot also be a folder."""
        for key, (number, output) in self._outputs.items():
            for end in [i for i, letter in enumerate(key) if letter == "/"]:
                if key[:end] in self._outputs:
                    other = self.table.row(self._outputs[key[:end]][0]).where
                    message = f"{quoted(output)} lies in a folder that is the output of {other}"
                    row = self.table.row(number)
                    self._complain(row, "output", f"{message}; choose another output")

    # --- one row ---

    def _read(self, row: Row) -> tuple[str, str] | None:
        """Return the row's id and output, or None after naming its problems."""
        before = len(self.problems)
        cells = {name: text for name, text in row.cells.items() if name in SETTINGS}
        config = self._config(row, tuple(cells.items()))
        styles = split_styles(row.cells.get("style", ""))
        self._check_paths(row, styles)
        if config and config.style_blend and len(config.style_blend) != len(styles):
            message = (
                f"{len(config.style_blend)} weights for {len(styles)} styles; give each style one"
            )
            self._complain(row, "style_blend", message)
        if config and len(config.masks) > 1:
            if not all(mask.strip() for mask in config.masks):
                text = quoted(config.mask)
                self._complain(row, "mask", f"{text} has an empty name before or after a |")
            elif len(config.masks) != len(styles):
                self._complain(row, "mask", masks_problem(len(config.masks), len(styles)))
        if config and config.style_masks and len(config.style_masks) != len(styles):
            message = style_masks_problem(len(config.style_masks), len(styles))
            self._complain(row, "style_mask", message)
        content, style = row.cells.get("content", ""), row.cells.get("style", "")
        own_id = row.cells.get("id", "")
        pair_id = own_id or default_id(content, style, cells)
        self._check_id(row, pair_id)
        output = row.cells.get("output", "")
        if config and not output:
            output = self._name_output(row, pair_id, config)
        if config is None or len(self.problems) > before or not self._claim_output(row, output):
            return None
        self._check_format(row, output, config)
        return None if len(self.problems) > before else (pair_id, output)

    def _name_output(self, row: Row, pair_id: str, config: StyleConfig) -> str:
        """Return the output of a row that names none."""
        content, style = row.cells.get("content", ""), row.cells.get("style", "")
        if not self.name:
            return default_output(content, split_styles(style), pair_id, config.format)
        cells = {"id": pair_id, "row": str(row.number)}
        for _, name, _, _ in string.Formatter().parse(self.name):
            if name is None or name in cells:
                continue
            value = getattr(config, name) if name in SETTINGS else row.cells.get(name, "")
            cells[name] = as_text(name, value)
            if not cells[name]:
                message = f"empty, and the name {quoted(self.name)} needs it; fill it in"
                self._complain(row, name, message)
        return named_output(self.name, cells, config.format)

    def _check_format(self, row: Row, output: str, config: StyleConfig) -> None:
        """Name what the format that the output's ending means cannot hold."""
        suffix = os.path.splitext(output)[1]
        actual = format_of(suffix)
        if problem := side_problem(suffix, config.side) or depth_problem(suffix, config.bits):
            self._complain(row, "output", f"{quoted(output)}: {problem}")
        if "output" in row.cells and row.cells.get("format", actual) not in (actual, ""):
            message = f"{quoted(row.cells['format'])} differs from the ending of {quoted(output)}"
            self._complain(row, "format", f"{message}; leave one of them out")

    def _complain(self, row: Row, column: str, message: str) -> None:
        self.problems.append(Problem(row.number, row.line, column, message))

    def _say(self, line: int | None, column: str, message: str) -> None:
        """Name a problem of no row."""
        self.problems.append(Problem(None, line, column, message))

    def _config(self, row: Row, cells: Cells) -> StyleConfig | None:
        resolved = self.settings.resolve(cells)
        for column, message in resolved.problems:
            self._complain(row, column, message)
        return resolved.config

    # --- checks of one row ---

    def _check_paths(self, row: Row, styles: Sequence[str]) -> None:
        if not row.cells.get("content"):
            self._complain(row, "content", "empty; name the picture that is to be painted")
        if not row.cells.get("style"):
            self._complain(row, "style", "empty; name the picture whose style it gets")
        elif not all(style.strip() for style in styles):
            text = quoted(row.cells["style"])
            self._complain(row, "style", f"{text} has an empty name before or after a |")
        paths = [("content", row.cells.get("content", "")), *(("style", s) for s in styles)]
        paths += [("init", row.cells.get("init", ""))]
        for column in ("mask", "style_mask"):
            paths += [(column, mask) for mask in split_styles(row.cells.get(column, ""))]
        for column, path in paths:
            if message := _path_problem(path):
                self._complain(row, column, message)

    def _check_id(self, row: Row, pair_id: str) -> None:
        message = id_problem(pair_id)
        if message:
            self._complain(row, "id", message)
            return
        if pair_id not in self._ids:
            self._ids[pair_id] = row.number
            return
        other = self.table.row(self._ids[pair_id])
        if "id" in row.cells or "id" in other.cells:
            message = f"{quoted(pair_id)} is also the id of {other.where}"
            self._complain(row, "id", f"{message}; give each row its own")
        elif row.cells.get("content") and row.cells.get("style"):
            message = f"the row has the content, style and settings of {other.where}"
            self._complain(row, "", f"{message}; remove one of them or give each an id")

    def _claim_output(self, row: Row, output: str) -> bool:
        """Reserve an output for a row; return whether it is allowed and no other row has it.

        Names that differ only in case are the same file on some systems.
        """
        message = output_problem(output)
        key = folded(output)
        if not message and key in self._outputs:
            number, name = self._outputs[key]
            other = self.table.row(number)
            same = "is" if name == output else "differs only in case or form of accents from"
            message = f"{quoted(output)} {same} the output of {other.where}; choose another"
            if self.name and not row.cells.get("output"):
                message += ", or add {id} to --name"
        if message:
            self._complain(row, "output", message)
            return False
        self._outputs[key] = (row.number, output)
        return True


def _path_problem(path: str) -> str:
    """Return what is wrong with the path or URI of an input as it is written, or ""."""
    if "\0" in path:
        return f"{quoted(storage.shown(path))} contains a NUL character, which no file name can"
    return storage.uri_problem(path) if storage.is_uri(path) else ""


class _Column:
    """A column that grows, and the hashes of what is unique in it."""

    def __init__(self) -> None:
        self._pieces: list[pa.Array] = []
        self._hashes = array("q")
        self._folders: set[str] = set()

    def add(self, texts: Sequence[str], key: Callable[[str], str] = str) -> None:
        """Append texts, each of which has a unique key."""
        keys = [*map(key, texts)]
        self._pieces.append(pa.array(texts, pa.large_string()))
        self._hashes.extend(map(hash, keys))
        self._folders.update({key.rpartition("/")[0] for key in keys} - {""})

    def whole(self) -> pa.Array:
        """Return all texts."""
        return pa.concat_arrays(self._pieces)

    @property
    def repeats(self) -> bool:
        """Whether two keys may be equal."""
        return bool((np.diff(np.sort(self._hashes)) == 0).any())  # np.unique takes 0.7 s a million

    @property
    def holds_a_folder(self) -> bool:
        """Whether a key may be a folder on the way to another."""
        folders = {f[:end] for f in self._folders for end, c in enumerate(f + "/") if c == "/"}
        known = np.asarray(self._hashes)
        return bool(np.isin(known, [hash(folder) for folder in folders]).any())
