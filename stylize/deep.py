"""Writing what Pillow cannot: 16 bits per channel, and TIFF with all of EXIF.

Pixels are (H, W, C) with C 3, or 4 with alpha. Does not import torch.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, TiffTags

from stylize.kinds import png_chunks

__all__ = ["Deep", "encode_png", "encode_tiff"]

Deep = NDArray[np.uint16]

_ICC = 34675


def encode_png(pixels: Deep, info: bytes) -> bytes:
    """Return a PNG with the pixels, and with the other chunks of `info`, a PNG of 8 bits."""
    height, width, channels = pixels.shape
    colour = {3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    # Each row begins with its filter: 2 is the difference from the row above.
    filtered = np.full((height, 1 + rows.shape[1]), 2, dtype=np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    more = [chunk for chunk in png_chunks(io.BytesIO(info)) if chunk[0] != b"IHDR"]
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(filtered.data, 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def encode_tiff(pixels: Deep | NDArray[np.uint8], exif: Image.Exif, icc: bytes) -> bytes:
    """Return a TIFF with pixels of 8 or 16 bits, the tags of `exif` and a profile."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.itemsize
    differences = pixels.copy()  # from the pixel to the left, which packs better
    differences[:, 1:] -= pixels[:, :-1]
    data = zlib.compress(differences.astype(f"<u{bits // 8}").tobytes(), 6)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in exif:
        tags[tag] = exif.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else exif[tag]
    tags[256], tags[257], tags[258] = width, height, (bits,) * channels
    tags[259], tags[262], tags[317] = 8, 2, 2  # deflate, RGB, differences
    tags[273], tags[277], tags[278], tags[279] = 0, channels, height, len(data)
    if channels == 4:
        tags[338] = 2  # alpha, which the colours have not been multiplied by
    tags[_ICC] = icc
    return struct.pack("<2sHI", b"II", 42, 8) + tags.tobytes(8) + data  # which lies behind the tags
