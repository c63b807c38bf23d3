"""What a picture file says of its colours, and the way from there to sRGB.

A file can say it by an ICC profile, by code points (PNG's cICP, the nclx box of AVIF and HEIF), by
PNG's sRGB, gAMA and cHRM, and by EXIF. `declared` finds what counts. Does not import torch.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from stylize.errors import ImageReadError
from stylize.kinds import png_chunks

__all__ = ["SRGB_PROFILE", "Colours", "Space", "declared"]

SRGB_PROFILE = Path(__file__).with_name("srgb.icc").read_bytes()
"""The profile that results carry: the one that LittleCMS makes for sRGB, with a fixed date."""

Array = NDArray[np.float32]

_Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue."""

_D65 = (0.3127, 0.3290)
_SRGB: _Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)

# ITU-T H.273, table 2: the code points of primaries.
_PRIMARIES: Mapping[int, _Chromaticities] = {
    1: _SRGB,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}

_SDR = "export it in sRGB, as 8-bit JPEG or PNG"
_HDR = {16: "PQ", 18: "HLG"}
_UNSPECIFIED = 2

# EXIF and TIFF tags.
_WHITE_POINT, _PRIMARY_CHROMATICITIES = 318, 319
_EXIF_SRGB, _EXIF_ADOBE, _UNCALIBRATED = 1, 2, 0xFFFF

_BAND = 512
"""Rows that are converted at once, which takes some 100 MB."""


@dataclass(frozen=True)
class Space:
    """Colours that are told by numbers instead of a profile."""

    to_srgb: Array  # (3, 3), from light of this space to light of sRGB
    linear: Callable[[Array], Array]  # values in [0, 1] to light in [0, 1]
    narrow: bool = False  # black is 16 and white 235, as in video

    def convert(self, image: Image.Image) -> Image.Image:
        """Convert 8-bit RGB to sRGB; colours outside it are clipped."""
        codes = (np.arange(256, dtype=np.float32) / 255).astype(np.float32)
        if self.narrow:
            codes = np.clip((codes * 255 - 16) / 219, 0, 1, dtype=np.float32)
        light = self.linear(codes).astype(np.float32)
        values = np.asarray(image)
        converted = np.empty_like(values)
        for top in range(0, len(values), _BAND):
            rgb = np.clip(light[values[top : top + _BAND]] @ self.to_srgb.T, 0, 1)
            encoded = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
            converted[top : top + _BAND] = np.rint(encoded * 255).astype(np.uint8)
        return Image.fromarray(converted)


@dataclass(frozen=True)
class Colours:
    """What a file says of its colours. With neither they are sRGB."""

    icc: bytes | None = None
    space: Space | None = None  # counts where there is no profile that can be followed


def declared(image: Image.Image) -> Colours:
    """Return what counts of all that an opened file says, before its pixels are decoded.

    In a PNG that is the first of cICP, iCCP, sRGB, gAMA with cHRM, and EXIF, as its specification
    has it; elsewhere a profile, the code points, and EXIF. Raises `ImageReadError` for colours that
    cannot be followed, such as HDR.
    """
    icc = image.info.get("icc_profile") or None
    if icc == SRGB_PROFILE:
        return Colours()
    _refuse_hdr(_icc_code_points(icc or b""))
    chunks = _chunks(image)
    code_points = _code_points(image, chunks)
    _refuse_hdr(code_points)
    space, is_told = _by_code_points(code_points)
    if is_told and b"cICP" in chunks:
        return Colours(None, space)
    if not is_told and b"sRGB" not in chunks:
        space, is_told = _by_gamma(chunks)
        if not is_told:
            space = _by_exif(image)
    return Colours(icc, space)


def _chunks(image: Image.Image) -> dict[bytes, bytes]:
    """Return the chunks of a PNG that tell its colours; {} for other files."""
    names = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None:
        return {}
    return {name: content for name, content in png_chunks(file) if name in names}


# --- code points, ITU-T H.273 ---


