"""Masks as people give them: checked, and brought to the picture that they belong to.

A mask is grey: white is what counts. Does not import torch.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from stylize.config import MIN_SIDE
from stylize.errors import ConfigError
from stylize.image import match_size

__all__ = ["checked_mask", "part_of"]

_LEAST = MIN_SIDE**2
"""Pixels of a painting, at the size in use, that its part must have at least."""


def checked_mask(
    mask: Image.Image, size: tuple[int, int], of: str = "photograph"
) -> tuple[Image.Image, str]:
    """Return a mask in grey, and a note for the user or "".

    A mask of 0 and 1 is stretched to black and white. Raises `ConfigError` unless its shape is
    that of the picture, whose `size` is (width, height), and which is the photograph or the
    painting, as `of` says.
    """
    name = "mask" if of == "photograph" else "style mask"
    grey = mask.convert("L")
    darkest, lightest = int(np.asarray(grey).min()), int(np.asarray(grey).max())
    if darkest == lightest:  # one value everywhere: its shape does not matter
        nothing = f"the {name} is black all over, so that nothing is painted"
        return grey, "" if lightest else nothing
    (width, height), (across, down) = grey.size, size
    # The shapes may differ by 3 %, and by the rounding of sides to whole pixels.
    if abs(width * down - height * across) > 0.03 * width * down + max(size) + max(grey.size):
        turned = "; it fits when it is turned" if (width > height) != (across > down) else ""
        raise ConfigError(
            f"the {name} is {width}x{height}, and the {of} {across}x{down} as it is shown, of "
            f"another shape{turned}: make the mask of the {of} as a viewer shows it"
        )
    if lightest == 1:
        return grey.point(lambda value: 255 * value), f"{name} of 0 and 1 read as black and white"
    note = f"the {name}'s lightest value is {lightest} of 255" if lightest < 128 else ""
    return grey, note


def part_of(
    mask: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], used: tuple[int, int]
) -> tuple[Image.Image, str]:
    """Return the mask of a painting in grey, of the size in use, and a note for the user or "".

    The painting's `size` is (width, height). Of it `box` is left without margins, and `used` is the
    size that this is brought to. Raises `ConfigError` for a mask of another shape, and for one that
    leaves nothing of the painting, or too little.
    """
    grey, note = checked_mask(mask, size, "painting")
    if not grey.getbbox():
        raise ConfigError("the style mask is black all over: make the part that counts white")
    part = match_size(grey, size).crop(box)
    if not part.getbbox():
        raise ConfigError(
            "the style mask is white only in the margins, which are left out: set margins to keep, "
            "or make a part inside them white"
        )
    part = match_size(part, used)
    pixels = float(np.asarray(part).mean()) / 255 * used[0] * used[1]
    if pixels < _LEAST:
        raise ConfigError(
            f"the style mask leaves {pixels:.0f} pixels of the painting, which is "
            f"{used[0]}x{used[1]} here; it must leave {_LEAST}: make a larger part white, or raise "
            "size or style_scale"
        )
    return part, note
