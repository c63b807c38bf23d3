"""Margins of a scanned painting: where border, frame, caption or a strip at the edge end.

A margin is even and ends, along its whole side, at one straight line parallel to that side. A
plain sky is as even, but what stands against it breaks the line. In doubt nothing is cut.

Each side is looked at in a *view*: pixels as (depth, length, 3), the outermost row first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["margin_note", "painted_area"]

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, as Pillow crops."""

_Floats = NDArray[np.float32]
_Truths = NDArray[np.bool_]

_SIDES = ("left", "top", "right", "bottom")

_MIN_SIDE = 64  # px; in a smaller picture any few strokes make a straight line
_FEWEST = 24  # columns, likewise
_WORK_SIDE = 1024  # px of the longest side, while margins are looked for
_STRIP_SIDE = 256  # px, likewise for painted strips: brush strokes are blurred away
_THIN = 16  # px of the picture itself, for lines too thin to be seen in the reduced copy
_ROUNDS = 6  # border, line, passe-partout, line, rest of a line, and one that finds nothing
_SPARE = 2  # px cut beyond the line: scans and JPEG blur it

_MOST = 0.25  # of a side that may go, all its margins together
_NARROW = 0.08  # of a side, for a margin that no other side confirms
_TILT = 0.008  # of the side's length: a sheet laid askew by half a degree

# Levels of 255, in the channel that differs most.
_ALIKE = 20.0  # off the margin's colour and still margin: noise, JPEG, uneven light
_DRIFT = 30.0  # of the margin's colour along its side
_SAME = 25.0  # between the margins of two sides that confirm each other
_PURE = 16.0  # off white or black, of a sheet scanned or a border added
_PAPER = 56.0  # likewise, of a passe-partout

_CLEAN = 0.98  # of a row in the margin's colour: all margin, but for dust
_TEXT = 0.25  # likewise, where a line of text is printed in the margin
_CROSSED = 0.7  # of the margin's depth: what covers that much of a column reaches the edge


class _Line(NamedTuple):
    share: float  # of the columns, that end at it
    short: float  # of the columns, that end before it
    depth: int
    tilt: int  # how much deeper it lies at the last column than at the first


class _Edge(NamedTuple):
    """The end of a margin, in pixels of its view."""

    line: _Line
    start: int  # the column that `reference` begins at
    reference: _Floats  # the margin's colour, (columns, 3)
    colour: _Floats  # the same in one
    noise: float  # levels
    inside: float  # levels: how much the painting varies beside the line

    @property
    def reach(self) -> int:
        return math.ceil(self.line.depth + abs(self.line.tilt) / 2) + _SPARE


def painted_area(picture: Image.Image) -> Box:
    """The box of the painting without its margins; the whole picture where there are none."""
    whole = box = (0, 0, *picture.size)
    if min(picture.size) < _MIN_SIDE:
        return whole
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    for _ in range(_ROUNDS):
        outer, box = box, _shrunk(whole, box, _cuts(picture, box))
        if box == outer:
            break
    # Not at the top or bottom: there it may be sky, water or floor.
    return _shrunk(whole, box, [_strip(picture, box, 0), 0, _strip(picture, box, 2), 0])


def margin_note(size: tuple[int, int], box: Box) -> str:
    """Say how much of a picture of this size is left out: "12 px right", "" for nothing."""
    cuts = (box[0], box[1], size[0] - box[2], size[1] - box[3])
    return ", ".join(f"{cut} px {side}" for side, cut in zip(_SIDES, cuts, strict=True) if cut)


def _shrunk(whole: Box, box: Box, cuts: Sequence[int]) -> Box:
    """The box less the cuts, save those of a side that would lose more than it may."""

    def end(side: int) -> int:
        moved = box[side] + (cuts[side] if side < 2 else -cuts[side])
        lost = abs(moved - whole[side])
        return moved if lost <= _MOST * whole[2 + side % 2] else box[side]

    return end(0), end(1), end(2), end(3)


