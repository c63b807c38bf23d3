"""Opening a picture file: which kinds are read, and what is said of those that are not.

Pixels are not decoded here. Does not import torch.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image, ImageFile, TiffImagePlugin

from stylize.errors import ImageReadError

__all__ = ["bits_of", "jxl_size", "open_picture", "png_chunks"]

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
_SUBFILE, _BITS, _SAMPLES, _SAMPLE_FORMAT, _DNG = 254, 258, 277, 339, 50706
_REDUCED, _MASK = 1, 4  # bits of _SUBFILE

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
    if problem := _why_not_the_picture(data, image):
        raise ImageReadError(problem)
    return image


def _open(data: bytes) -> Image.Image:
    plugin = _heif_plugin(data) or _jxl_plugin(data)
    if plugin is not None:
        return plugin(io.BytesIO(data))
    if data.startswith(_PNG_BEGINS):
        data = _without_damaged_comments(data)
    return Image.open(io.BytesIO(data), formats=_READ)


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
    return f"not a picture that can be read (it begins with {data[:8]!r})"


def _why_variant(data: bytes, kind: str) -> str:
    """Say why a file of a kind that is read does not open, and what to do."""
    form = ""
    if kind == "TIFF":
        form = _form_of_tiff(data)
    elif kind == "PSD" and (bits := int.from_bytes(data[22:24])) in (16, 32):
        form = f"{bits} bits per channel"
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
    values = {2: "signed whole numbers", 3: "floating numbers"}.get(form, "whole numbers")
    return f"{samples} channels of {bits}-bit {values}"


def _why_not_the_picture(data: bytes, image: Image.Image) -> str:
    """Say why what Pillow opened is only a preview or a mask in a TIFF; "" where it is neither."""
    if image.format != "TIFF":
        return ""
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
    return ""
