"""Whose picture it is: files whose first picture, depth, colours or mask would be misread."""

import io
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import cli
from helpers import picture, write_csv
from PIL import Image

from stylize import StyleConfig, Stylizer
from stylize.errors import ConfigError, ImageReadError
from stylize.image import Limits, check_header, decode, opened
from stylize.inputs import Photograph
from stylize.masks import checked_mask
from stylize.weights import Weights

Tags = Mapping[int, tuple[int, Sequence[int]]]


def directory(at: int, tags: Tags) -> bytes:
    """A TIFF directory that lies at byte `at`: number -> (type, values)."""
    body, more = struct.pack("<H", len(tags)), b""
    end = at + 6 + 12 * len(tags)
    for number, (kind, values) in sorted(tags.items()):
        data = b"".join(struct.pack("<" + {1: "B", 3: "H", 4: "I"}[kind], v) for v in values)
        if len(data) > 4:
            where = struct.pack("<I", end + len(more))
            more += data + b"\0" * (len(data) % 2)
        else:
            where = data.ljust(4, b"\0")
        body += struct.pack("<HHI", number, kind, len(values)) + where
    return body + struct.pack("<I", 0) + more


def tiff(
    width: int, height: int, bits: Sequence[int], data: bytes, more: Tags | None = None
) -> bytes:
    """A TIFF with uncompressed data of so many bits a sample."""
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, bits),
        259: (3, [1]),
        262: (3, [2 if len(bits) == 3 else 1]),
        273: (4, [8]),
        277: (3, [len(bits)]),
        278: (4, [height]),
        279: (4, [len(data)]),
        **(more or {}),
    }
    data += b"\0" * (len(data) % 2)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory(8 + len(data), tags)


PREVIEW = bytes(range(256)) * (32 * 24 * 3 // 256)


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({254: (4, [1])}, "preview, as in camera raw files"),
        ({254: (4, [5])}, "preview, as in camera raw files"),
        ({254: (4, [4])}, "its first picture is a mask of another"),
        ({50706: (1, [1, 4, 0, 0])}, "camera raw file, of which only a preview"),
    ],
    ids=["preview", "preview of a mask", "mask", "dng"],
)
def test_the_preview_of_a_raw_file_is_never_taken_for_the_picture(tags: Tags, says: str) -> None:
    data = tiff(32, 24, [8, 8, 8], PREVIEW, tags)
    for read in (decode, check_header):
        with pytest.raises(ImageReadError, match=says):
            read(data)


def test_a_tiff_that_says_that_it_is_a_whole_picture_is_read() -> None:
    assert decode(tiff(32, 24, [8, 8, 8], PREVIEW, {254: (4, [0])})).size == (32, 24)
    assert decode(tiff(32, 24, [8, 8, 8], PREVIEW, {254: (4, [2])})).size == (32, 24)  # a page


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (b"\xff\x0a", "JPEG XL, which is not read; convert.*or install the extra jxl"),
        (b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a", "JPEG XL"),
        (b"\x00\x00\x00\x18ftypcrx isom", "camera raw file .CR3.*develop it"),
        (b"II*\x00\x10\x00\x00\x00CR\x02\x00", "camera raw file .CR2.*develop it"),
        (b"FUJIFILMCCD-RAW 0201", "camera raw file .RAF"),
        (b"IIRO\x08\x00", "camera raw file .ORF"),
        (b"IIU\x00\x08\x00", "camera raw file .RW2"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x00\x00\x01\x00\x02\x00", "icon file"),
        (b"\x89PNG\r\n\x1a\n", "this PNG is damaged or cut short, or of a form that is"),
        (b"8BPS\x00\x02", "Photoshop file .PSB.*save it as TIFF or PNG"),
        (b"\x00\x00\x00\x18ftypmp42", "a video.*save one of its pictures as JPEG or PNG"),
        (b"<!DOCTYPE html>", "a web page, .* download the picture itself"),
        (b"version https://git-lfs.github.com", "a pointer of Git LFS, .* git lfs pull"),
        (b"\x00\x05\x16\x07", "what macOS keeps beside a picture, .* lacks the ._"),
        (b"PK\x03\x04", "a ZIP archive, .* unpack it"),
        (b"\0\0", "it holds only zeros.; copy it again"),
        (b"hello", "not a picture that can be read .it begins with .*; name one, or convert it to"),
        (b"MM\x00*\x00\x00\x00\x08", "this TIFF is damaged"),
        (b"8BPS\x00\x01", "this PSD is damaged"),
    ],
)
def test_what_does_not_open_is_called_by_its_kind_with_the_remedy(
    begin: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl.JpegXLImagePlugin", None)  # no extra
    with pytest.raises(ImageReadError, match=says):
        decode(begin + bytes(40))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


COLOUR = Image.new("RGB", (32, 24), (200, 40, 40))


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (COLOUR.resize((16, 16)), "its first picture is 16x16 and another 32x24; save the one"),
        (Image.new("L", (32, 24), 255), "its first picture is grey and another in colour; save"),
        (Image.new("1", (32, 24), 1), "its first picture is grey and another in colour; save"),
    ],
    ids=["smaller", "grey", "one bit"],
)
def test_a_first_page_that_cannot_be_the_picture_is_refused(first: Image.Image, says: str) -> None:
    data = saved(first, "TIFF", save_all=True, append_images=[COLOUR])
    with pytest.raises(ImageReadError, match=says):
        decode(data)
    other_way = saved(COLOUR, "TIFF", save_all=True, append_images=[first])
    assert decode(other_way).getpixel((3, 3)) == (200, 40, 40)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_pictures_in_a_file_the_first_is_taken_and_the_note_says_so(kind: str) -> None:
    more = [Image.new("RGB", (32, 24), name) for name in ("green", "blue")]
    data = saved(COLOUR, kind, save_all=True, append_images=more)
    photograph = Photograph.of(opened(data, Limits()), StyleConfig(size=32))
    assert photograph.note == "painted from the first of several pictures in the file"
    red = photograph.picture.getpixel((3, 3))
    assert isinstance(red, tuple)
    assert np.abs(np.array(red) - (200, 40, 40)).max() < 4