@dataclass(frozen=True)
class _CodePoints:
    primaries: int
    transfer: int
    matrix: int = 0
    full_range: bool = True


def _code_points(image: Image.Image, chunks: Mapping[bytes, bytes]) -> _CodePoints | None:
    content = chunks.get(b"cICP", b"")
    if len(content) == 4:
        primaries, transfer, matrix, full = content
        return _CodePoints(primaries, transfer, matrix, bool(full))
    nclx = image.info.get("nclx_profile")  # of HEIC and HEIF
    if isinstance(nclx, Mapping):
        return _CodePoints(nclx["color_primaries"], nclx["transfer_characteristics"])
    file = getattr(image, "fp", None)
    if image.format == "AVIF" and file is not None:
        place = file.tell()
        file.seek(0)
        head = file.read(65536)
        file.seek(place)
        at = head.find(b"colrnclx")
        if at > 0 and len(head) >= at + 12:
            return _CodePoints(*struct.unpack(">HH", head[at + 8 : at + 12]))
    return None


def _icc_code_points(icc: bytes) -> _CodePoints | None:
    """Return the code points in a profile's cicp tag, or None."""
    with contextlib.suppress(struct.error):
        (count,) = struct.unpack(">I", icc[128:132])
        for at in range(132, min(132 + 12 * count, len(icc)), 12):
            name, start, _ = struct.unpack(">4sII", icc[at : at + 12])
            if name == b"cicp":
                return _CodePoints(*struct.unpack(">BB", icc[start + 8 : start + 10]))
    return None


def _refuse_hdr(told: _CodePoints | None) -> None:
    if told is not None and told.transfer in _HDR:
        raise ImageReadError(
            f"its colours are HDR ({_HDR[told.transfer]}), which is not read; {_SDR}"
        )


def _by_code_points(told: _CodePoints | None) -> tuple[Space | None, bool]:
    """Return the space, None for sRGB, and whether the code points tell it."""
    if told is None or _UNSPECIFIED in (told.primaries, told.transfer):
        return None, False
    linear = _TRANSFERS.get(told.transfer)
    if told.primaries not in _PRIMARIES or linear is None or told.matrix:
        raise ImageReadError(
            f"its colours are told by the code points {told.primaries}/{told.transfer}/"
            f"{told.matrix}, which are not known here; {_SDR}"
        )
    if linear is _srgb_to_light and told.primaries == 1 and told.full_range:
        return None, True
    return Space(_to_srgb(_PRIMARIES[told.primaries]), linear, not told.full_range), True


def _power(gamma: float) -> Callable[[Array], Array]:
    def linear(values: Array) -> Array:
        light: Array = values**gamma
        return light

    return linear


def _srgb_to_light(values: Array) -> Array:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _bt709_to_light(values: Array) -> Array:
    return np.where(values < 0.081, values / 4.5, ((values + 0.099) / 1.099) ** (1 / 0.45))


def _smpte240_to_light(values: Array) -> Array:
    return np.where(values < 0.0913, values / 4, ((values + 0.1115) / 1.1115) ** (1 / 0.45))


_TRANSFERS: Mapping[int, Callable[[Array], Array]] = {
    **dict.fromkeys((1, 6, 14, 15), _bt709_to_light),
    4: _power(2.2),
    5: _power(2.8),
    7: _smpte240_to_light,
    8: _power(1.0),
    13: _srgb_to_light,
}
"""ITU-T H.273, table 3: from values to light, by code point."""


# --- PNG's gamma and chromaticities, and EXIF ---


