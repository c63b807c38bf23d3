"""Draw the style pictures of the examples: `python manifests/draw_styles.py`.

Style transfer reads a style through Gram matrices: which features occur together, at five scales,
wherever they are. A good style picture is therefore rich at every scale at once (bristles, strokes,
large shapes) and holds one harmony of colours. Each picture here is painted with that in mind, at
twice its size, then reduced. Only NumPy and Pillow are needed, and nothing is read: the same
versions of the two libraries give the same pictures every time.

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
from PIL import Image, ImageDraw

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

    def __init__(self, ground: Array, rng: Rng) -> None:
        """Prime the canvas with the colour `ground` and cut the prints of the brushes."""
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
        self, path: Array, width: float, colour: Array, body: float, contrast: float, cover: float
    ) -> None:
        """Lay one stroke along `path` (n by x, y).

        `body` is how thick the paint is, `contrast` how much the bristles differ in tone,
        `cover` how far the stroke hides what is below.
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
    ) -> None:
        """Many strokes that follow `field` through `seeds`, each with its row of `paint`."""
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
            self.stroke(path, widths[i], paint[i], body, contrast, cover)

    def seeds(self, spacing: float) -> Array:
        """Points all over the canvas, about `spacing` apart, in random order."""
        y, x = np.mgrid[-spacing : H + spacing : spacing, -spacing : W + spacing : spacing]
        points = np.stack([x.ravel(), y.ravel()], 1)
        points += self.rng.uniform(-0.6, 0.6, points.shape) * spacing
        return self.rng.permutation(points).astype(np.float32)

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


PICTURES: dict[str, tuple[int, Callable[[Rng], Image.Image]]] = {
    "night-strokes": (1889, night_strokes),
    "mosaic": (547, mosaic),
    "woodcut-waves": (1831, woodcut_waves),
    "ember-sky": (1893, ember_sky),
    "pencil-wash": (1905, pencil_wash),
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
