"""Where the pictures of a run lie today, and opening them small. Never imports torch or ray."""

from __future__ import annotations

import io
import os

from PIL import Image, ImageOps

from pipeline import storage
from pipeline.store.folder import OutFolder
from stylize.errors import StylizeError
from stylize.image import Limits, decode, own_limits, upright_size

__all__ = ["Inputs", "open_small", "size_of"]

# What a run took in may have been raised, and the result of a panorama is thinner than any input.
_LIMITS = Limits(side=100_000, megapixels=1000, least=1)


class Inputs:
    """The files that OUT's manifest names, found again through ``run.json``."""

    def __init__(self, out: OutFolder) -> None:
        folder = out.read_fixed().inputs
        if storage.is_uri(folder):
            self.folder = self.relative = folder
        else:
            self.folder = os.path.normpath(os.path.join(os.path.realpath(out.root), folder))
            self.relative = folder.replace(os.sep, "/")

    def path(self, written: str) -> str:
        """A path of the manifest as one that opens from here."""
        return storage.join(self.folder, written)

    def from_out(self, written: str) -> str:
        """The same, relative to OUT where the manifest's is; "" for what is no local file."""
        path = storage.join(self.relative, written)
        local = storage.local_path(path)
        return "" if local is None else local


def open_small(path: str, side: int) -> Image.Image:
    """A picture shrunk to fit into a square, upright, sRGB, RGB; never enlarged.

    Raises `OSError` and `StylizeError`.
    """
    data = storage.read_bytes(path)
    image = _open_plain_jpeg(data, side) or decode(data, _LIMITS)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    return image


def _open_plain_jpeg(data: bytes, side: int) -> Image.Image | None:
    """A JPEG decoded at half, a quarter or an eighth of its size, which takes a fraction of the
    time; None for everything that needs more care."""
    try:
        with own_limits:
            image = Image.open(io.BytesIO(data))
            if image.format != "JPEG" or image.mode != "RGB" or image.info.get("icc_profile"):
                return None
            image.draft("RGB", (2 * side, 2 * side))
            return ImageOps.exif_transpose(image)
    except Exception:  # `decode` says what is wrong with it
        return None


def size_of(path: str) -> tuple[int, int] | None:
    """Width and height, upright, by the header alone; None for what cannot be read."""
    try:
        return upright_size(storage.read_bytes(path), _LIMITS)
    except (OSError, ValueError, StylizeError):
        return None
