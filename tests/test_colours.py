"""Colours are those that a file declares, in the order in which its ways of saying so count."""

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import cli
from helpers import picture
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, features
from test_image import SRGB_COLORANTS, chunk, matrix_profile, noise, png, saved

from stylize.errors import ImageReadError, ImageSizeError
from stylize.image import Limits, check_header, decode, upright_size

# From light to XYZ (D65) and back, as CSS Color 4 publishes them in its sample code.
XYZ_TO_SRGB = [
    [3.2409699419045226, -1.537383177570094, -0.4986107602930034],
    [-0.9692436362808796, 1.8759675015077202, 0.04155505740717559],
    [0.05563007969699366, -0.20397695888897652, 1.0569715142428786],
]
P3_TO_XYZ = [
    [0.4865709486482162, 0.26566769316909306, 0.1982172852343625],
    [0.2289745640697488, 0.6917385218365064, 0.079286914093745],
    [0.0, 0.04511338185890264, 1.043944368900976],
]
REC2020_TO_XYZ = [
    [0.6369580483012914, 0.14461690358620832, 0.1688809751641721],
    [0.2627002120112671, 0.6779980715188708, 0.05930171646986196],
    [0.0, 0.028072693049087428, 1.060985057710791],
]
COLOUR = (150, 110, 90)  # of any of the spaces; inside sRGB in all of them
P3_CHRM = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
SRGB_CHRM = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
SWAPPED = matrix_profile(list(reversed(SRGB_COLORANTS)), 2.2)  # its red is our blue


def light(values: NDArray[np.float64]) -> NDArray[np.float64]:
    linear: NDArray[np.float64] = np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )
    return linear


def srgb(linear: object) -> NDArray[np.float64]:
    """0 to 255 of sRGB for light of sRGB."""
    v = np.clip(np.asarray(linear, float), 0, 1)
    encoded: NDArray[np.float64] = np.where(
        v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055
    )
    return 255 * encoded


def seen_of(to_xyz: list[list[float]], linear: NDArray[np.float64]) -> NDArray[np.float64]:
    return srgb(np.array(XYZ_TO_SRGB) @ np.array(to_xyz) @ linear)


def flat(*chunks: bytes, colour: tuple[int, ...] = COLOUR) -> bytes:
    kind = {1: 0, 3: 2, 4: 6}[len(colour)]
    return png(16, 16, 8, kind, (b"\0" + bytes(colour) * 16) * 16, *chunks)


def seen(data: bytes) -> NDArray[np.float64]:
    pixel = np.asarray(decode(data)).reshape(-1, 3).astype(float)
    mean: NDArray[np.float64] = pixel.mean(axis=0)
    return mean


def cicp(primaries: int, transfer: int, matrix: int = 0, full: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, matrix, full]))


def gama(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))


VALUES = np.array(COLOUR) / 255
P3_SEEN = seen_of(P3_TO_XYZ, light(VALUES))
LINEAR_SEEN = srgb(VALUES)


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (cicp(1, 13), np.array(COLOUR)),
        (cicp(12, 13), P3_SEEN),
        (cicp(9, 8), seen_of(REC2020_TO_XYZ, VALUES)),
        (cicp(1, 8), LINEAR_SEEN),
        (cicp(1, 4), srgb(VALUES**2.2)),
        (cicp(1, 1), srgb(((VALUES + 0.099) / 1.099) ** (1 / 0.45))),
        (cicp(1, 13, 0, 0), (np.array(COLOUR) - 16) * 255 / 219),
        (gama(1.0), LINEAR_SEEN),
        (gama(1 / 1.8), srgb(VALUES**1.8)),
        (gama(0.45455), np.array(COLOUR)),
        (gama(0.45455) + chunk(b"cHRM", SRGB_CHRM), np.array(COLOUR)),
        (chunk(b"cHRM", P3_CHRM), P3_SEEN),
        (gama(1.0) + chunk(b"cHRM", P3_CHRM), seen_of(P3_TO_XYZ, VALUES)),
        (gama(0) + chunk(b"cHRM", bytes(32)), np.array(COLOUR)),  # nonsense says nothing
    ],
    ids=str,
)
def test_a_png_has_the_colours_that_it_declares(told: bytes, wanted: NDArray[np.float64]) -> None:
    assert np.abs(seen(flat(told)) - wanted).max() <= 1


