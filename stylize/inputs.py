"""The inputs of a transfer: pictures as a caller gives them, and as a transfer needs them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from stylize.config import StyleConfig, masks_problem, style_masks_problem
from stylize.errors import ConfigError, ImageError, ImageReadError
from stylize.image import (
    Limits,
    match_size,
    opened,
    own_limits,
    scaled,
    style_size,
    to_image,
    upright,
    without_alpha,
)
from stylize.kept import Kept
from stylize.kinds import SEVERAL, bits_of
from stylize.margins import margin_note, painted_area
from stylize.masks import checked_mask, part_of
from stylize.motifs import MEASURED_SIDE, least_side
from stylize.stages import plan_stages

__all__ = ["Inputs", "Painting", "Photograph", "Picture", "one_or_several"]

_T = TypeVar("_T")

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
    digest: bytes  # of the pixels of `picture`, and of `part`
    size: tuple[int, int]  # width and height of the file
    box: tuple[int, int, int, int]  # what is left of it without margins
    note: str = ""  # which margins were cut off
    part: Image.Image | None = None  # grey, of the size of `picture`: white is what counts

    @classmethod
    def of(cls, picture: Image.Image, config: StyleConfig) -> Painting:
        """Cut off a decoded picture's margins, if the config says so, and shrink it as far as
        the transfer allows."""
        note, size, box = "", picture.size, (0, 0, *picture.size)
        if config.margins == "crop":
            with own_limits:
                box = painted_area(picture)
                if cut := margin_note(size, box):
                    note = f"left out margins of the style: {cut}"
                    picture = picture.crop(box)
        small = match_size(picture, style_size(picture.size, MEASURED_SIDE))
        used = style_size(picture.size, config.style_side(config.side))
        picture = match_size(picture, used)
        return cls(picture, small, _digest(picture), size, box, note)

    def within(self, mask: Image.Image) -> tuple[Painting, str]:
        """Return the painting of which only a part counts, and a note for the user or "".

        The mask is one of the whole file, from which margins are cut off like from the picture.
        Raises `ConfigError`, see `part_of`.
        """
        part, note = part_of(mask, self.size, self.box, self.picture.size)
        return replace(self, part=part, digest=self.digest + _digest(part)), note


@dataclass(frozen=True)
class Photograph:
    """A photograph ready for a transfer, see `Photograph.of`."""

    picture: Image.Image  # RGB, of the result's size
    size: tuple[int, int]  # width and height before that
    alpha: Image.Image | None = None  # grey, of the result's size
    kept: Kept = Kept()  # the metadata that the result keeps
    bits: int = 8  # per channel, in the file
    first: bool = False  # of several pictures in the file

    @classmethod
    def of(cls, image: Image.Image, config: StyleConfig, *, transparent: bool = True) -> Photograph:
        """Convert an opened picture, and bring it to the result's size.

        Its alpha is kept apart if `transparent`, the format of the result, has one and no
        background is wished for. Raises `ImageReadError`, and `ConfigError` for a size.
        """
        alpha, bits = None, bits_of(image)
        if transparent and not config.background:
            picture, alpha = without_alpha(image)
        else:
            picture = upright(image, config.background or "white")
        kept = Kept()
        if config.keep_metadata != "false":
            with own_limits:
                kept = Kept.of(image, places=config.keep_metadata == "places")
        size = picture.size
        picture = scaled(picture, config.sized(size).side)
        if alpha is not None:
            alpha = match_size(alpha, picture.size)
        return cls(picture, size, alpha, kept, bits, image.info.get(SEVERAL, False))

    @property
    def note(self) -> str:
        """What the result's row says of its size, its depth and the file, or ""."""
        notes = []
        if max(self.picture.size) > max(self.size):
            notes.append("larger than the photograph, which is {}x{}".format(*self.size))
        if self.first:
            notes.append("painted from the first of several pictures in the file")
        if self.bits > 8:
            notes.append(f"read with 8 of the photograph's {self.bits} bits per channel")
        return "; ".join(notes)


