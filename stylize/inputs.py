"""Pictures as a caller gives them to a transfer: opened, as a tensor, or a file's path."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from torch import Tensor

from stylize.errors import ImageError, ImageReadError
from stylize.image import decode, to_image, upright

__all__ = ["Picture", "read_picture"]

Picture = Image.Image | Tensor | str | Path
"""A PIL image, a floating tensor (1, 3, H, W) in [0, 1] (grey: (1, 1, H, W)), or the path of a
file."""


def read_picture(source: Picture) -> Image.Image:
    """A picture as a caller gave it, in RGB. Raises `ImageReadError`, `ImageSizeError`."""
    if isinstance(source, Image.Image):
        return upright(source)
    if isinstance(source, Tensor):
        return to_image(_checked(source).expand(-1, 3, -1, -1))
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise ImageReadError(f"a picture is a {kind}; it must be a PIL image, a tensor or a path")
    try:
        return decode(Path(source).read_bytes())
    except (OSError, ValueError) as error:  # ValueError: no file has such a name
        reason = getattr(error, "strerror", None) or error
        raise ImageReadError(f"{source} cannot be read: {reason}") from error
    except ImageError as error:
        raise type(error)(f"{source}: {error}") from error


def _checked(picture: Tensor) -> Tensor:
    """A caller's tensor. Raises `ImageReadError` where it is no picture, or several."""
    shape = tuple(picture.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3) or not picture.numel():
        what = str(shape)
    elif not picture.is_floating_point():
        what = f"{picture.dtype} {shape}"
    elif not picture.isfinite().all():
        what = f"{shape} with NaN or infinite values"
    elif picture.abs().amax() > 2:  # an optimised one may go a little beyond
        what = f"{shape} with values up to {picture.abs().amax():.0f}"
    else:
        return picture
    raise ImageReadError(f"the tensor is {what}; it must be floating, (1, 3, H, W) in [0, 1]")
