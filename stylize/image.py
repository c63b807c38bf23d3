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
from stylize.errors import ConfigError, ImageReadError, ImageSizeError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Limits",
    "check_header",
    "checked_mask",
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

# Kinds that are not read, by how a file of them begins, and what to do about each.
_DEVELOP = "develop it to JPEG or TIFF with your camera's program"
_CONVERT = "convert it to JPEG or PNG"
_NOT_READ = (
    (0, b"\xff\x0a", "a JPEG XL", _CONVERT),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL", _CONVERT),
    *((4, b"ftyp" + brand, "a HEIC", _CONVERT) for brand in (b"heic", b"heix", b"hevc", b"hevx")),
    *((4, b"ftyp" + brand, "a HEIF", _CONVERT) for brand in (b"mif1", b"msf1", b"heim", b"heis")),
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

# Kinds that are read, by how a file of them begins: a file that does not open is damaged, or of a
# form that is not read.
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

_SUBFILE, _BITS, _SAMPLE_FORMAT, _DNG = 254, 258, 339, 50706  # TIFF tags
_REDUCED, _MASK = 1, 4  # bits of _SUBFILE

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
        raise ImageReadError(_unreadable(data)) from error
    if what := _not_the_picture(data, image):
        raise ImageReadError(what)
    limits.check(*image.size)
    return image


def _unreadable(data: bytes) -> str:
    """Say what a file is that Pillow does not open, and what to do."""
    if not data:
        return "not a picture that can be read (the file is empty)"
    for at, begin, kind, remedy in _NOT_READ:
        if data[at : at + len(begin)] == begin:
            return f"it is {kind}, which is not read; {remedy}"
    for at, begin, kind in _READ_BEGINS:
        if data[at : at + len(begin)] == begin:
            return (
                f"this {kind} is damaged or cut short, or of a form that is not read; save it anew "
                "with 8 bits a channel"
            )
    return f"not a picture that can be read (it begins with {data[:8]!r})"


def _not_the_picture(data: bytes, image: Image.Image) -> str:
    """Say why the picture that Pillow opens of a TIFF is not the one it was made for, or ""."""
    if image.format != "TIFF":
        return ""
    tags = getattr(image, "tag_v2", {})
    if data[8:11] == b"CR\x02" or _DNG in tags:
        return f"it is a camera raw file, of which only a preview could be read; {_DEVELOP}"
    kind = tags.get(_SUBFILE, 0)
    if kind & _REDUCED:
        return (
            "its first picture is a preview, as in camera raw files, and the whole one is not "
            f"read; {_DEVELOP}"
        )
    if kind & _MASK:
        return "its first picture is a mask of another; save the picture alone"
    return ""


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


def decode(data: bytes, limits: Limits = Limits(), ground: str = "white") -> Image.Image:
    """A picture file's bytes as an upright sRGB picture, as a person sees it in a viewer.

    Turned by EXIF, converted from the colours that its ICC profile or its EXIF names, CMYK and
    other depths brought to 8-bit RGB, transparency laid on `ground`, first frame of an animation.
    Raises `ImageReadError` (cut short, not a picture) and `ImageSizeError` (before decoding).
    """
    return upright(_open(data, limits), ground)


def upright(image: Image.Image, ground: str = "white") -> Image.Image:
    """A picture that has been opened as `decode` gives it. Raises `ImageReadError`."""
    with readable():
        image.load()
    white = _white(image)
    with readable():
        negative = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
        adobe = _is_adobe_rgb(image)
        picture = to_srgb(ImageOps.exif_transpose(image), negative, white=white, ground=ground)
        return _from_adobe_rgb(picture) if adobe else picture


def _white(image: Image.Image) -> int:
    """The value of white in grey of more than 8 bits. Raises `ImageReadError` where a TIFF has
    values of which that is not known."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.mode not in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        return 65535
    bits, signed = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if bits > 16 or signed:
        kind = "signed " if signed else ""
        raise ImageReadError(
            f"its values are {kind}whole numbers of {bits} bits, whose range is not known; save it "
            "as 8-bit or 16-bit"
        )
    return int((1 << bits) - 1)


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether the EXIF alone says that the colours are Adobe RGB, as cameras do."""
    if image.mode != "RGB" or image.info.get("icc_profile") or image.format not in ("JPEG", "MPO"):
        return False
    try:
        exif = image.getexif()
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except Exception:  # a broken EXIF has many ways to say so
        return False
    return space == 0xFFFF and str(index).strip("\0 ") == "R03"


_FROM_ADOBE = np.array(
    [[1.398288, -0.398288, 0.0], [0.0, 1.0, 0.0], [0.0, -0.042938, 1.042938]], dtype=np.float32
)
"""Linear Adobe RGB (1998) to linear sRGB; both have the white D65."""


def _from_adobe_rgb(image: Image.Image) -> Image.Image:
    """A picture in Adobe RGB, gamma 563/256, as sRGB; what sRGB has not is cut off."""
    codes = np.arange(256, dtype=np.float32) / 255
    linear = (codes ** (563 / 256)).astype(np.float32)[np.asarray(image)]
    rgb = np.clip(linear @ _FROM_ADOBE.T, 0, 1)
    encoded = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.rint(encoded * 255).astype(np.uint8))


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


def to_srgb(
    image: Image.Image, negative: bool = False, *, white: int = 65535, ground: str = "white"
) -> Image.Image:
    """A decoded picture of any mode as 8-bit RGB; see `decode`. `negative`: 0 is white, of grey of
    more than 8 bits, where Pillow does not heed it. `white`: the value of white in it."""
    profile = image.info.get("icc_profile")
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):  # 16 bits a pixel, grey
        values = np.asarray(image).astype(np.float64) * (255 / white)
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
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, ground), rgba)
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


def checked_mask(mask: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, str]:
    """Return a mask as it was meant for a photograph of a size, (width, height), in grey, and what
    to say of it, or "". Raises `ConfigError` for one of another shape than the photograph's."""
    grey = mask.convert("L")
    darkest, lightest = int(np.asarray(grey).min()), int(np.asarray(grey).max())
    if darkest == lightest:  # of any shape
        return grey, "" if lightest else "the mask is black all over, so that nothing is painted"
    (width, height), (across, down) = grey.size, size
    # Sides are whole pixels, of a small mask too.
    if abs(width * down - height * across) > 0.03 * width * down + max(size) + max(grey.size):
        turned = "; it fits when it is turned" if (width > height) != (across > down) else ""
        raise ConfigError(
            f"the mask is {width}x{height}, and the photograph {across}x{down} as it is shown, of "
            f"another shape{turned}: make the mask of the photograph as a viewer shows it"
        )
    if lightest == 1:
        return grey.point(lambda value: 255 * value), "mask of 0 and 1 read as black and white"
    note = f"the mask's lightest value is {lightest} of 255" if lightest < 128 else ""
    return grey, note


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
