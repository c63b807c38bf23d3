"""Finding the margins of a scanned painting: borders, frames, captions and strips at the edge.

A margin has an even colour and ends along its whole side at one straight line parallel to the side.
A plain sky is as even, but what stands against it breaks the line. In doubt nothing is cut.

Each side is examined in a *view*: pixels (depth, length, 3) with the outermost row first, whose
columns run inwards from the edge.
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
"""Left, top, right, bottom in pixels, as in Pillow."""

_Floats = NDArray[np.float32]
_Truths = NDArray[np.bool_]

_SIDES = ("left", "top", "right", "bottom")

# Lengths in pixels.
_MIN_SIDE = 64  # in a smaller picture a few strokes make a straight line
_FEWEST = 24  # columns of a view, for the same reason
_WORK_SIDE = 1024  # longest side of the reduced copy that margins are looked for in
_STRIP_SIDE = 256  # the same for painted strips; brush strokes are blurred away
_THIN = 16  # depth of the picture itself that is searched for lines too thin for the reduced copy
_SPARE = 2  # cut beyond the line, which scans and JPEG blur

_ROUNDS = 6  # border, line, passe-partout, line, rest of a line, and one that finds nothing

# Shares of a side.
_MOST = 0.25  # what may be cut at one side, all its margins together
_NARROW = 0.08  # the deepest margin that is believed without another side's confirmation
_TILT = 0.008  # the greatest tilt of a line, that of a sheet laid askew by half a degree

# Differences of colour, in levels of 255, in the channel that differs most.
_ALIKE = 20.0  # from the margin's colour, within a margin: noise, JPEG, uneven light
_DRIFT = 30.0  # of the margin's colour along its side
_SAME = 25.0  # between the margins of two sides that confirm each other
_PURE = 16.0  # from white or black, for the sheet of a scan or an added border
_PAPER = 56.0  # the same, for a passe-partout

_CLEAN = 0.98  # share of a row that has the margin's colour in a margin; the rest is dust
_TEXT = 0.25  # the same where a line of text is printed in the margin
_CROSSED = 0.7  # share of a margin's depth: what covers so much of a column reaches the edge


class _Line(NamedTuple):
    """The straight line that a margin ends at, in pixels of its view."""

    share: float  # of the columns end at it
    short: float  # of the columns end before it
    depth: int  # at the middle of the side
    tilt: int  # how much deeper it lies at the last column than at the first


class _Edge(NamedTuple):
    """A margin and its end, in pixels of its view."""

    line: _Line
    start: int  # the column that `reference` begins at
    reference: _Floats  # the margin's colour by column, (columns, 3)
    colour: _Floats  # their median, (3,)
    noise: float  # mean difference from the reference, levels
    inside: float  # how much the painting varies beside the line, levels

    @property
    def reach(self) -> int:
        """The depth to cut."""
        return math.ceil(self.line.depth + abs(self.line.tilt) / 2) + _SPARE


def painted_area(picture: Image.Image) -> Box:
    """Return the box of a painting without its margins; the whole picture where there are none."""
    whole = box = (0, 0, *picture.size)
    if min(picture.size) < _MIN_SIDE:
        return whole
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    for _ in range(_ROUNDS):
        outer, box = box, _shrunk(whole, box, _cuts(picture, box))
        if box == outer:
            break
    # Strips are not looked for at top and bottom, where they may be sky, water or floor.
    return _shrunk(whole, box, [_strip(picture, box, 0), 0, _strip(picture, box, 2), 0])


def margin_note(size: tuple[int, int], box: Box) -> str:
    """Say how much of a picture of this size lies outside the box, like "12 px right", or ""."""
    cuts = (box[0], box[1], size[0] - box[2], size[1] - box[3])
    return ", ".join(f"{cut} px {side}" for side, cut in zip(_SIDES, cuts, strict=True) if cut)


def _shrunk(whole: Box, box: Box, cuts: Sequence[int]) -> Box:
    """Cut pixels off a box's sides, except where a side would lose more than `_MOST`."""

    def end(side: int) -> int:
        moved = box[side] + (cuts[side] if side < 2 else -cuts[side])
        lost = abs(moved - whole[side])
        return moved if lost <= _MOST * whole[2 + side % 2] else box[side]

    return end(0), end(1), end(2), end(3)


