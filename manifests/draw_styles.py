"""Draw the style pictures of the examples: `python manifests/draw_styles.py`.

Style transfer reads a style through Gram matrices: which features occur together, at five scales,
wherever they are. A good style picture is therefore rich at every scale at once (bristles, strokes,
large shapes) and holds one harmony of colours. Each picture here is painted with that in mind, at
twice its size, then reduced. Five are one texture all over; the still life, the portrait and the
harbour are paintings of things, with plain areas, edges and single objects, as most paintings are.
Only NumPy and Pillow are needed, and nothing is read: the same versions of the two libraries give
the same pictures every time.

    python manifests/draw_styles.py                    # every picture, into manifests/images
    python manifests/draw_styles.py mosaic ember-sky   # only these
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.floating[Any]]  # float32 where it is as large as a picture
Rng = np.random.Generator

WIDTH, HEIGHT = 640, 512
SCALE = 2  # everything is drawn this much larger, then reduced
W, H = WIDTH * SCALE, HEIGHT * SCALE
QUALITY = 87


# --- colours and noise ---------------------------------------------------------------------------


def colours(*names: str) -> Array:
    """Rows of RGB in 0..1 from hexadecimal names."""
    return np.array([[int(n[i : i + 2], 16) / 255 for i in (0, 2, 4)] for n in names], np.float32)


def ramp(palette: Array, t: Array | float) -> Array:
    """The palette read as a continuous scale, at `t` in 0..1."""
    at = np.clip(np.asarray(t, np.float32), 0, 1) * (len(palette) - 1)
    low = np.minimum(at.astype(int), len(palette) - 2)
    part = (at - low)[..., None]
    mixed: Array = palette[low] * (1 - part) + palette[low + 1] * part
    return mixed.astype(np.float32)


def noise(rng: Rng, rows: float, cols: float, size: tuple[int, int] = (W, H)) -> Array:
    """Smooth noise of about unit deviation, with `rows` by `cols` bumps over `size` (w, h)."""
    grid = rng.standard_normal((max(2, round(rows)), max(2, round(cols)))).astype(np.float32)
    big: Array = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))
    unit: Array = (big - big.mean()) / (big.std() + 1e-6)
    return unit.astype(np.float32)


def blur(image: Array, radius: int) -> Array:
    """A triangular blur, edges repeated."""
    kernel = np.array([*range(1, radius + 1), radius + 1, *range(radius, 0, -1)], np.float32)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(image.ndim)]
        padded = np.pad(image, pad, mode="edge")
        n = image.shape[axis]
        image = sum(k * padded.take(range(i, i + n), axis) for i, k in enumerate(kernel))
    return image.astype(np.float32)


def pixel_grid() -> tuple[Array, Array]:
    """x and y of every pixel of the large canvas, both in units of its height."""
    y, x = np.mgrid[0:H, 0:W].astype(np.float32) / H
    return x, y


def finish(image: Array) -> Image.Image:
    """The large canvas as a picture of the final size."""
    eight_bit = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(eight_bit).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def lit(image: Array, relief: Array, strength: float, gloss: float = 0.0) -> Array:
    """`image` lit from the upper left as if its surface had the height `relief`."""
    down, right = np.gradient(relief)
    slope: Array = np.clip(np.asarray(strength * (right + down)), -0.45, 0.6)[..., None]
    shown: Array = image * (1 + slope) + gloss * np.maximum(slope, 0) ** 2
    return shown


# --- oil paint -----------------------------------------------------------------------------------


class Canvas:
    """Oil paint: colour, and the thickness of the paint, which catches the light at the end."""

    BRISTLES = (4, 7, 11, 17)
    VARIANTS = 12
    ALONG, ACROSS = 200, 48

    def __init__(
        self, ground: Array, rng: Rng, wobble: float = 0.22, contrast: float = 0.09
    ) -> None:
        """Prime the canvas with the colour `ground` and cut the prints of the brushes.

        `wobble` is how far the hand turns (in radians) and `contrast` how much the bristles differ
        in tone, both where a shape is filled.
        """
        self.wobble, self.contrast = wobble, contrast
        self.colour: Array = np.broadcast_to(ground, (H, W, 3)).astype(np.float32).copy()
        self.relief: Array = np.zeros((H, W), np.float32)
        self.rng = rng
        self.brushes = [[self._brush(n) for _ in range(self.VARIANTS)] for n in self.BRISTLES]

    def _brush(self, bristles: int) -> tuple[Array, Array, Array]:
        """One print of a brush: tone, cover and thickness, along the stroke by across it."""
        size = (self.ACROSS, self.ALONG)
        hairs = noise(self.rng, 5, bristles, size)
        along = np.linspace(0, 1, self.ALONG, dtype=np.float32)[:, None]
        across = np.linspace(-1, 1, self.ACROSS, dtype=np.float32)[None, :]
        ragged = np.abs(noise(self.rng, 2, bristles * 1.5, size)[:1])
        starts, ends = 0.035 * ragged, 1 - 0.12 * ragged[:, ::-1]
        cover = np.clip((along - starts) * 40, 0, 1) * np.clip((ends - along) * 22, 0, 1)
        dry = np.clip(1.25 + 0.5 * hairs - 0.75 * along**3, 0, 1)
        ridge = np.exp(-(((np.abs(across) - 0.8) / 0.18) ** 2))
        thick = 0.55 + 0.3 * hairs + 0.5 * ridge + 0.5 * np.exp(-(((along - 0.93) / 0.05) ** 2))
        tone = hairs - 1.3 * np.clip((np.abs(across) - 0.72) / 0.28, 0, 1)
        return tone.astype(np.float32), cover * dry, thick.astype(np.float32)

    def stroke(
        self,
        path: Array,
        width: float,
        colour: Array,
        body: float,
        contrast: float,
        cover: float,
        within: Array | None = None,
    ) -> None:
        """Lay one stroke along `path` (n by x, y).

        `body` is how thick the paint is, `contrast` how much the bristles differ in tone,
        `cover` how far the stroke hides what is below, `within` where on the canvas it may land.
        """
        kind = int(np.searchsorted((9, 16, 27), width))
        hairs, print_, thick = self.brushes[kind][self.rng.integers(self.VARIANTS)]
        step = np.diff(path, axis=0)
        length = np.concatenate([[0], np.cumsum(np.hypot(step[:, 0], step[:, 1]))])
        if length[-1] < 3:
            return
        n, m = int(length[-1] / 0.75) + 2, int(width / 0.7) + 2
        s = np.linspace(0, 1, n)
        x = np.interp(s * length[-1], length, path[:, 0])
        y = np.interp(s * length[-1], length, path[:, 1])
        dx, dy = np.gradient(x), np.gradient(y)
        norm = np.hypot(dx, dy) + 1e-9
        # A stroke opens quickly, keeps its width, and narrows as the brush lifts.
        half = 0.5 * width * np.minimum(1, np.sqrt(s * 9 + 0.1)) * (1 - 0.45 * s**4)
        t = np.linspace(-1, 1, m)
        px = (x[:, None] - (dy / norm * half)[:, None] * t).ravel().astype(np.int32)
        py = (y[:, None] + (dx / norm * half)[:, None] * t).ravel().astype(np.int32)
        rows = (s * (self.ALONG - 1)).astype(np.int32)
        cols = ((t + 1) / 2 * (self.ACROSS - 1)).astype(np.int32)
        cell = (rows[:, None] * self.ACROSS + cols).ravel()
        inside = (px >= 0) & (px < W) & (py >= 0) & (py < H)
        at, cell = (py * W + px)[inside], cell[inside]
        alpha = print_.ravel()[cell] * cover
        if within is not None:
            alpha = alpha * within.reshape(-1)[at]
        paint = colour + contrast * hairs.ravel()[cell][:, None] * (0.4 + colour)
        flat, relief = self.colour.reshape(-1, 3), self.relief.reshape(-1)
        flat[at] += alpha[:, None] * (paint - flat[at])
        relief[at] += alpha * (0.35 * relief[at] + body * thick.ravel()[cell] - relief[at])

    def strokes(
        self,
        seeds: Array,
        paint: Array,
        field: tuple[Array, Array],
        length: tuple[float, float],
        width: tuple[float, float],
        body: float = 1.0,
        contrast: float = 0.12,
        cover: float = 0.97,
        within: Array | None = None,
        parts: NDArray[np.int64] | None = None,
    ) -> None:
        """Many strokes that follow `field` through `seeds`, each with its row of `paint`.

        They land `within`, and end where they would leave their own one of the `parts`.
        """
        count, pace = len(seeds), 4.0
        lengths = self.rng.uniform(*length, count)
        widths = self.rng.uniform(*width, count)
        half = int(length[1] / pace / 2) + 1
        paths = np.empty((count, 2 * half + 1, 2), np.float32)
        paths[:, half] = seeds
        for way in (1, -1):
            for i in range(half):
                at = paths[:, half + way * i]
                flow = np.stack([look_up(field[0], at), look_up(field[1], at)], 1)
                paths[:, half + way * (i + 1)] = at + way * pace * flow
        for i in range(count):
            reach = max(1, round(lengths[i] / pace / 2))
            path = paths[i, half - reach : half + reach + 1]
            if parts is not None:
                part = look_up(parts, path)
                out = np.flatnonzero(part != part[reach])
                first = max(out[out < reach], default=-1) + 1
                path = path[first : min(out[out > reach], default=len(path))]
            self.stroke(path, widths[i], paint[i], body, contrast, cover, within)

    def seeds(self, spacing: float) -> Array:
        """Points all over the canvas, about `spacing` apart, in random order."""
        y, x = np.mgrid[-spacing : H + spacing : spacing, -spacing : W + spacing : spacing]
        points = np.stack([x.ravel(), y.ravel()], 1)
        points += self.rng.uniform(-0.6, 0.6, points.shape) * spacing
        return self.rng.permutation(points).astype(np.float32)

    def fill(
        self,
        shape: Array,
        palette: Array,
        tone: Array | float,
        angle: Array | float,
        size: float = 1.0,
        spread: float = 0.1,
        body: float = 1.0,
        reach: float = 1.0,
        edge: int = 3,
        cells: NDArray[np.int64] | None = None,
    ) -> None:
        """Paint a shape (its outline, or a mask) in strokes, broad ones and then finer ones.

        The colours are `palette` at `tone`, give or take `spread`; the strokes lie at `angle`,
        give or take a little, are `size` times as large as usual and, for their width, `reach`
        times as long. They may go over the edge by about `edge` pixels, and end where one of the
        `cells` meets the next.
        """
        mask = inside(shape) if shape.shape[1] == 2 else shape
        soft = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(edge))
        within = np.clip(np.asarray(soft, np.float32) / 255 * 2.2, 0, 1)
        parts = mask.astype(np.int64) * (1 if cells is None else 1 + cells)
        tones = np.broadcast_to(np.asarray(tone, np.float32), (H, W))
        turned = angle + self.wobble * noise(self.rng, 14, 18)
        field = np.cos(turned), np.sin(turned)
        flat = np.asarray(soft) > (128 if edge < 6 else 240)
        self.colour[flat] = ramp(palette, tones[flat])
        self.relief[flat] *= 0.4
        for spacing, length, width in (
            (21.0, (60.0, 120.0), (22.0, 36.0)),
            (17.0, (40.0, 90.0), (11.0, 20.0)),
        ):
            points = self.seeds(spacing * size)
            points = points[look_up(mask, points) > 0.5]
            wobble = spread * self.rng.standard_normal(len(points)).astype(np.float32)
            paint = varied(self.rng, ramp(palette, look_up(tones, points) + wobble), 0.05, 0.02)
            long = size * reach * length[0], size * reach * length[1]
            wide = size * width[0], size * width[1]
            self.strokes(points, paint, field, long, wide, body, self.contrast, 0.95, within, parts)

    def contour(self, path: Array, width: float, palette: Array, body: float = 1.3) -> None:
        """Draw along `path` (n by x, y), twice, with a brush that is lifted now and then."""
        step = np.diff(path, axis=0)
        length = np.concatenate([[0], np.cumsum(np.hypot(step[:, 0], step[:, 1]))])
        start = 0.0
        while start < length[-1]:
            end = start + self.rng.uniform(9, 22) * width
            s = np.linspace(max(0.0, start - width), min(end, length[-1]), 40)
            part = np.stack([np.interp(s, length, path[:, k]) for k in (0, 1)], 1)
            for _ in range(2):
                again = (part + self.rng.normal(0, 0.12 * width, 2)).astype(np.float32)
                colour = varied(self.rng, ramp(palette, self.rng.random(1)), 0.08, 0.015)[0]
                wide = width * self.rng.uniform(0.8, 1.2)
                self.stroke(again, wide, colour, body, 0.10, 0.95)
            start = end

    def picture(
        self, strength: float = 0.55, gloss: float = 0.5, weave: float = 0.0
    ) -> Image.Image:
        """The painting in a raking light, on a canvas whose threads show by `weave`."""
        y, x = np.mgrid[0:H, 0:W].astype(np.float32)
        threads = np.sin(x * (2 * math.pi / 5)) * np.sin(y * (2 * math.pi / 5))
        relief = blur(self.relief, 1) + weave * threads
        return finish(lit(self.colour, relief, strength, gloss))


def look_up(values: NDArray[Any], points: Array) -> NDArray[Any]:
    """`values` of the large canvas at points (n by x, y)."""
    col = np.clip(points[:, 0], 0, W - 1).astype(int)
    row = np.clip(points[:, 1], 0, H - 1).astype(int)
    there: NDArray[Any] = values[row, col]
    return there


def along_contours(potential: Array) -> tuple[Array, Array]:
    """The unit field that runs along the contours of `potential`."""
    down, right = np.gradient(potential)
    norm = np.hypot(down, right) + 1e-9
    return (down / norm).astype(np.float32), (-right / norm).astype(np.float32)


def curve(points: Sequence[tuple[float, float]] | Array, closed: bool = True) -> Array:
    """A smooth line (Catmull-Rom) through points in canvas heights, in pixels."""
    knots = np.asarray(points, np.float32) * H
    ends = (knots[-1:], knots[:2]) if closed else (knots[:1], knots[-1:])
    p = np.concatenate([ends[0], knots, ends[1]])
    t = np.linspace(0, 1, 16, endpoint=False, dtype=np.float32)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    bent = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([bent.reshape(-1, 2), p[-2:-1]]).astype(np.float32)


def corners(*points: tuple[float, float]) -> Array:
    """A closed line straight from point to point (in canvas heights), in pixels."""
    return np.asarray([*points, points[0]], np.float32) * H


def inside(path: Array) -> Array:
    """A mask of the large canvas: 1 within the closed line `path`, 0 elsewhere."""
    image = Image.new("L", (W, H), 0)
    ImageDraw.Draw(image).polygon([(float(px), float(py)) for px, py in path], fill=1)
    return np.asarray(image, np.float32)


def varied(rng: Rng, paint: Array, tone: float = 0.1, hue: float = 0.03) -> Array:
    """Each row of `paint` a little lighter or darker, warmer or colder, as from a real palette."""
    factor = 1 + tone * rng.standard_normal((len(paint), 1))
    shift = hue * rng.standard_normal(paint.shape)
    return np.clip(paint * factor + shift, 0, 1).astype(np.float32)


# --- the pictures --------------------------------------------------------------------------------


def night_strokes(rng: Rng) -> Image.Image:
    """A night of short thick strokes that circle the stars and roll along the wind."""
    x, y = pixel_grid()
    stars = [  # x, y, radius, spin
        (0.17, 0.17, 0.085, 1), (0.47, 0.10, 0.055, -1), (1.06, 0.20, 0.125, 1),
        (0.72, 0.31, 0.050, 1), (0.11, 0.52, 0.060, -1), (0.90, 0.56, 0.060, 1),
        (0.44, 0.63, 0.085, 1), (1.18, 0.55, 0.050, -1), (0.79, 0.07, 0.045, 1),
    ]  # fmt: skip
    swirls = [(0.42, 0.36, 0.155, 1.0), (0.80, 0.46, 0.12, -0.9)]
    wind = y + 0.06 * np.sin(5.2 * x + 0.5) + 0.025 * np.sin(11 * x + 4 * y)
    potential = wind + 0.012 * noise(rng, 5, 6)
    for sx, sy, radius, spin in swirls:
        far = np.hypot(x - sx, y - sy)
        potential = potential + spin * 0.30 * np.exp(-((far / radius) ** 2))
    glow, heat = np.zeros_like(x), np.zeros_like(x)
    for sx, sy, radius, spin in stars:
        far = np.hypot(x - sx, y - sy) / radius
        potential = potential + spin * 3.2 * radius * np.exp(-((far / 1.25) ** 2))
        near = np.exp(-((far / 1.25) ** 4))
        cool = 0.18 * rng.uniform(-1, 1)
        heat = np.where(near > glow, np.clip(far * (0.62 + cool), 0, 1), heat)
        glow = np.maximum(glow, near)
    ridge = 0.83 + 0.045 * np.sin(3.6 * x + 2.2) + 0.03 * np.sin(8.1 * x + 1)
    land = np.clip((y - ridge) * 40, 0, 1)
    folds = 0.8 * y - 0.25 * x - 0.5 * ridge + 0.04 * np.sin(9 * x + 7 * y)
    folds = folds + 0.012 * noise(rng, 6, 10)
    vx, vy = along_contours(np.where(land > 0.5, folds, potential).astype(np.float32))
    # Spiral a little inwards at the swirls.
    for sx, sy, radius, _ in swirls:
        pull = 0.35 * np.exp(-((np.hypot(x - sx, y - sy) / radius) ** 2))
        far = np.hypot(x - sx, y - sy) + 1e-6
        vx, vy = vx - pull * (x - sx) / far, vy - pull * (y - sy) / far
    norm = np.hypot(vx, vy) + 1e-6
    field = vx / norm, vy / norm

    sky = colours("0a1446", "132a80", "1d44a6", "2c66c0", "5598d2", "9cc9de", "dfe9d0")
    fire = colours("fffbe6", "ffe768", "f7c52a", "e8b432", "d5cf7c", "9fd0c0", "4f97cc")
    earth = colours("070d2a", "0e2450", "14485f", "2c6b5c", "6a8a4c", "b9a548")
    bands = 0.42 + 0.36 * np.sin(potential * 34) + 0.13 * noise(rng, 14, 18)
    bands = bands + 0.35 * np.exp(-(((wind - 0.70) / 0.07) ** 2)) - 0.25 * (y < 0.06)
    slopes = 0.38 + 0.25 * np.sin(folds * 75) + 0.15 * noise(rng, 10, 16)

    def palette(points: Array, spread: float) -> Array:
        count = len(points)
        wobble = spread * rng.standard_normal(count).astype(np.float32)
        paint = ramp(sky, look_up(bands, points) + wobble)
        starlit = rng.random(count) < look_up(glow, points) * 1.1
        paint = np.where(starlit[:, None], ramp(fire, look_up(heat, points) + 0.5 * wobble), paint)
        ground = look_up(land, points) > 0.5
        paint = np.where(ground[:, None], ramp(earth, look_up(slopes, points) + wobble), paint)
        ochre = (rng.random(count) < 0.022) & ~starlit
        paint[ochre] = ramp(colours("c98a1c", "f4cf4a"), rng.random(int(ochre.sum())))
        return varied(rng, paint.astype(np.float32), 0.08, 0.018)

    canvas = Canvas(colours("0c1238")[0], rng)
    for spacing, length, width, spread in (
        (26.0, (90.0, 170.0), (22.0, 34.0), 0.08),
        (17.0, (50.0, 110.0), (13.0, 19.0), 0.13),
        (16.0, (34.0, 84.0), (8.0, 13.0), 0.20),
    ):
        points = canvas.seeds(spacing)
        canvas.strokes(points, palette(points, spread), field, length, width, 1.2)
    # The heart of every star: a few short dabs, thick and nearly white.
    for sx, sy, radius, _ in stars:
        hearts = rng.normal((sx * H, sy * H), 0.14 * radius * H, (int(150 * radius) + 6, 2))
        hearts = hearts.astype(np.float32)
        paint = varied(rng, ramp(fire[:3], rng.random(len(hearts)) ** 2), 0.05)
        canvas.strokes(hearts, paint, field, (14.0, 30.0), (8.0, 13.0), 1.8)
    return canvas.picture(strength=0.5, gloss=0.6, weave=0.1)


def ember_sky(rng: Rng) -> Image.Image:
    """A burning sky in long undulating bands over a dark fjord, thin oil on raw board."""
    x, y = pixel_grid()
    swell = 0.055 * np.sin(4.1 * x + 0.6) + 0.03 * np.sin(9.3 * x + 2.5 * y + 1.7)
    above = y + swell * (0.5 + y) + 0.012 * noise(rng, 4, 5)
    shore = 0.53 + 0.05 * np.sin(3.1 * x + 2.4)
    # Below the shore the bands sink into eddies and rise again.
    below = y + 0.7 * swell + 0.03 * np.sin(7.5 * x - 6 * y + 0.7) + 0.010 * noise(rng, 5, 6)
    for ex, ey, radius, turn in ((0.86, 0.76, 0.17, 0.34), (0.22, 0.92, 0.13, -0.22)):
        far = np.hypot((x - ex) * 0.72, (y - ey) * 1.2) / radius
        below = below + turn * np.exp(-(far**2))
    land = y + 0.5 * swell > shore
    field = along_contours(np.where(land, below, above).astype(np.float32))
    fire = colours("7a1512", "b8240f", "dd3d12", "f0661a", "f6942c", "f8c04c", "f3dd94", "d8491a")
    deep = colours("0a1420", "10283a", "17424f", "24606a", "4d8580", "1a2c4a", "0d1826")
    ground = colours("b98d5c")[0]
    heat = 0.48 + 0.40 * np.sin(above * 46 + 0.9 * noise(rng, 3, 4)) + 0.10 * noise(rng, 9, 3)
    cold = 0.42 + 0.38 * np.sin(below * 47 + 0.6 * noise(rng, 3, 4)) + 0.10 * noise(rng, 9, 6)
    hill = y + 0.5 * swell - shore < 0.035 + 0.035 * np.sin(4.3 * x + 1.1)
    cold = np.where(hill, 0.05 + 0.09 * noise(rng, 9, 6), cold)
    lagoon = np.exp(-(((below - 0.70) / 0.035) ** 2) - (((x - 0.42) / 0.34) ** 2)) * ~hill

    def palette(points: Array, spread: float) -> Array:
        count = len(points)
        wobble = spread * rng.standard_normal(count).astype(np.float32)
        dark = look_up(land.astype(np.float32), points) > 0.5
        paint = np.where(
            dark[:, None],
            ramp(deep, look_up(cold, points) + wobble),
            ramp(fire, look_up(heat, points) + wobble),
        )
        mirror = dark & (rng.random(count) < look_up(lagoon, points))
        paint[mirror] = ramp(fire[3:7], rng.random(int(mirror.sum())))
        accent = rng.random(count)
        teal = ~dark & (accent < 0.025)
        paint[teal] = ramp(colours("2d6a6c", "7fa58c"), rng.random(int(teal.sum())))
        rust = dark & (accent < 0.045)
        paint[rust] = ramp(colours("8a3a1c", "c9783a"), rng.random(int(rust.sum())))
        chalk = dark & (accent > 0.96)
        paint[chalk] = ramp(colours("5f93b5", "a9c9c4"), rng.random(int(chalk.sum())))
        return varied(rng, paint.astype(np.float32), 0.09, 0.02)

    canvas = Canvas(ground, rng)
    canvas.colour *= 1 + 0.05 * noise(rng, 256, 320)[..., None]
    for spacing, length, width, spread, cover in (
        (34.0, (160.0, 340.0), (28.0, 44.0), 0.05, 0.85),
        (25.0, (120.0, 300.0), (16.0, 27.0), 0.07, 0.85),
        (30.0, (80.0, 240.0), (7.0, 15.0), 0.15, 0.9),
    ):
        points = canvas.seeds(spacing)
        canvas.strokes(points, palette(points, spread), field, length, width, 0.9, 0.15, cover)
    return canvas.picture(strength=0.45, gloss=0.35, weave=0.15)


def label_tiles(
    points: Array, angles: Array, start: NDArray[np.int32], reach: int
) -> NDArray[np.int32]:
    """The nearest tile of every pixel, each tile measuring in its own rotated square metric.

    Jump flooding from the labels `start`: every pixel asks its neighbours at shrinking distances
    whether their tile is nearer than its own.
    """
    rows, cols = start.shape
    y, x = np.mgrid[0:rows, 0:cols].astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)

    def far(label: NDArray[np.int32]) -> Array:
        dx, dy = x - points[label, 0], y - points[label, 1]
        u = np.abs(dx * cos[label] + dy * sin[label])
        v = np.abs(dy * cos[label] - dx * sin[label])
        distance: Array = np.maximum(u, v) + 0.25 * np.minimum(u, v)
        return distance

    best, least = start, far(start)
    while reach >= 1:
        padded = np.pad(best, reach, mode="edge")
        for oy in (0, reach, 2 * reach):
            for ox in (0, reach, 2 * reach):
                other = padded[oy : oy + rows, ox : ox + cols]
                distance = far(other)
                nearer = distance < least
                best, least = np.where(nearer, other, best), np.where(nearer, distance, least)
        reach //= 2
    return best


def mosaic(rng: Rng) -> Image.Image:
    """Stone and glass tesserae laid in rows along a rising sun, its rays and the sea."""
    x, y = pixel_grid()
    sun = np.hypot(x - 0.42, y - 0.40)
    waves = y + 0.055 * np.sin(6.2 * x + 0.4) + 0.02 * np.sin(13 * x + 2)
    sea = waves > 0.70
    petals = np.sin(7 * np.arctan2(y - 0.40, x - 0.42))
    sky = sun + 0.013 * petals * np.clip((sun - 0.08) / 0.15, 0, 1)
    # Opposing currents meet in the upper right, where the rows turn round a second centre.
    second = np.hypot(x - 1.12, y - 0.20)
    near = second < 0.24
    potential = np.where(sea, waves, np.where(near, second, sky)).astype(np.float32)
    vx, vy = along_contours(potential)

    # Lloyd's iterations at half size, with square cells turned along the rows (Hausner 2001).
    # After each, a tile goes back to the middle of its row, a band of the potential.
    side = 9.5
    gy, gx = np.mgrid[side / 2 : HEIGHT : side, side / 2 : WIDTH : side].astype(np.float32)
    rows, cols = gx.shape
    points = np.stack([gx.ravel(), gy.ravel()], 1)
    points += rng.uniform(-0.5, 0.5, points.shape).astype(np.float32) * side
    row = np.minimum(np.arange(HEIGHT) // side, rows - 1).astype(np.int32)
    col = np.minimum(np.arange(WIDTH) // side, cols - 1).astype(np.int32)
    labels = (row[:, None] * cols + col[None, :]).astype(np.int32)
    py, px = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    level = potential * HEIGHT / side
    rise = np.stack(np.gradient(level)[::-1], -1) * SCALE
    rise = (rise / np.maximum((rise**2).sum(-1, keepdims=True), 1e-4)).astype(np.float32)
    for _ in range(24):
        here = look_up(level, points * SCALE)
        shift = np.clip(np.floor(here) + 0.5 - here, -0.5, 0.5)[:, None]
        points += np.clip(shift * look_up(rise, points * SCALE), -side / 2, side / 2)
        angles = np.arctan2(look_up(vy, points * SCALE), look_up(vx, points * SCALE))
        labels = label_tiles(points, angles, labels, 8)
        area = np.bincount(labels.ravel(), minlength=len(points))
        alive = area > 0
        for axis, values in enumerate((px, py)):
            total = np.bincount(labels.ravel(), values.ravel(), len(points))
            points[alive, axis] = (total[alive] / area[alive]).astype(np.float32)
    angles = np.arctan2(look_up(vy, points * SCALE), look_up(vx, points * SCALE))
    large = np.repeat(np.repeat(labels, SCALE, 0), SCALE, 1)
    large = label_tiles(points * SCALE, angles, large, 4)

    # Colour by the tile's own row, so that no tile is split and no row frays.
    at = points * SCALE
    count = len(points)
    unit = side / HEIGHT
    gold = colours("b9741f", "d9962a", "f2bf45", "fbe08a")
    clay = colours("8c2f1d", "bb4626", "d9683c", "e79a6a")
    teal = colours("0f4a58", "14707a", "2f9a98", "5fb3ad")
    cream = colours("d7bd8a", "e8d3a2", "f4e6c4", "fbf3dd")
    night = colours("0b2b42", "103a52", "0b3145", "1b5064")
    jars = np.stack([gold, clay, teal, cream, night])
    gold_, clay_, teal_, cream_, night_ = range(5)
    heart = [cream_, gold_, gold_, clay_, gold_, gold_, teal_, night_]
    halo = [cream_, cream_, clay_, clay_, gold_, cream_, teal_, teal_, night_, gold_, gold_, clay_]
    orb = [cream_, gold_, teal_, teal_, cream_, gold_, gold_, clay_, clay_, cream_, teal_, night_]
    surf = [cream_, teal_, teal_, night_, teal_, cream_, teal_, night_, teal_, teal_, gold_, night_]

    def rows_of(distance: Array, order: list[int]) -> NDArray[np.int64]:
        row = np.floor(look_up(distance, at) / unit).astype(int)
        jars_of_rows: NDArray[np.int64] = np.array(order)[row % len(order)]
        return jars_of_rows

    jar = rows_of(sky, heart + halo)
    jar = np.where(look_up(near, at), rows_of(second, orb), jar)
    shore = (np.floor(0.70 / unit) * unit).astype(np.float32)
    jar = np.where(look_up(sea, at), rows_of(waves - shore, surf), jar)
    stray = rng.random(count) < 0.035
    jar = np.where(stray, rng.integers(len(jars), size=count), jar)
    # Which tone of a jar drifts slowly over the wall, with a little chance at every tile.
    drift = look_up(noise(rng, 7, 9), at) + 0.8 * rng.standard_normal(count)
    shade = np.clip(np.floor(drift * 0.8 + 2), 0, 3).astype(int)
    paint = varied(rng, jars[jar, shade], 0.10, 0.018)

    # Grout wherever another tile is within reach; a soft edge makes every tile a low pillow.
    same = np.ones((H, W), bool)
    padded = np.pad(large, 2, mode="edge")
    for oy, ox in ((0, 2), (2, 0), (4, 2), (2, 4), (1, 1), (3, 3), (1, 3), (3, 1)):
        same &= padded[oy : oy + H, ox : ox + W] == large
    stone = np.clip(blur(same.astype(np.float32), 2) * 2.2 - 0.7, 0, 1)
    pillow = blur(same.astype(np.float32), 5)
    tilt = 0.05 * rng.standard_normal((count, 2)).astype(np.float32)
    yy, xx = np.mgrid[0:H, 0:W].astype(np.float32)
    dx, dy = xx - at[large, 0], yy - at[large, 1]
    tone = 1 + 0.12 * (tilt[large, 0] * dx + tilt[large, 1] * dy)
    grain = 0.035 * noise(rng, H, W) + 0.04 * noise(rng, 300, 380)
    surface = paint[large] * (tone + grain)[..., None]
    grout = colours("4a3f38")[0] * (1 + 0.12 * noise(rng, H, W)[..., None])
    image = grout * (1 - stone[..., None]) + surface * stone[..., None]
    return finish(lit(image, pillow * 3 + 0.05 * noise(rng, H / 2, W / 2), 0.35, 0.8))


@dataclass(frozen=True)
class Wave:
    """One row of breakers: a line across the picture whose crests lean forward."""

    along: Array
    angle: Array
    swell: Array
    crest: Array
    base: float

    def line(self, down: float, calm: float) -> Array:
        """The line `down` below the surface, where the water is calmer by `calm` in 0..1."""
        rise = self.swell * (1 - calm)
        x = self.along + 1.35 * (1 - calm) * rise * self.crest**2
        y = self.base + down - rise * (self.crest - 0.35) + 0.004 * np.sin(self.angle * 5)
        return np.stack([x * H, y * H], 1)


def woodcut_waves(rng: Rng) -> Image.Image:
    """A breaking sea cut in wood: contours, hatching along the water, foam, paper grain."""
    ink, navy, mid, pale, foam = "#0d1f3c", "#16407a", "#3f78a8", "#a9c8cf", "#f6efdc"
    paper = ramp(colours("3d5a78", "b9b295", "e9d9b2", "ecd3a0", "e3c490"), np.linspace(0, 1, H))
    image = Image.fromarray((np.broadcast_to(paper[:, None], (H, W, 3)) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    u = np.linspace(-0.35, 1.25 + 0.35, 1500)

    def wander(bumps: int) -> Array:
        knots = rng.standard_normal(bumps)
        return np.interp(u, np.linspace(u[0], u[-1], bumps), knots)

    def polygon(points: Array, fill: str) -> None:
        closed = [*map(tuple, points), (W * 1.4, H * 1.4), (-W * 0.4, H * 1.4)]
        draw.polygon(closed, fill=fill)

    def swelling_line(points: Array, fill: str, width: float, gaps: float = 0.0) -> None:
        """A cut line: its width swells and thins, and it may break off."""
        thick = np.clip(width * (1 + 0.45 * wander(60)), 0.6, None)
        cut = wander(90) < gaps - 1.6 if gaps else np.zeros(len(points), bool)
        for i in range(len(points) - 1):
            if not cut[i]:
                ends = [tuple(points[i]), tuple(points[i + 1])]
                draw.line(ends, fill=fill, width=max(1, round(thick[i])))

    # Clouds: long lenses of bare paper and of thin ink, each with its contour.
    for _ in range(26):
        cx, cy = rng.uniform(-0.1, 1.35) * H, rng.uniform(0.0, 0.22) * H
        long, thick = rng.uniform(0.10, 0.34) * H, rng.uniform(0.006, 0.016) * H
        s = np.linspace(0, 2 * math.pi, 120)
        knobs = 1 + 0.18 * np.sin(s * rng.integers(5, 11) + rng.uniform(0, 6))
        lens = np.stack([cx + long * np.cos(s), cy + thick * knobs * np.sin(s)], 1)
        lens[:, 1] += 0.01 * H * np.sin(lens[:, 0] / H * 9 + cy)
        shade = ("#f3e6c6", "#8fa9b3", "#d9a06a", "#f3e6c6", "#6d8da3")[rng.integers(5)]
        draw.polygon([*map(tuple, lens)], fill=shade)
        draw.line([*map(tuple, lens)], fill=ink, width=2)
        for k in (-0.35, 0.25):
            run = slice(8, 52) if k > 0 else slice(68, 112)
            rib = np.stack([lens[run, 0], cy + (lens[run, 1] - cy) * abs(k)], 1)
            draw.line([*map(tuple, rib)], fill=navy, width=1)

    layers = 7
    for layer in range(layers):
        depth = layer / (layers - 1)
        base = 0.27 + 0.68 * depth
        period = 0.36 + 0.30 * depth
        height = 0.055 + 0.085 * depth
        phase = rng.uniform(0, 2 * math.pi)
        swell = height * (1 + 0.13 * np.clip(wander(9), -2, 2))
        angle = 2 * math.pi * u / period + phase
        crest = ((1 + np.cos(angle)) / 2) ** 1.6
        wave = Wave(u, angle, swell, crest, base)
        tones = [foam, pale, navy, mid, navy, pale, navy, mid, ink, mid, navy, pale, navy, mid]
        down = 0.0
        for j, tone in enumerate(tones):
            line = wave.line(down, min(0.9, 0.055 * j))
            polygon(line, tone)
            swelling_line(line, ink, 2.2 + 2.2 * depth if j == 0 else 1.6)
            thickness = (0.008 + 0.009 * depth) * rng.uniform(0.7, 1.5)
            hatch = {navy: mid, mid: pale, pale: navy, ink: navy, foam: pale}[tone]
            for k in (1, 2, 3):
                part = wave.line(down + thickness * k / 4, min(0.9, 0.055 * (j + k / 4)))
                swelling_line(part, hatch, 1.1 + 0.6 * depth, gaps=rng.uniform(0.7, 1.9))
            down += thickness
        # Foam: scallops along the crests, claws on the lee side, spray above.
        edge = wave.line(0.0, 0.0)
        scallops = []
        for i in range(0, len(u), 3):
            if crest[i] > 0.35:
                r = (2.5 + 11 * depth * crest[i]) * rng.uniform(0.45, 1.1) + 2
                cx, cy = edge[i] + rng.normal(0, 0.45 * r, 2)
                scallops.append((cx, cy + 0.2 * r, r))
        for fill, grow in ((ink, 2.5), (foam, 0.0)):
            for cx, cy, r in scallops:
                r_ = r + grow
                draw.ellipse([cx - r_, cy - r_, cx + r_, cy + r_], fill=fill)
        lee = np.flatnonzero((crest > 0.45) & (np.gradient(crest) < 0.002))
        for i in rng.permutation(lee)[: len(lee) // 4]:
            size = H * (0.012 + 0.030 * depth) * rng.uniform(0.6, 1.3) * crest[i]
            bend = rng.uniform(0.9, 1.9)
            turn = rng.uniform(-0.5, 0.5) + bend * np.linspace(0, 1, 14)
            hook = np.cumsum(np.stack([np.cos(turn), np.sin(turn)], 1), 0) * size / 14
            hook += edge[i] + np.array([0, rng.uniform(-2, 5)])
            for fill, grow in ((ink, 2.0), (foam, 0.0)):
                for k, (cx, cy) in enumerate(hook):
                    r = 0.17 * size * (1 - k / 15) + 0.6 + grow
                    draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=fill)
        for i in range(0, len(u), 4):
            if crest[i] < 0.5:
                continue
            r = 1 + 2.2 * rng.random() * (0.6 + depth)
            cx = edge[i, 0] + rng.normal(8, 16) * (0.6 + depth)
            cy = edge[i, 1] - abs(rng.normal(0, 22)) * (0.5 + depth) + 6
            draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=foam)
            if rng.random() < 0.8:
                r = 1.5 + 4 * depth * rng.random()
                cx, cy = edge[i, 0] + rng.normal(0, 5), edge[i, 1] + rng.normal(3, 5)
                draw.arc([cx - r, cy - r, cx + r, cy + r], 150, 330, fill=navy, width=2)

    print_ = np.asarray(image, np.float32) / 255
    # The block's grain in the ink, the baren's speckle, the fibres of the paper.
    _, y = pixel_grid()
    warp = 0.02 * noise(rng, 4, 3)
    rings = np.sin((y + warp) * 420 + 1.5 * noise(rng, 40, 4)) * 0.5 + 0.5 * noise(rng, H / 2, 12)
    dark = 1 - print_.mean(axis=2, keepdims=True)
    print_ = print_ * (1 + 0.07 * rings[..., None] * dark) + 0.03 * rings[..., None] * dark
    speckle = np.clip(noise(rng, H / 2, W / 2) + 0.5 * noise(rng, 60, 80) - 1.9, 0, 1)[..., None]
    print_ = print_ + speckle * 0.45 * (colours("efe3c3")[0] - print_)
    fibres = 0.02 * noise(rng, H / 2, W / 5) + 0.02 * noise(rng, H / 5, W / 2)
    print_ = print_ * (1 + fibres[..., None]) * colours("fffaf0")[0]
    return finish(print_)


def pencil_wash(rng: Rng) -> Image.Image:
    """Muted watercolour washes that dried at their edges, hatched over in pencil."""
    x, y = pixel_grid()
    tooth = 0.6 * noise(rng, H / 2, W / 2) + 0.4 * noise(rng, H / 5, W / 5)
    sheet = colours("f5efe2")[0] * (1 + 0.02 * tooth[..., None])
    light = np.ones((H, W, 3), np.float32)
    contours = np.zeros((H, W), np.float32)
    lean = np.zeros((H, W), np.float32)
    fray = 0.004 * noise(rng, 40, 50) + 0.0025 * noise(rng, 150, 190)

    def wash(ink: Array, inside: Array, fade: Array | float, strength: float) -> None:
        """One transparent wash over `inside` > 0 (a distance in canvas heights)."""
        edge = inside + fray
        # Pigment gathers where the wash ends, and settles in the hollows of the paper.
        rim = np.exp(-(((edge - 0.003) / 0.0035) ** 2)) * (0.5 + 0.5 * np.asarray(fade))
        pool = 0.8 + 0.24 * noise(rng, 5, 7) + 0.12 * noise(rng, 28, 36) + 0.10 * tooth
        amount = np.clip(edge * 300, 0, 1) * np.clip(pool, 0.15, 1.5) * fade * strength
        np.multiply(light, ink ** (amount + 0.35 * rim)[..., None], out=light)

    blooms = colours("e2a58c", "e3c27c", "9db6c6", "c9a0a6", "8faec0", "e8b98f")
    for bloom in blooms:
        cx, cy = rng.uniform(0.05, 1.2), rng.uniform(0.0, 0.34)
        shape = 0.16 - np.hypot((x - cx) * rng.uniform(0.45, 0.8), (y - cy) * rng.uniform(1.2, 2.2))
        wash(bloom, shape + 0.05 * noise(rng, 5, 6), 0.8, 0.6)
    ranges = colours(
        "a3b4c4", "8fa6b8", "c49a92", "7f9aa0", "c8a266", "7e9a7c", "a9684f", "55786f", "46566a"
    )
    for layer, ink in enumerate(ranges):
        depth = layer / (len(ranges) - 1)
        bumps = noise(rng, 2, 4 + 3 * rng.random())[:1] * (0.040 + 0.02 * depth)
        rough = noise(rng, 2, 26)[:1] * 0.010 + noise(rng, 2, 120)[:1] * 0.003
        ridge = 0.24 + 0.62 * depth + bumps + rough
        below = y - ridge
        wash(ink, below, np.exp(-np.maximum(below, 0) / (0.11 + 0.06 * depth)), 0.75 + 0.2 * depth)
        contours = np.where(below > 0.002, contours * 0.25, contours)
        contours = np.maximum(contours, np.exp(-((below / 0.0022) ** 2)))
        lean = np.where(below > 0, 0.95 - 0.55 * (layer % 3), lean)
    washed = sheet * light

    # Hatching: darker where the washes are darker, its direction turning over the sheet.
    tone = 1 - blur(washed, 8).mean(axis=2)
    turn = lean + 0.11 * noise(rng, 6, 8)
    pencil = Image.new("L", (W, H), 0)
    draw = ImageDraw.Draw(pencil)
    for cross, threshold, count in ((0.0, 0.27, 9000), (0.55, 0.45, 7000), (1.6, 0.58, 6000)):
        spots = np.stack([rng.uniform(0, W, count), rng.uniform(0, H, count)], 1)
        dark = look_up(tone, spots)
        angles = look_up(turn, spots) + cross + 0.06 * rng.standard_normal(count)
        chosen = dark > np.maximum(0.16, threshold + 0.08 * rng.standard_normal(count))
        for (px, py), angle in zip(spots[chosen], angles[chosen], strict=True):
            reach, bow = rng.uniform(14, 46), rng.normal(0, 2.5)
            s = np.linspace(-1, 1, 7)
            along, aside = reach * s, bow * (1 - s * s)
            line_x = px + along * math.cos(angle) - aside * math.sin(angle)
            line_y = py + along * math.sin(angle) + aside * math.cos(angle)
            grey = int(rng.uniform(90, 230))
            draw.line([*zip(line_x, line_y, strict=True)], fill=grey, width=int(rng.integers(2, 4)))
    lead = np.asarray(pencil, np.float32) / 255
    lead = np.maximum(lead, 0.9 * contours * np.clip(0.8 + 0.5 * noise(rng, 30, 40), 0, 1))
    lead = lead * np.clip(0.80 + 0.35 * tooth, 0, 1)
    image = washed + 0.72 * lead[..., None] * (colours("34323a")[0] - washed)
    return finish(lit(image, tooth, 0.035))


# --- paintings of things -------------------------------------------------------------------------

INK = colours("12162c", "1d2440", "32203a", "16303c")  # what contours are drawn with


def ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> Array:
    """The outline of an ellipse (in canvas heights), in pixels."""
    t = np.linspace(0, 2 * math.pi, 90)
    u, v = rx * np.cos(t), ry * np.sin(t)
    cos, sin = math.cos(turn), math.sin(turn)
    return (np.stack([cx + u * cos - v * sin, cy + u * sin + v * cos], 1) * H).astype(np.float32)


def band(path: Array, width: float) -> Array:
    """The outline of a line of the given width (in pixels) along `path`."""
    way = np.gradient(path, axis=0)
    way = way / (np.hypot(way[:, :1], way[:, 1:]) + 1e-6)
    aside = 0.5 * width * np.stack([-way[:, 1], way[:, 0]], 1)
    outline: Array = np.concatenate([path + aside, (path - aside)[::-1], (path + aside)[:1]])
    return outline.astype(np.float32)


def planes(tone: Array, count: int, soft: float = 0.5) -> Array:
    """`tone` (0..1) in `count` flat steps, between which it turns quickly."""
    steps = tone * count
    low = np.floor(steps)
    turn = np.clip((steps - low - 0.5) / soft + 0.5, 0, 1)
    stepped: Array = ((low + turn) / count).astype(np.float32)
    return stepped


def vessel(
    canvas: Canvas,
    x0: float,
    profile: Sequence[tuple[float, float]],
    palette: Array,
    size: float = 0.75,
) -> None:
    """A turned pot whose half width at each height `profile` tells, seen a little from above."""
    x, y = pixel_grid()
    side = curve([(half, height) for height, half in profile], closed=False) / H
    t = np.linspace(0, math.pi, 40)[:, None]
    bow = np.concatenate([np.cos(t), 0.19 * np.sin(t)], 1)
    ends = [bow * side[k, 0] + (x0, side[k, 1]) for k in (0, -1)]
    axis = np.array([x0, 0])
    right, left = axis + side, axis + side[::-1] * (-1, 1)
    outline = np.concatenate([right, ends[1], left, ends[0][::-1], right[:1]]) * H
    half = np.interp(y[:, 0], side[:, 1], side[:, 0])[:, None] + 1e-3
    u = np.clip((x - x0) / half, -1, 1)
    light = 0.06 + 0.86 * np.clip(np.cos(1.25 * (u + 0.45)), 0, 1) ** 2 - 0.10 * (u < -0.85)
    light = light + 0.30 * np.exp(-(((u - 0.86) / 0.16) ** 2)) - 0.5 * (y - np.mean(side[:, 1]))
    tone = planes(np.clip(light + 0.06 * noise(canvas.rng, 9, 11), 0, 1), 5)
    bend = np.arctan2(np.gradient(half[:, 0], 1 / H)[:, None] * u, 1.0)
    canvas.fill(outline.astype(np.float32), palette, tone, math.pi / 2 - bend, size, 0.08, 1.2)
    canvas.contour(outline, 8, INK)
    n = len(side)
    shine = (axis + side * (-0.45, 1))[int(0.42 * n) : int(0.60 * n)] * H
    canvas.contour(shine, 9, palette[-1:].repeat(2, 0))


def fruit(canvas: Canvas, cx: float, cy: float, r: float, palette: Array) -> None:
    """A fruit in planes from the light to the shadow, with strokes that bend as they do."""
    x, y = pixel_grid()
    squash, turn = canvas.rng.uniform(0.88, 0.98), canvas.rng.uniform(-0.3, 0.3)
    nx, ny = (x - cx) / r, (y - cy) / (r * squash)
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
    light = 0.06 + 0.88 * np.clip(0.64 * nz - 0.50 * nx - 0.58 * ny, 0, 1) ** 1.15
    light = light + 0.26 * np.exp(-(((nx - 0.55) ** 2 + (ny - 0.74) ** 2) / 0.07))
    tone = planes(np.clip(light + 0.05 * noise(canvas.rng, 14, 18), 0, 1), 5)
    outline = ellipse(cx, cy, r, r * squash, turn)
    bend = np.arctan2(ny + 0.9, nx + 0.8) + math.pi / 2
    canvas.fill(outline, palette, tone, bend, 0.66, 0.06, 1.4)
    canvas.contour(outline, 7, INK)
    dot = np.array([[cx - 0.44 * r, cy - 0.46 * r], [cx - 0.28 * r, cy - 0.58 * r]]) * H
    canvas.stroke(dot.astype(np.float32), 0.20 * r * H, colours("fdf3dc")[0], 2.2, 0.05, 0.9)


def shadow(canvas: Canvas, cx: float, cy: float, rx: float, ry: float, palette: Array) -> None:
    """The shadow that a thing throws to the right on what it stands on."""
    canvas.fill(ellipse(cx, cy, rx, ry, -0.05), palette, 0.4, 0.0, 0.6, 0.25, 0.8)


def still_life(rng: Rng) -> Image.Image:
    """Fruit, a jug, a bottle and a bowl on a table with a cloth, modelled in planes of colour."""
    x, y = pixel_grid()
    canvas = Canvas(colours("8b7a62")[0], rng, 0.18, 0.08)
    wall = colours("2c4a63", "466f86", "6e97a0", "9cb6a9", "cdbf94")
    drape = colours("141a3a", "23305e", "2f5570", "4f7f76", "8a9a5a")
    wood = colours("5a2a18", "8e4a1e", "c47a2c", "e0a24a", "f0c878")
    linen = colours("4a5a8c", "7f93b8", "b9c4cf", "e6e0cc", "fbf5e4")
    everything = np.ones((H, W), np.float32)
    glow = 0.46 + 0.30 * (x - 0.6) - 0.25 * (y - 0.3) + 0.16 * noise(rng, 4, 6)
    hatch = 2.2 + 0.3 * planes(noise(rng, 5, 7), 2)
    tone = planes(np.clip(glow, 0, 1), 5)
    canvas.fill(everything, wall, tone, hatch, 1.6, 0.08, 0.8, reach=0.7)
    folds = np.sin(34 * (x + 0.10 * y) + 4 * y) * 0.5 + 0.5
    curtain = curve([(-0.1, -0.1), (0.27, -0.1), (0.25, 0.12), (0.20, 0.30), (0.24, 0.50),
                     (0.20, 0.70), (-0.1, 0.75)])  # fmt: skip
    canvas.fill(curtain, drape, planes(0.75 * folds + 0.05, 4), 1.5 + 0.2 * y, 1.2, 0.08)
    canvas.contour(curtain[16:96], 9, INK)
    table = corners((-0.1, 0.615), (1.35, 0.585), (1.35, 0.93), (-0.1, 0.955))
    canvas.fill(table, wood, 0.62 + 0.12 * noise(rng, 4, 5) - 0.25 * (x - 0.6), -0.03, 1.2, 0.12)
    apron = corners((-0.1, 0.945), (1.35, 0.92), (1.35, 1.1), (-0.1, 1.1))
    canvas.fill(apron, wood[:3], 0.25 + 0.1 * noise(rng, 3, 6), 0.0, 1.0, 0.2)
    canvas.contour(corners((-0.1, 0.615), (1.35, 0.585))[:2], 9, INK)
    canvas.contour(corners((-0.1, 0.95), (1.35, 0.925))[:2], 10, INK)
    _cloth(canvas, linen)
    _crockery(canvas)
    _harvest(canvas, wood, linen)
    return canvas.picture(strength=0.5, gloss=0.4, weave=0.16)


def _cloth(canvas: Canvas, linen: Array) -> None:
    """A white cloth thrown over the table, in facets of blue shadow and warm light."""
    x, y = pixel_grid()
    outline = curve([(0.22, 0.70), (0.36, 0.655), (0.60, 0.66), (0.84, 0.70), (0.93, 0.76),
                     (0.88, 0.86), (0.80, 0.93), (0.74, 1.04), (0.60, 1.10), (0.46, 1.06),
                     (0.36, 0.97), (0.24, 0.90), (0.16, 0.80)])  # fmt: skip
    edge = 0.945 - 0.02 * x
    fan = np.arctan2(x - 0.56, np.abs(y - 0.60) + 0.16)
    ramps = np.mod(np.where(y > edge, 9 * x, 2.3 * fan + 1.2 * y) + 0.25, 1.0)
    tone = 1.02 - 0.80 * ramps**1.4 - 0.16 * (y > edge) + 0.05 * noise(canvas.rng, 6, 8)
    angle = np.where(y > edge, 1.45, 1.2 - fan)
    canvas.fill(outline, linen, planes(np.clip(tone, 0, 1), 5), angle, 0.9, 0.06, 1.2)
    canvas.contour(outline, 7, INK)


def _crockery(canvas: Canvas) -> None:
    """The bottle, and the jug with its handle."""
    _, y = pixel_grid()
    glass = colours("0b1a1c", "123428", "1f5536", "4a8040", "a8b45c")
    glaze = colours("10203f", "17466c", "1f7688", "5fb0a4", "d4e3bd")
    vessel(canvas, 0.885, [(0.10, 0.024), (0.125, 0.031), (0.14, 0.024), (0.26, 0.026),
                           (0.33, 0.055), (0.38, 0.066), (0.55, 0.068), (0.635, 0.064),
                           (0.645, 0.03)], glass)  # fmt: skip
    handle = curve([(0.445, 0.245), (0.53, 0.235), (0.58, 0.31), (0.575, 0.40), (0.525, 0.46)],
                   closed=False)  # fmt: skip
    ring = band(handle, 32)
    canvas.fill(ring, glaze, 0.55 - 0.8 * (y - 0.33), 0.9, 0.4)
    canvas.contour(ring, 7, INK)
    vessel(canvas, 0.40, [(0.195, 0.088), (0.21, 0.082), (0.27, 0.062), (0.33, 0.075),
                          (0.42, 0.128), (0.50, 0.148), (0.58, 0.128), (0.65, 0.086),
                          (0.675, 0.088), (0.685, 0.04)], glaze)  # fmt: skip
    mouth = ellipse(0.40, 0.195, 0.088, 0.0167)
    canvas.fill(mouth, glaze[:3], 0.3, 0.0, 0.5)
    canvas.contour(mouth, 7, INK)


def _harvest(canvas: Canvas, wood: Array, linen: Array) -> None:
    """The bowl of oranges, and the fruit on the cloth and on the table."""
    china = colours("39508a", "6f8dbb", "aebfd0", "e3e3d8", "fffaf0")
    red = colours("3a0f2c", "7c1226", "bd1f24", "e2492a", "f29a48", "fbdc8a")
    orange = colours("5c2030", "a83a1a", "e06a16", "f5932a", "fbc050", "ffe9a0")
    green = colours("1f3a3c", "3f6a34", "79983a", "b3b845", "e0d468", "f8f0b0")
    yellow = colours("6a4a2c", "a87a1e", "dcae26", "f4cf3e", "fbe674", "fff8c8")
    shadow(canvas, 0.80, 0.715, 0.20, 0.030, colours("3a2a4a", "6a4a5c"))
    back = ellipse(0.70, 0.565, 0.186, 0.0353)
    canvas.fill(back, china[:3], 0.4, 0.0, 0.6)
    canvas.contour(back, 6, INK)
    for cx, cy, r, palette in (
        (0.70, 0.455, 0.064, yellow), (0.59, 0.515, 0.066, orange), (0.81, 0.515, 0.066, red),
        (0.665, 0.535, 0.068, red), (0.745, 0.535, 0.066, orange),
    ):  # fmt: skip
        fruit(canvas, cx, cy, r, palette)
    vessel(canvas, 0.70, [(0.565, 0.186), (0.61, 0.170), (0.66, 0.125), (0.70, 0.075),
                          (0.722, 0.078), (0.728, 0.03)], china)  # fmt: skip
    fruit(canvas, 1.075, 0.735, 0.062, green)
    shadow(canvas, 1.07, 0.80, 0.075, 0.022, wood[:2])
    vessel(canvas, 1.02, [(0.625, 0.014), (0.65, 0.030), (0.69, 0.040), (0.73, 0.068),
                          (0.77, 0.077), (0.80, 0.060), (0.812, 0.03)], yellow, 0.6)  # fmt: skip
    canvas.contour(curve([(1.02, 0.63), (1.035, 0.585)], closed=False), 7, INK)
    for cx, cy, r, palette, ground in (
        (0.12, 0.775, 0.066, orange, wood[:2]),
        (1.155, 0.80, 0.074, red, wood[:2]), (0.315, 0.765, 0.076, red, linen[:2]),
        (0.47, 0.775, 0.066, yellow, linen[:2]), (0.405, 0.835, 0.074, green, linen[:2]),
        (0.66, 0.835, 0.076, orange, linen[:2]),
    ):  # fmt: skip
        shadow(canvas, cx + 0.45 * r, cy + 0.72 * r, 1.15 * r, 0.38 * r, ground)
        fruit(canvas, cx, cy, r, palette)
        if palette is red or palette is green:
            stem = [(cx - 0.02 * r, cy - 0.62 * r), (cx + 0.1 * r, cy - 1.15 * r)]
            canvas.contour(curve(stem, closed=False), 6, INK)


@dataclass
class Pose:
    """Where a head is. Its own coordinates run from -1 to 1 across and down; `turn` leans it."""

    cx: float
    cy: float
    size: float
    turn: float

    def __call__(self, *points: tuple[float, float]) -> Array:
        """Points of the head, in canvas heights."""
        p = np.asarray(points, np.float32) * self.size
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        x, y = p[:, 0] * cos - p[:, 1] * sin, p[:, 0] * sin + p[:, 1] * cos
        placed: Array = np.stack([x + self.cx, y + self.cy], 1)
        return placed


def portrait(rng: Rng) -> Image.Image:
    """A woman who never was, in bold planes of green, pink, orange and violet."""
    canvas = Canvas(colours("b08a6a")[0], rng, 0.16, 0.05)
    head = Pose(0.605, 0.395, 0.272, 0.07)
    _room(canvas)
    _hair_behind(canvas, head)
    _shoulders(canvas, head)
    _face(canvas, head)
    for side in (-1, 1):
        _eye(canvas, head, side)
    _nose_and_mouth(canvas, head)
    _fringe(canvas, head)
    return canvas.picture(strength=0.5, gloss=0.4, weave=0.18)


def _room(canvas: Canvas) -> None:
    """Loose planes of colour behind the sitter."""
    sea = colours("0f5a5e", "188a80", "3fb39a", "8fd2b0", "d8ecc0")
    rose = colours("b2385e", "e0607a", "f08f8a", "f7b79a", "fbe0b8")
    plum = colours("3a2a6a", "5c4a9a", "8a72ba", "b8a0cc")
    sun = colours("c8501a", "ee8a22", "f8b83a", "fbdc78")
    loose = 0.5 + 0.22 * noise(canvas.rng, 5, 7)
    for outline, palette, angle in (
        (corners((-0.1, -0.1), (0.66, -0.1), (0.56, 0.5), (0.60, 1.1), (-0.1, 1.1)), sea, 2.1),
        (corners((0.60, -0.1), (1.35, -0.1), (1.35, 0.46), (0.56, 0.60)), rose, 0.9),
        (corners((0.56, 0.56), (1.35, 0.42), (1.35, 1.1), (0.56, 1.1)), sun, 2.4),
        (corners((-0.1, 0.62), (0.40, 0.70), (0.36, 1.1), (-0.1, 1.1)), plum, 0.5),
    ):  # fmt: skip
        canvas.fill(outline, palette, loose, angle, 1.9, 0.10, reach=0.8, edge=16)


HAIR = colours("0c0f2c", "1a1d52", "2c3a8c", "3f62b4", "7a5aa8")
SKIN = colours("a83a3a", "e0704e", "f49a6a", "f9c08a", "fce0a8", "fff3cf")
SHADE = colours("12403c", "1f6a52", "3f9462", "7cbc74", "b8d68a")


def _hair_behind(canvas: Canvas, head: Pose) -> None:
    """The mass of the hair, down to the shoulders."""
    x, y = pixel_grid()
    mass = curve(head((0.02, -1.20), (0.50, -1.12), (0.86, -0.78), (0.98, -0.25), (1.02, 0.30),
                      (1.12, 0.78), (0.98, 1.12), (0.55, 1.20), (-0.55, 1.15), (-0.92, 1.08),
                      (-1.06, 0.75), (-0.94, 0.30), (-0.90, -0.25), (-0.78, -0.80),
                      (-0.42, -1.10)))  # fmt: skip
    tone = np.clip(0.30 + 0.25 * np.sin(70 * np.abs(x - head.cx) + 5 * y), 0, 1)
    turn = np.arctan2(y - head.cy + 0.05, (x - head.cx) * 1.6) + math.pi / 2
    turn = np.where(y > head.cy + 0.05, 1.57 + 0.9 * (head.cx - x), turn)
    canvas.fill(mass, HAIR, planes(tone, 4), turn, 0.9, 0.08)
    canvas.contour(mass, 15, INK)


def _shoulders(canvas: Canvas, head: Pose) -> None:
    """The neck in shadow, and a red dress with a wide blue collar."""
    x, y = pixel_grid()
    dress = colours("6a0f2c", "a81a30", "d8302e", "ee5a34", "f78a4a")
    collar = colours("10286a", "1f4fa4", "3f86c8", "8fc4dc", "e6f0e0")
    nape = curve([(0.485, 0.56), (0.488, 0.66), (0.478, 0.735), (0.42, 0.79)], closed=False)
    throat = curve([(0.715, 0.56), (0.71, 0.66), (0.722, 0.735), (0.79, 0.785)], closed=False)
    neck = np.concatenate([nape, np.array([[0.62, 0.97]]) * H, throat[::-1]])
    body = curve([(0.47, 0.765), (0.34, 0.80), (0.20, 0.85), (0.11, 0.95), (0.07, 1.15),
                  (1.16, 1.15), (1.12, 0.96), (1.02, 0.85), (0.88, 0.80), (0.75, 0.765),
                  (0.62, 0.80)])  # fmt: skip
    sleeve = 0.55 - 0.45 * (x - 0.5) + 0.12 * np.sin(22 * (x - 0.3 * y))
    sleeve = sleeve + 0.06 * noise(canvas.rng, 5, 6)
    canvas.fill(body, dress, planes(np.clip(sleeve, 0, 1), 5), 1.1 + 1.2 * (x - 0.6), 1.5, 0.07)
    canvas.contour(body, 15, INK)
    canvas.fill(neck, SKIN, np.clip(0.55 - 1.6 * (x - 0.58), 0.1, 0.8), 1.4, 0.7)
    under = curve([(0.485, 0.60), (0.74, 0.57), (0.73, 0.80), (0.64, 0.76), (0.60, 0.70)])
    under = inside(under) * inside(neck)
    canvas.fill(under, SHADE, np.clip(0.55 - 2 * (x - 0.6), 0.15, 0.8), 1.2, 0.7, edge=9)
    for side in (nape, throat):
        canvas.contour(side, 12, INK)
    for points, tone in (
        ([(0.455, 0.755), (0.36, 0.80), (0.38, 0.90), (0.52, 0.985), (0.615, 0.93)], 0.62),
        ([(0.765, 0.755), (0.87, 0.80), (0.84, 0.90), (0.72, 0.985), (0.615, 0.93)], 0.36),
    ):  # fmt: skip
        lapel = corners(*points)
        canvas.fill(lapel, collar, tone + 0.1 * noise(canvas.rng, 8, 10), 0.7, 0.9, 0.12)
        canvas.contour(lapel, 12, INK)
    brooch = ellipse(0.615, 0.925, 0.030, 0.032)
    canvas.fill(brooch, colours("b8701a", "f0b02c", "fbe27a"), 0.9 - 6 * (y - 0.90), 0.8, 0.4)
    canvas.contour(brooch, 8, INK)


def _face(canvas: Canvas, head: Pose) -> None:
    """The planes of the face: warm where the light falls, green and violet where it does not."""
    x, y = pixel_grid()
    outline = curve(head((0.0, -0.92), (0.42, -0.82), (0.68, -0.48), (0.72, -0.05), (0.66, 0.32),
                         (0.50, 0.68), (0.24, 0.93), (0.02, 0.99), (-0.20, 0.93), (-0.46, 0.68),
                         (-0.63, 0.32), (-0.69, -0.05), (-0.66, -0.48),
                         (-0.42, -0.82)))  # fmt: skip
    violet = colours("5a3a86", "8a62b0", "c08cc0", "e8b4c0")
    pink = colours("d84a62", "ee7a7c", "f7a08e", "fbc4a4")
    lime = colours("e8d060", "f7e88a", "fff6c0")
    across, down = (x - head.cx) / head.size, (y - head.cy) / head.size
    warm = 0.66 - 0.22 * across - 0.10 * down + 0.05 * noise(canvas.rng, 9, 11)
    bend = np.arctan2(0.8 * down, across) + math.pi / 2
    canvas.fill(outline, SKIN, planes(np.clip(warm, 0, 1), 5), bend, 0.85, 0.06)
    facets = (
        # The side turned from the light: temple, cheek, jaw.
        (head((0.36, -0.86), (0.80, -0.5), (0.80, 0.0), (0.50, -0.14), (0.44, -0.45)),
         violet, 0.45),
        (head((0.48, -0.16), (0.80, -0.05), (0.72, 0.36), (0.52, 0.70), (0.40, 0.34)), SHADE, 0.52),
        (head((0.42, 0.38), (0.56, 0.66), (0.26, 0.96), (0.02, 1.02), (0.16, 0.82)), SHADE, 0.28),
        # The light side: forehead, cheek, chin.
        (head((-0.34, -0.76), (0.10, -0.78), (0.08, -0.36), (-0.34, -0.40)), lime, 0.45),
        (head((-0.64, 0.10), (-0.34, 0.08), (-0.22, 0.24), (-0.36, 0.50), (-0.56, 0.50)),
         pink, 0.40),
        (head((-0.66, -0.45), (-0.52, -0.42), (-0.58, 0.02), (-0.70, 0.02)), violet, 0.75),
        (head((-0.50, 0.56), (-0.26, 0.60), (-0.14, 0.92), (-0.28, 0.90)), SHADE, 0.85),
        (head((-0.10, 0.78), (0.10, 0.78), (0.08, 0.93), (-0.08, 0.93)), lime, 0.5),
        # The sockets of the eyes.
        (head((-0.56, -0.24), (-0.14, -0.22), (-0.12, 0.0), (-0.52, 0.06)), violet, 0.62),
        (head((0.12, -0.22), (0.54, -0.24), (0.52, 0.06), (0.14, 0.0)), SHADE, 0.38),
    )  # fmt: skip
    clip = inside(outline)
    for points, palette, tone in facets:
        plane = inside(curve(points)) * clip
        canvas.fill(plane, palette, tone, bend + 0.5, 0.75, 0.09, edge=9)
    canvas.contour(outline, 12, INK)


def _eye(canvas: Canvas, head: Pose, side: int) -> None:
    """One eye under its brow, as seen from the front; `side` is -1 for the left of the picture."""

    def at(*points: tuple[float, float]) -> Array:
        return head(*((side * u + 0.34 * side, v - 0.07) for u, v in points))

    white = colours("8fb0b8", "d8e4dc", "fdf8e8")
    iris = colours("0c3a4a", "167a86", "3fb8a0")
    almond = curve(at((-0.20, 0.045), (-0.13, -0.035), (0.0, -0.075), (0.13, -0.05), (0.21, 0.02),
                      (0.12, 0.08), (-0.02, 0.10), (-0.13, 0.08)))  # fmt: skip
    canvas.fill(almond, white, 0.72, 0.0, 0.3, 0.08)
    look = head((0.34 * side - 0.035, -0.075))[0]
    ball = inside(ellipse(look[0], look[1], 0.108 * head.size, 0.108 * head.size)) * inside(almond)
    canvas.fill(ball, iris, 0.5, 1.2, 0.25)
    pupil = ellipse(look[0], look[1], 0.046 * head.size, 0.05 * head.size)
    canvas.fill(pupil, INK[:2], 0.2, 0.0, 0.2)
    glint = (look + head.size * np.array([[-0.045, -0.04], [-0.02, -0.03]])) * H
    canvas.stroke(glint.astype(np.float32), 7, colours("ffffff")[0], 1.5, 0.0, 1.0)
    upper = curve(
        at((-0.22, 0.06), (-0.13, -0.04), (0.0, -0.08), (0.13, -0.055), (0.26, 0.0)), False
    )
    lower = curve(at((-0.13, 0.09), (-0.02, 0.115), (0.12, 0.09), (0.21, 0.02)), closed=False)
    fold = curve(at((-0.17, -0.07), (0.0, -0.145), (0.18, -0.11)), closed=False)
    brow = curve(at((-0.24, -0.22), (-0.10, -0.315), (0.08, -0.33), (0.27, -0.22)), closed=False)
    canvas.contour(upper, 10, INK)
    canvas.contour(lower, 5, colours("3a2040", "5a2a4a"))
    canvas.contour(fold, 5, colours("5a2a4a", "7a3a4a"))
    canvas.contour(band(brow, 6), 12, INK)


def _nose_and_mouth(canvas: Canvas, head: Pose) -> None:
    """The nose with its lit ridge and green side, and a closed red mouth."""
    lips = colours("7a1030", "b81e3a", "e2404a", "f4807a")
    green = curve(head((0.05, -0.26), (0.15, -0.12), (0.11, 0.18), (0.20, 0.34), (0.10, 0.40),
                       (0.03, 0.30), (0.04, 0.0)))  # fmt: skip
    ridge = curve(head((-0.03, -0.30), (0.05, -0.26), (0.05, 0.10), (0.06, 0.30), (-0.05, 0.33),
                       (-0.06, 0.05)))  # fmt: skip
    canvas.fill(green, SHADE, 0.35, 1.5, 0.45)
    canvas.fill(ridge, SKIN[3:], 0.6, 1.5, 0.45)
    canvas.contour(curve(head((0.10, -0.30), (0.07, -0.12), (0.07, 0.10), (0.11, 0.26),
                              (0.15, 0.34), (0.10, 0.40)), closed=False), 8, INK)  # fmt: skip
    canvas.contour(curve(head((-0.15, 0.36), (-0.17, 0.30), (-0.12, 0.24)), closed=False), 7, INK)
    canvas.contour(curve(head((-0.13, 0.375), (-0.06, 0.365), (0.0, 0.41), (0.07, 0.385),
                              (0.11, 0.385)), closed=False), 8, INK)  # fmt: skip
    upper = curve(head((-0.27, 0.635), (-0.12, 0.565), (-0.05, 0.555), (0.0, 0.58), (0.05, 0.555),
                       (0.13, 0.565), (0.27, 0.625), (0.10, 0.65), (0.0, 0.64),
                       (-0.10, 0.65)))  # fmt: skip
    lower = curve(head((-0.25, 0.64), (-0.10, 0.65), (0.0, 0.64), (0.10, 0.65), (0.25, 0.63),
                       (0.14, 0.735), (0.0, 0.765), (-0.14, 0.74)))  # fmt: skip
    below = curve(head((-0.14, 0.775), (0.0, 0.80), (0.16, 0.765), (0.08, 0.835), (-0.06, 0.84)))
    canvas.fill(below, SHADE, 0.55, 0.0, 0.4)
    canvas.fill(lower, lips, 0.68, 0.1, 0.4)
    canvas.fill(upper, lips, 0.22, 0.1, 0.4)
    canvas.contour(curve(head((-0.30, 0.625), (-0.10, 0.655), (0.0, 0.642), (0.10, 0.655),
                              (0.30, 0.615)), closed=False), 7, INK)  # fmt: skip
    canvas.contour(
        curve(head((-0.14, 0.765), (0.0, 0.79), (0.14, 0.76)), closed=False),
        6,
        colours("5a1a3a", "7a2a3a"),
    )


def _fringe(canvas: Canvas, head: Pose) -> None:
    """The hair that falls over the forehead from its parting, and down beside the cheeks."""
    x, y = pixel_grid()
    left = curve(head((0.16, -1.18), (-0.10, -0.80), (-0.40, -0.52), (-0.62, -0.28), (-0.67, 0.05),
                      (-0.62, 0.40), (-0.58, 0.72), (-0.66, 1.0), (-0.86, 1.08), (-1.04, 0.78),
                      (-0.95, 0.25), (-0.91, -0.35), (-0.76, -0.84), (-0.34, -1.14)))  # fmt: skip
    right = curve(head((0.12, -1.18), (0.24, -0.86), (0.48, -0.62), (0.64, -0.34), (0.70, 0.05),
                       (0.64, 0.42), (0.62, 0.76), (0.72, 1.06), (0.94, 1.12), (1.10, 0.80),
                       (1.01, 0.28), (0.97, -0.28), (0.84, -0.80), (0.48, -1.12)))  # fmt: skip
    across, down = (x - head.cx) / head.size, (y - head.cy) / head.size
    strand = np.where(down < 0, np.hypot(across, 0.9 * down), np.abs(across))
    shine = 0.36 + 0.28 * np.sin(34 * strand) + 0.10 * noise(canvas.rng, 9, 11)
    shine = shine + 0.40 * np.exp(-(((down + 0.75 - 0.3 * across**2) / 0.12) ** 2))
    for lock, way in ((left, -1), (right, 1)):
        turn = 1.57 - way * 1.15 * np.clip(-down + 0.1, 0, 0.9)
        canvas.fill(lock, HAIR, planes(np.clip(shine, 0, 1), 5), turn, 0.9, 0.08)
        canvas.contour(lock[: 16 * 6], 13, INK)


def facets(rng: Rng, count: int, fade: float = 0.16) -> tuple[NDArray[np.int64], Array]:
    """The cells between `count` lines, and their tones: sharp at a line, fading away from it."""
    x, y = pixel_grid()
    cells, tone = np.zeros((H, W), np.int64), np.zeros((H, W), np.float32)
    for _ in range(count):
        angle = rng.uniform(0, 2 * math.pi)
        cx, cy = rng.uniform(0, 1.25), rng.uniform(0, 1)
        far = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        tone += rng.choice([-1.0, 1.0]) * np.where(far > 0, np.exp(-far / fade), 0)
        cells = 2 * cells + (far > 0)
    numbered = np.unique(cells, return_inverse=True)[1].reshape(H, W)
    return numbered, tone


def rippled(rng: Rng, path: Array, level: float) -> Array:
    """A mask of `path` as the water shows it: drawn aside in waves, more so below `level`."""
    below = np.maximum(np.arange(H) / H - level, 0)
    wave = np.sin(np.arange(H) / H * 150 + 1.5 * noise(rng, 12, 2)[:, 0])
    aside = (W * (0.003 + 0.05 * below) * wave).astype(int)
    columns = np.clip(np.arange(W) + aside[:, None], 0, W - 1)
    mask = np.take_along_axis(inside(path), columns, 1)
    return mask * (noise(rng, 70, 9) > -1.9 + 6 * below[:, None])


def harbour(rng: Rng) -> Image.Image:
    """A harbour in the evening, in planes of colour: houses, masts, sails and their reflections."""
    canvas = Canvas(colours("c09a78")[0], rng, 0.08, 0.07)
    _sky_and_hills(canvas)
    _water(canvas)
    _houses(canvas)
    red = colours("5a1028", "b02030", "e8482e", "f68a4a")
    white = colours("6a84b0", "c8d4d8", "fff6e2")
    blue, green = colours("0e1f4a", "1f4a94", "3f8ac0"), colours("0f3a3c", "1f7a62", "6ab88a")
    cream = colours("8a8ab0", "e0c8b0", "fae6b8", "fffae6")
    rust = colours("7a2030", "c8442a", "f08030", "fbb85a")
    rose = colours("8a3a6a", "d8688a", "f4a8a0", "fcdcc4")
    _boat(canvas, 1.02, 0.640, 0.13, green, rose, 0.27)
    _boat(canvas, 0.205, 0.665, 0.16, blue, cream, 0.36)
    _boat(canvas, 0.66, 0.775, 0.26, red, rust, 0.56)
    _dinghy(canvas, 0.27, 0.90, white)
    return canvas.picture(strength=0.5, gloss=0.4, weave=0.2)


def _sky_and_hills(canvas: Canvas) -> None:
    """A sky from lemon to violet blue, and two ranges of hills."""
    rng = canvas.rng
    x, y = pixel_grid()
    sky = colours("5a78b8", "8fb0d0", "c8d0cc", "f6e2b0", "fbcf8a", "f6a878")
    cells, steps = facets(rng, 11)
    tone = 0.16 + 1.25 * y - 0.25 * np.abs(x - 0.75) + 0.20 * steps
    sun = np.hypot(x - 0.93, y - 0.15)
    everything = np.ones((H, W), np.float32)
    angle = rng.uniform(0, math.pi, cells.max() + 1)[cells]
    canvas.fill(everything, sky, np.clip(tone, 0, 1), angle, 1.5, 0.06, reach=0.8, cells=cells)
    disc = ellipse(0.93, 0.15, 0.058, 0.058)
    canvas.fill(disc, colours("f08030", "fbb040", "fdde7a"), 0.8 - 6 * sun, angle, 0.6)
    canvas.contour(disc, 7, colours("b8401e", "d8602a"))
    far = colours("4a4a94", "6f78b8", "98a4cc", "c4a8c0")
    near = colours("1f4a5a", "2f7a72", "68a878", "b0c07a")
    for points, palette in (
        ([(-0.1, 0.40), (0.10, 0.27), (0.22, 0.33), (0.42, 0.21), (0.60, 0.34), (0.80, 0.29),
          (1.02, 0.36), (1.20, 0.25), (1.40, 0.35)], far),
        ([(-0.1, 0.34), (0.06, 0.38), (0.30, 0.43), (0.62, 0.40), (0.84, 0.44), (1.06, 0.36),
          (1.35, 0.41)], near),
    ):  # fmt: skip
        hill = corners(*points, (1.40, 0.62), (-0.1, 0.62))
        cells, steps = facets(rng, 16)
        lean = rng.uniform(0, math.pi, cells.max() + 1)[cells]
        tone = np.clip(0.45 + 0.25 * steps, 0, 1)
        canvas.fill(hill, palette, tone, lean, 1.0, 0.07, cells=cells)
        canvas.contour(hill[: len(points)], 9, INK)


def _water(canvas: Canvas) -> None:
    """The water, darker towards us, with a path of light under the sun."""
    rng = canvas.rng
    x, y = pixel_grid()
    sea = colours("0f2f5a", "1f5a86", "2f8a9c", "6fb4ac", "b8d0b0", "f6dca0")
    cells, steps = facets(rng, 12)
    tone = 0.66 - 0.75 * (y - 0.58) + 0.20 * steps + 0.04 * noise(rng, 26, 6)
    tone = tone + 0.35 * np.exp(-(((x - 0.93 + 0.02 * np.sin(60 * y)) / 0.06) ** 2))
    lean = rng.uniform(-0.35, 0.35, cells.max() + 1)[cells]
    surface = corners((-0.1, 0.575), (1.35, 0.575), (1.35, 1.1), (-0.1, 1.1))
    canvas.fill(surface, sea, np.clip(tone, 0, 1), lean, 1.3, 0.07, cells=cells)


WALLS = (
    colours("8a4a7a", "d87a90", "f4b0a4", "fbd8c4"),
    colours("a84a2a", "e88a3a", "f8b85a", "fcdc94"),
    colours("7a6a94", "d0bca8", "f6e4bc", "fff6dc"),
    colours("1f4a7a", "3f86ac", "8cc0c4", "d0e4d0"),
    colours("7a2030", "c23a34", "ea6a44", "f49a68"),
    colours("8a6420", "d8a02c", "f4cc50", "fbe89a"),
)
ROOFS = (
    colours("5a1a2c", "a02f2c", "d85834"),
    colours("1f2a5a", "3a4a8c", "6a78b0"),
    colours("6a2a3a", "b0483a", "e8804a"),
)
PINK, ORANGE, CREAM, BLUE, RED, YELLOW = range(len(WALLS))
FOOT = 0.585  # where the houses stand, in canvas heights


def _houses(canvas: Canvas) -> None:
    """The quay: houses, a tower among them, and their colours in the water."""
    plan = (  # left, right, top of the wall, top of the roof, colour
        (-0.02, 0.10, 0.43, 0.36, PINK), (0.10, 0.20, 0.39, 0.33, ORANGE),
        (0.20, 0.33, 0.45, 0.37, CREAM), (0.33, 0.42, 0.41, 0.34, BLUE),
        (0.42, 0.50, 0.33, 0.15, CREAM), (0.50, 0.61, 0.44, 0.36, RED),
        (0.61, 0.73, 0.40, 0.32, YELLOW), (0.73, 0.83, 0.45, 0.38, PINK),
        (0.83, 0.95, 0.42, 0.35, ORANGE), (0.95, 1.06, 0.46, 0.39, BLUE),
        (1.06, 1.16, 0.41, 0.34, RED), (1.16, 1.28, 0.45, 0.37, YELLOW),
    )  # fmt: skip
    for number, (left, right, eaves, top, wall) in enumerate(plan):
        _house(canvas, (left, right, eaves, top), WALLS[wall], ROOFS[number % 3])
    quay = _box(-0.1, FOOT - 0.004, 1.35, FOOT + 0.016)
    canvas.fill(quay, colours("4a3a5a", "8a6a6a", "d0a888"), 0.6, 0.0, 0.5, 0.2)
    canvas.contour(quay[2:4], 8, INK)


def _box(left: float, top: float, right: float, bottom: float) -> Array:
    """The outline of an upright rectangle."""
    return corners((left, top), (right, top), (right, bottom), (left, bottom))


def _house(
    canvas: Canvas, place: tuple[float, float, float, float], wall: Array, roof: Array
) -> None:
    """A house with a light and a dark side, its roof, its windows and its reflection."""
    rng, (left, right, eaves, top) = canvas.rng, place
    x, _ = pixel_grid()
    grain = 0.1 * noise(rng, 20, 25)
    middle, peak = left + 0.62 * (right - left), 0.5 * (left + right)
    mirror = rippled(rng, _box(left, FOOT, right, 2 * FOOT - eaves + 0.02), FOOT)
    canvas.fill(mirror, toned(wall[:3], 0.14), 0.6, 0.0, 0.6, 0.2, 0.8, edge=5)
    light, dark = _box(left, eaves, middle, FOOT), _box(middle, eaves, right, FOOT)
    canvas.fill(light, wall, 0.72 + grain, 1.5, 0.7, 0.08)
    canvas.fill(dark, wall, 0.16 + grain, 1.3, 0.7, 0.08)
    tiles = corners((left - 0.006, eaves), (peak - 0.02, top), (peak + 0.02, top),
                    (right + 0.006, eaves))  # fmt: skip
    canvas.fill(tiles, roof, 0.75 - 0.5 * (x > peak), np.where(x > peak, 0.9, 2.2), 0.6, 0.12)
    for line in (light, tiles, dark[1:3]):
        canvas.contour(line, 6, INK)
    for row in np.arange(eaves + 0.022, FOOT - 0.04, 0.047):
        for share in (0.14, 0.42, 0.76):
            across = left + share * (right - left)
            window = _box(across, row, across + 0.015, row + 0.024)
            canvas.fill(window, colours("14204a", "2a4a7a", "6a94a8"), 0.3, 1.5, 0.25, 0.3)


def toned(palette: Array, share: float) -> Array:
    """`palette` as it looks in the water, which takes a `share`."""
    mixed: Array = ((1 - share) * palette + share * colours("1f5a86")[0]).astype(np.float32)
    return mixed


def _sails(cx: float, base: float, long: float, height: float) -> tuple[Array, Array]:
    """The mainsail and the jib of a boat; `height` is less than 0 in the water."""

    def at(*points: tuple[float, float]) -> Array:
        return curve([(cx + u * long, base - v * height) for u, v in points])

    main = at((0.04, 0.0), (0.04, 0.55), (0.05, 1.0), (0.08, 1.0), (0.34, 0.55), (0.58, 0.05),
              (0.56, 0.0))  # fmt: skip
    jib = at((-0.06, 0.05), (-0.06, 0.45), (-0.05, 0.80), (-0.26, 0.40), (-0.60, -0.02),
             (-0.25, -0.01))  # fmt: skip
    return main, jib


def _boat(
    canvas: Canvas, cx: float, cy: float, long: float, hull: Array, sail: Array, tall: float
) -> None:
    """A sailing boat on the water line `cy`, and its reflection."""
    rng = canvas.rng
    x, y = pixel_grid()
    deep, side = 0.20 * long, cx + 0.16 * long
    ripple = 0.5 + 0.35 * np.sin(150 * y + 5 * np.sin(14 * x))
    for shape in _sails(cx, cy + 0.62 * (deep + 0.012), long, -0.62 * tall):
        canvas.fill(rippled(rng, shape, cy), toned(sail, 0.18), ripple, 0.0, 0.6, edge=5)
    glass = curve([(cx - 0.58 * long, cy), (cx + 0.60 * long, cy),
                   (cx + 0.44 * long, cy + 1.3 * deep),
                   (cx - 0.40 * long, cy + 1.3 * deep)])  # fmt: skip
    canvas.fill(glass, toned(hull, 0.3), 0.6 * ripple, 0.0, 0.6, edge=7)
    sails = _sails(cx, cy - deep - 0.012, long, tall)
    for shape, lean, bright in zip(sails, (1.25, 1.9), (0.82, 0.45), strict=True):
        tone = bright - 0.40 * (x > side + 0.25 * (y - cy)) + 0.14 * facets(rng, 10, 0.06)[1]
        canvas.fill(shape, sail, np.clip(tone, 0, 1), lean, 0.85, 0.06, 1.2)
        canvas.contour(shape, 8, INK)
    body = curve([(cx + u * long, cy + v * deep) for u, v in (
        (-0.66, -1.25), (-0.30, -0.92), (0.30, -0.92), (0.64, -1.15), (0.50, -0.1), (0.3, 0.05),
        (-0.36, 0.05), (-0.54, -0.25))])  # fmt: skip
    shade = 0.85 - 0.55 * (y > cy - 0.55 * deep) - 0.3 * (x > side)
    canvas.fill(body, hull, np.clip(shade, 0, 1), 0.05, 0.6, 0.08, 1.2)
    canvas.contour(body, 9, INK)
    bow, top = (cx - 0.66 * long, cy - 1.25 * deep), (cx + 0.004, cy - deep - 1.10 * tall)
    canvas.contour(curve([(cx, cy - 0.5 * deep), top], closed=False), 9, INK)
    canvas.contour(curve([top, bow], closed=False), 4, INK)


def _dinghy(canvas: Canvas, cx: float, cy: float, paint: Array) -> None:
    """A rowing boat in front, seen from above, at its mooring."""
    _, y = pixel_grid()
    below = curve(
        [(cx - 0.14, cy + 0.01), (cx + 0.15, cy), (cx + 0.08, cy + 0.07), (cx - 0.09, cy + 0.07)]
    )
    canvas.fill(below, colours("0f2448", "1f4468", "6a94a8"), 0.35, 0.0, 0.8, 0.2, edge=8)
    hull = curve([(cx - 0.17, cy - 0.050), (cx - 0.05, cy - 0.028), (cx + 0.10, cy - 0.040),
                  (cx + 0.18, cy - 0.075), (cx + 0.14, cy + 0.005), (cx + 0.05, cy + 0.035),
                  (cx - 0.08, cy + 0.035), (cx - 0.14, cy + 0.005)])  # fmt: skip
    well = curve([(cx - 0.17, cy - 0.050), (cx - 0.06, cy - 0.070), (cx + 0.08, cy - 0.080),
                  (cx + 0.18, cy - 0.075), (cx + 0.10, cy - 0.040),
                  (cx - 0.05, cy - 0.028)])  # fmt: skip
    canvas.fill(hull, paint, np.where(y > cy, 0.25, 0.80), 0.05, 0.6, 0.08)
    canvas.contour(hull, 9, INK)
    canvas.fill(well, colours("5a2a1e", "a0562a", "d8924a"), 0.35, 0.1, 0.5, 0.15)
    canvas.contour(well, 8, INK)
    for share in (-0.06, 0.05):
        bench = corners((cx + share, cy - 0.072), (cx + share + 0.025, cy - 0.074),
                        (cx + share + 0.035, cy - 0.036),
                        (cx + share + 0.01, cy - 0.034))  # fmt: skip
        canvas.fill(bench, colours("d8924a", "f6cc84"), 0.5, 1.4, 0.35)
        canvas.contour(bench, 5, INK)


PICTURES: dict[str, tuple[int, Callable[[Rng], Image.Image]]] = {
    "night-strokes": (1889, night_strokes),
    "mosaic": (547, mosaic),
    "woodcut-waves": (1831, woodcut_waves),
    "ember-sky": (1893, ember_sky),
    "pencil-wash": (1905, pencil_wash),
    "still-life": (1895, still_life),
    "portrait": (1905, portrait),
    "harbour": (1906, harbour),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the named pictures, or all of them."""
    parser = argparse.ArgumentParser(description="Draw the style pictures of the examples.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(PICTURES)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(PICTURES))
    if unknown:
        parser.error(f"no picture is called {', '.join(unknown)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or PICTURES:
        seed, draw = PICTURES[name]
        path = options.out / f"{name}.jpg"
        draw(np.random.default_rng(seed)).save(path, quality=QUALITY, optimize=True)
        print(f"{path} {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