def _by_gamma(chunks: Mapping[bytes, bytes]) -> tuple[Space | None, bool]:
    """Return the space of gAMA and cHRM, None for sRGB, and whether they tell it.

    One alone is completed by sRGB's. The values that the PNG specification gives for sRGB mean it:
    older programs write them in place of the chunk sRGB.
    """
    gamma, chromaticities = 0.0, None
    if len(content := chunks.get(b"gAMA", b"")) == 4:
        gamma = int.from_bytes(content) / 100_000
    if len(content := chunks.get(b"cHRM", b"")) == 32:
        white_x, white_y, *rest = (value / 100_000 for value in struct.unpack(">8i", content))
        chromaticities = (white_x, white_y, *rest)
    if not gamma and chromaticities is None:
        return None, False
    linear = _power(1 / gamma) if gamma and abs(gamma - 0.45455) > 0.0045 else None
    return _of_numbers(chromaticities, linear), True


def _of_numbers(
    chromaticities: tuple[float, ...] | None, linear: Callable[[Array], Array] | None
) -> Space | None:
    """Return a space, or None for sRGB. Without `linear` it has sRGB's curve."""
    matrix = np.eye(3, dtype=np.float32)
    if chromaticities is not None and not np.allclose(chromaticities, _SRGB, atol=0.01):
        try:
            matrix = _to_srgb(chromaticities)
        except (np.linalg.LinAlgError, ZeroDivisionError, ValueError):  # no colours at all
            chromaticities = None
    else:
        chromaticities = None
    if chromaticities is None and linear is None:
        return None
    return Space(matrix, linear or _srgb_to_light)


_FROM_ADOBE = np.array(
    [[1.398288, -0.398288, 0.0], [0.0, 1.0, 0.0], [0.0, -0.042938, 1.042938]], dtype=np.float32
)
"""Linear Adobe RGB (1998) to linear sRGB; both have the white point D65."""


def _by_exif(image: Image.Image) -> Space | None:
    """Return the space that EXIF alone tells, as it does in cameras' files; None for sRGB."""
    if image.mode != "RGB":
        return None
    try:
        exif = Image.Exif()
        if image.format == "PNG":  # to look behind its pixels, Pillow would decode all
            exif.load(image.info.get("exif", b""))
        else:
            exif = image.getexif()
        inside = exif.get_ifd(ExifTags.IFD.Exif)
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
        space = inside.get(ExifTags.Base.ColorSpace)
        if space == _EXIF_SRGB:
            return None
        is_adobe = space == _UNCALIBRATED and str(index).strip("\0 ") == "R03"
        if space == _EXIF_ADOBE or is_adobe:
            return Space(_FROM_ADOBE, _power(563 / 256))
        told = (*exif[_WHITE_POINT], *exif[_PRIMARY_CHROMATICITIES])
        gamma = float(inside.get(ExifTags.Base.Gamma, 2.2))
        linear = _power(gamma) if abs(gamma - 2.2) > 0.02 else None
        return _of_numbers(tuple(map(float, told)), linear) if len(told) == 8 else None
    except Exception:  # Pillow raises many kinds for a broken EXIF
        return None


# --- matrices ---

_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def _xyz(x: float, y: float) -> NDArray[np.float64]:
    """Return XYZ of luminance 1. Raises `ZeroDivisionError`."""
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _to_xyz(chromaticities: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the matrix from light of a space to XYZ, adapted to D65 after Bradford."""
    white_x, white_y, *rest = chromaticities
    white = _xyz(white_x, white_y)
    columns = np.stack([_xyz(*rest[at : at + 2]) for at in (0, 2, 4)], axis=1)
    matrix = columns * np.linalg.solve(columns, white)
    seen, wanted = _BRADFORD @ white, _BRADFORD @ _xyz(*_D65)
    adapted: NDArray[np.float64] = np.linalg.inv(_BRADFORD) @ np.diag(wanted / seen) @ _BRADFORD
    return adapted @ matrix


def _to_srgb(chromaticities: tuple[float, ...]) -> Array:
    """Return the matrix from light of a space to light of sRGB."""
    matrix = np.linalg.solve(_to_xyz(_SRGB), _to_xyz(chromaticities))
    if not np.isfinite(matrix).all():
        raise ValueError("the chromaticities span no colours")
    return matrix.astype(np.float32)
