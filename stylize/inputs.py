"""The inputs of a transfer: pictures as a caller gives them, and as a transfer needs them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from stylize.config import StyleConfig
from stylize.errors import ConfigError, ImageError, ImageReadError
from stylize.image import (
    checked_mask,
    decode,
    match_size,
    own_limits,
    scaled,
    style_size,
    to_image,
    upright,
)
from stylize.margins import margin_note, painted_area
from stylize.motifs import MEASURED_SIDE, least_side
from stylize.stages import plan_stages

__all__ = ["Inputs", "Painting", "Picture"]

Picture = Image.Image | Tensor | str | Path
"""A PIL image, the path of a file, or a floating tensor in [0, 1]: (1, 3, H, W), or (1, 1, H, W)
for grey."""


@dataclass(frozen=True)
class Painting:
    """A style picture ready for transfers, shared by those of one size and equal settings.

    See `Painting.of`.
    """

    picture: Image.Image  # no larger than needed
    small: Image.Image  # with a longer side of `MEASURED_SIDE`
    digest: bytes  # of the pixels of `picture`
    note: str = ""  # which margins were cut off

    @classmethod
    def of(cls, picture: Image.Image, config: StyleConfig) -> Painting:
        """Cut off a decoded picture's margins, if the config says so, and shrink it as far as
        the transfer allows."""
        note = ""
        if config.margins == "crop":
            with own_limits:
                box = painted_area(picture)
                if cut := margin_note(picture.size, box):
                    note = f"left out margins of the style: {cut}"
                    picture = picture.crop(box)
        small = match_size(picture, style_size(picture.size, MEASURED_SIDE))
        size = style_size(picture.size, config.style_side(config.size))
        picture = match_size(picture, size)
        return cls(picture, small, _digest(picture), note)


class Inputs:
    """The pictures of one transfer, decoded and no larger than needed, and its stages."""

    def __init__(
        self,
        content: Picture,
        styles: Sequence[Picture | Painting],
        config: StyleConfig,
        *,
        init: Picture | None = None,
        mask: Picture | None = None,
    ) -> None:
        """Decode the pictures, and plan stages without a limit on the reach, see `plan`.

        `init` and `mask` take precedence over the paths in the config. Raises `ConfigError` and
        `ImageError`.
        """
        init = init if init is not None else config.init_path or None
        mask = mask if mask is not None else config.mask or None
        self.config = config
        # Coarser stages shrink this one, which is quicker than to shrink the original each time.
        self._largest = largest = scaled(read_picture(content), config.size)
        if not styles:
            raise ConfigError("there is no style; give a picture, or several")
        self.styles = [
            style if isinstance(style, Painting) else Painting.of(read_picture(style), config)
            for style in styles
        ]
        size = largest.size
        self.init = None if init is None else match_size(read_picture(init), size)
        self.mask, self.mask_note = None, ""
        if mask is not None:
            # On black: transparent parts of a mask are not painted, whatever their colour.
            picture, self.mask_note = checked_mask(read_picture(mask, "black"), size)
            self.mask = match_size(picture, size)
        self.digest = _digest(largest)
        self.plan(math.inf)

    def plan(self, reach: float) -> None:
        """Plan the stages, and resize the photograph to the size of each.

        `reach` is the share of a painting that a layer may see, see `stylize.motifs`.
        """
        self.reach = reach
        least = least_side(self.config, reach)
        self.stages = plan_stages(self._largest.size, self.config, least)
        self.contents = {s.size: match_size(self._largest, s.size) for s in self.stages}

    def check_like(self, other: Inputs) -> None:
        """Raise `ConfigError` unless this transfer and the other can be optimised together."""
        if self.config.digest() != replace(other.config, seed=self.config.seed).digest():
            raise ConfigError(
                "the settings of pictures in one batch differ; they must be the same, except seed"
            )
        if self.stages != other.stages:
            sizes = " and ".join("{}x{}".format(*s.stages[-1].size) for s in (self, other))
            raise ConfigError(f"pictures in one batch are {sizes}; they must be of one size")
        if len(self.styles) != len(other.styles) or (self.mask is None) != (other.mask is None):
            raise ConfigError(
                "pictures in one batch must have the same number of styles, and all or none a mask"
            )


def _digest(picture: Image.Image) -> bytes:
    """Hash a picture's size and pixels."""
    return hashlib.blake2b(picture.tobytes() + repr(picture.size).encode()).digest()


def read_picture(source: Picture, ground: str = "white") -> Image.Image:
    """Read a picture in any form as 8-bit RGB; transparent parts show `ground`, a colour name.

    Raises `ImageReadError` and `ImageSizeError`.
    """
    if isinstance(source, Image.Image):
        return upright(source, ground)
    if isinstance(source, Tensor):
        return to_image(_checked(source).expand(-1, 3, -1, -1))
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise ImageReadError(f"a picture is a {kind}; it must be a PIL image, a tensor or a path")
    try:
        return decode(Path(source).read_bytes(), ground=ground)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ImageReadError(f"{source} cannot be read: {reason}") from error
    except ImageError as error:
        raise type(error)(f"{source}: {error}") from error


def _checked(picture: Tensor) -> Tensor:
    """Return a caller's tensor if it is one picture. Raises `ImageReadError`."""
    shape = tuple(picture.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3) or not picture.numel():
        problem = str(shape)
    elif not picture.is_floating_point():
        problem = f"{picture.dtype} {shape}"
    elif not picture.isfinite().all():
        problem = f"{shape} with NaN or infinite values"
    elif picture.amin() < -0.5 or picture.amax() > 1.5:  # optimisation goes a little beyond [0, 1]
        problem = f"{shape} with values from {picture.amin():.3g} to {picture.amax():.3g}"
    else:
        return picture
    raise ImageReadError(f"the tensor is {problem}; it must be floating, (1, 3, H, W) in [0, 1]")
