"""The montage: a run laid out as a labelled grid of pictures. Never imports torch or ray."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline import storage
from pipeline.records import Result
from pipeline.store.folder import OutFolder
from pipeline.store.index import read_results
from pipeline.views.grid import Cell, Grid, lay_out
from pipeline.views.originals import Inputs, open_small, size_of
from stylize.config import WEBP_SIDE
from stylize.errors import ConfigError, StylizeError
from stylize.image import fit

__all__ = ["draw", "montage"]

_INK, _QUIET, _FRAME, _ALARM = "#5c5c5c", "#9a9a9a", "#e2e2e2", "#a8503c"
_MOST_PIXELS = 400e6  # of a whole grid: 1.2 GB while it is drawn
_MOST_SIDE = 65_000  # a JPEG, also the one within a PDF, ends at 65500
_DPI = 144  # of a PDF


def montage(
    out: OutFolder,
    target: str,
    *,
    rows: str = "",
    cols: str = "",
    wrap: int = 0,
    caption: str = "",
    inputs: str = "none",
    cell: int = 256,
    quality: int = 92,
) -> list[str]:
    """Draw the run in `out` into the file `target` (.png, .jpg, .pdf …); returns what to tell.
    What goes where is `lay_out`'s.

    Raises `ConfigError` for a column that is not there, an ending that cannot be written, or a grid
    too large to draw; `StorageError` if the file cannot be written.
    """
    ending = os.path.splitext(target)[1].lower()
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".pdf": "PDF", ".webp": "WEBP"}
    if ending not in formats:
        raise ConfigError(f"-o {target}: the ending must be one of {', '.join(formats)}")
    results = list(read_results(out).values())
    _check_target(target, out, results)
    grid = lay_out(results, out, rows, cols, wrap=wrap, caption=caption, inputs=inputs)
    kind = formats[ending]
    options: dict[str, Any] = {"PDF": {"resolution": _DPI}, "PNG": {"optimize": False}}
    buffer = io.BytesIO()
    most = WEBP_SIDE if kind == "WEBP" else _MOST_SIDE
    draw(grid, cell, most).save(buffer, kind, **options.get(kind, {"quality": quality}))
    storage.put(target, buffer.getvalue())
    return grid.notes


def _check_target(target: str, out: OutFolder, results: Sequence[Result]) -> None:
    """Raise `ConfigError` where the montage would take the place of a picture of the run."""
    inputs = Inputs(out)
    for result in results if os.path.exists(target) else ():
        shown = [inputs.path(path) for path in (result.content, *result.styles)]
        shown.append(out.path(result.output))
        if any(storage.same_file(target, path) for path in shown):
            raise ConfigError(
                f"-o {target}: the montage shows it, and it would be lost; choose another"
            )


# --- drawing -----------------------------------------------------------------------------------


def draw(grid: Grid, cell: int = 256, most: int = _MOST_SIDE) -> Image.Image:
    """The grid on white, no side longer than `most`. Pictures are fitted into `cell` pixels, never
    cut, one in memory at a time; a row is as high and a column as wide as what stands in it."""
    gap, margin = max(8, cell // 16), max(24, cell // 6)
    words = [*grid.rows, *grid.cols, grid.row_heading, grid.col_heading]
    words += [text for item in grid.cells.values() for text in (item.note, item.words)]
    plain = all(text.isascii() for text in words)
    font, small = _font(max(12, cell // 15), plain), _font(max(12, cell // 18), plain)
    sizes = {place: _fitted(item, cell) for place, item in grid.cells.items()}
    blank = (cell, round(cell * 2 / 3))
    widths = [_largest(sizes, 1, c, 0) or blank[0] for c in range(len(grid.cols))]
    heights = [_largest(sizes, 0, r, 1) or blank[1] for r in range(len(grid.rows))]
    for row, col in grid.cells:
        if sizes[row, col] is None:  # words stand in a frame of the size of their neighbours
            sizes[row, col] = (widths[col], heights[row])
    # Below the pictures of a row that has notes there is room for them in each cell.
    noted = {row for (row, _), item in grid.cells.items() if item.note}
    note_heights = [(_line(small) + 4) * (row in noted) for row in range(len(heights))]
    pictures, heights = heights, [sum(both) for both in zip(heights, note_heights, strict=True)]
    row_labels = [_wrap(label, font, round(cell * 0.9), 4) for label in grid.rows]
    col_labels = [_wrap(c, font, w, 3) for c, w in zip(grid.cols, widths, strict=True)]
    row_heading = _wrap(grid.row_heading, small, round(cell * 0.9), 1)
    lines = [line for label in row_labels for line in label] + row_heading
    gutter = max((_width(line, font) for line in lines), default=0)
    left = margin + (gutter + 2 * gap if gutter else 0)
    label_height = max(map(len, col_labels), default=0) * _line(font)
    heading_height = _line(small) + gap // 2 if grid.col_heading or grid.row_heading else 0
    top = margin + heading_height + (label_height + gap if label_height else 0)
    xs = _starts(left, widths, gap, grid.aside[1])
    ys = _starts(top, heights, gap, grid.aside[0])
    width, height = xs[-1] + widths[-1] + margin, ys[-1] + heights[-1] + margin
    if width * height > _MOST_PIXELS or max(width, height) > most:
        raise ConfigError(
            f"--cell {cell}: the montage would be {width}x{height} pixels; the limit is "
            f"{_MOST_PIXELS / 1e6:.0f} megapixels and {most} a side (choose a smaller --cell, or "
            "--rows and --cols with fewer values)"
        )
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    if grid.col_heading:
        middle = (xs[grid.aside[1]] + xs[-1] + widths[-1]) / 2
        pen.text((middle, margin), grid.col_heading, _QUIET, small, anchor="ma")
    if row_heading:
        pen.text((left - 2 * gap, top - gap), row_heading[0], _QUIET, small, anchor="rb")
    for x, w, label in zip(xs, widths, col_labels, strict=True):
        _write(pen, (x + w / 2, top - gap - len(label) * _line(font)), label, font, "m")
    for y, h, label in zip(ys, pictures, row_labels, strict=True):
        _write(pen, (left - 2 * gap, y + (h - len(label) * _line(font)) / 2), label, font, "r")
    for (row, col), item in grid.cells.items():
        size = sizes[row, col] or blank
        x = xs[col] + (widths[col] - size[0]) // 2
        y = ys[row] + (pictures[row] - size[1]) // 2
        _draw_cell(canvas, pen, item, (x, y), size, small)
        if item.note:
            at = (xs[col] + widths[col] / 2, y + size[1] + 4)
            pen.text(at, _cut(item.note, small, widths[col]), _INK, small, anchor="ma")
    return canvas


def _starts(first: int, lengths: Sequence[int], gap: int, aside: int) -> list[int]:
    """Where each row or column starts; behind the first `aside` the gap is three times as wide."""
    starts = [first]
    for number, length in enumerate(lengths[:-1], 1):
        starts.append(starts[-1] + length + (3 * gap if number == aside else gap))
    return starts


def _fitted(item: Cell, cell: int) -> tuple[int, int] | None:
    size = size_of(item.path) if item.path else None
    return fit(size, cell) if size else None


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
        except (OSError, StylizeError):
            pass
        else:
            if item.inset:
                with contextlib.suppress(OSError, StylizeError):  # a style that is gone
                    _draw_inset(canvas, item.inset, at, size)
            return
    x, y = at
    pen.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill="#fafafa", outline=_FRAME)
    lines = [
        part for text in item.words.splitlines() for part in _wrap(text, font, size[0] - 16, 3)
    ]
    middle = (x + size[0] / 2, y + (size[1] - len(lines) * _line(font)) / 2)
    _write(pen, middle, lines, font, "m", _ALARM if item.alarm else _QUIET)


def _draw_inset(canvas: Image.Image, path: str, at: tuple[int, int], size: tuple[int, int]) -> None:
    """The style in the lower left corner, a third as wide, as the figures of 2015 have it."""
    small = open_small(path, max(size))
    small.thumbnail((size[0] // 3, size[1] // 3), Image.Resampling.LANCZOS)
    edge = max(2, size[0] // 100)
    framed = ImageOps.expand(small, (0, edge, edge, 0), "white")
    canvas.paste(framed, (at[0], at[1] + size[1] - framed.height))


# --- text --------------------------------------------------------------------------------------


@functools.lru_cache
def _font(size: int, plain: bool) -> ImageFont.FreeTypeFont:
    """Pillow's own, which has no letter outside ASCII; unless `plain`, the one of matplotlib."""
    if not plain:
        import matplotlib

        return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
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
    """One line no wider than `width`."""
    text = " ".join(text.split())
    if _width(text, font) <= width:
        return text
    while text and _width(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
