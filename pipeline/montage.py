"""The montage: a run laid out as a labelled grid of pictures. Never imports torch or ray."""

from __future__ import annotations

import difflib
import functools
import io
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipeline import storage
from pipeline.index import read_results
from pipeline.pictures import Inputs, open_small, size_of
from pipeline.records import Result
from pipeline.tables import as_text
from stylize.errors import StylizeError

__all__ = ["Cell", "Grid", "draw", "lay_out", "montage", "natural"]

_INK, _QUIET, _FRAME, _ALARM = "#5c5c5c", "#9a9a9a", "#e2e2e2", "#a8503c"
_MOST_PIXELS = 400e6  # of a whole grid: 1.2 GB while it is drawn
_DPI = 144  # of a PDF


@dataclass(frozen=True)
class Cell:
    """What stands at one place of a grid: a picture, or words where there is none."""

    path: str = ""
    note: str = ""  # small, below
    words: str = ""  # instead of a picture
    alarm: bool = False  # the words tell of a failure


@dataclass
class Grid:
    """Cells by (row, column), with labels; `heading` names what the axes are."""

    rows: list[str]
    cols: list[str]
    cells: dict[tuple[int, int], Cell]
    row_heading: str = ""
    col_heading: str = ""
    notes: list[str] = field(default_factory=list)


def montage(out: str, target: str, *, rows: str = "", cols: str = "", cell: int = 256) -> list[str]:
    """Draw the run in `out` into the file `target` (.png, .jpg, .pdf …); returns what to tell.

    Raises `ValueError` for a column that is not there, an ending that cannot be written, or a grid
    too large to draw; `StorageError` if the file cannot be written.
    """
    ending = os.path.splitext(target)[1].lower()
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".pdf": "PDF", ".webp": "WEBP"}
    if ending not in formats:
        raise ValueError(f"-o {target}: the ending must be one of {', '.join(formats)}")
    results = sorted(read_results(out).values(), key=lambda r: (r.row, r.pair_id))
    grid = lay_out(results, out, rows, cols)
    options: dict[str, Any] = {"PDF": {"resolution": _DPI}, "PNG": {"optimize": False}}
    quality = {"JPEG": {"quality": 92}, "WEBP": {"quality": 92}}
    buffer = io.BytesIO()
    kind = formats[ending]
    draw(grid, cell).save(buffer, kind, **options.get(kind, quality.get(kind, {})))
    storage.put(target, buffer.getvalue())
    return grid.notes


# --- what goes where ---------------------------------------------------------------------------


def lay_out(results: Sequence[Result], out: str, rows: str = "", cols: str = "") -> Grid:
    """A grid by columns of the index, or without them a strip: photograph, style, result."""
    if not results:
        raise ValueError(f"--rows, --cols: {out} has no pair yet")
    if not rows and not cols:
        return _strip(results, out)
    values = [(_text(r, rows, "--rows"), _text(r, cols, "--cols")) for r in results]
    row_values = sorted({row for row, _ in values}, key=natural)
    col_values = sorted({col for _, col in values}, key=natural)
    places: dict[tuple[int, int], list[Result]] = {}
    for result, (row, col) in zip(results, values, strict=True):
        places.setdefault((row_values.index(row), col_values.index(col)), []).append(result)
    grid = Grid(_labels(rows, row_values), _labels(cols, col_values), {}, rows, cols)
    for place, found in places.items():
        first = next((r for r in found if r.status == "ok"), found[0])
        note = f"1 of {len(found)}" if len(found) > 1 else ""
        grid.cells[place] = _painted(first, out, note)
    crowded = sum(len(found) > 1 for found in places.values())
    if crowded:
        grid.notes.append(
            f"{crowded} of {len(places)} cells stand for several pairs and show the first; "
            "another --rows or --cols may tell them apart"
        )
    return grid


