"""Pictures: each kind of file comes out as a person sees it in a viewer, or is refused clearly."""

import io
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, features

from stylize.config import FORMATS
from stylize.errors import ImageReadError, ImageSizeError
from stylize.image import (
    Limits,
    check_header,
    decode,
    encode,
    fit,
    is_whole,
    match_size,
    own_limits,
    read_metadata,
    style_size,
    to_image,
    to_tensor,
    upright_size,
)

IMAGES = Path(__file__).parent.parent / "manifests" / "images"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    """24x16 in four flat quarters: red, green / blue, white."""
    image = Image.new("RGB", (24, 16), RED)
    image.paste(GREEN, (12, 0, 24, 8))
    image.paste(BLUE, (0, 8, 12, 16))
    image.paste(WHITE, (12, 8, 24, 16))
    return image


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def quarters(image: Image.Image) -> list[tuple[int, int, int]]:
    """Colours in the middles of top left, top right, bottom left, bottom right."""
    w, h = image.size
    assert image.mode == "RGB"
    return [
        cast(tuple[int, int, int], image.getpixel((x, y)))
        for y in (h // 4, 3 * h // 4)
        for x in (w // 4, 3 * w // 4)
    ]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, data: bytes, *extra: bytes) -> bytes:
    """A PNG file by its specification; `data` are raw rows, each after a filter byte of 0."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


# Kinds of pictures


def test_an_ordinary_picture_is_left_as_it_is() -> None:
    image = noise()
    assert decode(saved(image, "PNG")).tobytes() == image.tobytes()


def test_sixteen_bit_grey_is_brought_to_eight() -> None:
    # 65535 -> 255 by a division by 257: 0 -> 0, 257 -> 1, 32896 = 128 * 257 -> 128. What is
    # between rounds: 385 -> 1.498 -> 1, 386 -> 1.502 -> 2.
    values = np.zeros((16, 16), dtype=np.uint16)
    values[0, :6] = [0, 257, 32896, 65535, 385, 386]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    image = decode(png(16, 16, 16, 0, rows))
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(6)] == [(v,) * 3 for v in (0, 1, 128, 255, 1, 2)]


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_sixteen_bit_grey_files_of_pillow_too(kind: str) -> None:
    values = np.full((16, 16), 128 * 257, dtype=np.uint16)
    assert decode(saved(Image.fromarray(values), kind)).getpixel((3, 3)) == (128, 128, 128)


def test_sixteen_bit_colour_is_brought_to_eight() -> None:
    row = b"\0" + struct.pack(">3H", 65535, 32896, 0) * 16
    pixel = decode(png(16, 16, 16, 2, row * 16)).getpixel((5, 5))
    assert pixel == (255, 128, 0)


def test_a_palette_gives_its_colours_and_its_transparent_entry_is_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(2, (8, 0, 16, 16))
    assert decode(saved(image, "PNG")).getpixel((0, 0)) == GREEN
    clear = decode(saved(image, "PNG", transparency=2))
    assert (clear.getpixel((0, 0)), clear.getpixel((12, 0))) == (GREEN, WHITE)
    gif = decode(saved(image, "GIF", transparency=2))
    assert (gif.getpixel((0, 0)), gif.getpixel((12, 0))) == (GREEN, WHITE)


def test_a_palette_with_half_transparent_entries_is_laid_on_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([*RED, 0, 0, 0])
    # Black at alpha 51/255 = 0.2 on white: 0.8 * 255 = 204.
    data = saved(image, "PNG", transparency=bytes([255, 51]))
    assert decode(data).getpixel((0, 0)) == (204, 204, 204)


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (16, 16), (100, 0, 200, 0))
    image.paste((100, 0, 200, 255), (4, 0, 8, 16))
    image.paste((0, 0, 0, 51), (8, 0, 16, 16))
    for kind in ("PNG", "TIFF"):
        row = decode(saved(image, kind))
        assert row.getpixel((0, 0)) == WHITE
        assert row.getpixel((4, 0)) == (100, 0, 200)
        assert row.getpixel((8, 0)) == (204, 204, 204)  # 0.8 * 255
    assert row.mode == "RGB"


def test_grey_with_and_without_alpha() -> None:
    assert decode(saved(Image.new("L", (16, 16), 77), "JPEG")).getpixel((8, 8)) == (77, 77, 77)
    image = Image.new("LA", (16, 16), (0, 51))
    assert decode(saved(image, "PNG")).getpixel((0, 0)) == (204, 204, 204)


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (16, 16), 0)
    image.paste(1, (8, 0, 16, 16))
    for kind in ("PNG", "TIFF"):
        out = decode(saved(image, kind))
        assert (out.getpixel((0, 0)), out.getpixel((8, 0))) == ((0, 0, 0), WHITE)


def test_float_pictures_in_zero_to_one_or_in_bytes() -> None:
    half = Image.fromarray(np.full((16, 16), 0.5, dtype=np.float32))
    assert decode(saved(half, "TIFF")).getpixel((0, 0)) == (128, 128, 128)  # 127.5, to even
    bytes_ = Image.fromarray(np.full((16, 16), 77.0, dtype=np.float32))
    assert decode(saved(bytes_, "TIFF")).getpixel((0, 0)) == (77, 77, 77)
    beyond = Image.fromarray(np.linspace(0, 1.0001, 256, dtype=np.float32).reshape(16, 16))
    assert decode(saved(beyond, "TIFF")).getextrema() == ((0, 255),) * 3


def test_cmyk_jpegs_have_their_colours_and_are_not_inverted() -> None:
    # Without a profile R = 255 (1 - C)(1 - K): paper is white, full cyan has no red, and 40 % black
    # alone is grey of 0.6 * 255 = 153.
    image = Image.new("CMYK", (32, 32), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (16, 0, 32, 16))
    image.paste((0, 0, 0, 102), (0, 16, 16, 32))
    image.paste((0, 255, 255, 0), (16, 16, 32, 32))
    data = saved(image, "JPEG", quality=100, subsampling=0)
    wanted = [WHITE, (0, 255, 255), (153, 153, 153), RED]
    got = quarters(decode(data))
    # JPEG at quality 100 keeps flat colours to a unit or two.
    assert np.abs(np.array(got) - np.array(wanted)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    upright = corners()
    # How the EXIF standard says that the stored rows and columns lie in the visible picture
    # (first row is at, first column is at): the stored picture is the inverse of the turn.
    array = np.asarray(upright)
    stored = {
        1: array,  # top, left
        2: array[:, ::-1],  # top, right
        3: array[::-1, ::-1],  # bottom, right
        4: array[::-1],  # bottom, left
        5: array.transpose(1, 0, 2),  # left, top
        6: np.rot90(array, 1),  # right, top: turned clockwise to be seen, so stored turned back
        7: array[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: np.rot90(array, -1),  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        options: dict[str, dict[str, Any]] = {
            "JPEG": {"quality": 100, "subsampling": 0},
            "WEBP": {"lossless": True},
        }
        picture = Image.fromarray(np.ascontiguousarray(stored))
        out = decode(saved(picture, kind, exif=exif, **options.get(kind, {})))
        assert out.size == (24, 16), kind
        assert np.abs(np.array(quarters(out)) - np.array(quarters(upright))).max() <= 2, kind


def test_a_turned_pictures_header_is_as_stored_and_its_pixels_are_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(noise(64, 32), "JPEG", exif=exif)
    assert check_header(data) == (64, 32)
    assert decode(data).size == (32, 64)


def matrix_profile(columns: list[tuple[float, float, float]], gamma: float) -> bytes:
    """An ICC display profile by its specification: three colorants (XYZ, D50) and a gamma.
    Without colorants it is one of greys."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(fixed(v) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(4 + 4 + 2 + 1 + 67)
    tags = [
        (b"desc", text + bytes(-len(text) % 4)),
        (b"cprt", b"text\0\0\0\0none\0\0\0\0"),
        (b"wtpt", xyz((0.9642, 1.0, 0.8249))),
        *[(name, xyz(c)) for name, c in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=False)],
        *[(name, curve) for name in ((b"rTRC", b"gTRC", b"bTRC") if columns else (b"kTRC",))],
    ]
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = offset + len(body)
    space = b"RGB " if columns else b"GRAY"
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x02100000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += b"".join(fixed(v) for v in (0.9642, 1.0, 0.8249))
    return header + bytes(128 - len(header)) + table + body