def _cuts(picture: Image.Image, box: Box) -> list[int]:
    """Return how many pixels of each side are a margin of one colour."""
    width, height = box[2] - box[0], box[3] - box[1]
    factor = min(math.ceil(max(width, height) / _WORK_SIDE), min(width, height) // _MIN_SIDE)
    factor = max(1, factor)
    small = _pixels(picture.reduce(factor, box))
    views = [_view(small, side) for side in range(4)]
    narrow = [_NARROW * len(view) for view in views]
    # Four rows more than a margin may have, to see what lies inside it.
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
    """Return pixels (H, W, 3) as the view of a side, an index of `_SIDES`."""
    pixels = pixels if side % 2 else pixels.swapaxes(0, 1)
    return pixels if side < 2 else pixels[::-1]


def _band(box: Box, side: int, near: int, far: int) -> Box:
    """Return the part of a box from `near` to `far` pixels inside a side."""
    left, top, right, bottom = box
    return (
        (left + near, top, left + far, bottom),
        (left, top + near, right, top + far),
        (right - far, top, right - near, bottom),
        (left, bottom - far, right, bottom - near),
    )[side]


def _smooth(view: _Floats, reach: int) -> _Floats:
    """Average over `reach` columns either way: less noise, and the line stays as sharp."""
    padded = np.pad(view, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    total = padded[:, : view.shape[1]].copy()
    for shift in range(1, 2 * reach + 1):
        total += padded[:, shift : shift + view.shape[1]]
    return total / np.float32(2 * reach + 1)


def _edges(views: Sequence[_Floats], narrow: Sequence[float]) -> list[_Edge | None]:
    """Return the margin of each side that can be believed, or None.

    A margin that is not believed does not confirm another.
    """
    # The middle half of a side, which no margin of a neighbouring side reaches into.
    edges = [_edge(view, view.shape[1] // 4, -(view.shape[1] // 4)) for view in views]
    for _ in range(5):  # at most four sides drop out, one a round
        before, edges = edges, [_checked(views[i], i, edges, narrow[i]) for i in range(4)]
        if [edge is None for edge in edges] == [edge is None for edge in before]:
            break
    return edges


def _checked(view: _Floats, side: int, edges: list[_Edge | None], narrow: float) -> _Edge | None:
    """Look at a side's margin again, between its neighbours; return it if it can be believed."""
    first, last = edges[(side + 1) % 2], edges[(side + 1) % 2 + 2]
    columns = first.reach if first else 0, -last.reach if last else view.shape[1]

    # First with a caption, whose letters would otherwise be taken for the margin's end.
    for text in (True, False):
        edge = _edge(view, *columns, text) if text or edges[side] else None
        if edge is None:
            continue
        alike = [
            i
            for i, other in enumerate(edges)
            if i != side and other and np.abs(other.colour - edge.colour).max() <= _SAME
        ]
        if text and (len(alike) < 2 or edge.line.share < 0.8):
            continue
        if _believed(edge, side, alike, narrow):
            return edge
    return None


def _believed(edge: _Edge, side: int, alike: Sequence[int], narrow: float) -> bool:
    """Tell whether an edge is a margin's, given the other sides that have one of its colour.

    The fewer these are, the more even the margin must be, and the more the painting must vary
    beside it: below a horizon, for example, the sea hardly varies.
    """
    line, noise, inside = edge.line, edge.noise, edge.inside
    from_paper = min(float(np.abs(edge.colour - level).max()) for level in (0, 255))
    if len(alike) >= 2:
        # A coloured margin around an even area may be part of a painting of squares.
        paper = from_paper <= _PAPER or inside >= 6
        return line.share >= (0.5 if len(alike) == 3 else 0.6) and noise <= 10 and paper
    if (side + 2) % 4 in alike:
        return line.share >= 0.85 and noise <= 6 and inside >= 10
    if line.depth > narrow or line.short > 0.01:
        return False
    if from_paper <= _PURE:
        return line.share >= (0.8 if noise <= 2 else 0.9) and noise <= 4 and inside >= 10
    # A coloured area at the top or bottom may be sky, water or floor.
    return side % 2 == 0 and line.share >= 0.9 and noise <= 2 and inside >= 16


def _edge(view: _Floats, first: int, last: int, text: bool = False) -> _Edge | None:
    """Find the even area along a side and its end, within some columns; None if there is none.

    With `text` rows that a line of text is printed in count as even.
    """
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
    away = max(1, clear - 2)  # not near the line, where JPEG adds noise
    noise = float(off[:away][alike[:away]].mean())
    alike[:clear] = True  # ignore dust and text
    line = _line(alike, reach=1, tilt=_TILT, short=0.03)
    if line is None:
        return None
    beyond = line.depth + math.ceil(abs(line.tilt) / 2) + _SPARE
    inner = part[beyond : beyond + max(4, line.depth)]
    inside = float(inner.std(axis=1).max(axis=1).mean()) if inner.size else 0.0
    return _Edge(line, first, reference, np.median(reference, axis=0), noise, inside)


def _along(row: _Floats, blocks: int = 8) -> _Floats:
    """Return the colour along a row without dust: medians of blocks, joined linearly."""
    medians = np.array([np.median(block, axis=0) for block in np.array_split(row, blocks)])
    centres = (np.arange(blocks) + 0.5) * len(row) / blocks
    columns = np.arange(len(row)) + 0.5
    channels = [np.interp(columns, centres, channel) for channel in medians.T]
    return np.stack(channels, axis=1).astype(np.float32)


def _clear(rows: NDArray[np.float64], least: float) -> int:
    """Return how many rows the margin has: up to the last clean row before one below `least`.

    `rows` is the share of each row that has the margin's colour.
    """
    less = np.flatnonzero(rows < least)
    clean = np.flatnonzero(rows[: less[0] if len(less) else None] >= _CLEAN)
    return int(clean[-1]) + 1 if len(clean) else 0


def _line(alike: _Truths, reach: int, tilt: float, short: float) -> _Line | None:
    """Find the straight line at which, within `reach` rows, most columns stop being alike.

    Its tilt is at most the share `tilt` of the side's length, and at most the share `short` of the
    columns may end before it.
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
        # A tilt that is only slightly better is chance.
        if at[depth] and (best is None or at[depth] > best.share + 0.01):
            best = _Line(float(at[depth]), float(before[depth]), depth, slope)
    return best


def _refined(picture: Image.Image, box: Box, side: int, edge: _Edge, factor: int) -> int:
    """Return how many pixels to cut: find the line again, in the picture at its full size."""
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
    """Return how many pixels of the left or right side are a strip painted in nearly one colour.

    Munch's *Scream* has one at its right. Such a strip is less even than a margin, so it must be
    narrow, the picture not too wide, and the painting beside it far more varied. The thresholds
    were chosen between that picture and crops of photographs with posts and walls at their edge.
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
