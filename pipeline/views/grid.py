"""The layout of a montage: the cells of its grid, their labels, and the originals beside them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.records import Result, split_styles
from pipeline.store.folder import OutFolder
from pipeline.views.originals import Inputs
from stylize.config import as_text
from stylize.errors import ConfigError

__all__ = ["Cell", "Grid", "lay_out", "natural", "values_of"]

_INPUTS = ("none", "beside", "inset")
"""The places for originals: nowhere, beside the grid, or the style as an inset of each picture."""


@dataclass(frozen=True)
class Cell:
    """One cell of a grid: a picture, or words if there is none."""

    path: str = ""
    note: str = ""  # small text below
    words: str = ""  # shown if there is no picture
    alarm: bool = False  # the words report a failure
    inset: str = ""  # path of a second picture, small in the lower left corner


@dataclass
class Grid:
    """Cells by (row, column), with the labels of rows and columns.

    The headings name the axes. The first `aside` rows and columns hold originals and are drawn a
    little apart from the rest.
    """

    rows: list[str]
    cols: list[str]
    cells: dict[tuple[int, int], Cell]
    row_heading: str = ""
    col_heading: str = ""
    notes: list[str] = field(default_factory=list)
    aside: tuple[int, int] = (0, 0)


def lay_out(
    results: Sequence[Result],
    out: OutFolder,
    rows: str = "",
    cols: str = "",
    *,
    wrap: int = 0,
    caption: str = "",
    inputs: str = "none",
) -> Grid:
    """Return a grid of pairs.

    `rows` and `cols` each name a setting, a column of the index or a ``meta.NAME`` whose values
    become an axis. `wrap` instead places that many pictures on a line, in the manifest's order.
    With none of these, each pair is a strip: photograph, style, result. `caption` names the value
    below each picture. `inputs` is one of `_INPUTS`.
    Raises `ConfigError` for names that no pair has, or options that exclude each other.
    """
    if not results:
        raise ConfigError(f"{out} has no pair yet")
    if inputs not in _INPUTS:
        raise ConfigError(f"--inputs {inputs!r}: it must be {' or '.join(_INPUTS)}")
    if not (rows or cols or wrap):
        if caption or inputs != "none":
            raise ConfigError("--caption and --inputs need --rows, --cols or --wrap")
        return _strip(results, out)
    if wrap and (rows or cols):
        raise ConfigError(f"--wrap {wrap}: it cannot be combined with --rows or --cols")
    _check_meta(results, caption, "--caption")
    if wrap:
        grid, places = _wrapped(results, wrap)
        caption = caption or "pair_id"
    else:
        grid, places = _by_values(results, rows, cols)
    originals = Inputs(out)
    for place, pairs in places.items():
        grid.cells[place] = _shared_cell(pairs, out, caption, originals, inset=inputs == "inset")
    crowded = sum(len(pairs) > 1 for pairs in places.values())
    if crowded:
        grid.notes.append(
            f"{crowded} of {len(places)} cells stand for several pairs and show the first; "
            "another --rows or --cols may tell them apart"
        )
    return _with_originals(grid, places, originals) if inputs == "beside" else grid


_Places = dict[tuple[int, int], list[Result]]
"""(row, column) of each cell -> the pairs that belong into it."""


def _by_values(results: Sequence[Result], rows: str, cols: str) -> tuple[Grid, _Places]:
    row_of, col_of = values_of(results, rows, "--rows"), values_of(results, cols, "--cols")
    row_values, col_values = sorted(set(row_of), key=natural), sorted(set(col_of), key=natural)
    places: _Places = {}
    for result, row, col in zip(results, row_of, col_of, strict=True):
        places.setdefault((row_values.index(row), col_values.index(col)), []).append(result)
    row_name, col_name = rows.removeprefix("meta."), cols.removeprefix("meta.")
    row_labels = _labels(rows, row_values, results)
    col_labels = _labels(cols, col_values, results)
    return Grid(row_labels, col_labels, {}, row_name, col_name), places


def _wrapped(results: Sequence[Result], wrap: int) -> tuple[Grid, _Places]:
    rows, cols = math.ceil(len(results) / wrap), min(len(results), wrap)
    places = {divmod(number, wrap): [result] for number, result in enumerate(results)}
    return Grid([""] * rows, [""] * cols, {}), places


def _strip(results: Sequence[Result], out: OutFolder) -> Grid:
    inputs = Inputs(out)
    grid = Grid([r.pair_id for r in results], ["photograph", "style", "result"], {})
    for row, result in enumerate(results):
        styles = result.styles
        note = f"1 of {len(styles)} styles" if len(styles) > 1 else ""
        grid.cells[row, 0] = Cell(inputs.path(result.content), words=" ")
        grid.cells[row, 1] = Cell(inputs.path(styles[0]), note, words=" ")
        grid.cells[row, 2] = _result_cell(result, out, "")
    return grid


def _shared_cell(
    pairs: Sequence[Result], out: OutFolder, caption: str, originals: Inputs, *, inset: bool
) -> Cell:
    """Return the cell of one or several pairs, which shows the first that has been painted."""
    first = next((pair for pair in pairs if pair.status == "ok"), pairs[0])
    words = [_label(first, caption)] if caption else []
    words += [f"1 of {len(pairs)}"] if len(pairs) > 1 else []
    styles = _styles(first) if inset else ()
    style = originals.path(styles[0]) if styles else ""
    return _result_cell(first, out, ", ".join(filter(None, words)), style)


def _result_cell(result: Result, out: OutFolder, note: str, inset: str = "") -> Cell:
    if result.status != "ok":
        words = f"{result.status}\n{result.error_type}"
        return Cell(note=note, words=words, alarm=True)
    return Cell(out.path(result.output), note, "the picture is gone", inset=inset)


# --- originals beside the grid -----------------------------------------------------------------


_Line = dict[int, Cell]
"""A row (or column) of originals, as cells by the column (or row) of the grid."""


def _with_originals(grid: Grid, places: _Places, originals: Inputs) -> Grid:
    """Return the grid with its originals above and to the left of it.

    An original that a whole column shares is above the column, one that a whole row shares is left
    of the row, and one that the whole grid shares is left of the first row that has room.
    """
    above: list[_Line] = []
    left: list[_Line] = []
    whole: list[_Line] = []
    for role, paths_of in (("photograph", _photograph), ("style", _styles)):
        by_col, by_row = _shared(places, 1, paths_of), _shared(places, 0, paths_of)
        distinct = {paths_of(pair) for pairs in places.values() for pair in pairs} - {()}
        if len(distinct) == 1:
            for path in distinct.pop():
                _put(whole, Cell(originals.path(path), role, " "), list(by_row))
            continue
        # If one axis shows all originals, the other one would only repeat some of them.
        complete = [shared for shared in (by_col, by_row) if all(shared.values())]
        chosen = min(complete, key=len, default=None)
        for lines, shared in ((above, by_col), (left, by_row)):
            if chosen is None or chosen is shared:
                lines += _lines(shared, role, originals)
    left = whole + left
    down, right = len(above), len(left)
    cells = {(r + down, c + right): cell for (r, c), cell in grid.cells.items()}
    cells |= {(r, c + right): cell for r, line in enumerate(above) for c, cell in line.items()}
    cells |= {(r + down, c): cell for c, line in enumerate(left) for r, cell in line.items()}
    return dataclasses.replace(
        grid,
        rows=[""] * down + grid.rows,
        cols=[""] * right + grid.cols,
        cells=cells,
        aside=(down, right),
    )


def _lines(shared: dict[int, tuple[str, ...]], role: str, originals: Inputs) -> list[_Line]:
    """Return a line with the first original of each row or column, one with the second, …"""
    return [
        {
            place: Cell(originals.path(paths[number]), role, " ")
            for place, paths in shared.items()
            if number < len(paths)
        }
        for number in range(max(map(len, shared.values()), default=0))
    ]


def _put(lines: list[_Line], cell: Cell, places: Sequence[int]) -> None:
    """Put a cell into the first line with one of the places free, or into a new line."""
    for line in lines:
        for place in places:
            if place not in line:
                line[place] = cell
                return
    lines.append({places[0]: cell})


def _shared(
    places: _Places, axis: int, paths_of: Callable[[Result], tuple[str, ...]]
) -> dict[int, tuple[str, ...]]:
    """Return the originals that all pairs of each row (axis 0) or column (axis 1) share, or ()."""
    distinct: dict[int, set[tuple[str, ...]]] = {}
    for place, pairs in places.items():
        for paths in filter(None, map(paths_of, pairs)):
            distinct.setdefault(place[axis], set()).add(paths)
    return {
        number: paths.pop() if len(paths) == 1 else () for number, paths in sorted(distinct.items())
    }


def _photograph(result: Result) -> tuple[str, ...]:
    """Return the photograph, or () if it has no influence, as in a style reconstruction."""
    settings = _settings(result.settings)
    weighs = settings.get("content_weight", 1) and settings.get("strength", 0) < 1
    starts = settings.get("init", "matched") in ("matched", "content")
    return (result.content,) if weighs or starts else ()


def _styles(result: Result) -> tuple[str, ...]:
    """Return the styles, or () if they have no influence, as in a content reconstruction."""
    settings = _settings(result.settings)
    weighs = settings.get("style_weight", 1) and settings.get("strength", 1) > 0
    return result.styles if weighs else ()


# --- values and labels -------------------------------------------------------------------------


def values_of(results: Sequence[Result], name: str, option: str) -> list[str]:
    """Return each pair's value of a setting, a column of the index or ``meta.NAME``, as text.

    Raises `ConfigError`, which names the `option` that asks for the value, if no pair has it.
    """
    _check_meta(results, name, option)
    return [_text(result, name, option) for result in results]


def _text(result: Result, name: str, option: str) -> str:
    return as_text(name, _value(result, name, option))


def _value(result: Result, name: str, option: str = "") -> object:
    """Return a pair's value of a setting, a column of the index or ``meta.NAME``."""
    if not name:
        return ""
    if name.startswith("meta."):
        return result.meta.get(name.removeprefix("meta."), "")
    settings = _settings(result.settings)
    if name in settings:
        return settings[name]
    beside = ("loss_curve", "inputs", "settings", "meta")
    columns = [f.name for f in fields(Result) if f.name not in beside]
    if name not in columns:
        known = [*settings, *columns, *(f"meta.{key}" for key in result.meta)]
        raise _unknown(name, option, known)
    return getattr(result, name)