# sRGB's colorants adapted to D50, as in its own profile.
SRGB_COLORANTS = [(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]


def test_a_profile_of_swapped_channels_swaps_them_back() -> None:
    red, green, blue = SRGB_COLORANTS
    profile = matrix_profile([blue, green, red], 2.2)
    image = corners()
    for kind in ("PNG", "TIFF", "JPEG"):
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        out = quarters(decode(saved(image, kind, icc_profile=profile, **options)))
        # Its red is our blue. Rounded colorants and JPEG move full and empty channels a little.
        wanted = np.array([BLUE, GREEN, RED, WHITE])
        assert np.abs(np.array(out) - wanted).max() <= 6, kind


def test_a_linear_profile_is_brightened_to_srgb() -> None:
    # Linear 0.5 is sRGB 1.055 * 0.5^(1/2.4) - 0.055 = 0.7354 -> 188.
    profile = matrix_profile(SRGB_COLORANTS, 1.0)
    image = Image.new("RGB", (16, 16), (128, 128, 128))
    pixel = decode(saved(image, "PNG", icc_profile=profile)).getpixel((0, 0))
    assert np.abs(np.array(pixel) - 188).max() <= 1


def test_adobe_rgb_photographs_become_srgb() -> None:
    data = (IMAGES / "rocket.jpg").read_bytes()
    plain = Image.open(io.BytesIO(data))
    assert "Adobe" in str(
        ImageCms.getProfileDescription(
            ImageCms.ImageCmsProfile(io.BytesIO(plain.info["icc_profile"]))
        )
    )
    numbers, seen = np.asarray(plain.convert("RGB")).astype(float), np.asarray(decode(data))
    # Adobe RGB's green primary is stronger, so the same numbers mean stronger colours: what has a
    # hue moves away from grey, and grey stays (both have gamma 2.2 or near and white D65).
    spread = np.ptp(numbers, axis=2)
    more = np.ptp(seen.astype(float), axis=2) - spread
    assert more[spread > 60].mean() > 5
    grey = spread < 3
    assert np.abs(seen[grey].mean(axis=1) - numbers[grey].mean(axis=1)).mean() < 4


def test_a_palette_or_transparent_picture_keeps_its_profile() -> None:
    red, green, blue = SRGB_COLORANTS
    profile = matrix_profile([blue, green, red], 2.2)
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([*RED])
    for image in (palette, Image.new("RGBA", (16, 16), (*RED, 255))):
        out = decode(saved(image, "PNG", icc_profile=profile)).getpixel((0, 0))
        assert np.abs(np.array(out) - BLUE).max() <= 6


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "P", "F"])
def test_a_grey_picture_keeps_its_profile_whatever_it_is_stored_as(mode: str) -> None:
    grey = Image.new("L", (16, 16), 128)
    sixteen = Image.fromarray(np.full((16, 16), 128 * 257, dtype=np.uint16))
    image = sixteen if mode == "I;16" else grey.convert(mode)
    kind = "TIFF" if mode == "F" else "PNG"
    data = saved(image, kind, icc_profile=matrix_profile([], 1.0))
    pixel = np.array(decode(data).getpixel((0, 0)))  # linear, as above: 188
    assert np.abs(pixel - 188).max() <= 1