def channels(order: str, bits: int) -> bytes:
    """A TIFF whose left is red and whose right is blue, its channels interleaved or apart."""
    pixels = np.zeros((24, 32, 3), "<u1" if bits == 8 else "<u2")
    pixels[:, :16, 0] = pixels[:, 16:, 2] = (1 << bits) - 1
    if order == "interleaved":
        return tiff(32, 24, [bits] * 3, pixels.tobytes())
    size = 32 * 24 * bits // 8
    apart: Tags = {
        273: (4, [8 + number * size for number in range(3)]),
        279: (4, [size] * 3),
        284: (3, [2]),
    }
    return tiff(32, 24, [bits] * 3, pixels.transpose(2, 0, 1).tobytes(), apart)


def test_channels_one_after_the_other_are_read_right_or_refused() -> None:
    for order, bits in (("interleaved", 8), ("interleaved", 16), ("apart", 8)):
        image = decode(channels(order, bits))
        assert (image.getpixel((3, 20)), image.getpixel((28, 20))) == ((255, 0, 0), (0, 0, 255))
    with pytest.raises(ImageReadError, match=r"16 bits per channel and its channels one after the"):
        decode(channels("apart", 16))


def psd(mode: int, channels: int, data: bytes, resources: bytes = b"", layers: int = 0) -> bytes:
    """A PSD of 32x24 pixels."""
    section = struct.pack(">IIhH", 8, 4, layers, 0)
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, channels, 24, 32, 8, mode)
    return (
        header
        + bytes(4)
        + struct.pack(">I", len(resources))
        + resources
        + section
        + bytes(2)
        + data
    )


def test_a_psd_is_its_whole_picture_in_its_colours() -> None:
    planes = np.asarray(COLOUR).transpose(2, 0, 1).tobytes()
    info = struct.pack(">4sHHIIB", b"8BIM", 1057, 0, 5, 1, 0) + b"\0"
    whole = info[:-2] + b"\1\0"
    for data in (psd(3, 3, planes), psd(3, 3, planes, whole)):
        assert decode(data).getpixel((3, 3)) == (200, 40, 40)
    with pytest.raises(ImageReadError, match="its layers without the picture that they make; save"):
        decode(psd(3, 3, planes, info))
    for mode, name in ((7, "multichannel"), (8, "duotone")):
        with pytest.raises(ImageReadError, match=f"this PSD has {name} colours, .* save it in RGB"):
            decode(psd(mode, 3, planes))
    # A fourth channel is transparency where the count of layers is negative, else a selection.
    more = planes + bytes(32 * 24)
    assert decode(psd(3, 4, more, layers=1)).getpixel((3, 3)) == (200, 40, 40)
    assert decode(psd(3, 4, more, layers=-1)).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("bits", [12, 16])
def test_grey_of_any_depth_is_scaled_by_its_own_range(bits: int) -> None:
    white = (1 << bits) - 1
    values = [0, white // 4, white // 2, white] * 64
    if bits == 12:  # two values in three bytes
        pairs = zip(values[::2], values[1::2], strict=True)
        data = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in pairs)
    else:
        data = struct.pack("<256H", *values)
    rows = np.asarray(decode(tiff(16, 16, [bits], data)))[..., 0]
    assert rows.tolist() == [[0, 64, 127, 255] * 4] * 16


