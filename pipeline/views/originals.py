"""The pictures of a run: their paths today, and small copies. Never imports torch or ray."""

from __future__ import annotations

import io
import os

from PIL import Image, ImageOps

from pipeline import storage
from pipeline.store.folder import OutFolder
from stylize.colorspace import SRGB_PROFILE
from stylize.errors import StylizeError
from stylize.image import Limits, decode, own_limits, upright_size

__all__ = ["Inputs", "open_small", "size_of"]

# Wide limits: a run may have raised its own, and a panorama's result is thinner than any input.
_LIMITS = Limits(side=100_000, megapixels=1000, least=1)


class Inputs:
    """The files that OUT's manifest names. Their folder is in ``run.json``."""

    def __init__(self, out: OutFolder) -> None:
        folder = out.read_fixed().inputs
        if storage.is_uri(folder) or out.medium.is_remote:
            self.folder = self.relative = folder
        else:
            self.folder = os.path.normpath(os.path.join(os.path.realpath(out.root), folder))
            self.relative = folder.replace(os.sep, "/")

    def path(self, written: str) -> str:
        """Return the path that opens a file of the manifest."""
        return storage.join(self.folder, written)

    def from_out(self, written: str) -> str:
        """Return the path of a file of the manifest as seen from OUT, "" unless it is local."""
        path = storage.join(self.relative, written)
        local = storage.local_path(path)
        return "" if local is None else local


def open_small(path: str, side: int) -> Image.Image:
    """Return a picture, upright in sRGB, shrunk to fit into a square of `side` pixels.

    A smaller picture stays as it is. Raises `OSError` and `StylizeError`.
    """
    data = storage.read_bytes(path)
    image = _open_plain_jpeg(data, side) or decode(data, _LIMITS)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    return image


def _open_plain_jpeg(data: bytes, side: int) -> Image.Image | None:
    """Return a JPEG decoded at a half, a quarter or an eighth of its size, which is much faster.

    Return None for a picture that `decode` must read, because of its format or its colours.
    """
    try:
        with own_limits:
            image = Image.open(io.BytesIO(data))
            is_srgb = image.info.get("icc_profile", SRGB_PROFILE) == SRGB_PROFILE
            if image.format != "JPEG" or image.mode != "RGB" or not is_srgb:
                return None
            image.draft("RGB", (2 * side, 2 * side))
            return ImageOps.exif_transpose(image)
    except Exception:  # `decode` reads it, or raises an error that says what is wrong
        return None


def size_of(path: str) -> tuple[int, int] | None:
    """Return the upright (width, height) from the header, None if it cannot be read."""
    try:
        return upright_size(storage.read_bytes(path), _LIMITS)
    except (OSError, ValueError, StylizeError):
        return None
