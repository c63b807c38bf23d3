"""What goes where in a montage: the cells of a grid, their labels, the originals beside them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.records import Result, split_styles
from pipeline.store.folder import OutFolder
from pipeline.views.originals import Inputs
from stylize.config import as_text
from stylize.errors import ConfigError

__all__ = ["Cell", "Grid", "lay_out", "natural", "values_of"]

_INPUTS = ("none", "beside", "inset")
"""Where a grid shows the originals: nowhere, in front of it, or the style in each picture."""


@dataclass(frozen=True)
class Cell:
    """What stands at one place of a grid: a picture, or words where there is none."""

    path: str = ""
    note: str = ""  # small, below
    words: str = ""  # instead of a picture
    alarm: bool = False  # the words tell of a failure
    inset: str = ""  # a second picture, small in the lower left corner


@dataclass
class Grid:
    """Cells by (row, column), with labels; `heading` names what the axes are. The first `aside`
    rows and columns are originals, a little apart from the rest."""

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
    """A grid by columns of the index; or `wrap` pictures a line, in the manifest's order; or, with
    neither, a strip: photograph, style, result. `caption` names what stands below each picture."""
    if not results:
        raise ConfigError(f"{out} has no pair yet")
    if inputs not in _INPUTS:
        raise ConfigError(f"--inputs {inputs!r}: it must be {' or '.join(_INPUTS)}")
    if not (rows or cols or wrap):
        if caption or inputs != "none":
            raise ConfigError("--caption, --inputs: they go with --rows, --cols or --wrap")
        return _strip(results, out)
    if wrap and (rows or cols):
        raise ConfigError(f"--wrap {wrap}: it goes without --rows and --cols")
    _check_meta(results, caption, "--caption")
    if wrap:
        grid, places = _wrapped(len(results), wrap), {}
        for number, result in enumerate(results):
            places[divmod(number, wrap)] = [result]
        caption = caption or "pair_id"
    else:
        grid, places = _by_values(results, rows, cols)
    originals = Inputs(out)
    for place, found in places.items():
        first = next((r for r in found if r.status == "ok"), found[0])
        words = [_label(first, caption)] if caption else []
        words += [f"1 of {len(found)}"] if len(found) > 1 else []
        inset = originals.path(_styles(first)[0]) if inputs == "inset" and _styles(first) else ""
        grid.cells[place] = _painted(first, out, ", ".join(filter(None, words)), inset)
    crowded = sum(len(found) > 1 for found in places.values())
    if crowded:
        grid.notes.append(
            f"{crowded} of {len(places)} cells stand for several pairs and show the first; "
            "another --rows or --cols may tell them apart"
        )
    return _with_originals(grid, places, originals) if inputs == "beside" else grid


_Places = dict[tuple[int, int], list[Result]]
"""The pairs that belong into each cell, by (row, column)."""


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


def _wrapped(number: int, wrap: int) -> Grid:
    return Grid([""] * math.ceil(number / wrap), [""] * min(number, wrap), {})


def _strip(results: Sequence[Result], out: OutFolder) -> Grid:
    inputs = Inputs(out)
    grid = Grid([r.pair_id for r in results], ["photograph", "style", "result"], {})
    for row, result in enumerate(results):
        styles = result.styles
        note = f"1 of {len(styles)} styles" if len(styles) > 1 else ""
        grid.cells[row, 0] = Cell(inputs.path(result.content), words=" ")
        grid.cells[row, 1] = Cell(inputs.path(styles[0]), note, words=" ")
        grid.cells[row, 2] = _painted(result, out, "")
    return grid


def _painted(result: Result, out: OutFolder, note: str, inset: str = "") -> Cell:
    if result.status != "ok":
        words = f"{result.status}\n{result.error_type}"
        return Cell(note=note, words=words, alarm=True)
    return Cell(out.path(result.output), note, "the picture is gone", inset=inset)


# --- originals beside the grid -----------------------------------------------------------------


def _with_originals(grid: Grid, places: _Places, originals: Inputs) -> Grid:
    """The grid with what went into it before it: the originals of a whole column above that, of a
    whole row left of that, and those of the whole grid left of the first row that has room."""
    above: list[dict[int, Cell]] = []
    left: list[dict[int, Cell]] = []
    whole: list[dict[int, Cell]] = []
    for role, of in (("photograph", _photograph), ("style", _styles)):
        by_col, by_row = _shared(places, 1, of), _shared(places, 0, of)
        everywhere = {of(r) for found in places.values() for r in found} - {()}
        if len(everywhere) == 1:
            for path in everywhere.pop():
                _put(whole, Cell(originals.path(path), role, " "), list(by_row))
            continue
        # Where one axis shows them all, the other would only repeat some.
        complete = [shared for shared in (by_col, by_row) if all(shared.values())]
        once = min(complete, key=len, default=None)
        for lines, shared in ((above, by_col), (left, by_row)):
            if once is None or once is shared:
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


def _lines(
    shared: dict[int, tuple[str, ...]], role: str, originals: Inputs
) -> list[dict[int, Cell]]:
    """A line of its own for the first original of each row or column, one for the second …"""
    return [
        {
            at: Cell(originals.path(paths[number]), role, " ")
            for at, paths in shared.items()
            if number < len(paths)
        }
        for number in range(max(map(len, shared.values()), default=0))
    ]


def _put(lines: list[dict[int, Cell]], cell: Cell, places: Sequence[int]) -> None:
    """Into the first line that has one of the places free, or into a new one."""
    for line in lines:
        for place in places:
            if place not in line:
                line[place] = cell
                return
    lines.append({places[0]: cell})


def _shared(
    places: _Places, axis: int, of: Callable[[Result], tuple[str, ...]]
) -> dict[int, tuple[str, ...]]:
    """Row (axis 0) or column (axis 1) -> the originals of its pairs; () where they differ."""
    found: dict[int, set[tuple[str, ...]]] = {}
    for place, results in places.items():
        for paths in filter(None, map(of, results)):
            found.setdefault(place[axis], set()).add(paths)
    return {at: paths.pop() if len(paths) == 1 else () for at, paths in sorted(found.items())}


def _photograph(result: Result) -> tuple[str, ...]:
    """The photograph, where it counts: not in a style reconstruction."""
    settings = _settings(result.settings)
    weighs = settings.get("content_weight", 1) and settings.get("strength", 0) < 1
    starts = settings.get("init", "matched") in ("matched", "content")
    return (result.content,) if weighs or starts else ()


def _styles(result: Result) -> tuple[str, ...]:
    """The styles, where they count: not in a content reconstruction."""
    settings = _settings(result.settings)
    weighs = settings.get("style_weight", 1) and settings.get("strength", 1) > 0
    return result.styles if weighs else ()


# --- values and labels -------------------------------------------------------------------------


def values_of(results: Sequence[Result], name: str, option: str) -> list[str]:
    """For each pair the value of a setting, a column of the index or ``meta.NAME``, as text.

    Raises `ConfigError`, naming the `option` that asks for it, where no pair has it.
    """
    _check_meta(results, name, option)
    return [_text(result, name, option) for result in results]


def _text(result: Result, name: str, option: str) -> str:
    return as_text(name, _value(result, name, option))


def _value(result: Result, name: str, option: str = "") -> Any:
    """The value of an axis for a pair: a setting, a column of the index, or ``meta.NAME``."""
    if not name:
        return ""
    if name.startswith("meta."):
        return result.meta.get(name.removeprefix("meta."), "")
    settings = _settings(result.settings)
    if name in settings:
        return settings[name]
    columns = [c for c in vars(result) if c not in ("loss_curve", "inputs", "settings", "meta")]
    if name not in columns:
        known = [*settings, *columns, *(f"meta.{key}" for key in result.meta)]
        raise _unknown(name, option, known)
    return getattr(result, name)


def _check_meta(results: Sequence[Result], name: str, option: str) -> None:
    """A pair may lack a ``meta.NAME`` that others have, as from an older manifest; not all may."""
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
    """A key to sort by: numbers as numbers and first, then text, its digits as numbers too."""
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
    """Values as they are shown: paths by their stem, layer lists without equal weights and numbers
    rounded, as long as that keeps them apart."""
    short = list(values)
    if name in ("content", "style", "output", "init", "mask"):
        short = [" + ".join(_stem(path) for path in split_styles(value)) for value in values]
    elif name.endswith("_layers"):
        short = [_layers(value) for value in values]
    elif any(isinstance(_value(result, name), int | float) for result in results):
        # Not by how a value reads: the id 2024_10 is no number, and meta stays as it is written.
        short = [_number(value) for value in values]
    chosen = short if len(set(short)) == len(values) else values
    return [label or "none" if name else "" for label in chosen]


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