def test_a_profile_of_greys_does_not_make_a_coloured_picture_grey() -> None:
    data = saved(corners(), "PNG", icc_profile=matrix_profile([], 1.0))
    assert quarters(decode(data))[0] == RED


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_0_is_white_is_no_negative(dtype: type[np.uint8 | np.uint16]) -> None:
    # Pillow writes the numbers as they are under this tag, 8 bits turned round and 16 not.
    values = np.full((16, 16), 40 if dtype is np.uint8 else (255 - 40) * 257, dtype=dtype)
    data = saved(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    image = Image.open(io.BytesIO(data))
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    assert image.tag_v2[262] == 0
    assert decode(data).getpixel((3, 3)) == (40, 40, 40)


@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 200])
def test_a_broken_profile_is_passed_over(profile: bytes) -> None:
    assert quarters(decode(saved(corners(), "PNG", icc_profile=profile)))[0] == RED


def test_a_grey_picture_with_a_profile_for_colours_keeps_its_numbers() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(Image.new("L", (16, 16), 77), "PNG", icc_profile=profile)
    assert decode(data).getpixel((0, 0)) == (77, 77, 77)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert decode(data).getpixel((8, 8)) == RED


# What cannot be read


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_picture_cut_short_is_refused(kind: str, share: float) -> None:
    data = saved(noise(), kind)
    assert decode(data).size == (64, 48)
    cut = data[: int(share * len(data))]
    with pytest.raises(ImageReadError):
        decode(cut)
    with pytest.raises(ImageReadError):
        check_header(cut)