@pytest.mark.parametrize(("bits", "sample"), [(16, 2), (32, 1), (32, 2)])
def test_whole_numbers_of_an_unknown_range_are_refused(bits: int, sample: int) -> None:
    data = bytes(16 * 16 * bits // 8)
    with pytest.raises(ImageReadError, match=f"of {bits} bits, whose range is not known; save it"):
        decode(tiff(16, 16, [bits], data, {339: (3, [sample])}))


def test_signed_bytes_are_refused() -> None:
    with pytest.raises(ImageReadError, match="1 channel of 8-bit signed whole numbers, which is"):
        decode(tiff(16, 16, [8], bytes(256), {339: (3, [2])}))


def adobe_rgb(index: str, space: int) -> bytes:
    """A JPEG as cameras write it: 201, 46, 46 of Adobe RGB, told by the EXIF alone."""
    exif = Image.Exif()
    inside = exif.get_ifd(0x8769)
    inside[0xA001] = space
    inside[0xA005] = {1: index, 2: b"0100"}
    data = io.BytesIO()
    plain = Image.new("RGB", (32, 24), (201, 46, 46))
    plain.save(data, "JPEG", exif=exif, quality=98, subsampling=0)
    return data.getvalue()


def test_adobe_rgb_that_the_exif_alone_tells_becomes_srgb() -> None:
    # 230, 40, 40 of sRGB, by the matrices of both standards.
    seen = np.asarray(decode(adobe_rgb("R03", 65535))).mean(axis=(0, 1))
    assert np.abs(seen - [230, 40, 40]).max() < 3
    for index, space in (("R98", 65535), ("R03", 1), ("R98", 1)):  # sRGB, or told by nobody
        kept = np.asarray(decode(adobe_rgb(index, space))).mean(axis=(0, 1))
        assert np.abs(kept - [201, 46, 46]).max() < 3


# Masks


def half(white: int = 255, size: tuple[int, int] = (48, 36)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(white, (0, 0, size[0] // 2, size[1]))
    return mask


def test_a_mask_of_0_and_1_is_read_as_black_and_white() -> None:
    mask, note = checked_mask(half(1), (96, 72))
    assert mask.tobytes() == half(255).tobytes()
    assert note == "mask of 0 and 1 read as black and white"
    assert checked_mask(half(255), (96, 72)) == (half(255), "")
    assert checked_mask(half(100), (96, 72))[1] == "the mask's lightest value is 100 of 255"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_mask_of_16_bits_and_0_and_1_is_read_as_one(kind: str) -> None:
    ones = np.zeros((36, 48), np.uint16)
    ones[:, :24] = 1
    mask, note = checked_mask(decode(saved(Image.fromarray(ones), kind)), (96, 72))
    assert mask.tobytes() == half(255).tobytes()
    assert note == "mask of 0 and 1 read as black and white"


def test_an_even_mask_has_any_shape_and_a_black_one_is_told() -> None:
    white, black = (Image.new("L", (20, 20), value) for value in (255, 0))
    assert checked_mask(white, (96, 72)) == (white, "")
    told = "the mask is black all over, so that nothing is painted"
    assert checked_mask(black, (96, 72)) == (black, told)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"and the photograph 72x96 as it is shown.*turned"):
        checked_mask(half(), (72, 96))
    with pytest.raises(
        ConfigError, match="48x36, and the photograph 96x96 as it is shown, of anot"
    ):
        checked_mask(half(), (96, 96))
    checked_mask(half(size=(33, 22)), (1000, 667))  # rounded sides


def test_what_is_transparent_in_a_mask_is_not_painted(bundled: Weights, tmp_path: Path) -> None:
    shape = Image.new("RGBA", (48, 36), (255, 255, 255, 0))
    shape.paste((255, 255, 255, 255), (0, 0, 24, 36))
    shape.save(tmp_path / "mask.png")
    photo = Image.open(picture(tmp_path / "photo.png", 1))
    style = Image.open(picture(tmp_path / "style.png", 2))
    config = StyleConfig(size=48, steps=4, mask=str(tmp_path / "mask.png"))
    result = Stylizer(bundled, device="cpu", dtype="float32").transfer(photo, style, config)
    moved = np.abs(np.asarray(result.image, int) - np.asarray(photo.convert("RGB"), int)).max(2)
    assert moved[:, :24].mean() > 3
    assert moved[:, 24:].max() == 0


def test_validate_finds_masks_that_cannot_be_meant(tmp_path: Path) -> None:
    picture(tmp_path / "photo.png", 1)
    picture(tmp_path / "style.png", 2)
    half(0).save(tmp_path / "black.png")
    half(size=(36, 48)).save(tmp_path / "turned.png")
    half(1).save(tmp_path / "good.png")
    rows = [
        {"content": "photo.png", "style": "style.png", "mask": f"{name}.png"}
        for name in ("black", "turned", "good")
    ]
    manifest = write_csv(tmp_path / "m.csv", rows)
    found = cli("validate", manifest, "--images")
    assert found.returncode == 2
    told = found.stdout + found.stderr
    assert "line 2, column mask: black.png: the mask is black all over" in told
    assert "line 3, column mask: turned.png: the mask is 36x48, and the photograph 48x36" in told
    assert "2 problems" in told
    assert "good.png: mask of 0 and 1 read as black and white" in told