def test_what_a_png_declares_counts_in_the_order_of_its_specification() -> None:
    p3, swapped, plain, linear = cicp(12, 13), iccp(SWAPPED), chunk(b"sRGB", b"\0"), gama(1.0)
    blue_and_red = seen(flat(swapped))
    assert np.abs(blue_and_red - COLOUR[::-1]).max() < 4
    assert np.abs(seen(flat(linear, plain, swapped, p3)) - P3_SEEN).max() <= 1
    assert np.abs(seen(flat(linear, plain, swapped)) - blue_and_red).max() == 0
    assert np.abs(seen(flat(linear, plain)) - COLOUR).max() == 0
    assert np.abs(seen(flat(linear)) - LINEAR_SEEN).max() <= 1
    assert np.abs(seen(flat(cicp(1, 13), swapped)) - COLOUR).max() == 0
    # What says nothing leaves it to the next: code points that are not specified, broken profiles.
    assert np.abs(seen(flat(cicp(2, 2), linear)) - LINEAR_SEEN).max() <= 1
    assert np.abs(seen(flat(iccp(b"broken"), linear)) - LINEAR_SEEN).max() <= 1
    assert (
        np.abs(seen(flat(linear, chunk(b"eXIf", adobe_exif().tobytes()[6:]))) - LINEAR_SEEN).max()
        <= 1
    )


@pytest.mark.parametrize("colour", [(150,), (*COLOUR, 255)])
def test_grey_and_transparent_pictures_follow_too(colour: tuple[int, ...]) -> None:
    wanted = srgb(np.array(colour[:3] * (3 if len(colour) == 1 else 1)) / 255)
    assert np.abs(seen(flat(gama(1.0), colour=colour)) - wanted).max() <= 1


def test_an_open_picture_of_a_caller_has_its_declared_colours() -> None:
    from stylize.image import upright

    image = Image.open(io.BytesIO(flat(cicp(12, 13))))
    assert np.abs(np.asarray(upright(image))[3, 3] - P3_SEEN).max() <= 1


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (cicp(9, 16), r"its colours are HDR \(PQ\), which is not read; export it in sRGB"),
        (cicp(9, 18), r"HDR \(HLG\)"),
        (cicp(1, 13, 1), r"code points 1/13/1, which are not known here; export it in sRGB"),
        (cicp(77, 13), r"code points 77/13/0"),
    ],
    ids=str,
)
def test_colours_that_cannot_be_followed_are_refused(told: bytes, says: str) -> None:
    with pytest.raises(ImageReadError, match=says):
        decode(flat(told))


def test_hdr_that_a_profile_tells_is_refused() -> None:
    import pillow_jxl  # noqa: F401  its profiles carry code points

    profile = bytearray(Image.open(io.BytesIO(saved(noise(), "JXL"))).info["icc_profile"])
    at = profile.index(b"cicp", 200)
    assert seen(flat(iccp(bytes(profile)))).tolist() == list(COLOUR)
    profile[at + 9] = 16
    with pytest.raises(ImageReadError, match="HDR"):
        decode(flat(iccp(bytes(profile))))


def test_a_command_says_in_one_line_what_it_does_not_follow(tmp_path: Path) -> None:
    (tmp_path / "hdr.png").write_bytes(flat(cicp(9, 16)))
    picture(tmp_path / "s.png", 1)
    done = cli("pair", tmp_path / "hdr.png", tmp_path / "s.png", "-o", tmp_path / "o.png")
    assert done.returncode == 3
    assert "hdr.png: its colours are HDR (PQ), which is not read; export it" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.png").exists()


# EXIF, and other formats


def adobe_exif() -> Image.Exif:
    exif = Image.Exif()
    inside = exif.get_ifd(ExifTags.IFD.Exif)
    inside[ExifTags.Base.ColorSpace] = 65535
    inside[0xA005] = {1: "R03", 2: b"0100"}
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_adobe_rgb_told_by_exif_is_followed_in_every_format_unless_a_profile_tells(
    kind: str,
) -> None:
    options: dict[str, Any] = {
        "JPEG": {"quality": 98, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    image = Image.new("RGB", (32, 24), (198, 44, 44))
    more: dict[str, Any] = options.get(kind, {})
    exif = adobe_exif().tobytes()
    told = seen(saved(image, kind, exif=exif, **more))
    assert np.abs(told - [230, 40, 40]).max() <= 3  # by the matrices of both standards
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kept = seen(saved(image, kind, exif=exif, icc_profile=own, **more))
    assert np.abs(kept - [198, 44, 44]).max() <= 3


def test_primaries_that_a_tiff_tells_are_followed() -> None:
    p3 = [0.68, 0.32, 0.265, 0.69, 0.15, 0.06]
    plain = [0.64, 0.33, 0.30, 0.60, 0.15, 0.06]
    for primaries, wanted in ((p3, P3_SEEN), (plain, np.array(COLOUR))):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[318], tags[319] = (0.3127, 0.329), tuple(primaries)
        data = saved(Image.new("RGB", (16, 16), COLOUR), "TIFF", tiffinfo=tags)
        assert np.abs(seen(data) - wanted).max() <= 1


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_the_code_points_of_avif_and_heif_are_followed() -> None:
    heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (64, 64), COLOUR)
    buffer = io.BytesIO()
    heif.from_pillow(image).save(
        buffer, quality=-1, chroma=444, color_primaries=12, transfer_characteristics=13
    )
    assert np.abs(seen(buffer.getvalue()) - P3_SEEN).max() <= 4
    data = saved(image, "AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    assert np.abs(seen(data) - COLOUR).max() <= 3
    p3 = data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :]
    assert np.abs(seen(p3) - P3_SEEN).max() <= 4
    with pytest.raises(ImageReadError, match="HDR"):
        decode(data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :])


