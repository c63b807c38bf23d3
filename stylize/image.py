"""Pictures in files to tensors and back: orientation, colour, limits, metadata.

Tensors are (1, 3, H, W), RGB, sRGB, float32 in [0, 1]. Torch is imported only where a tensor is
made or read, so that checking a thousand headers does not load it.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from stylize.config import FORMATS, MAX_SIDE, MIN_SIDE, side_problem
from stylize.errors import ImageReadError, ImageSizeError

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
    "read_metadata",
    "readable",
    "scaled",
    "style_size",
    "to_image",
    "to_srgb",
    "to_tensor",
    "upright",
    "upright_size",
]

# What is read. Pillow knows more: some that nobody photographs in, and EPS, for which it starts
# another program.
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

_LARGEST = MAX_SIDE**2  # pixels of a result
_METADATA_KEY = "stylize-batch"
_PHOTOMETRIC = 262  # the TIFF tag that says which of black and white is 0
_IMAGE_DESCRIPTION = ExifTags.Base.ImageDescription
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))

# Our own limits, in pixels and with a message that says the remedy, stand in for Pillow's.
Image.MAX_IMAGE_PIXELS = None

# Of a broken EXIF, say. Not around each call, for pictures are decoded in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Limits:
    """What is decoded at most: a header can promise more pixels than there is memory."""

    side: int = 20_000  # pixels
    megapixels: float = 200.0
    least: int = MIN_SIDE  # pixels a side; less is for pictures that are only shown

    def check(self, width: int, height: int) -> None:
        """Raise `ImageSizeError` if a picture of this size is not to be decoded or used."""
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


def _open(data: bytes, limits: Limits) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_READ)
    except Exception as error:  # Pillow's plugins raise many kinds for a broken header
        start = "the file is empty" if not data else f"it begins with {data[:8]!r}"
        if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
            start = "HEIC is not read; convert it to JPEG"
        raise ImageReadError(f"not a picture that can be read ({start})") from error
    limits.check(*image.size)
    return image


def check_header(data: bytes, limits: Limits = Limits()) -> tuple[int, int]:
    """Width and height as the header has them, of a file that is there to its end.

    Pixels are decoded only where the end is not where the format has it.
    Raises `ImageReadError` (cut short, not a picture) and `ImageSizeError`.
    """
    image = _open(data, limits)
    if not _has_end(data, image):
        decode(data, limits)
    return image.size


def upright_size(data: bytes, limits: Limits = Limits()) -> tuple[int, int]:
    """Width and height as a viewer shows the picture, turned by EXIF. Decodes no pixel.

    Raises `ImageReadError` and `ImageSizeError`.
    """
    image = _open(data, limits)
    width, height = image.size
    turned = image.format != "TIFF" and _orientation(image) >= 5  # a TIFF's size is turned already
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    """The EXIF's, of a PNG only if it precedes the pixels: to look behind them decodes them all."""
    try:
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF has many ways to say so
        return 1


def _has_end(data: bytes, image: Image.Image) -> bool:
    """Whether the file's last part is there, for formats that say where it is."""
    if image.format in ("JPEG", "MPO"):
        # Between start of scan and end of image, FF in the data is followed by 00 or a restart;
        # what precedes the scan may hold a thumbnail with an end of its own.
        scan = _jpeg_scan(data)
        return scan > 0 and data.find(b"\xff\xd9", scan) > 0
    if image.format == "PNG":
        return data.rfind(b"IEND") > 0
    return image.format == "WEBP"  # one that is cut short cannot even be opened


