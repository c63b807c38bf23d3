"""Checks of the masks that a manifest names, each with the picture that it belongs to.

Never imports torch or ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.manifest.reader import Manifest
from pipeline.manifest.table import Problem
from pipeline.records import InputRef, Pair
from pipeline.text import visible
from stylize.config import StyleConfig
from stylize.errors import ConfigError, StylizeError
from stylize.image import Limits, decode, style_size, upright_size
from stylize.margins import painted_area
from stylize.masks import checked_mask, part_of

__all__ = ["look_at_masks"]


def look_at_masks(pairs: Sequence[Pair], limits: Limits) -> tuple[list[Problem], list[str]]:
    """Find the masks that do not fit their picture or leave nothing, by decoding both.

    Each mask is looked at once with each picture. What is wrong with a file itself is not told.
    Also returns remarks on how masks are read.
    """
    lines = pairs.lines if isinstance(pairs, Manifest) else {}
    first: dict[tuple[object, ...], tuple[Pair, InputRef, InputRef]] = {}
    for pair in pairs:
        by_role = {ref.role: ref for ref in pair.inputs}
        for ref in pair.inputs:
            if not ref.is_mask:
                continue
            of_style = ref.column == "style_mask"
            masked = by_role[ref.role.replace("style_mask", "style") if of_style else "content"]
            settings = (pair.config.margins, pair.config.side) if of_style else ()
            key = (ref.column, ref.path, masked.path, *settings)
            first.setdefault(key, (pair, ref, masked))
    problems, remarks = [], []
    for pair, ref, masked in first.values():
        wrong, message = _look(ref, masked, pair.config, limits)
        told = visible(f"{PurePosixPath(ref.path).name}: {message}")
        if wrong:
            problems.append(Problem(pair.row, lines.get(pair.row), ref.column, told))
        elif message:
            remarks.append(told)
    return problems, list(dict.fromkeys(remarks))


def _look(ref: InputRef, masked: InputRef, config: StyleConfig, limits: Limits) -> tuple[bool, str]:
    """Return whether something is wrong with a mask of a picture, and what there is to say."""
    try:
        mask = decode(storage.read_bytes(ref.path), limits, "black")
        data = storage.read_bytes(masked.path)
        if ref.column == "mask":
            grey, why = checked_mask(mask, upright_size(data, limits))
        else:
            painting = decode(data, limits)
            crop = config.margins == "crop"
            box = painted_area(painting) if crop else (0, 0, *painting.size)
            left = (box[2] - box[0], box[3] - box[1])
            grey, why = part_of(
                mask, painting.size, box, style_size(left, config.style_side(config.side))
            )
    except ConfigError as error:
        return True, str(error)
    except (StylizeError, OSError):  # told of the file itself
        return False, ""
    return not grey.getbbox(), why
