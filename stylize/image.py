"""Picture files to tensors and back: orientation, colour, limits, metadata.

Tensors are (1, 3, H, W), sRGB, float32 in [0, 1]. Torch is imported only where a tensor is made or
read, so that checking a thousand headers does not load it.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from stylize import jpeg
from stylize.colorspace import SRGB_PROFILE, Colours, declared
from stylize.config import FORMATS, MAX_SIDE, MIN_SIDE, side_problem
from stylize.deep import Deep, encode_png, encode_tiff
from stylize.errors import ImageReadError, ImageSizeError
from stylize.kept import OURS, Kept
from stylize.kinds import SELECTION, jxl_size, open_picture
from stylize.scopes import Shared

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Limits",
    "check_header",
    "decode",
    "encode",
    "fit",
    "is_whole",
    "match_size",
    "opened",
    "own_limits",
    "read_metadata",
    "readable",
    "scaled",
    "style_size",
    "to_deep",
    "to_image",
    "to_tensor",
    "upright",
    "upright_size",
    "without_alpha",
]

# TIFF tags; photometric says whether 0 is black or white.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _XMP, _IPTC = 258, 262, 339, 700, 33723

_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")
"""Pillow's modes of grey with more than 8 bits."""

_LARGEST = MAX_SIDE**2  # pixels of a result
_IMAGE_DESCRIPTION, _USER_COMMENT = ExifTags.Base.ImageDescription, ExifTags.Base.UserComment
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@contextlib.contextmanager
def _without_pillows_limits() -> Iterator[None]:
    pixels = Image.MAX_IMAGE_PIXELS
    # `warnings.catch_warnings` restores all filters, also those that other threads have set since.
    quiet = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    Image.MAX_IMAGE_PIXELS = None
    warnings.filters.insert(0, quiet)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = pixels
        with contextlib.suppress(ValueError):  # another thread has restored its own filters
            warnings.filters.remove(quiet)  # type: ignore[attr-defined]


own_limits = Shared(_without_pillows_limits)
"""A context in which `Limits` replaces Pillow's limit on pixels, whose message names no remedy, and
in which Pillow does not warn, for example of broken EXIF. Decoding and cropping belong in it."""


@dataclass(frozen=True)
class Limits:
    """The largest and smallest picture that is decoded.

    A header can claim more pixels than fit into memory.
    """

    side: int = 20_000  # pixels, at most
    megapixels: float = 200.0  # at most
    least: int = MIN_SIDE  # pixels a side, at least; less only for pictures that are just shown

    def check(self, width: int, height: int) -> None:
        """Raise `ImageSizeError` unless a picture of this size may be decoded."""
        if max(width, height) > self.side:
            raise ImageSizeError(
                f"image is {width}x{height}; the limit is {self.side} pixels a side "
                "(raise it with --max-side)"
            )
        if width * height > self.megapixels * 1e6:
            raise ImageSizeError(
                f"image is {width}x{height}, {width * height / 1e6:.0f} megapixels; the limit is "
                f"{self.megapixels:g} (raise it with --max-megapixels)"
            )
        if min(width, height) < self.least:
            raise ImageSizeError(
                f"image is {width}x{height}; relu5_1 needs at least {self.least}x{self.least}"
            )


def opened(data: bytes, limits: Limits) -> Image.Image:
    """Open a picture without decoding its pixels. Raises `ImageReadError`, `ImageSizeError`."""
    size = jxl_size(data)
    if size and min(size) >= limits.least:  # it is decoded as it is opened
        limits.check(*size)
    with own_limits:
        image = open_picture(data)
    limits.check(*image.size)
    return image


def check_header(data: bytes, limits: Limits = Limits()) -> tuple[int, int]:
    """Return the width and height in the header, and check that the file is complete.

    Pixels are decoded only where the format does not show where the file ends. Raises
    `ImageReadError` (cut short, not a picture) and `ImageSizeError`.
    """
    if size := jpeg.plain_size(data):
        limits.check(*size)
        return size
    image = opened(data, limits)
    if not _has_end(data, image):
        decode(data, limits)
    return image.size


