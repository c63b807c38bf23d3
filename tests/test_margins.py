"""Margins: found to a pixel or two where there is one, and no painting cropped that has none."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stylize.margins import Box, margin_note, painted_area

SHIPPED = sorted((Path(__file__).parent.parent / "manifests" / "images").glob("*.jpg"))
RUN_INTO = {("hopper", (3, 3, 3)), ("camera", (226, 208, 170))}
"""A picture that has the margin's colour along most of a side, which then keeps its margin."""
WHITE, BLACK, PAPER = (255, 255, 255), (3, 3, 3), (226, 208, 170)
Colour = tuple[int, int, int]


def image(pixels: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def plain(height: int, width: int, colour: Colour, noise: float = 0) -> NDArray[np.floating]:
    """An area of one colour, with noise of that many levels."""
    normal = np.random.default_rng(height + width).normal(0, noise, (height, width, 3))
    return np.array(colour) + normal


def daubs(height: int = 300, width: int = 400, seed: int = 0) -> Image.Image:
    """A painting: daubs of all colours, up to every edge."""
    rng = random.Random(seed)
    picture = Image.new("RGB", (width, height), (90, 80, 120))
    draw = ImageDraw.Draw(picture)
    for _ in range(width * height // 150):
        x, y = rng.uniform(-20, width), rng.uniform(-20, height)
        colour = tuple(rng.randrange(30, 226) for _ in range(3))
        draw.ellipse((x, y, x + rng.uniform(8, 40), y + rng.uniform(8, 40)), fill=colour)
    return picture


def framed(
    painting: Image.Image, widths: Box, colour: Colour, noise: float = 0, drift: float = 0
) -> tuple[Image.Image, Box]:
    """The painting with margins so wide (left, top, right, bottom), and the box it lies in.

    The margin gets lighter from left to right by twice `drift` levels.
    """
    left, top, right, bottom = widths
    width, height = painting.width + left + right, painting.height + top + bottom
    paper = plain(height, width, colour, noise) + np.linspace(-drift, drift, width)[None, :, None]
    picture = image(paper)
    picture.paste(painting, (left, top))
    return picture, (left, top, left + painting.width, top + painting.height)


def jpeg(picture: Image.Image, quality: int = 80) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def lost(picture: Image.Image, box: Box) -> list[int]:
    """How many pixels of the painting in that box are cut off at each side; less than 0: margin."""
    got = painted_area(picture)
    return [got[0] - box[0], got[1] - box[1], box[2] - got[2], box[3] - got[3]]


def is_whole(picture: Image.Image) -> bool:
    return painted_area(picture) == (0, 0, *picture.size)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_pictures_without_margins_stay_whole(path: Path) -> None:
    picture = Image.open(path).convert("RGB")
    assert is_whole(picture)
    rng = random.Random(path.stem)
    for _ in range(10):
        width, height = rng.randint(80, picture.width), rng.randint(80, picture.height)
        x, y = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
        assert is_whole(picture.crop((x, y, x + width, y + height))), (x, y, width, height)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("colour", [WHITE, BLACK, PAPER], ids=["white", "black", "paper"])
def test_a_margin_all_round_is_found(path: Path, colour: Colour) -> None:
    picture, box = framed(Image.open(path).convert("RGB"), (20, 33, 51, 60), colour, 3, 5)
    runs_into_it = (path.stem, colour) in RUN_INTO
    for scan in (picture, jpeg(picture)):
        cuts = lost(scan, box)
        assert all(cut <= 4 for cut in cuts), cuts
        assert runs_into_it or min(cuts) >= 0, cuts
        assert not runs_into_it or sum(cut < 0 for cut in cuts) == 1, cuts


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("width", [3, 9, 20])
@pytest.mark.parametrize("colour", [WHITE, BLACK], ids=["white", "black"])
def test_a_margin_at_one_side_is_found(side: int, width: int, colour: Colour) -> None:
    widths = [0] * 4
    widths[side] = width
    picture, box = framed(daubs(seed=side), (widths[0], widths[1], widths[2], widths[3]), colour)
    cuts = lost(jpeg(picture, 90), box)
    assert 0 <= cuts.pop(side) <= 3
    assert cuts == [0, 0, 0]


@pytest.mark.parametrize("widths", [(60, 0, 70, 0), (0, 20, 0, 60), (15, 0, 15, 20), (9, 9, 0, 0)])
def test_margins_at_some_sides_are_found(widths: Box) -> None:
    picture, box = framed(daubs(), widths, WHITE, 1)
    cuts = lost(jpeg(picture), box)
    assert all(0 <= cut <= (3 if width else 0) for cut, width in zip(cuts, widths, strict=True))


@pytest.mark.parametrize("text", ["Fig. 7", "Plate XXI. Woman with a Hat. Oil on canvas, 1905"])
def test_a_caption_goes_with_its_margin(text: str) -> None:
    picture, box = framed(daubs(), (20, 20, 20, 60), (252, 252, 250), 1)
    at = picture.width / 2, box[3] + 30
    font = ImageFont.load_default(14)
    ImageDraw.Draw(picture).text(at, text, fill=(30, 30, 30), font=font, anchor="mm")
    assert all(0 <= cut <= 4 for cut in lost(jpeg(picture), box))


@pytest.mark.parametrize("scale", [1, 3])
def test_frames_within_margins_go_too(scale: int) -> None:
    picture = daubs(300 * scale, 400 * scale)
    box = (0, 0, *picture.size)
    for width, colour in ((10, PAPER), (1, BLACK), (30, PAPER)):
        width *= scale
        picture, inner = framed(picture, (width,) * 4, colour, 1)
        box = (box[0] + inner[0], box[1] + inner[1], box[2] + inner[0], box[3] + inner[1])
    assert all(0 <= cut <= 4 for cut in lost(jpeg(picture, 88), box))


def test_a_sheet_laid_askew_leaves_no_wedge() -> None:
    picture, box = framed(daubs(600, 800), (60, 60, 60, 60), WHITE)
    picture = picture.rotate(0.3, Image.Resampling.BICUBIC, fillcolor=WHITE)
    assert all(0 <= cut <= 10 for cut in lost(picture, box))


def test_dust_in_a_margin_does_not_hide_it() -> None:
    picture, box = framed(daubs(), (40, 40, 40, 40), WHITE)
    draw, rng = ImageDraw.Draw(picture), random.Random(0)
    for _ in range(20):
        x, y = rng.randrange(picture.width), rng.choice([rng.randrange(38), picture.height - 20])
        draw.rectangle((x, y, x + 1, y + 1), fill=BLACK)
    assert all(0 <= cut <= 3 for cut in lost(picture, box))


def test_a_strip_painted_down_one_side_is_found() -> None:
    painting = image(plain(500, 400, (40, 50, 60)))
    draw = ImageDraw.Draw(painting)
    for y in range(0, 500, 50):  # as wide as the picture: dark and light meet the strip in turn
        draw.rectangle((0, y, 400, y + 25), fill=(210, 190, 140))
    strip = plain(500, 16, (190, 75, 40), 12) + np.linspace(-20, 20, 500)[:, None, None]
    picture = image(np.concatenate([np.asarray(painting), strip], axis=1))
    left, top, right, bottom = painted_area(picture)
    assert (left, top, bottom) == (0, 0, 500)
    assert 388 <= right <= 400
    assert is_whole(picture.rotate(90, expand=True))  # the same below or above: sky, or a floor


def sky(share: float, colour: Colour, sea: Colour, noise: float) -> Image.Image:
    """A plain sky over the straight horizon of a sea."""
    pixels = plain(300, 420, sea, noise)
    above = int(300 * share)
    pixels[:above] = plain(above, 420, colour, 1)
    return image(pixels)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.24])