def _strip(results: Sequence[Result], out: str) -> Grid:
    inputs = Inputs(out)
    grid = Grid([r.pair_id for r in results], ["photograph", "style", "result"], {})
    for row, result in enumerate(results):
        styles = [style.strip() for style in result.style.split("|")]
        note = f"1 of {len(styles)} styles" if len(styles) > 1 else ""
        grid.cells[row, 0] = Cell(inputs.path(result.content), words=" ")
        grid.cells[row, 1] = Cell(inputs.path(styles[0]), note, words=" ")
        grid.cells[row, 2] = _painted(result, out, "")
    return grid


def _painted(result: Result, out: str, note: str) -> Cell:
    if result.status != "ok":
        words = f"{result.status}\n{result.error_type}"
        return Cell(note=note, words=words, alarm=True)
    return Cell(storage.join(out, result.output), note, words="the picture is gone")


def _text(result: Result, name: str, option: str) -> str:
    """The value of an axis for a pair: a setting, a column of the index, or ``meta.NAME``."""
    if not name:
        return ""
    if name.startswith("meta."):
        return result.meta.get(name.removeprefix("meta."), "")
    settings = _settings(result.settings)
    if name in settings:
        return as_text(name, settings[name])
    columns = [c for c in vars(result) if c not in ("loss_curve", "inputs", "settings", "meta")]
    if name not in columns:
        known = [*settings, *columns, *(f"meta.{key}" for key in result.meta)]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "see the columns with: stylize-batch report"
        raise ValueError(f"{option} {name!r}: no column and no setting has this name; {hint}")
    return as_text("", getattr(result, name))


@functools.lru_cache(maxsize=256)
def _settings(text: str) -> dict[str, Any]:
    values = json.loads(text)
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


def _labels(name: str, values: Sequence[str]) -> list[str]:
    """Values as they are shown: paths by their stem and layer lists without equal weights, as
    long as that keeps them apart."""
    short = list(values)
    if name in ("content", "style", "output", "init", "mask"):
        short = [" + ".join(_stem(path) for path in value.split("|")) for value in values]
    elif name.endswith("_layers"):
        short = [_layers(value) for value in values]
    elif name:
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


# --- drawing -----------------------------------------------------------------------------------