def upright_size(data: bytes, limits: Limits = Limits()) -> tuple[int, int]:
    """Return width and height as a viewer shows the picture, turned by EXIF.

    Decodes no pixels. Raises `ImageReadError` and `ImageSizeError`.
    """
    image = opened(data, limits)
    width, height = image.size
    turned = image.format != "TIFF" and _orientation(image) >= 5  # a TIFF's size is turned already
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none.

    A PNG's EXIF counts only where it precedes the pixels: to look behind them, Pillow decodes all.
    """
    if not _is_turned_by_exif(image):
        return 1
    try:
        with own_limits:
            exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
            return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many kinds for a broken EXIF
        return 1


def _is_turned_by_exif(image: Image.Image) -> bool:
    """Tell whether EXIF counts. Not in a JPEG XL, whose decoder has turned the picture already,
    unless a JPEG is packed in it as it was."""
    return image.format != "JXL" or bool(getattr(image, "jpeg", False))


def _has_end(data: bytes, image: Image.Image) -> bool:
    """Tell whether the file's last part is there, for formats that mark it."""
    if image.format in ("JPEG", "MPO"):
        return jpeg.has_end(data)
    if image.format == "PNG":
        return data.rfind(b"IEND") > 0
    return image.format in ("WEBP", "JXL")  # these do not even open where they are cut short


def decode(data: bytes, limits: Limits = Limits(), ground: str = "white") -> Image.Image:
    """Decode a picture file to 8-bit sRGB, as a viewer shows it.

    The picture is turned by EXIF and converted from the colour space that its ICC profile or its
    EXIF names; CMYK and other depths become 8-bit RGB. Transparent parts show `ground`, a colour
    name. Of an animation the first frame is taken. Raises `ImageReadError` (cut short, not a
    picture) and, before anything is decoded, `ImageSizeError`.
    """
    return upright(opened(data, limits), ground)


def upright(image: Image.Image, ground: str = "white") -> Image.Image:
    """Convert an opened picture as `decode` does. Raises `ImageReadError`."""
    return _upright(image, ground)[0]


