"""The pairs of a manifest, made when they are asked for: a million at once would fill the memory.

Never imports torch or ray.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.manifest.table import AT_ONCE, Table
from pipeline.records import InputRef, Pair, numbered, split_styles
from pipeline.text import quoted
from stylize.config import SETTINGS, StyleConfig, format_of, parse_setting
from stylize.errors import ConfigError
from stylize.presets import PRESETS

__all__ = [
    "Cells",
    "Manifest",
    "Outline",
    "Resolved",
    "Settings",
    "kept",
    "parse",
    "setting_columns",
]

Cells = tuple[tuple[str, str], ...]
"""The names and texts of a row's settings that are not empty."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_MOST_KEPT = 4096  # values of a cache


class Outline(NamedTuple):
    """What a plan looks at of each pair."""

    row: int  # its number in the manifest
    pair_id: str
    output: str
    inputs: tuple[InputRef, ...]
    cells: Cells
    style: str
    generated_id: bool
    meta: Mapping[str, str]


@dataclass(frozen=True)
class Resolved:
    """The settings of a row after all precedence; without `config` there are problems."""

    config: StyleConfig | None
    problems: Sequence[tuple[str, str]] = ()  # (column, message)


class Settings:
    """What the settings in rows mean, given the options. `folder` is where paths start."""

    def __init__(self, options: Mapping[str, Any], folder: str = "") -> None:
        self.options = dict(options)
        self.folder = folder
        # What `storage.join` puts before usual names.
        is_plain = not storage.is_uri(folder) and not folder.endswith("/")
        self._prefix = f"{folder}/" if folder and is_plain else None if folder else ""
        self.auto = "auto"  # what the backbone `auto` stands for
        self._bases: dict[str, StyleConfig | None] = {}
        self._resolved: dict[Cells, Resolved] = {}
        self._configs: dict[tuple[Cells, str], StyleConfig] = {}
        self._styles: dict[str, tuple[InputRef, ...]] = {}
        self._others: dict[Cells, tuple[InputRef, ...]] = {}

    def with_backbone(self, auto: str) -> Settings:
        """Return the same with a backbone in the place of `auto`."""
        other = Settings(self.options, self.folder)
        other.auto = auto
        return other

    def resolve(self, cells: Cells) -> Resolved:
        """Return the settings of a row with these cells."""
        return kept(self._resolved, cells, self._resolve)

    def config(self, cells: Cells, format: str = "") -> StyleConfig:
        """Return the settings of a row without problems, with the format of its output."""
        return kept(self._configs, (cells, format), lambda key: self._config(*key))

    def narrow(self, cells: Cells, names: Collection[str]) -> Cells:
        """Return the cells of a row without problems that decide the settings of these names.

        Rows that each have some other setting share them.
        """
        few = tuple([cell for cell in cells if cell[0] == "preset" or cell[0] in names])
        return few if self.resolve(few).config else cells

    def inputs(self, content: str, style: str, cells: Cells) -> tuple[InputRef, ...]:
        """Return the files that a row without problems names."""
        photograph = InputRef("content", content, self._path(content))
        return (photograph, *self.styles(style), *self.others(cells))

    def styles(self, style: str) -> tuple[InputRef, ...]:
        """Return the files that a cell `style` names."""
        return kept(self._styles, style, self._style_refs)

    def others(self, cells: Cells) -> tuple[InputRef, ...]:
        """Return the files that the settings of a row without problems name."""
        return kept(self._others, cells, self._other_refs)

    def folder_of(self, folder: str) -> str:
        """Return the folder, "" or with a / at its end, that one in the manifest stands for."""
        path = self._path(folder + "a")
        return path[: path.rfind("/") + 1]

    def _style_refs(self, style: str) -> tuple[InputRef, ...]:
        return tuple(self._refs(numbered("style", split_styles(style))))

    def _other_refs(self, cells: Cells) -> tuple[InputRef, ...]:
        config = self.config(self.narrow(cells, ("init", "mask", "style_mask")))
        masks = numbered("mask", config.masks) | numbered("style_mask", config.style_masks)
        return tuple(self._refs({"init": config.init_path, **masks}))

    def _refs(self, by_role: Mapping[str, str]) -> Iterator[InputRef]:
        for role, written in by_role.items():
            if written:
                yield InputRef(role, written, self._path(written))

    def _path(self, written: str) -> str:
        if self._prefix is not None and written[0] != "/" and "://" not in written:
            return self._prefix + written
        return storage.join(self.folder, written)

    def _config(self, cells: Cells, format: str) -> StyleConfig:
        config = self.resolve(cells).config
        if config is None:
            raise ValueError("the row has problems")
        if format and config.format != format:
            config = config.changed(format=format)
        if config.backbone == "auto" and self.auto != "auto":
            config = config.changed(backbone=self.auto)
        return config

    def _resolve(self, cells: Cells) -> Resolved:
        values, problems = {}, []
        for name, text in cells:
            value, message = parse(name, text)
            if message:
                problems.append((name, message))
            values[name] = value
        if problems:
            return Resolved(None, problems)
        preset = values.pop("preset", "")
        try:
            base = kept(self._bases, preset, self._base)
            if base is not None:
                return Resolved(base.changed(**values))
            return Resolved(StyleConfig.of(**{**self._before(preset), **values}))
        except ConfigError as error:
            return Resolved(None, [("", str(error))])

    def _base(self, preset: str) -> StyleConfig | None:
        """Return the settings before the cells of a row that has this preset; "" for none.

        None stands for options that are not allowed together: a row may change one of them.
        """
        try:
            return StyleConfig.of(**self._before(preset))
        except ConfigError:
            return None

    def _before(self, preset: str) -> dict[str, Any]:
        settings = {name: value for name, value in self.options.items() if name != "preset"}
        if preset:
            settings |= {name: parse_setting(name, text) for name, text in PRESETS[preset].items()}
        return {**settings, "preset": preset or self.options.get("preset") or "default"}