def _check_meta(results: Sequence[Result], name: str, option: str) -> None:
    """Raise `ConfigError` for a ``meta.NAME`` that no pair has; some pairs may lack it."""
    known = {f"meta.{key}": None for result in results for key in result.meta}
    if name.startswith("meta.") and name not in known:
        raise _unknown(name, option, list(known))


def _unknown(name: str, option: str, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "see the columns with: stylize-batch report"
    return ConfigError(f"{option} {name!r}: no column and no setting has this name; {hint}")


@functools.lru_cache(maxsize=256)
def _settings(text: str) -> dict[str, Any]:
    values = json.loads(text or "{}")
    return values if isinstance(values, dict) else {}


def natural(text: str) -> tuple[int, float, list[tuple[int, int, str]]]:
    """Return a key that sorts numbers first, then texts, and numbers within a text by value."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isnan(number):
        return 0, number, []
    parts = re.findall(r"\d+|\D+", text.casefold())
    return 1, 0.0, [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]


def _label(result: Result, name: str) -> str:
    return _labels(name, [_text(result, name, "--caption")], [result])[0]


def _labels(name: str, values: Sequence[str], results: Sequence[Result]) -> list[str]:
    """Return short forms of values, or the values themselves if some short forms are the same.

    Paths are shortened to their stems, layer lists lose equal weights, and numbers are rounded.
    """
    short = list(values)
    if name in ("content", "style", "output", "init", "mask", "style_mask"):
        short = [" + ".join(_stem(path) for path in split_styles(value)) for value in values]
    elif name.endswith("_layers"):
        short = [_layers(value) for value in values]
    elif any(isinstance(_value(result, name), int | float) for result in results):
        # Decided by type: the id 2024_10 only looks like a number, and meta is shown as written.
        short = [_number(value) for value in values]
    labels = short if len(set(short)) == len(values) else values
    return [label or "none" if name else "" for label in labels]


def _stem(path: str) -> str:
    return os.path.splitext(path.strip().rpartition("/")[2])[0]


def _layers(value: str) -> str:
    pairs = [part.partition(":")[::2] for part in value.split(",")]
    if len({weight for _, weight in pairs}) == 1:
        return ", ".join(name for name, _ in pairs)
    return value.replace(",", ", ")


def _number(value: str) -> str:
    try:
        return value if value.lstrip("-").isdecimal() else f"{float(value):.4g}"
    except ValueError:
        return value
