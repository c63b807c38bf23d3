"""Reading a manifest as pairs; every problem is named with its line, column and remedy.

Imports the standard library, stylize's settings and storage; never torch or ray.
"""

from __future__ import annotations

import difflib
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import storage
from pipeline.manifest.names import (
    check_pattern,
    default_id,
    default_output,
    id_problem,
    named_output,
    output_problem,
)
from pipeline.manifest.table import ManifestError, Problem, Row, folder_of, read_table
from pipeline.records import InputRef, Pair, numbered, split_styles
from pipeline.text import folded, quoted, visible
from stylize.config import (
    SETTINGS,
    StyleConfig,
    as_text,
    depth_problem,
    format_of,
    masks_problem,
    parse_setting,
    side_problem,
    style_masks_problem,
)
from stylize.errors import ConfigError
from stylize.presets import PRESETS

__all__ = ["COLUMNS", "Manifest", "read_manifest"]

COLUMNS = ("content", "style", "id", "output", *SETTINGS)
"""Every column that a manifest may have, besides those that begin with ``meta.``."""


class Manifest(list[Pair]):
    """The pairs of a manifest. `lines` maps each row to the line of the file where it begins;
    `notes` says what was ignored."""

    def __init__(
        self,
        pairs: Iterable[Pair] = (),
        lines: Mapping[int, int] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(pairs)
        self.lines = dict(lines or {})  # Pair.row -> line
        self.notes = list(notes)


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
    reader = _Reader(folder_of(path), defaults or {}, table.problems, name)
    if not table.is_hopeless and reader.check_columns(table.columns, bool(table.rows)):
        broken = {problem.row for problem in table.problems}
        for row in table.rows:
            if row.cells or row.number not in broken:
                reader.read(row)
        reader.check_folders()
    lines = {row.number: row.line for row in table.rows if row.line}
    pairs = Manifest(reader.pairs, lines, table.notes)
    if reader.problems:
        problems = sorted(reader.problems, key=lambda problem: problem.place)
        raise ManifestError(problems, pairs, len(table.rows))
    return pairs


class _Reader:
    """Turns rows into pairs, and keeps the ids and outputs that each row must have for itself."""

    def __init__(
        self, folder: str, options: Mapping[str, str], problems: list[Problem], name: str = ""
    ) -> None:
        self.folder = folder
        self.name = name
        self.problems = problems
        self.pairs: list[Pair] = []
        self.options: dict[str, Any] = {}
        self._resolved: dict[tuple[tuple[str, str], ...], _Resolved] = {}  # by cells
        self._ids: dict[str, Row] = {}
        self._outputs: dict[str, tuple[Row, str]] = {}  # by folded name
        for name, text in options.items():
            value, message = _parse(name, text)
            if message:
                problems.append(Problem(None, None, "", f"option {visible(name, 60)}: {message}"))
            else:
                self.options[name] = value

    # --- the whole table ---

    def check_columns(self, columns: Mapping[str, int | None], has_rows: bool) -> bool:
        """Name unknown and missing columns; return whether the rows can be read at all."""
        missing = [name for name in ("content", "style") if name not in columns]
        if columns and missing:
            line = next(iter(columns.values()))
            message = f"there is no column {' and no column '.join(missing)}"
            message += "; a manifest needs at least the columns content,style, in lower case"
            message += f", and this one begins with {quoted(','.join(columns))}"
            self.problems.append(Problem(None, line, "", message))
        if len(missing) == 2:  # most likely there is no header, and the names are data
            return False
        for name, line in columns.items():
            if name and name not in COLUMNS and not (name.startswith("meta.") and name[5:]):
                near = difflib.get_close_matches(name.lower()[:64], COLUMNS, 1, cutoff=0.0)[0]
                message = f"there is no such column; the nearest is {near}"
                if not name.startswith("meta"):
                    message += " (to pass a column of your own through, call it meta.NAME)"
                self.problems.append(Problem(None, line, name, message))
        if self.name and (message := check_pattern(self.name, ("row", *COLUMNS, *columns))):
            self.problems.append(Problem(None, None, "", f"option name: {message}"))
            return False
        return has_rows and not missing

    def check_folders(self) -> None:
        """Name the outputs that lie below another output, which cannot also be a folder."""
        for key, (row, output) in self._outputs.items():
            for end in [i for i, letter in enumerate(key) if letter == "/"]:
                if key[:end] in self._outputs:
                    other = self._outputs[key[:end]][0].where
                    message = f"{quoted(output)} lies in a folder that is the output of {other}"
                    self._complain(row, "output", f"{message}; choose another output")

    # --- one row ---

    def read(self, row: Row) -> None:
        """Append the row's pair, or its problems."""
        before = len(self.problems)
        cells = {name: text for name, text in row.cells.items() if name in SETTINGS}
        config = self._settings(row, cells)
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
            return
        config = self._with_format(row, output, config)
        if len(self.problems) > before:
            return
        self.pairs.append(
            Pair(
                row=row.number,
                pair_id=pair_id,
                output=output,
                inputs=tuple(self._inputs(content, styles, config)),
                config=config,
                generated_id=not own_id,
                meta={k[5:]: v for k, v in row.cells.items() if k.startswith("meta.")},
            )
        )

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

    def _with_format(self, row: Row, output: str, config: StyleConfig) -> StyleConfig:
        """Return the settings with the format that the output's ending means."""
        suffix = os.path.splitext(output)[1]
        actual = format_of(suffix)
        if problem := side_problem(suffix, config.side) or depth_problem(suffix, config.bits):
            self._complain(row, "output", f"{quoted(output)}: {problem}")
        if "output" in row.cells and row.cells.get("format", actual) not in (actual, ""):
            message = f"{quoted(row.cells['format'])} differs from the ending of {quoted(output)}"
            self._complain(row, "format", f"{message}; leave one of them out")
        return config if config.format == actual else replace(config, format=actual)

    def _complain(self, row: Row, column: str, message: str) -> None:
        self.problems.append(Problem(row.number, row.line, column, message))

    def _settings(self, row: Row, cells: dict[str, str]) -> StyleConfig | None:
        # Most of perhaps 40,000 rows have the same settings, which are resolved once.
        key = tuple(cells.items())
        if key not in self._resolved:
            self._resolved[key] = _resolve(self.options, cells)
        resolved = self._resolved[key]
        for column, message in resolved.problems:
            self._complain(row, column, message)
        return resolved.config

    def _inputs(
        self, content: str, styles: Sequence[str], config: StyleConfig
    ) -> Iterator[InputRef]:
        by_role = {"content": content, **numbered("style", styles), "init": config.init_path}
        by_role |= numbered("mask", config.masks) | numbered("style_mask", config.style_masks)
        for role, written in by_role.items():
            if written:
                path = storage.join(self.folder, written) if self.folder else written
                yield InputRef(role, written, path)

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
        elif pair_id not in self._ids:
            self._ids[pair_id] = row
        elif "id" in row.cells or "id" in self._ids[pair_id].cells:
            message = f"{quoted(pair_id)} is also the id of {self._ids[pair_id].where}"
            self._complain(row, "id", f"{message}; give each row its own")
        elif row.cells.get("content") and row.cells.get("style"):
            message = f"the row has the content, style and settings of {self._ids[pair_id].where}"
            self._complain(row, "", f"{message}; remove one of them or give each an id")

    def _claim_output(self, row: Row, output: str) -> bool:
        """Reserve an output for a row; return whether it is allowed and no other row has it.

        Names that differ only in case are the same file on some systems.
        """
        message = output_problem(output)
        key = folded(output)
        if not message and key in self._outputs:
            other, name = self._outputs[key]
            same = "is" if name == output else "differs only in case or form of accents from"
            message = f"{quoted(output)} {same} the output of {other.where}; choose another"
            if self.name and not row.cells.get("output"):
                message += ", or add {id} to --name"
        if message:
            self._complain(row, "output", message)
            return False
        self._outputs[key] = (row, output)
        return True


def _path_problem(path: str) -> str:
    """Return what is wrong with the path or URI of an input as it is written, or ""."""
    if "\0" in path:
        return f"{quoted(storage.shown(path))} contains a NUL character, which no file name can"
    return storage.uri_problem(path) if storage.is_uri(path) else ""


@dataclass(frozen=True)
class _Resolved:
    """The settings of a row after all precedence; without `config` there are problems."""

    config: StyleConfig | None
    problems: Sequence[tuple[str, str]]  # (column, message)


def _resolve(options: Mapping[str, Any], cells: Mapping[str, str]) -> _Resolved:
    """Return the settings of a row with these cells, given the options."""
    values, problems = {}, []
    for name, text in cells.items():
        value, message = _parse(name, text)
        if message:
            problems.append((name, message))
        values[name] = value
    if problems:
        return _Resolved(None, problems)
    settings = {name: value for name, value in options.items() if name != "preset"}
    preset = options.get("preset") or "default"
    if "preset" in values:
        preset = values.pop("preset")
        settings |= {name: parse_setting(name, text) for name, text in PRESETS[preset].items()}
    try:
        config = StyleConfig.of(preset, **{**settings, **values})
    except ConfigError as error:
        return _Resolved(None, [("", str(error))])
    return _Resolved(config, [])


def _parse(name: str, text: str) -> tuple[Any, str]:
    """Return (value of a setting, ""), or (None, what is wrong with its text)."""
    if name not in SETTINGS:
        near = difflib.get_close_matches(name[:64], list(SETTINGS), 1, cutoff=0.0)[0]
        return None, f"there is no such setting; the nearest is {near}"
    try:
        return parse_setting(name, text), ""
    except ConfigError:
        limit = SETTINGS[name].limit
        reason = "is not allowed"
        if "number" in limit and not re.fullmatch(r"\s*[+-]?[\d.]+([eE][+-]?\d+)?\s*", text):
            reason = "is not a number"
        return None, f"{quoted(text)} {reason}; it must be {limit}"