def kept(cache: dict[_Key, _Value], key: _Key, make: Callable[[_Key], _Value]) -> _Value:
    """Return a value that was made before, or make it. Most rows of a manifest share their values;
    where each has its own, a cache does not grow with them."""
    if key not in cache:
        if len(cache) >= _MOST_KEPT:
            cache.clear()
        cache[key] = make(key)
    return cache[key]


def parse(name: str, text: str) -> tuple[Any, str]:
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


class Manifest(Sequence[Pair]):
    """The pairs of a manifest, or some of them. `notes` says what was ignored.

    `rows` are their places in the table, from 0; `ids` and `outputs` belong to them.
    """

    def __init__(
        self,
        table: Table | None = None,
        settings: Settings | None = None,
        rows: Sequence[int] | np.ndarray[Any, Any] = (),
        ids: pa.Array | Sequence[str] = (),
        outputs: pa.Array | Sequence[str] = (),
    ) -> None:
        self.table = table or Table()
        self.settings = settings or Settings({})
        self.notes = self.table.notes
        self.rows = np.asarray(rows, np.int64)
        self.ids, self.outputs = (
            column if isinstance(column, pa.Array) else pa.array(column, pa.large_string())
            for column in (ids, outputs)
        )

    @property
    def lines(self) -> Mapping[int, int]:
        """The line of the file where each row begins."""
        return _Lines(self.table)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Pair: ...
    @overload
    def __getitem__(self, at: slice) -> Manifest: ...
    def __getitem__(self, at: int | slice) -> Pair | Manifest:
        places = range(len(self))[at]
        if isinstance(places, int):
            return next(iter(self.picked([places])))
        return self.picked(places)

    def __iter__(self) -> Iterator[Pair]:
        for line in self.outlines():
            yield Pair(
                row=line.row,
                pair_id=line.pair_id,
                output=line.output,
                inputs=line.inputs,
                config=self.config(line),
                generated_id=line.generated_id,
                meta=line.meta,
            )

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[list[Pair]], tuple[list[Pair]]]:
        return list, (list(self),)

    def config(self, outline: Outline) -> StyleConfig:
        """Return the settings of a pair."""
        return self.settings.config(outline.cells, format_of(os.path.splitext(outline.output)[1]))

    def cells(self) -> Iterator[tuple[int, Cells]]:
        """Yield the number and the settings of each row."""
        names = setting_columns(self.table)
        for first in range(0, len(self), AT_ONCE):
            rows = self.rows[first : first + AT_ONCE]
            yield from zip((rows + 1).tolist(), self.table.cells(names, rows), strict=True)

    def folders(self) -> tuple[set[str], set[str]]:
        """Return the folders of all outputs, and those of all inputs, each "" or with a / at its
        end: without looking at each row."""
        table, settings = self.table, self.settings
        theirs = set(map(settings.folder_of, _folders(table.column("content", self.rows))))
        styles = table.column("style", self.rows).unique()
        refs = itertools.chain(
            (settings.styles(style.as_py()) for style in styles),
            (settings.others(cells) for _, cells in self.cells()),
        )
        for ref in itertools.chain.from_iterable(refs):
            theirs.add(ref.path[: ref.path.rfind("/") + 1])
        return _folders(self.outputs), theirs

    def picked(self, places: Sequence[int] | np.ndarray[Any, Any]) -> Manifest:
        """Return the pairs at some places, which are counted from 0."""
        at = np.asarray(places, np.int64)
        ids, outputs = self.ids.take(at), self.outputs.take(at)
        return Manifest(self.table, self.settings, self.rows[at], ids, outputs)

    def with_backbone(self, auto: str) -> Manifest:
        """Return the pairs with a backbone in the place of `auto`."""
        settings = self.settings.with_backbone(auto)
        return Manifest(self.table, settings, self.rows, self.ids, self.outputs)

    def outlines(self) -> Iterator[Outline]:
        """Yield what a plan looks at of each pair."""
        table, names = self.table, setting_columns(self.table)
        metas = [name for name in table.columns if name.startswith("meta.")]
        inputs = self.settings.inputs
        for first in range(0, len(self), AT_ONCE):
            rows = self.rows[first : first + AT_ONCE]
            for row, pair_id, output, content, style, own_id, cells, meta in zip(
                (rows + 1).tolist(),
                *(c.slice(first, len(rows)).to_pylist() for c in (self.ids, self.outputs)),
                *(table.texts(name, rows) for name in ("content", "style", "id")),
                table.cells(names, rows),
                table.cells(metas, rows),
                strict=True,
            ):
                refs = inputs(content, style, cells)
                others = {name[5:]: text for name, text in meta}
                yield Outline(row, pair_id, output, refs, cells, style, not own_id, others)


def _folders(paths: pa.Array) -> set[str]:
    """Return the different folders of paths, each "" or with a / at its end."""
    return set(pc.replace_substring_regex(paths, "[^/]*$", "").unique().to_pylist())


def setting_columns(table: Table) -> list[str]:
    """Return the columns of a table that are settings."""
    return [name for name in table.columns if name in SETTINGS]


class _Lines(Mapping[int, int]):
    """The line of each row of a table, by the row's number."""

    def __init__(self, table: Table) -> None:
        self._lines = table.lines

    def __getitem__(self, row: int) -> int:
        if not 0 < row <= len(self._lines) or not self._lines[row - 1]:
            raise KeyError(row)
        return self._lines[row - 1]

    def __iter__(self) -> Iterator[int]:
        return (row for row, line in enumerate(self._lines, 1) if line)

    def __len__(self) -> int:
        return sum(1 for _ in self)