@pytest.mark.parametrize("colour", [WHITE, (150, 185, 225), (10, 12, 20)])
def test_a_sky_is_no_margin(share: float, colour: Colour) -> None:
    for noise in (2, 8):
        assert is_whole(sky(share, colour, (90, 110, 125), noise))
    skyline = sky(share, colour, (90, 110, 125), 30)  # houses: anything but even
    ImageDraw.Draw(skyline).polygon([(200, 0), (180, 90), (220, 90)], fill=(60, 40, 40))
    assert is_whole(skyline)


def squares(seed: int, bars: bool) -> Image.Image:
    """Flat fields of colour: with black bars between them, or squares in squares."""
    rng = random.Random(seed)
    colours = [tuple(rng.randrange(40, 220) for _ in range(3)) for _ in range(16)]
    picture = Image.new("RGB", (400, 400), colours[0])
    draw = ImageDraw.Draw(picture)
    if not bars:
        for i in (1, 2, 3):
            draw.rectangle((40 * i, 50 * i, 400 - 40 * i, 400 - 20 * i), fill=colours[i])
        return picture
    columns, rows = (sorted(rng.sample(range(15, 385), 3)) for _ in range(2))
    for i, x in enumerate([0, *columns]):
        for j, y in enumerate([0, *rows]):
            draw.rectangle((x, y, 400, 400), fill=colours[4 * i + j])
    for at in (*columns, *rows):
        box = (at - 3, 0, at + 3, 400) if at in columns else (0, at - 3, 400, at + 3)
        draw.rectangle(box, fill=BLACK)
    return picture


@pytest.mark.parametrize("bars", [True, False])
def test_flat_fields_of_colour_stay_whole(bars: bool) -> None:
    assert all(is_whole(squares(seed, bars)) for seed in range(10))


def test_a_vignette_stays_whole() -> None:
    y, x = np.mgrid[-1:1:300j, -1:1:400j]
    light = np.clip(1.3 - 0.9 * (x**2 + y**2), 0, 1)[..., None]
    assert is_whole(image(np.asarray(daubs()) * light))


def test_a_figure_on_a_plain_ground_stays_whole() -> None:
    picture = image(plain(400, 300, (25, 22, 20), 1))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((90, 60, 210, 240), fill=(200, 160, 130))
    draw.rectangle((50, 250, 250, 400), fill=(90, 40, 40))
    assert is_whole(picture)


@pytest.mark.parametrize("size", [(16, 16), (40, 500), (64, 64), (64, 3000), (500, 400)])
def test_even_and_tiny_pictures_stay_whole(size: tuple[int, int]) -> None:
    assert is_whole(Image.new("RGB", size, (9, 200, 9)))
    assert is_whole(image(np.random.default_rng(0).uniform(0, 255, (size[1], size[0], 3))))


def test_what_is_left_is_never_small() -> None:
    for width in (140, 300):
        picture, _ = framed(daubs(60, 80), (width,) * 4, WHITE)
        left, top, right, bottom = painted_area(picture)
        assert 2 * (right - left) >= picture.width
        assert 2 * (bottom - top) >= picture.height


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_are_read(mode: str) -> None:
    picture, box = framed(daubs(), (30, 30, 30, 30), WHITE)
    assert all(0 <= cut <= 4 for cut in lost(picture.convert(mode), box))


def test_the_note_names_the_sides_that_lose_something() -> None:
    assert margin_note((100, 80), (0, 0, 88, 80)) == "12 px right"
    assert margin_note((100, 80), (3, 2, 100, 79)) == "3 px left, 2 px top, 1 px bottom"
    assert margin_note((100, 80), (0, 0, 100, 80)) == ""