def _jpeg_scan(data: bytes) -> int:
    """Where the first scan of a JPEG begins, or 0. Segments are marker, length, content."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # no content
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def decode(data: bytes, limits: Limits = Limits()) -> Image.Image:
    """A picture file's bytes as an upright sRGB picture, as a person sees it in a viewer.

    Turned by EXIF, converted from its ICC profile, CMYK and 16-bit brought to 8-bit RGB,
    transparency laid on white, first frame of an animation.
    Raises `ImageReadError` (cut short, not a picture) and `ImageSizeError` (before decoding).
    """
    return upright(_open(data, limits))


def upright(image: Image.Image) -> Image.Image:
    """A picture that has been opened as `decode` gives it. Raises `ImageReadError`."""
    with readable():
        image.load()
        negative = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
        return to_srgb(ImageOps.exif_transpose(image), negative)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Raises `ImageReadError` for whatever Pillow raises in here."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error …
        raise ImageReadError(f"the picture is damaged or cut short: {error}") from error


def is_whole(data: bytes) -> bool:
    """Whether a picture, no larger than a result can be, opens to its last pixel."""
    try:
        image = Image.open(io.BytesIO(data), formats=_READ)
        if image.width * image.height > _LARGEST:
            return False
        image.load()
    except Exception:  # as many kinds as there are plugins
        return False
    return True


def to_srgb(image: Image.Image, negative: bool = False) -> Image.Image:
    """A decoded picture of any mode as 8-bit RGB; see `decode`. `negative`: 0 is white, of 16-bit
    grey, where Pillow does not heed it."""
    profile = image.info.get("icc_profile")
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):  # 16 bits a pixel, grey
        values = np.asarray(image).astype(np.float64) / 257  # 65535 -> 255
        values = 255 - values if negative else values
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0)
        # From 0 to 1, or a little beyond, as resizing and raw converters leave them; else to 255.
        scale = 255 if values.size and values.max() < 2 else 1
        image = Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
        profile = None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        image = image.convert("RGB")
    if image.mode in ("1", "P", "LA", "PA"):
        image = image.convert("RGB")
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space == "GRAY" and _is_grey(image):
                image = image.convert("L")  # it was, before its alpha or palette was resolved
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
            if converted is not None:
                converted.info.pop("icc_profile", None)  # it is sRGB now, as all are
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile, or one for another mode: the numbers are the best guess left
    return image.convert("RGB")


def _is_grey(image: Image.Image) -> bool:
    """Whether all channels are the same."""
    return len({channel.tobytes() for channel in image.split()}) == 1


def fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height scaled so that the longer one is `longest`, each at least 1."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def match_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at width x height, by Lanczos (antialiased when it shrinks)."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def scaled(image: Image.Image, longest: int) -> Image.Image:
    """The picture with a longer side of `longest` pixels."""
    return match_size(image, fit(image.size, longest))


def style_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height of a style picture whose longer side is to be `longest`: a panorama's is
    longer, so that no side is below `MIN_SIDE`."""
    size = fit(size, longest)
    if min(size) < MIN_SIDE:
        size = fit(size, math.ceil(max(size) * MIN_SIDE / min(size)))
    return size


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit picture as (1, C, H, W) float32 in [0, 1]; C is 3, or 1 for a grey mask."""
    import torch

    array = np.atleast_3d(np.asarray(image, dtype=np.float32) / 255)  # (H, W, C)
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def to_image(tensor: Tensor) -> Image.Image:
    """(1, 3, H, W) in any range as an 8-bit picture: clamped, then rounded (a cast truncates)."""
    import torch

    values = tensor.detach()[0].float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def encode(image: Image.Image, suffix: str, metadata: str = "") -> bytes:
    """The picture as the bytes of a file with this ending; `metadata` (JSON) goes with it.

    Deterministic: no time, no name, no software version. Raises `ImageReadError` for an ending
    that is not in `FORMATS`, `ImageSizeError` for a picture that its format has no room for.
    """
    kind = FORMATS.get(suffix.lower())
    if kind is None:
        raise ImageReadError(f"cannot write {suffix!r} pictures; use one of {', '.join(FORMATS)}")
    if problem := side_problem(suffix, max(image.size)):
        raise ImageSizeError(problem)
    options: dict[str, Any] = {}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        if metadata:
            info.add_itxt(_METADATA_KEY, metadata)
        options = {"pnginfo": info}
    else:
        exif = Image.Exif()
        if metadata:
            exif[_IMAGE_DESCRIPTION] = f"{_METADATA_KEY} {metadata}"
        if kind == "TIFF":
            options = {"tiffinfo": exif, "compression": "tiff_deflate"}
        else:
            options = {"exif": exif.tobytes(), "quality": 95}
            options |= {"subsampling": 0} if kind == "JPEG" else {"method": 4}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read_metadata(data: bytes) -> str:
    """The metadata that `encode` put into a picture, or "" where there is none."""
    try:
        image = Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values())))
        text = image.info.get(_METADATA_KEY)
        if text is None and image.format != "PNG":  # whose EXIF Pillow looks for behind the pixels
            text = str(image.getexif().get(_IMAGE_DESCRIPTION, ""))
            text = text.removeprefix(_METADATA_KEY).strip() if _METADATA_KEY in text else ""
    except Exception:  # whatever it is, it is no picture of ours
        return ""
    return str(text or "")