def without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Convert an opened picture as `decode` does, but apart from its alpha.

    Parts that are not fully transparent keep their own colours, others are white. The alpha is
    grey of 8 bits, or None for an opaque picture. Raises `ImageReadError`.
    """
    return _upright(image, None)


def _upright(image: Image.Image, ground: str | None) -> tuple[Image.Image, Image.Image | None]:
    """Return a picture on `ground`, and without one also its alpha."""
    with own_limits:
        colours = declared(image)
    with readable():
        image.load()
        if image.info.get(SELECTION):
            image = image.convert("RGB") if image.mode == "RGBA" else image
    white = _white(image)
    with readable():
        negative = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
        turned = ImageOps.exif_transpose(image) if _is_turned_by_exif(image) else image
        alpha = None
        if ground is None and turned.has_transparency_data and turned.mode not in _GREY_16:
            alpha = turned.convert("RGBA").getchannel("A")
            alpha = None if alpha.getextrema() == (255, 255) else alpha
        return _to_srgb(turned, colours, negative, white=white, ground=ground), alpha


def _white(image: Image.Image) -> int:
    """Return the value of white in grey of more than 8 bits.

    Raises `ImageReadError` for a TIFF whose kind of values does not tell.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.mode not in _GREY_16:
        return 65535
    bits, signed = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if bits > 16 or signed:
        kind = "signed " if signed else ""
        raise ImageReadError(
            f"its values are {kind}whole numbers of {bits} bits, whose range is not known; save it "
            "as 8-bit or 16-bit"
        )
    return int((1 << bits) - 1)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turn whatever Pillow raises in here into `ImageReadError`, under our own limits."""
    try:
        with own_limits:
            yield
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error …
        raise ImageReadError(f"the picture is damaged or cut short: {error}") from error


def is_whole(data: bytes) -> bool:
    """Tell whether all pixels of a picture can be decoded; False beyond the size of a result."""
    try:
        with own_limits:
            image = open_picture(data)
            if image.width * image.height > _LARGEST:
                return False
            image.load()
    except Exception:  # Pillow's plugins raise many kinds
        return False
    return True


def _to_srgb(
    image: Image.Image,
    colours: Colours,
    negative: bool = False,
    *,
    white: int = 65535,
    ground: str | None = "white",
) -> Image.Image:
    """Convert a decoded picture of any mode to 8-bit sRGB, see `decode`.

    `negative` and `white` concern grey of more than 8 bits: whether 0 is white, which Pillow does
    not heed there, and the value at the other end of the scale.
    """
    profile, space = colours.icc, colours.space
    if image.mode in _GREY_16:
        image = _from_grey_16(image, negative, white)
    elif image.mode == "F":
        image = _from_float(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if ground is None:
            image = rgba.convert("RGB")
            image.paste("white", mask=rgba.getchannel("A").point(lambda a: 255 * (a == 0)))
        else:
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, ground), rgba)
            image = image.convert("RGB")
    if image.mode in ("1", "P", "LA", "PA"):
        image = image.convert("RGB")
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space == "GRAY" and _is_grey(image):
                image = image.convert("L")  # as before its alpha or palette was resolved
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
            if converted is not None:
                converted.info.pop("icc_profile", None)  # no longer describes the pixels
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a profile that is broken or for another mode: go by what else the file says
    image = image.convert("RGB")
    return image if space is None else space.convert(image)


def _from_grey_16(image: Image.Image, negative: bool, white: int) -> Image.Image:
    """Reduce grey of more than 8 bits to 8, see `_to_srgb`."""
    values = np.asarray(image).astype(np.float64)
    if values.max() * (255 / white) >= 0.5:  # otherwise numbers of parts, as in a mask of 0 and 1
        values *= 255 / white
    values = 255 - values if negative else values
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _from_float(image: Image.Image) -> Image.Image:
    """Convert floating grey to 8 bits, from [0, 1] or from [0, 255]."""
    values = np.nan_to_num(np.asarray(image), nan=0.0)
    # Resizing and raw converters leave values a little above 1.
    scale = 255 if values.size and values.max() < 2 else 1
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def _is_grey(image: Image.Image) -> bool:
    """Tell whether all channels are equal."""
    return len({channel.tobytes() for channel in image.split()}) == 1


def fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Scale (width, height) so that the longer side is `longest`; each is at least 1."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def match_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a picture to (width, height) with Lanczos, antialiased where it shrinks."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def scaled(image: Image.Image, longest: int) -> Image.Image:
    """Resize a picture so that its longer side has `longest` pixels."""
    return match_size(image, fit(image.size, longest))


def style_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Scale (width, height) so that the longer side is `longest`, or more where the shorter would
    be below `MIN_SIDE`, as in a panorama."""
    size = fit(size, longest)
    if min(size) < MIN_SIDE:
        size = fit(size, math.ceil(max(size) * MIN_SIDE / min(size)))
    return size


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an 8-bit picture to (1, C, H, W), float32 in [0, 1]; C is 3, or 1 for grey."""
    import torch

    array = np.atleast_3d(np.asarray(image, dtype=np.float32) / 255)  # (H, W, C)
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def to_deep(tensor: Tensor) -> Deep:
    """Convert (1, 3, H, W) to pixels of 16 bits, (H, W, 3): clamp to [0, 1], then round."""
    values = tensor.detach()[0].float().clamp(0, 1).mul(65535).round().permute(1, 2, 0)
    return np.ascontiguousarray(values.cpu().numpy(), dtype=np.uint16)


def to_image(tensor: Tensor) -> Image.Image:
    """Convert (1, 3, H, W) to an 8-bit picture: clamp to [0, 1], then round (a cast truncates)."""
    import torch

    values = tensor.detach()[0].float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def encode(
    image: Image.Image,
    suffix: str,
    metadata: str = "",
    *,
    quality: int = 95,
    deep: Deep | None = None,
    kept: Kept | None = None,
    ground: str = "white",
) -> bytes:
    """Encode a picture, RGB or RGBA, for a file with this suffix, with `metadata` (JSON) in it.

    It carries the profile of sRGB, and the metadata of a photograph that is `kept`. `quality`
    concerns JPEG and WebP. `deep` are the pixels (H, W, 3) of `image` with 16 bits, for PNG and
    TIFF. JPEG has no alpha; there transparent parts show `ground`.
    Deterministic: the bytes hold no time, name or software version. Raises `ImageReadError` for a
    suffix that is not in `FORMATS`, `ImageSizeError` for a picture too large for its format.
    """
    kind = FORMATS.get(suffix.lower())
    if kind is None:
        raise ImageReadError(f"cannot write {suffix!r} pictures; use one of {', '.join(FORMATS)}")
    if problem := side_problem(suffix, max(image.size)):
        raise ImageSizeError(problem)
    kept = kept or Kept()
    if kind == "JPEG" and image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
    if deep is not None and image.mode == "RGBA":
        alpha = np.asarray(image.getchannel("A"), dtype=np.uint16)[..., None] * np.uint16(257)
        deep = np.concatenate([deep, alpha], axis=2)
    exif = kept.exif()
    if kind == "PNG":
        return _encode_png(image, metadata, exif, kept.xmp, deep)
    if metadata and _IMAGE_DESCRIPTION in exif:  # the photograph's caption
        comment = b"ASCII\0\0\0" + f"{OURS} {metadata}".encode()
        exif.get_ifd(ExifTags.IFD.Exif)[_USER_COMMENT] = comment
    elif metadata:
        exif[_IMAGE_DESCRIPTION] = f"{OURS} {metadata}"
    if kind == "TIFF":
        blocks: dict[int, object] = {_XMP: kept.xmp, _IPTC: kept.iptc_block()}
        blocks |= {
            ifd: dict(exif.get_ifd(ifd)) for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
        }
        exif.update({tag: block for tag, block in blocks.items() if block})
        return encode_tiff(np.asarray(image) if deep is None else deep, exif, SRGB_PROFILE)
    options: dict[str, object] = {"exif": exif.tobytes(), "quality": quality}
    if 0 < len(kept.xmp) < 65_000:
        options["xmp"] = kept.xmp
    if kind == "JPEG":
        options |= {"subsampling": 0, "extra": kept.jpeg_segment()}
    else:
        options["method"] = 4
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=SRGB_PROFILE, **options)
    return buffer.getvalue()


def _encode_png(
    image: Image.Image, metadata: str, exif: Image.Exif, xmp: bytes, deep: Deep | None
) -> bytes:
    info = PngImagePlugin.PngInfo()
    if metadata:
        info.add_itxt(OURS, metadata)
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    buffer = io.BytesIO()
    more = {"exif": exif} if exif else {}
    picture = image if deep is None else Image.new("RGB", (1, 1))
    picture.save(buffer, "PNG", pnginfo=info, icc_profile=SRGB_PROFILE, **more)
    return buffer.getvalue() if deep is None else encode_png(deep, buffer.getvalue())


def read_metadata(data: bytes) -> str:
    """Return the metadata that `encode` put into a picture, or "" where there is none."""
    try:
        with own_limits:
            image = Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values())))
            text = image.info.get(OURS)
            if text is None and image.format != "PNG":  # for a PNG's EXIF, Pillow decodes all
                exif = image.getexif()
                comment = exif.get_ifd(ExifTags.IFD.Exif).get(_USER_COMMENT, b"")
                texts = (str(exif.get(_IMAGE_DESCRIPTION, "")), bytes(comment)[8:].decode("ascii"))
                ours = [text for text in texts if text.startswith(OURS)]
                text = ours[0].removeprefix(OURS).strip(" \0") if ours else ""
    except Exception:  # not one of our pictures
        return ""
    return str(text or "")
