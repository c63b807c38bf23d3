"""The montage: a labelled grid of the pictures of a run. Never imports torch or ray."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline import storage
from pipeline.records import Result
from pipeline.store.folder import OutFolder
from pipeline.store.reading import read_results
from pipeline.views.grid import Cell, Grid, lay_out
from pipeline.views.originals import Inputs, open_small, size_of
from stylize.config import WEBP_SIDE
from stylize.errors import ConfigError, StylizeError
from stylize.image import fit
from stylize.plot import prepare_matplotlib

__all__ = ["draw", "montage"]

_INK, _QUIET, _FRAME, _ALARM = "#5c5c5c", "#9a9a9a", "#e2e2e2", "#a8503c"
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".pdf": "PDF", ".webp": "WEBP"}
_MOST_PIXELS = 400e6  # of a whole grid: 1.2 GB while it is drawn
_MOST_SIDE = 65_000  # a side of a JPEG, also of the JPEG within a PDF, has at most 65500
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
    """Draw the run in `out` into the file `target` (.png, .jpg, .pdf or .webp).

    Return notes for the user. `rows`, `cols`, `wrap`, `caption` and `inputs` are those of
    `lay_out`; `cell` is the size of a picture in pixels, `quality` that of a JPEG or WebP.
    Raises `ConfigError` for an unknown column, an ending that cannot be written, or a grid that is
    too large to draw, and `StorageError` if the file cannot be written.
    """
    ending = os.path.splitext(target)[1].lower()
    if ending not in _FORMATS:
        raise ConfigError(f"-o {target}: the ending must be one of {', '.join(_FORMATS)}")
    results = list(read_results(out).values())
    _check_target(target, out, results)
    grid = lay_out(results, out, rows, cols, wrap=wrap, caption=caption, inputs=inputs)
    kind = _FORMATS[ending]
    options: dict[str, dict[str, object]] = {
        "PDF": {"resolution": _DPI},
        "PNG": {"optimize": False},
    }
    buffer = io.BytesIO()
    most = WEBP_SIDE if kind == "WEBP" else _MOST_SIDE
    draw(grid, cell, most).save(buffer, kind, **options.get(kind, {"quality": quality}))
    storage.put(target, buffer.getvalue())
    return grid.notes


def _check_target(target: str, out: OutFolder, results: Sequence[Result]) -> None:
    """Raise `ConfigError` if the montage would replace a picture that it shows."""
    inputs = Inputs(out)
    for result in results if os.path.exists(target) else ():
        shown = [inputs.path(path) for path in (result.content, *result.styles)]
        shown.append(out.path(result.output))
        if any(storage.same_file(target, path) for path in shown):
            raise ConfigError(
                f"-o {target}: the montage shows it, and it would be lost; choose another"
            )


# --- measuring ---------------------------------------------------------------------------------

_Place = tuple[int, int]
"""(row, column) of a cell."""

_Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class _Layout:
    """The places and sizes of everything in a montage, in pixels."""

    canvas: _Size
    margin: int  # around everything
    gap: int  # between neighbours
    left: int  # of the first column
    top: int  # of the first row
    xs: Sequence[int]  # where each column begins
    widths: Sequence[int]  # of the columns
    ys: Sequence[int]  # where each row begins
    heights: Sequence[int]  # of the rows' pictures, without the notes below
    sizes: Mapping[_Place, _Size]  # of each cell's picture, or of the frame around its words
    font: ImageFont.FreeTypeFont  # of the labels
    small: ImageFont.FreeTypeFont  # of headings, notes and words
    row_labels: Sequence[Sequence[str]]  # each as lines
    col_labels: Sequence[Sequence[str]]  # each as lines
    row_heading: Sequence[str]  # as lines; there is one at most


def _measure(grid: Grid, cell: int) -> _Layout:
    """Return the layout of a grid whose pictures are fitted into `cell` pixels."""
    gap, margin = max(8, cell // 16), max(24, cell // 6)
    plain = all(text.isascii() for text in _texts(grid))
    font, small = _font(max(12, cell // 15), plain), _font(max(12, cell // 18), plain)
    sizes, widths, heights = _measure_cells(grid, cell)
    row_labels = [_wrap(label, font, round(cell * 0.9), 4) for label in grid.rows]
    col_labels = [_wrap(c, font, w, 3) for c, w in zip(grid.cols, widths, strict=True)]
    row_heading = _wrap(grid.row_heading, small, round(cell * 0.9), 1)
    lines = [line for label in row_labels for line in label] + row_heading
    gutter = max((_width(line, font) for line in lines), default=0)
    left = margin + (gutter + 2 * gap if gutter else 0)
    label_height = max(map(len, col_labels), default=0) * _line(font)
    heading_height = _line(small) + gap // 2 if grid.col_heading or grid.row_heading else 0
    top = margin + heading_height + (label_height + gap if label_height else 0)
    # A row with a note has room for notes below all its pictures.
    noted = {row for (row, _), item in grid.cells.items() if item.note}
    note_height = _line(small) + 4
    full_heights = [
        height + (note_height if row in noted else 0) for row, height in enumerate(heights)
    ]
    xs = _starts(left, widths, gap, grid.aside[1])
    ys = _starts(top, full_heights, gap, grid.aside[0])
    return _Layout(
        canvas=(xs[-1] + widths[-1] + margin, ys[-1] + full_heights[-1] + margin),
        margin=margin,
        gap=gap,
        left=left,
        top=top,
        xs=xs,
        widths=widths,
        ys=ys,
        heights=heights,
        sizes=sizes,
        font=font,
        small=small,
        row_labels=row_labels,
        col_labels=col_labels,
        row_heading=row_heading,
    )


def _texts(grid: Grid) -> list[str]:
    """Return all texts of a grid."""
    texts = [*grid.rows, *grid.cols, grid.row_heading, grid.col_heading]
    return texts + [text for item in grid.cells.values() for text in (item.note, item.words)]


def _measure_cells(grid: Grid, cell: int) -> tuple[dict[_Place, _Size], list[int], list[int]]:
    """Return the size of each cell, the widths of the columns and the heights of the rows.

    A column is as wide as its widest picture and a row as high as its highest. Words without a
    picture get a frame of that size.
    """
    fitted = {place: _fitted(item, cell) for place, item in grid.cells.items()}
    pictures = {place: size for place, size in fitted.items() if size}
    widths, heights = [0] * len(grid.cols), [0] * len(grid.rows)
    for (row, col), (width, height) in pictures.items():
        widths[col] = max(widths[col], width)
        heights[row] = max(heights[row], height)
    widths = [width or cell for width in widths]
    heights = [height or round(cell * 2 / 3) for height in heights]
    sizes = {
        (row, col): pictures.get((row, col), (widths[col], heights[row])) for row, col in grid.cells
    }
    return sizes, widths, heights


def _fitted(item: Cell, cell: int) -> _Size | None:
    size = size_of(item.path) if item.path else None
    return fit(size, cell) if size else None


def _starts(first: int, lengths: Sequence[int], gap: int, aside: int) -> list[int]:
    """Return where each row or column begins; the gap after the first `aside` is triple."""
    starts = [first]
    for number, length in enumerate(lengths[:-1], 1):
        starts.append(starts[-1] + length + (3 * gap if number == aside else gap))
    return starts


# --- drawing -----------------------------------------------------------------------------------


def draw(grid: Grid, cell: int = 256, most: int = _MOST_SIDE) -> Image.Image:
    """Return a grid drawn on white, no side longer than `most` pixels.

    Pictures are fitted into `cell` pixels, never cropped, and one at a time is in memory. Raises
    `ConfigError` for a grid that is too large to draw.
    """
    layout = _measure(grid, cell)
    width, height = layout.canvas
    if width * height > _MOST_PIXELS or max(width, height) > most:
        raise ConfigError(
            f"--cell {cell}: the montage would be {width}x{height} pixels; the limit is "
            f"{_MOST_PIXELS / 1e6:.0f} megapixels and {most} a side (choose a smaller --cell, or "
            "--rows and --cols with fewer values)"
        )
    canvas = Image.new("RGB", layout.canvas, "white")
    pen = ImageDraw.Draw(canvas)
    _draw_headings(pen, grid, layout)
    _draw_labels(pen, layout)
    for (row, col), item in grid.cells.items():
        size = layout.sizes[row, col]
        x = layout.xs[col] + (layout.widths[col] - size[0]) // 2
        y = layout.ys[row] + (layout.heights[row] - size[1]) // 2
        _draw_cell(canvas, pen, item, (x, y), size, layout.small)
        if item.note:
            at = (layout.xs[col] + layout.widths[col] / 2, y + size[1] + 4)
            note = _cut(item.note, layout.small, layout.widths[col])
            pen.text(at, note, _INK, layout.small, anchor="ma")
    return canvas


def _draw_headings(pen: ImageDraw.ImageDraw, grid: Grid, layout: _Layout) -> None:
    if grid.col_heading:
        middle = (layout.xs[grid.aside[1]] + layout.xs[-1] + layout.widths[-1]) / 2
        at = (middle, layout.margin)
        pen.text(at, grid.col_heading, _QUIET, layout.small, anchor="ma")
    if layout.row_heading:
        corner = (layout.left - 2 * layout.gap, layout.top - layout.gap)
        pen.text(corner, layout.row_heading[0], _QUIET, layout.small, anchor="rb")


def _draw_labels(pen: ImageDraw.ImageDraw, layout: _Layout) -> None:
    font, gap = layout.font, layout.gap
    for x, width, label in zip(layout.xs, layout.widths, layout.col_labels, strict=True):
        top = layout.top - gap - len(label) * _line(font)
        _write(pen, (x + width / 2, top), label, font, "m")
    for y, height, label in zip(layout.ys, layout.heights, layout.row_labels, strict=True):
        first = y + (height - len(label) * _line(font)) / 2
        _write(pen, (layout.left - 2 * gap, first), label, font, "r")


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
                with contextlib.suppress(OSError, StylizeError):  # the style may be gone
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
    """Draw the style into the lower left corner, a third as wide, like the figures of 2015."""
    small = open_small(path, max(size))
    small.thumbnail((size[0] // 3, size[1] // 3), Image.Resampling.LANCZOS)
    edge = max(2, size[0] // 100)
    framed = ImageOps.expand(small, (0, edge, edge, 0), "white")
    canvas.paste(framed, (at[0], at[1] + size[1] - framed.height))


# --- text --------------------------------------------------------------------------------------


@functools.lru_cache
def _font(size: int, plain: bool) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, or if not `plain` matplotlib's, which has more than ASCII."""
    if not plain:
        with contextlib.suppress(OSError):  # no folder can be written, which matplotlib needs
            prepare_matplotlib()
            import matplotlib

            path = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
            return ImageFont.truetype(path, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _line(font: ImageFont.FreeTypeFont) -> int:
    """Return the height of a line of text."""
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
    """Write lines below each other; `side` is Pillow's horizontal anchor: m or r."""
    for number, line in enumerate(lines):
        pen.text((at[0], at[1] + number * _line(font)), line, ink, font, anchor=f"{side}a")


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Return at most `most` lines no wider than `width`, broken after spaces and punctuation.

    The last line is cut with … if the text is too long.
    """
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
    """Return the text as one line no wider than `width`, cut with … if it is too long."""
    text = " ".join(text.split())
    if _width(text, font) <= width:
        return text
    while text and _width(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