class Inputs:
    """The pictures of one transfer, decoded and no larger than needed, and its stages."""

    def __init__(
        self,
        content: Picture | Photograph,
        styles: Sequence[Picture | Painting],
        config: StyleConfig,
        *,
        init: Picture | None = None,
        mask: Picture | Sequence[Picture] | None = None,
        style_mask: Picture | Sequence[Picture | None] | None = None,
    ) -> None:
        """Decode the pictures, and plan stages without a limit on the reach, see `plan`.

        There may be one mask, or one for each style: then each style has its own region. A style
        may have a mask of its own, which says what part of it counts; None stands for the whole.

        `init` and the masks take precedence over the paths in the config. Raises `ConfigError` and
        `ImageError`.
        """
        init = init if init is not None else config.init_path or None
        masks = config.masks if mask is None else one_or_several(mask)
        if not isinstance(content, Photograph):
            content = read_photograph(content, config)
        self.photograph = content
        self.config = config = config.sized(content.size)
        # Coarser stages shrink this one, which is quicker than to shrink the original each time.
        self._largest = largest = scaled(content.picture, config.side)
        if not styles:
            raise ConfigError("there is no style; give a picture, or several")
        self.styles = [
            style if isinstance(style, Painting) else Painting.of(read_picture(style), config)
            for style in styles
        ]
        notes = self._leave_parts(config.style_masks if style_mask is None else style_mask)
        size = largest.size
        self.init = None if init is None else match_size(read_picture(init), size)
        if len(masks) > 1 and len(masks) != len(self.styles):
            raise ConfigError(masks_problem(len(masks), len(self.styles)))
        # On black: transparent parts of a mask are not painted, whatever their colour.
        checked = [checked_mask(read_picture(picture, "black"), size) for picture in masks]
        self.masks = [match_size(picture, size) for picture, _ in checked]
        notes += [note for _, note in checked]
        self.mask_note = "; ".join(dict.fromkeys(filter(None, notes)))
        self.digest = _digest(largest)
        self.plan(math.inf)

    def _leave_parts(self, masks: Picture | Sequence[Picture | None]) -> list[str]:
        """Leave of each style the part that its mask shows, if it has one; return notes."""
        each = one_or_several(masks)
        if each and len(each) != len(self.styles):
            raise ConfigError(style_masks_problem(len(each), len(self.styles)))
        notes = []
        for number, mask in enumerate(each):
            if mask is None or (isinstance(mask, str) and not mask):
                continue
            picture = read_picture(mask, "black")
            self.styles[number], note = self.styles[number].within(picture)
            notes.append(note)
        return notes

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
        numbers = [(len(s.styles), len(s.masks)) for s in (self, other)]
        if numbers[0] != numbers[1]:
            raise ConfigError(
                "pictures in one batch must have the same number of styles and of masks"
            )


def _digest(picture: Image.Image) -> bytes:
    """Hash a picture's size and pixels."""
    return hashlib.blake2b(picture.tobytes() + repr(picture.size).encode()).digest()


def read_picture(source: Picture, ground: str = "white") -> Image.Image:
    """Read a picture in any form as 8-bit RGB; transparent parts show `ground`, a colour name.

    Raises `ImageReadError` and `ImageSizeError`.
    """
    return _read(source, lambda image: upright(image, ground))


def read_photograph(source: Picture, config: StyleConfig) -> Photograph:
    """Read a photograph in any form. Raises `ImageError`, and `ConfigError` for a size."""
    return _read(source, lambda image: Photograph.of(image, config))


def one_or_several(
    pictures: Picture | Sequence[Picture] | Sequence[Picture | None] | None,
) -> Sequence[Any]:
    """Return pictures as a sequence, also where only one was given, or none."""
    if pictures is None:
        return ()
    if isinstance(pictures, Sequence) and not isinstance(pictures, str):
        return pictures
    return (pictures,)


def _read(source: Picture, convert: Callable[[Image.Image], _T]) -> _T:
    if isinstance(source, Image.Image):
        return convert(source)
    if isinstance(source, Tensor):
        return convert(to_image(_checked(source).expand(-1, 3, -1, -1)))
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise ImageReadError(f"a picture is a {kind}; it must be a PIL image, a tensor or a path")
    try:
        return convert(opened(Path(source).read_bytes(), Limits()))
    except ConfigError:
        raise
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