def test_a_whole_picture_passes_the_header_check() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        assert check_header(saved(noise(), kind)) == (64, 48)


def test_a_photograph_with_a_whole_thumbnail_is_still_cut_short() -> None:
    thumbnail = saved(noise(32, 32, 1), "JPEG")
    assert thumbnail.endswith(b"\xff\xd9")
    exif = b"Exif\0\0" + thumbnail
    data = saved(noise(), "JPEG", exif=exif)
    assert check_header(data) == (64, 48)
    with pytest.raises(ImageReadError):
        check_header(data[: len(data) - 300])


@pytest.mark.parametrize(
    "data", [b"", b"These are words in a file called photo.jpg.\n", b"\xff\xd8"]
)
def test_what_is_no_picture_is_refused_by_how_it_begins(data: bytes) -> None:
    for read in (decode, check_header):
        with pytest.raises(ImageReadError) as caught:
            read(data)
        wanted = "the file is empty" if not data else f"it begins with {data[:8]!r}"
        assert wanted in str(caught.value)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1"])
def test_heic_is_refused_by_its_name_with_the_remedy(
    brand: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)  # the extra is not installed
    data = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(64)
    for read in (decode, check_header):
        with pytest.raises(
            ImageReadError,
            match=r"it is a HEI[CF], which is not read; convert it to JPEG, or install the extra",
        ):
            read(data)


def heic(image: Image.Image, **options: Any) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def test_heic_is_read_upright_and_in_its_own_colours() -> None:
    halves = Image.new("RGB", (96, 64), (200, 40, 40))
    halves.paste((40, 40, 200), (48, 0, 96, 64))
    plain = decode(heic(halves))
    assert (plain.size, plain.mode) == ((96, 64), "RGB")
    assert np.abs(np.asarray(plain, int) - np.asarray(halves, int)).mean() < 4
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # as a phone held upright writes it
    turned = heic(halves, exif=exif.tobytes())
    assert upright_size(turned) == decode(turned).size == (64, 96)
    top, bottom = np.asarray(decode(turned))[8, 32], np.asarray(decode(turned))[-8, 32]
    assert top[0] > 150 > top[2]  # the red half
    assert bottom[2] > 150 > bottom[0]
    red, green, blue = SRGB_COLORANTS
    swapped = heic(halves, icc_profile=matrix_profile([blue, green, red], 2.2))
    assert np.abs(np.asarray(decode(swapped))[10, 10] - (40, 40, 200)).max() <= 8