def _cuts(picture: Image.Image, box: Box) -> list[int]:
    """How many pixels of each side are margin, of one colour."""
    width, height = box[2] - box[0], box[3] - box[1]
    factor = min(math.ceil(max(width, height) / _WORK_SIDE), min(width, height) // _MIN_SIDE)
    factor = max(1, factor)
    small = _pixels(picture.reduce(factor, box))
    views = [_view(small, side) for side in range(4)]
    narrow = [_NARROW * len(view) for view in views]
    # Four rows more than a margin may have: what lies inside it counts too.
    edges = _edges([_smooth(view[: int(_MOST * len(view)) + 4], 1) for view in views], narrow)
    cuts = [_refined(picture, box, i, edge, factor) if edge else 0 for i, edge in enumerate(edges)]
    if factor > 1 and not any(cuts):
        bands = [picture.crop(_band(box, side, 0, _THIN)) for side in range(4)]
        views = [_view(_pixels(band), side)[:, ::factor] for side, band in enumerate(bands)]
        edges = _edges([_smooth(view, 1) for view in views], [_THIN] * 4)
        cuts = [edge.reach if edge else 0 for edge in edges]
    return cuts


def _pixels(picture: Image.Image) -> _Floats:
    return np.asarray(picture, dtype=np.float32)


def _view(pixels: _Floats, side: int) -> _Floats:
    pixels = pixels if side % 2 else pixels.swapaxes(0, 1)
    return pixels if side < 2 else pixels[::-1]


def _band(box: Box, side: int, near: int, far: int) -> Box:
    """The part of the box from `near` to `far` pixels inside that side."""
    left, top, right, bottom = box
    return (
        (left + near, top, left + far, bottom),
        (left, top + near, right, top + far),
        (right - far, top, right - near, bottom),
        (left, bottom - far, right, bottom - near),
    )[side]


def _smooth(view: _Floats, reach: int) -> _Floats:
    """The mean along the side over `reach` columns either way: less noise, the line as sharp."""
    padded = np.pad(view, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    total = padded[:, : view.shape[1]].copy()
    for shift in range(1, 2 * reach + 1):
        total += padded[:, shift : shift + view.shape[1]]
    return total / np.float32(2 * reach + 1)


def _edges(views: Sequence[_Floats], narrow: Sequence[float]) -> list[_Edge | None]:
    """The margins to be believed, none of them on the word of one that is not."""
    # No margin of a neighbour reaches into the middle half of a side.
    found = [_edge(view, view.shape[1] // 4, -(view.shape[1] // 4)) for view in views]
    for _ in range(5):  # it takes a round for each side that drops out, at most
        before, found = found, [_checked(views[i], i, found, narrow[i]) for i in range(4)]
        if [edge is None for edge in found] == [edge is None for edge in before]:
            break
    return found


def _checked(view: _Floats, side: int, found: list[_Edge | None], narrow: float) -> _Edge | None:
    """The margin of a side, looked at again between its neighbours, if it is to be believed."""
    first, last = found[(side + 1) % 2], found[(side + 1) % 2 + 2]
    columns = first.reach if first else 0, -last.reach if last else view.shape[1]

    # With a caption first: its letters stand on a straight line as well.
    for text in (True, False):
        edge = _edge(view, *columns, text) if text or found[side] else None
        if edge is None:
            continue
        alike = [
            i
            for i, other in enumerate(found)
            if i != side and other and np.abs(other.colour - edge.colour).max() <= _SAME
        ]
        if text and (len(alike) < 2 or edge.line.share < 0.8):
            continue
        if _believed(edge, side, alike, narrow):
            return edge
    return None


def _believed(edge: _Edge, side: int, alike: Sequence[int], narrow: float) -> bool:
    """Whether it is a margin, where those other sides have one of its colour.

    The fewer they are, the evener it must be, and the more the painting must vary beside it: the
    sea under a horizon hardly does.
    """
    line, noise, inside = edge.line, edge.noise, edge.inside
    from_paper = min(float(np.abs(edge.colour - level).max()) for level in (0, 255))
    if len(alike) >= 2:
        # A coloured one round an even area may be a painting of squares.
        paper = from_paper <= _PAPER or inside >= 6
        return line.share >= (0.5 if len(alike) == 3 else 0.6) and noise <= 10 and paper
    if (side + 2) % 4 in alike:
        return line.share >= 0.85 and noise <= 6 and inside >= 10
    if line.depth > narrow or line.short > 0.01:
        return False
    if from_paper <= _PURE:
        return line.share >= (0.8 if noise <= 2 else 0.9) and noise <= 4 and inside >= 10
    # A coloured one at the top or bottom may be sky, water or floor.
    return side % 2 == 0 and line.share >= 0.9 and noise <= 2 and inside >= 16


def _edge(view: _Floats, first: int, last: int, text: bool = False) -> _Edge | None:
    """The end of the even area along the side, in those columns; None where there is none."""
    part = view[:, first:last]
    if part.shape[1] < _FEWEST:
        return None
    reference = _along(part[0])
    outermost = np.abs(part[0] - reference).max(axis=1) <= _ALIKE
    if np.ptp(reference, axis=0).max() > _DRIFT or outermost.mean() < _CLEAN:
        return None
    off = np.abs(part - reference).max(axis=2)
    alike = off <= _ALIKE
    clear = _clear(alike.mean(axis=1), _TEXT if text else _CLEAN)
    if clear >= 4 and (~alike[:clear]).mean(axis=0).max() > _CROSSED:
        return None
    away = max(1, clear - 2)  # from the line, near which JPEG adds its own
    noise = float(off[:away][alike[:away]].mean())
    alike[:clear] = True  # dust and text
    line = _line(alike, reach=1, tilt=_TILT, short=0.03)
    if line is None:
        return None
    beyond = line.depth + math.ceil(abs(line.tilt) / 2) + _SPARE
    inner = part[beyond : beyond + max(4, line.depth)]
    inside = float(inner.std(axis=1).max(axis=1).mean()) if inner.size else 0.0
    return _Edge(line, first, reference, np.median(reference, axis=0), noise, inside)


def _along(row: _Floats, blocks: int = 8) -> _Floats:
    """The colour along a row, without dust: medians of blocks, joined by straight lines."""
    medians = np.array([np.median(block, axis=0) for block in np.array_split(row, blocks)])
    centres = (np.arange(blocks) + 0.5) * len(row) / blocks
    columns = np.arange(len(row)) + 0.5
    channels = [np.interp(columns, centres, channel) for channel in medians.T]
    return np.stack(channels, axis=1).astype(np.float32)


def _clear(rows: NDArray[np.float64], least: float) -> int:
    """How many rows there are to the last clean one before the first with less margin in it."""
    less = np.flatnonzero(rows < least)
    clean = np.flatnonzero(rows[: less[0] if len(less) else None] >= _CLEAN)
    return int(clean[-1]) + 1 if len(clean) else 0


def _line(alike: _Truths, reach: int, tilt: float, short: float) -> _Line | None:
    """The straight line at which, give or take `reach` rows, most columns first differ.

    Its tilt is at most that part of the length; at most a share `short` may differ before it.
    """
    rows, columns = alike.shape
    depths = np.where(alike.all(axis=0), rows - 1, np.argmin(alike, axis=0))
    across = np.arange(columns) / columns - 0.5
    most = int(tilt * columns)
    best = None
    for slope in sorted(range(-most, most + 1), key=abs):
        flat = np.rint(depths - slope * across).clip(0, rows - 1).astype(int)
        shares = np.bincount(flat, minlength=rows) / columns
        at = np.convolve(shares, np.ones(2 * reach + 1), "same")
        before = np.concatenate([np.zeros(reach + 1), np.cumsum(shares)])[:rows]
        at[before > short] = 0
        at[0] = at[rows - 1 - reach :] = 0
        depth = int(np.argmax(at))
        # A little better by a tilt is chance.
        if at[depth] and (best is None or at[depth] > best.share + 0.01):
            best = _Line(float(at[depth]), float(before[depth]), depth, slope)
    return best


def _refined(picture: Image.Image, box: Box, side: int, edge: _Edge, factor: int) -> int:
    """How many pixels to cut: the line, looked up in the picture itself near where it must be."""
    line, count = edge.line, len(edge.reference)
    slack = math.ceil(abs(line.tilt) / 2) + 2
    near, far = max(0, line.depth - slack) * factor, (line.depth + slack + 1) * factor
    band = _view(_pixels(picture.crop(_band(box, side, near, far))), side)
    columns = np.minimum((edge.start + np.arange(count)) * factor, band.shape[1] - 1)
    alike = np.abs(_smooth(band[:, columns], 1) - edge.reference).max(axis=2) <= _ALIKE
    depths = near + np.argmin(alike, axis=0)
    depths = depths - line.tilt * factor * (np.arange(count) / count - 0.5)
    depths = depths[alike[0] & ~alike[-1]]
    depth = float(np.median(depths)) if len(depths) else line.depth * factor
    return math.ceil(depth + abs(line.tilt) * factor / 2) + _SPARE


def _strip(picture: Image.Image, box: Box, side: int) -> int:
    """How many pixels of the left or right side are a strip painted in nearly one colour.

    Munch's *Scream* has one at its right. It is less even than a margin, so it must be narrow,
    the picture tall enough, and the painting beside it far more varied. The thresholds lie
    between that picture and crops of photographs with posts and walls at their edge.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    factor = math.ceil(max(width, height) / _STRIP_SIDE)
    view = _view(_pixels(picture.reduce(factor, box)), side)
    most = int(0.06 * len(view))
    if height < 0.75 * width:
        return 0
    view = _smooth(view[: 2 * most + 8], 2)
    reference = view[1:3].mean(axis=0)
    off = np.abs(view - reference).max(axis=2)
    alike = off <= 36
    alike[0] = True  # the outermost pixels are often not the painting's
    line = _line(alike, reach=2, tilt=0.012, short=0.08)
    if line is None or not 3 <= line.depth <= most or line.share < 0.88:
        return 0
    beyond = line.depth + 3
    uneven, within = float(reference.std(axis=0).max()), float(off[1 : line.depth - 1].mean())
    inside = float(view[beyond : beyond + line.depth + 3].std(axis=1).max(axis=1).mean())
    step = float(np.quantile(off[beyond], 0.1))
    if uneven > 26 or within > 14 or step < 28 or inside < max(40, 2.5 * uneven):
        return 0
    return int((beyond + abs(line.tilt) / 2) * factor)
