"""Opening a picture file: which kinds are read, and what is said of those that are not.

Pixels are not decoded here. Does not import torch.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image, ImageFile, TiffImagePlugin

from stylize.errors import ImageReadError

__all__ = ["SELECTION", "SEVERAL", "bits_of", "jxl_size", "open_picture", "png_chunks"]

# The formats that are read. Pillow knows more: some that no photograph comes in, and EPS, for which
# it starts another program.
_READ = [
    "AVIF",
    "BMP",
    "GIF",
    "JPEG",
    "JPEG2000",
    "PNG",
    "PPM",
    "PSD",
    "QOI",
    "TGA",
    "TIFF",
    "WEBP",
]

# Formats that are not read: where their signature stands, the signature, the format's name, and
# what to do instead.
_DEVELOP = "develop it to JPEG or TIFF with your camera's program"
_CONVERT = "convert it to JPEG or PNG"
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx")
_HEIF_BRANDS = (*_HEIC_BRANDS, b"mif1", b"msf1", b"heim", b"heis")
_VIDEO = (b"mp4", b"isom", b"iso2", b"avc1", b"qt  ", b"M4V", b"3gp")
_A_FRAME = "save one of its pictures as JPEG or PNG"
_JXL_BEGINS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
_CONVERT_HEIF = "convert it to JPEG, or install the extra heif, with which it is read"
_CONVERT_JXL = "convert it to JPEG or PNG, or install the extra jxl, with which it is read"
_NOT_READ = (
    *((0, begin, "a JPEG XL", _CONVERT_JXL) for begin in _JXL_BEGINS),
    *((4, b"ftyp" + brand, "a HEIC", _CONVERT_HEIF) for brand in _HEIC_BRANDS),
    *((4, b"ftyp" + brand, "a HEIF", _CONVERT_HEIF) for brand in _HEIF_BRANDS[4:]),
    (4, b"ftypcrx ", "a camera raw file (CR3)", _DEVELOP),
    (8, b"CR\x02", "a camera raw file (CR2)", _DEVELOP),
    (0, b"FUJIFILMCCD-RAW", "a camera raw file (RAF)", _DEVELOP),
    (0, b"IIRO", "a camera raw file (ORF)", _DEVELOP),
    (0, b"IIRS", "a camera raw file (ORF)", _DEVELOP),
    (0, b"IIU\x00", "a camera raw file (RW2)", _DEVELOP),
    (0, b"FOVb", "a camera raw file (X3F)", _DEVELOP),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR", _CONVERT),
    (0, b"#?RADIANCE", "a Radiance HDR", _CONVERT),
    (0, b"gimp xcf", "a GIMP file", "export it as PNG"),
    (0, b"%PDF", "a PDF", _CONVERT),
    (0, b"%!PS", "a PostScript file", _CONVERT),
    (0, b"<svg", "an SVG", _CONVERT),
    (0, b"icns", "an icon file (ICNS)", _CONVERT),
    (0, b"\x00\x00\x01\x00", "an icon file (ICO)", _CONVERT),
    (0, b"II\xbc", "a JPEG XR", _CONVERT),
    (0, b"DDS ", "a DDS", _CONVERT),
    (0, b"SIMPLE  =", "a FITS", _CONVERT),
    (128, b"DICM", "a DICOM", _CONVERT),
    (0, b"8BPS\x00\x02", "a large Photoshop file (PSB)", "save it as TIFF or PNG"),
    *((4, b"ftyp" + brand, "a video", _A_FRAME) for brand in _VIDEO),
    (0, b"\x1a\x45\xdf\xa3", "a video", _A_FRAME),
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it, and name the pictures in it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it, and name the pictures in it"),
    (0, b"<!DOCTYPE", "a web page", "download the picture itself"),
    (0, b"<html", "a web page", "download the picture itself"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "fetch the picture with git lfs pull"),
    (
        0,
        b"\x00\x05\x16\x07",
        "what macOS keeps beside a picture",
        "name the picture, whose name lacks the ._ at the beginning",
    ),
)

# Formats that are read, by their signature. A file that has one and does not open is damaged, or of
# a variant that is not read.
_READ_BEGINS = (
    (0, b"\x89PNG", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),
    (0, b"MM\x00+", "TIFF"),
    (0, b"8BPS", "PSD"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (4, b"ftypavif", "AVIF"),
)

# TIFF tags.
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 254, 258, 259, 262, 277
_PLANAR, _SAMPLE_FORMAT, _DNG = 284, 339, 50706
_REDUCED, _MASK = 1, 4  # bits of _SUBFILE
_OF_SENSORS = (32803, 34892)  # values of _PHOTOMETRIC
_SENSOR = "the values of a camera's sensor"
_SIGNED = 2  # a value of _SAMPLE_FORMAT

_PAGES = 100
"""Pictures of a TIFF that are looked at, to see whether the first is the one that is meant."""

# PSD: modes whose colours are not those of its channels, and the resource that tells whether the
# file holds the picture of all layers.
_INKS = {7: "multichannel", 8: "duotone"}
_VERSION_INFO = 1057

SELECTION = "stylize-batch selection"
SEVERAL = "stylize-batch several"
"""Keys of `Image.info`: whether an alpha is a saved selection and no transparency, and whether the
file has several pictures, of which this is the first."""

_PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
_COMMENTS = (b"tEXt", b"zTXt", b"iTXt", b"tIME")
"""Chunks of a PNG that have nothing to do with how it looks."""


def open_picture(data: bytes) -> Image.Image:
    """Open a picture file. Raises `ImageReadError`, which says what the file is and what to do."""
    if not data:
        raise ImageReadError("not a picture that can be read (the file is empty)")
    try:
        image = _open(data)
    except Exception as error:  # Pillow's plugins raise many kinds for a broken header
        raise ImageReadError(_why_unreadable(data)) from error
    image.info[SEVERAL] = _is_first_of_several(data, image)
    check = {"TIFF": _why_not_the_tiff, "PSD": _why_not_the_psd}.get(image.format or "")
    if check and (problem := check(data, image)):
        raise ImageReadError(problem)
    return image


def _open(data: bytes) -> Image.Image:
    plugin = _heif_plugin(data) or _jxl_plugin(data)
    if plugin is not None:
        return plugin(io.BytesIO(data))
    if data.startswith(_PNG_BEGINS):
        data = _without_damaged_comments(data)
    return Image.open(io.BytesIO(data), formats=_READ)


def _is_first_of_several(data: bytes, image: Image.Image) -> bool:
    """Tell whether a file has other pictures that are no previews or layers of the first."""
    if image.format == "TIFF":
        return len(_pages(data)) > 1
    if image.format == "GIF":  # in another opening: a damaged picture may leave it anywhere
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=["GIF"]) as other:
            return bool(getattr(other, "is_animated", False))
    return image.format in ("PNG", "WEBP", "AVIF") and getattr(image, "n_frames", 1) > 1


def _pages(data: bytes) -> list[tuple[tuple[int, int], str]]:
    """Return size and mode of the first pictures of a TIFF, without previews and masks."""
    pages = []
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        for number in range(_PAGES):  # a damaged page ends it
            image.seek(number)
            kind = getattr(image, "tag_v2", {}).get(_SUBFILE, 0)
            if not number or not kind & (_REDUCED | _MASK):
                pages.append((image.size, image.mode))
    return pages


def _heif_plugin(data: bytes) -> type[ImageFile.ImageFile] | None:
    """Return what opens a HEIC or HEIF file, upright and in its own colours.

    None for other files, and where `pillow-heif` is not installed. Its wheels are under the GPL,
    so it is an extra of this package.
    """
    is_avif = b"avif" in data[8:64]  # which may name a brand of HEIF first, and Pillow reads
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS or is_avif:
        return None
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        return None
    return HeifImageFile


def _jxl_plugin(data: bytes) -> type[ImageFile.ImageFile] | None:
    """Return what opens a JPEG XL; None for other files, and where the extra is not installed."""
    if not data.startswith(_JXL_BEGINS):
        return None
    try:
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile
    except ImportError:
        return None
    return JXLImageFile


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in the header of a JPEG XL; None for other files.

    The plugin decodes all pixels as it opens a file, so that limits must be checked before.
    """
    if not data.startswith(_JXL_BEGINS):
        return None
    if data.startswith(_JXL_BEGINS[1]):  # a container: the picture is in one of its boxes
        at = max(data.find(b"jxlc"), data.find(b"jxlp"))
        data = data[at + (8 if data[at : at + 4] == b"jxlp" else 4) :] if at > 0 else b""
    bits = int.from_bytes(data[2:14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    by_eight = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if by_eight else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[take(3)]
    return height * ratio[0] // ratio[1] or side(), height


def bits_of(image: Image.Image) -> int:
    """Return the bits per channel of an opened file, before its pixels are decoded; 8 where they
    are not known. Pillow decodes colours to 8 in any case."""
    if image.format == "TIFF":
        return int(max(getattr(image, "tag_v2", {}).get(_BITS, (8,))))
    if image.format in ("PNG", "PPM") and (tiles := getattr(image, "tile", [])):
        told = tiles[0].args  # the values in the file, or a PPM's mode and value of white
        if isinstance(told, tuple):
            return int(told[-1]).bit_length()
        return 16 if ";16" in str(told) else 8
    if bits := image.info.get("bit_depth"):  # of HEIC and HEIF
        return int(bits)
    file = getattr(image, "fp", None)
    if image.format not in ("AVIF", "JPEG2000") or file is None:
        return 16 if image.mode.startswith("I;16") else 32 if image.mode == "F" else 8
    place = file.tell()
    file.seek(0)
    head: bytes = file.read(65536)
    file.seek(place)
    if image.format == "AVIF":  # bits of the third byte of its configuration
        at = head.find(b"av1C")
        high, twelve = (head[at + 6] & bit for bit in (0x40, 0x20)) if 0 < at < 65_000 else (0, 0)
        return (12 if twelve else 10) if high else 8
    at = head.find(b"\xff\x4f\xff\x51")  # the size of a picture in JPEG 2000, then its depth
    return (head[at + 42] & 0x7F) + 1 if 0 <= at < 65_000 else 8


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each chunk of a PNG before its pixels.

    Leaves the file where it was. Yields nothing for other files.
    """
    place = file.tell()
    try:
        file.seek(0)
        if file.read(8) != _PNG_BEGINS:
            return
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name == b"IDAT":
                return
            yield name, file.read(length)
            file.seek(4, io.SEEK_CUR)  # the checksum
    finally:
        file.seek(place)


def _without_damaged_comments(data: bytes) -> bytes:
    """Return a PNG without its comments whose checksum is wrong, for which Pillow refuses it."""
    kept, at, start = [], 8, 0
    while at + 12 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if (
            name in _COMMENTS
            and zlib.crc32(data[at + 4 : end - 4]).to_bytes(4) != data[end - 4 : end]
        ):
            kept.append(data[start:at])
            start = end
        at = end
    return b"".join([*kept, data[start:]]) if kept else data


def _why_unreadable(data: bytes) -> str:
    """Say why a file does not open, and what to do."""
    for plugin, kind in ((_heif_plugin(data), "HEIC"), (_jxl_plugin(data), "JPEG XL")):
        if plugin is not None:
            return f"this {kind} is damaged or cut short; copy it again from where it was taken"
    for at, signature, kind, remedy in _NOT_READ:
        if data[at : at + len(signature)] == signature:
            return f"it is {kind}, which is not read; {remedy}"
    for at, signature, kind in _READ_BEGINS:
        if data[at : at + len(signature)] == signature:
            return _why_variant(data, kind)
    if not data.strip(b"\0"):
        return "not a picture that can be read (it holds only zeros); copy it again"
    return f"not a picture that can be read (it begins with {data[:8]!r}); name one, or {_CONVERT}"


def _why_variant(data: bytes, kind: str, form: str = "") -> str:
    """Say why a file of a kind that is read does not open, and what to do."""
    if kind == "TIFF" and not form:
        form = _form_of_tiff(data)
    elif kind == "PSD" and (bits := int.from_bytes(data[22:24])) in (16, 32):
        form = f"{bits} bits per channel"
    if form == _SENSOR:
        return f"this TIFF has {form}, as camera raw files do, and is not read; {_DEVELOP}"
    if form:
        return f"this {kind} has {form}, which is not read; save it with 8 bits per channel"
    return (
        f"this {kind} is damaged or cut short, or of a form that is not read; save it "
        "again with 8 bits per channel"
    )


def _form_of_tiff(data: bytes) -> str:
    """Return the kind of a TIFF's values in words, or "" where that is not why it does not open."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits, samples = tags.get(_BITS, (1,))[0], tags.get(_SAMPLES, 1)
        form = tags.get(_SAMPLE_FORMAT, (1,))[0]
    except Exception:  # Pillow raises many kinds for a broken directory
        return ""
    if bits <= 8 and form == 1:
        return ""
    if tags.get(_PHOTOMETRIC) in _OF_SENSORS:
        return _SENSOR
    values = {_SIGNED: "signed whole numbers", 3: "floating numbers"}.get(form, "whole numbers")
    return f"{samples} channel{'s' if samples > 1 else ''} of {bits}-bit {values}"


def _why_not_the_tiff(data: bytes, image: Image.Image) -> str:
    """Say why what Pillow opened of a TIFF is not the picture, or not as it is meant; or ""."""
    tags = getattr(image, "tag_v2", {})
    if data[8:11] == b"CR\x02" or _DNG in tags:
        return f"it is a camera raw file, of which only a preview could be read; {_DEVELOP}"
    kind = tags.get(_SUBFILE, 0)
    if kind & _REDUCED:
        return (
            "its first picture is a preview, as in camera raw files, and the full picture is not "
            f"read; {_DEVELOP}"
        )
    if kind & _MASK:
        return "its first picture is a mask of another; save the picture alone"
    bits = tags.get(_BITS, (1,))
    if bits[0] == 8 and tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        return _why_variant(data, "TIFF", _form_of_tiff(data))
    planar = tags.get(_PLANAR) == 2 and tags.get(_COMPRESSION, 1) == 1
    if planar and bits[0] > 8 and len(bits) > 1:  # Pillow mixes up these channels
        return (
            f"this TIFF has {bits[0]} bits per channel and its channels one after the other "
            "(planar), which is not read; save it with interleaved channels"
        )
    return _why_not_the_first(data)


def _why_not_the_first(data: bytes) -> str:
    """Say why the first of several pictures in a TIFF cannot be the one that is meant, or ""."""
    pages = _pages(data)
    (width, height), mode = pages[0] if pages else ((0, 0), "")
    for (other_width, other_height), other in pages[1:]:
        larger = other_width * other_height > width * height
        coloured = _is_grey_mode(mode) and not _is_grey_mode(other)
        if larger or coloured:
            why = f"{width}x{height}" if larger else "grey"
            which = f"{other_width}x{other_height}" if larger else "in colour"
            return (
                f"its first picture is {why} and another {which}; save the one that is meant alone"
            )
    return ""


def _is_grey_mode(mode: str) -> bool:
    return mode[0] in "1LIF" and mode != "LAB"


def _why_not_the_psd(data: bytes, image: Image.Image) -> str:
    """Say why what Pillow opened of a PSD is not the picture; or "".

    Notes in `image.info` that an alpha is no transparency: the first channel beyond the colours is
    a saved selection, unless the count of layers is negative.
    """
    if inks := _INKS.get(int.from_bytes(data[24:26])):
        return f"this PSD has {inks} colours, which are not read; save it in RGB"
    for number, _, content in getattr(image, "resources", []):
        if number == _VERSION_INFO and content[4:5] == b"\0":
            return (
                "this PSD holds its layers without the picture that they make; save it with "
                "maximum compatibility, or as TIFF or PNG"
            )
    at = 26
    for _ in range(2):  # the palette and the resources
        at += 4 + int.from_bytes(data[at : at + 4])
    length = int.from_bytes(data[at : at + 4])
    layers = int.from_bytes(data[at + 8 : at + 10], signed=True) if length > 5 else 0
    image.info[SELECTION] = layers >= 0
    return ""