def draw(grid: Grid, cell: int = 256) -> Image.Image:
    """The grid on white. Pictures are fitted into `cell` pixels, never cut, one in memory at a
    time; a row is as high and a column as wide as what stands in it."""
    gap, margin = max(8, cell // 16), max(24, cell // 6)
    font, small = _font(max(12, cell // 15)), _font(max(10, cell // 20))
    sizes = {place: _fitted(item, cell) for place, item in grid.cells.items()}
    blank = (cell, round(cell * 2 / 3))
    widths = [_largest(sizes, 1, c, 0) or blank[0] for c in range(len(grid.cols))]
    heights = [_largest(sizes, 0, r, 1) or blank[1] for r in range(len(grid.rows))]
    for row, col in grid.cells:
        if sizes[row, col] is None:  # words stand in a frame of the size of their neighbours
            sizes[row, col] = (widths[col], heights[row])
    for (row, col), item in grid.cells.items():
        if item.note:
            heights[row] = max(heights[row], (sizes[row, col] or blank)[1] + _line(small) + 4)
    row_labels = [_wrap(label, font, round(cell * 0.9), 4) for label in grid.rows]
    col_labels = [_wrap(c, font, w, 3) for c, w in zip(grid.cols, widths, strict=True)]
    row_heading = _wrap(grid.row_heading, small, round(cell * 0.9), 1)
    lines = [line for label in row_labels for line in label] + row_heading
    gutter = max((_width(line, font) for line in lines), default=0)
    left = margin + (gutter + 2 * gap if gutter else 0)
    label_height = max(map(len, col_labels), default=0) * _line(font)
    heading_height = _line(small) + gap // 2 if grid.col_heading or grid.row_heading else 0
    top = margin + heading_height + (label_height + gap if label_height else 0)
    width = left + sum(widths) + gap * (len(widths) - 1) + margin
    height = top + sum(heights) + gap * (len(heights) - 1) + margin
    if width * height > _MOST_PIXELS or max(width, height) > 65_000:
        raise ValueError(
            f"--cell {cell}: the montage would be {width}x{height} pixels; the limit is "
            f"{_MOST_PIXELS / 1e6:.0f} megapixels and 65000 a side (choose a smaller --cell, or "
            "--rows and --cols with fewer values)"
        )
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    xs = [left + sum(widths[:i]) + gap * i for i in range(len(widths))]
    ys = [top + sum(heights[:i]) + gap * i for i in range(len(heights))]
    if grid.col_heading:
        middle = (xs[0] + xs[-1] + widths[-1]) / 2
        pen.text((middle, margin), grid.col_heading, _QUIET, small, anchor="ma")
    if row_heading:
        pen.text((left - 2 * gap, top - gap), row_heading[0], _QUIET, small, anchor="rb")
    for x, w, label in zip(xs, widths, col_labels, strict=True):
        _write(pen, (x + w / 2, top - gap - len(label) * _line(font)), label, font, "m")
    for y, h, label in zip(ys, heights, row_labels, strict=True):
        _write(pen, (left - 2 * gap, y + (h - len(label) * _line(font)) / 2), label, font, "r")
    for (row, col), item in grid.cells.items():
        size = sizes[row, col] or blank
        note_height = _line(small) + 4 if item.note else 0
        x = xs[col] + (widths[col] - size[0]) // 2
        y = ys[row] + (heights[row] - note_height - size[1]) // 2
        _draw_cell(canvas, pen, item, (x, y), size, small)
        if item.note:
            at = (x + size[0] / 2, y + size[1] + 4)
            pen.text(at, item.note, _QUIET, small, anchor="ma")
    return canvas


def _fitted(item: Cell, cell: int) -> tuple[int, int] | None:
    size = size_of(item.path) if item.path else None
    if size is None:
        return None
    scale = cell / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _largest(
    sizes: dict[tuple[int, int], tuple[int, int] | None], axis: int, at: int, side: int
) -> int:
    return max(
        (size[side] for place, size in sizes.items() if size and place[axis] == at), default=0
    )


def _draw_cell(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    item: Cell,
    at: tuple[int, int],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    if item.path:
        try:
            picture = open_small(item.path, max(size))
            canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), at)
            return
        except (OSError, StylizeError):
            pass
    x, y = at
    pen.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill="#fafafa", outline=_FRAME)
    lines = [
        part for text in item.words.splitlines() for part in _wrap(text, font, size[0] - 16, 3)
    ]
    middle = (x + size[0] / 2, y + (size[1] - len(lines) * _line(font)) / 2)
    _write(pen, middle, lines, font, "m", _ALARM if item.alarm else _QUIET)


# --- text --------------------------------------------------------------------------------------


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _line(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.35)


def _width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return math.ceil(font.getlength(text))


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    side: str,
    ink: str = _INK,
) -> None:
    for number, line in enumerate(lines):
        pen.text((at[0], at[1] + number * _line(font)), line, ink, font, anchor=f"{side}a")


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Lines no wider than `width`, broken after spaces and punctuation; the last is cut with …"""
    text = " ".join(text.split())
    lines: list[str] = []
    while text:
        if len(lines) == most - 1 or _width(text, font) <= width:
            return [*lines, _cut(text, font, width)]
        fits = next(n for n in range(len(text), 0, -1) if n == 1 or _width(text[:n], font) <= width)
        breaks = [m.end() for m in re.finditer(r"[\s,;/+._-]", text[:fits])]
        end = breaks[-1] if breaks and breaks[-1] > fits // 3 else fits
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return lines


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if _width(text, font) <= width:
        return text
    while text and _width(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