# JPEG XL, and kinds that are not read


def jxl(image: Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_jxl")
    return saved(image, "JXL", **options)


def test_jpeg_xl_is_read_with_the_extra_and_named_with_it_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halves = Image.new("RGB", (96, 64), (200, 40, 40))
    halves.paste((40, 40, 200), (48, 0, 96, 64))
    for data in (jxl(halves, lossless=True), jxl(halves, lossless=True, use_container=True)):
        assert check_header(data) == upright_size(data) == (96, 64)
        assert decode(data).tobytes() == halves.tobytes()
    monkeypatch.setitem(sys.modules, "pillow_jxl.JpegXLImagePlugin", None)
    with pytest.raises(ImageReadError, match=r"it is a JPEG XL, .* or install the extra jxl"):
        decode(data)


def test_a_jpeg_xl_is_upright_and_too_large_a_one_is_refused_before_it_is_decoded(
    tmp_path: Path,
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    halves = Image.new("RGB", (96, 64), (200, 40, 40))
    halves.paste((40, 40, 200), (48, 0, 96, 64))
    # Its data says itself how it is turned; EXIF counts only in a JPEG that is packed in it.
    assert decode(jxl(halves, exif=exif.tobytes())).size == (96, 64)
    halves.save(tmp_path / "turned.jpg", exif=exif)
    with pytest.warns(UserWarning, match="JPEG reconstruction"):
        packed = jxl(Image.open(tmp_path / "turned.jpg"))
    assert decode(packed).size == upright_size(packed) == (64, 96)
    # Without the JPEG, the data are turned as they say, and EXIF does not turn them again.
    boxes, at = b"", 0
    while at < len(packed):
        length = int.from_bytes(packed[at : at + 4]) or len(packed) - at
        boxes += packed[at : at + length] if packed[at + 4 : at + 8] != b"jbrd" else b""
        at += length
    box = bytes(4) + exif.tobytes().removeprefix(b"Exif\0\0")
    boxes += struct.pack(">I4s", 8 + len(box), b"Exif") + box
    assert decode(boxes).size == upright_size(boxes) == (64, 96)
    for turned in (packed, boxes):
        colours = np.asarray(decode(turned), float).mean(axis=1)
        assert np.abs(colours[[5, -5]] - [(200, 40, 40), (40, 40, 200)]).max() < 12
    with pytest.raises(ImageSizeError, match=r"96x64; the limit is 50"):
        decode(jxl(halves)[:20], Limits(side=50))
    with pytest.raises(ImageReadError, match="this JPEG XL is damaged or cut short"):
        decode(jxl(noise())[:200])


def test_a_png_with_a_damaged_comment_is_read_and_one_with_damaged_pixels_is_not() -> None:
    data = saved(noise(), "PNG")
    comment = struct.pack(">I", 7) + b"tEXtA\0hello" + bytes(4)
    for broken in (data[:33] + comment + data[33:], data[:-12] + comment + data[-12:]):
        assert decode(broken).tobytes() == noise().tobytes()
        check_header(broken)
    pixels = data.index(b"IDAT") + 40
    with pytest.raises(ImageReadError, match="damaged"):
        decode(data[:pixels] + b"\0\0\0" + data[pixels + 3 :])


def tiff(bits: int, samples: int, form: int) -> bytes:
    """An uncompressed TIFF of 16x16 with so many bits a value; form 3 is floating."""
    size = 16 * 16 * samples * bits // 8
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258] = 16, 16, (bits,) * samples
    tags[259], tags[262], tags[273] = 1, 2 if samples > 2 else 1, 0
    tags[277], tags[278], tags[279], tags[339] = samples, 16, size, (form,) * samples
    if samples in (2, 4):
        tags[338] = (2,)
    return struct.pack("<2sHI", b"II", 42, 8) + tags.tobytes(8) + bytes(size)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (tiff(32, 3, 3), "this TIFF has 3 channels of 32-bit floating numbers"),
        (tiff(16, 2, 1), "this TIFF has 2 channels of 16-bit whole numbers"),
        (
            b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 64, 64, 16, 3) + bytes(100_000),
            "this PSD has 16 bits per channel",
        ),
    ],
    ids=["floating", "grey with alpha", "psd"],
)
def test_a_variant_that_is_not_read_is_called_by_what_it_is(data: bytes, says: str) -> None:
    with pytest.raises(ImageReadError, match=f"{says}, which is not read; save it with 8 bits"):
        decode(data)