def test_a_damaged_heic_is_said_to_be_damaged() -> None:
    data = heic(noise())
    for read in (decode, check_header):
        with pytest.raises(ImageReadError, match="is damaged or cut short"):
            read(data[: len(data) // 2])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_whichever_of_its_brands_comes_first() -> None:
    data = saved(noise(), "AVIF")
    assert data[8:12] == b"avif"
    for whole in (data, data[:8] + b"mif1" + data[12:]):
        assert check_header(whole) == decode(whole).size == (64, 48)


def test_damaged_bytes_are_refused_or_read_but_never_crash() -> None:
    whole = saved(noise(), "PNG")
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(8, len(data), 3):
            data[place] = random.integers(256)
        try:
            assert decode(bytes(data)).mode == "RGB"
        except (ImageReadError, ImageSizeError):
            refused += 1
    assert refused > 30  # PNG has checksums: nearly every change is noticed


@pytest.mark.parametrize("size", [(1, 1), (12, 40), (40, 12), (15, 16)])
def test_too_small_a_picture_is_named_with_the_least_size(size: tuple[int, int]) -> None:
    data = saved(Image.new("RGB", size), "PNG")
    for read in (decode, check_header):
        with pytest.raises(
            ImageSizeError, match=rf"image is {size[0]}x{size[1]}; .* at least 16x16"
        ):
            read(data)


def test_sixteen_pixels_are_enough() -> None:
    assert decode(saved(Image.new("RGB", (16, 16)), "PNG")).size == (16, 16)


def test_a_lowered_limit_lets_the_thin_picture_through() -> None:
    data = saved(Image.new("L", (128, 13), 9), "PNG")
    assert check_header(data, Limits(least=1)) == decode(data, Limits(least=1)).size == (128, 13)
    with pytest.raises(ImageSizeError, match=r"128x13; .* at least 14x14"):
        check_header(data, Limits(least=14))


def test_a_picture_too_wide_is_refused_before_it_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 16, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    # There are no pixels to decode: whoever tried would find the file cut short.
    for data in (start + chunk(b"IDAT", b""), start + chunk(b"IDAT", b"") + chunk(b"IEND", b"")):
        for read in (decode, check_header):
            with pytest.raises(ImageSizeError, match=r"30000x16; .*20000 .*--max-side"):
                read(data)
        with pytest.raises(ImageReadError):  # as with a raised limit
            decode(data, Limits(side=40_000))


def test_a_raised_limit_lets_the_wide_picture_through() -> None:
    data = saved(Image.new("L", (30_000, 16), 9), "PNG")
    with pytest.raises(ImageSizeError):
        check_header(data)
    assert check_header(data, Limits(side=40_000)) == (30_000, 16)
    assert decode(data, Limits(side=40_000)).size == (30_000, 16)


def test_too_many_pixels_are_refused_with_their_number() -> None:
    limits = Limits(megapixels=0.01)
    data = saved(Image.new("L", (200, 100)), "PNG")
    with pytest.raises(ImageSizeError, match=r"200x100, 0 megapixels; .*0\.01 .*--max-megapixels"):
        decode(data, limits)
    assert decode(saved(Image.new("L", (100, 100)), "PNG"), limits).size == (100, 100)


def test_a_bomb_beyond_pillows_own_limit_is_ours_to_refuse() -> None:
    # 19,000 x 19,000 = 361 megapixels in a file of a few hundred bytes; Pillow would warn or raise.
    header = struct.pack(">IIBBBBB", 19_000, 19_000, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    with pytest.raises(ImageSizeError, match="361 megapixels"):
        decode(data)


# Pillow's switches


def test_a_picture_beyond_pillows_limit_is_decoded_and_pillow_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = saved(corners(), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        assert decode(data).size == (24, 16)
        assert is_whole(data)
        assert warnings.filters == before
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pillows_limit_comes_back_when_the_last_of_several_threads_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with ThreadPoolExecutor(1) as pool:

        def other() -> None:
            with own_limits:
                pass

        with own_limits:
            pool.submit(other).result()
            assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS == 100


# Sizes


@pytest.mark.parametrize(
    ("size", "longest", "wanted"),
    [
        ((400, 300), 200, (200, 150)),
        ((300, 400), 200, (150, 200)),
        ((101, 67), 64, (64, 42)),  # 67 * 64 / 101 = 42.46
        ((64, 64), 64, (64, 64)),
        ((10, 20), 40, (20, 40)),  # it grows too
        ((10_000, 3), 100, (100, 1)),  # 0.03 is at least 1
    ],
)
def test_fit_gives_the_longest_side_and_keeps_the_aspect(
    size: tuple[int, int], longest: int, wanted: tuple[int, int]
) -> None:
    assert fit(size, longest) == wanted


def test_shrinking_averages() -> None:
    # A checkerboard of single pixels shrunk by 4 is grey: aliasing would leave black or white.
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = match_size(Image.fromarray(board.astype(np.uint8)).convert("RGB"), (16, 16))
    assert np.abs(np.asarray(small)[2:-2, 2:-2].astype(float) - 127.5).max() < 3
    image = noise()
    assert match_size(image, (64, 48)) is image


# Tensors and files


def test_every_byte_survives_the_way_to_a_tensor_and_back() -> None:
    values = np.arange(768, dtype=np.uint32) % 256
    image = Image.fromarray(values.astype(np.uint8).reshape(16, 16, 3))
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (float(tensor.min()), float(tensor.max())) == (0.0, 1.0)
    assert to_image(tensor).tobytes() == image.tobytes()
    # (row 0, column 1) of the picture is (4, 5, 6) in (1, 3, H, W).
    assert (tensor[0, :, 0, 1] * 255).round().tolist() == [3.0, 4.0, 5.0]


def test_a_grey_picture_is_one_channel() -> None:
    assert to_tensor(Image.new("L", (20, 16), 51)).shape == (1, 1, 16, 20)
    assert torch.allclose(to_tensor(Image.new("L", (20, 16), 51)), torch.tensor(0.2))


def test_a_picture_larger_than_its_format_is_refused_with_the_remedy() -> None:
    wide = Image.new("RGB", (16384, 16))
    with pytest.raises(ImageSizeError, match=r"16384 pixels a side do not fit a \.webp"):
        encode(wide, ".webp")
    assert is_whole(encode(wide, ".jpg"))


def test_to_image_clamps_then_rounds() -> None:
    # * 255: 0.6 -> 1, where a cast would give 0; 254.4 -> 254; 300 -> 255; -20 -> 0.
    values = torch.tensor([0.6, 0.4, 254.4, 254.6, 300.0, -20.0]) / 255
    tensor = values.view(1, 1, 1, 6).expand(1, 3, 16, 6)
    image = to_image(tensor)
    assert [image.getpixel((x, 0)) for x in range(6)] == [
        (v,) * 3 for v in (1, 0, 254, 255, 255, 0)
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_to_image_takes_any_floating_type(dtype: torch.dtype) -> None:
    assert to_image(torch.full((1, 3, 16, 16), 0.5, dtype=dtype)).getpixel((0, 0)) == (128,) * 3


@pytest.mark.parametrize("suffix", [*FORMATS, ".PNG", ".JPG"])
def test_metadata_comes_back_and_the_picture_too(suffix: str) -> None:
    metadata = '{"content":"a \\u00e4.jpg","size":512,"text":"' + "long " * 400 + '"}'
    image = Image.open(IMAGES / "chelsea.jpg").convert("RGB").resize((64, 48))
    data = encode(image, suffix, metadata)
    assert read_metadata(data) == metadata
    back = np.asarray(decode(data)).astype(int)
    lossless = suffix.lower() in (".png", ".tif", ".tiff")
    if lossless:
        assert back.tobytes() == np.asarray(image).astype(int).tobytes()
    else:  # quality 95: a mean error of a few units, most of it WebP's halved colour resolution
        assert np.abs(back - np.asarray(image)).mean() < 6


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_picture_gives_the_same_bytes(suffix: str) -> None:
    first = encode(noise(), suffix, '{"a":1}')
    assert encode(noise(), suffix, '{"a":1}') == first
    assert encode(noise(), suffix, '{"a":2}') != first


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_metadata_there_is_none(suffix: str) -> None:
    assert read_metadata(encode(noise(), suffix)) == ""


def test_read_metadata_of_others_files_is_empty() -> None:
    exif = Image.Exif()
    exif[0x010E] = "A description by someone else"
    assert read_metadata(saved(noise(), "JPEG", exif=exif)) == ""
    assert read_metadata(b"no picture") == ""
    assert read_metadata(b"") == ""
    assert read_metadata((IMAGES / "chelsea.jpg").read_bytes()) == ""


@pytest.mark.parametrize("suffix", [".gif", ".bmp", "", ".txt"])
def test_an_ending_that_cannot_be_written_is_refused_with_those_that_can(suffix: str) -> None:
    with pytest.raises(ImageReadError, match=r"cannot write .*\.png, \.jpg"):
        encode(noise(), suffix)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("turn", "size"), [(1, (24, 16)), (3, (24, 16)), (6, (16, 24))])
def test_the_upright_size_is_that_of_the_decoded_picture(
    kind: str, turn: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(corners(), kind, exif=exif)
    assert upright_size(data) == decode(data).size == size


def test_a_style_keeps_its_shape_but_no_side_is_below_what_the_network_sees() -> None:
    assert style_size((400, 300), 200) == (200, 150)
    assert style_size((3000, 200), 64) == (256, 16)
    assert style_size(style_size((3000, 200), 64), 64) == (256, 16)


def test_decoding_in_threads_leaves_warnings_as_they_are() -> None:
    data = saved(Image.radial_gradient("L"), "PNG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [data] * 64))
    assert warnings.filters == before
