"""How settings are read from text, checked and explained, one kind of value after the other.

Standard library only, as `stylize.config`, which has the settings themselves.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

from stylize.errors import ConfigError
from stylize.layers import has_layer

__all__ = [
    "MAX_SIDE",
    "MIN_SIDE",
    "NATIVE",
    "LayerWeights",
    "Setting",
    "as_float",
    "check_blend",
    "check_colour",
    "check_size",
    "choice",
    "flag",
    "layers_of",
    "nominal_side",
    "number",
    "of",
    "parse_blend",
    "parse_size",
    "parse_whole",
    "parse_words",
    "path_or",
    "side_for",
    "whole",
]

MIN_SIDE = 16
"""Least side of a picture in pixels: four poolings halve it to 1 at relu5_1."""

MAX_SIDE = 16384
"""Greatest side of a result in pixels."""

NATIVE = "native"
"""The size that is the photograph's own."""

_UNKNOWN_SIDE = 4096
"""Longest side that is assumed for `NATIVE` where the photograph is not known yet, pixels."""

_COLOURS = (
    *("white", "silver", "gray", "black", "red", "maroon", "yellow", "olive", "lime", "green"),
    *("aqua", "teal", "blue", "navy", "fuchsia", "purple"),
)
"""The colours of HTML 4 by name."""


LayerWeights = tuple[tuple[str, float], ...]
"""Layers with relative weights, in any order: (("relu1_1", 1.0), ("relu2_1", 0.5))."""


@dataclass(frozen=True)
class Setting:
    """How one setting is read from text and checked, and the line of help that explains it."""

    parse: Callable[[str], object]
    check: Callable[[object], bool]
    limit: str  # of the values, in words
    help: str

    def read(self, raw: object) -> object:
        """Convert text as on the command line, a path, lists or numpy's numbers to a value.

        What cannot be converted is returned as it is, for the check to refuse.
        """
        value = _plain(os.fspath(raw) if isinstance(raw, os.PathLike) else raw)
        if self.parse is parse_words and isinstance(value, bool):
            value = str(value)
        if self.parse is _parse_layers and isinstance(value, dict):
            value = tuple(value.items())
        elif self.parse is _parse_layers and isinstance(value, tuple):
            value = ",".join(value) if all(isinstance(part, str) for part in value) else value
        of_whole = self.parse in (parse_whole, parse_size)
        whole = of_whole and isinstance(value, float)  # 64.0, like its text
        if whole or (isinstance(value, str) and self.parse is not str):
            with contextlib.suppress(ValueError, KeyError):
                return self.parse(str(value).strip())
        return value

    def checked(self, name: str, raw: object) -> object:
        """Convert and check a value, see `read`. Raises `ConfigError` naming value and limit."""
        value = self.read(raw)
        try:
            accepted = self.check(value)
        except (TypeError, ValueError, OverflowError):  # it is of a type that cannot be checked
            accepted = False
        if not accepted:
            raise ConfigError(f"{name} is {raw!r}; it must be {self.limit}")
        return value


# The factories of fields return Any, as `dataclasses.field` does: each field has its own type.


def of(
    default: object,
    parse: Callable[[str], object],
    check: Callable[[object], bool],
    limit: str,
    help: str,
) -> Any:
    """Return a field of a setting of any kind."""
    return field(default=default, metadata={"setting": Setting(parse, check, limit, help)})


def parse_whole(text: str) -> int:
    """Read a whole number, also one like 64.0, which pandas makes of 64 in a column with blanks.

    From 2^53 on such text is refused, since a float may not be the number that was written.
    """
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer() or abs(number) >= 2**53:
            raise
        return int(number)


def whole(default: int, low: int, high: int, help: str) -> Any:
    """Return a field of a whole number in a range."""

    def check(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return of(default, parse_whole, check, f"a whole number from {low} to {high}", help)


def number(default: float, low: float, high: float, help: str) -> Any:
    """Return a field of a number in a range."""

    def check(value: object) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and low <= value <= high
        )

    return of(default, float, check, f"a number from {low:g} to {high:g}", help)


def choice(default: str, values: tuple[str, ...], help: str) -> Any:
    """Return a field of one of several words."""
    return of(default, str, lambda value: value in values, " or ".join(values), help)


def flag(default: bool, help: str) -> Any:
    """Return a field of true or false."""

    def parse(text: str) -> bool:
        return {"true": True, "false": False}[text.lower()]

    return of(default, parse, lambda v: isinstance(v, bool), "true or false", help)


def path_or(default: str, words: tuple[str, ...], help: str) -> Any:
    """Return a field of a path, or of one of several words."""
    limit = " or ".join((*words, "the path of a picture")) if words else "the path of a picture"

    def check(value: object) -> bool:
        return isinstance(value, str) and (value != "" or not words)

    return of(default, str, check, limit, help)


_MEGAPIXELS = re.compile(r"(\d+(?:\.\d+)?)mp", re.IGNORECASE)
_BOX = re.compile(r"(\d+)x(\d+)", re.IGNORECASE)


def parse_size(text: str) -> int | str:
    """Read a size: a whole number, or one of the words, in lower case."""
    try:
        return parse_whole(text)
    except ValueError:
        return text.lower()


def check_size(value: object) -> bool:
    """Tell whether a value is a side in pixels, `NATIVE`, a box or megapixels, within limits."""
    if isinstance(value, str):
        if box := _BOX.fullmatch(value):
            return all(MIN_SIDE <= int(side) <= MAX_SIDE for side in box.groups())
        if megapixels := _MEGAPIXELS.fullmatch(value):
            return MIN_SIDE**2 <= float(megapixels[1]) * 1e6 <= MAX_SIDE**2
        return value == NATIVE
    return isinstance(value, int) and not isinstance(value, bool) and MIN_SIDE <= value <= MAX_SIDE


def nominal_side(size: int | str) -> int:
    """Return the longest side of a result in pixels, or a guess where it needs the photograph."""
    if isinstance(size, int):
        return size
    if box := _BOX.fullmatch(size):
        return max(map(int, box.groups()))
    if megapixels := _MEGAPIXELS.fullmatch(size):
        return min(MAX_SIDE, round(math.sqrt(float(megapixels[1]) * 1e6 * 1.5)))  # of shape 3:2
    return _UNKNOWN_SIDE


def side_for(size: int | str, photograph: tuple[int, int]) -> int:
    """Return the longest side of the result for a photograph of this width and height."""
    if isinstance(size, int):
        return size
    width, height = photograph
    if box := _BOX.fullmatch(size):
        most, longest = (int(box[1]), int(box[2])), max(photograph)
        side = round(min(most[0] / width, most[1] / height) * longest)
        fits = all(
            round(own * side / longest) <= limit
            for own, limit in zip(photograph, most, strict=True)
        )
        return side if fits else max(1, side - 1)
    if megapixels := _MEGAPIXELS.fullmatch(size):
        return round(math.sqrt(float(megapixels[1]) * 1e6 / (width * height)) * max(photograph))
    return max(photograph)


def parse_words(text: str) -> str:
    """Read a word, in any case; `Setting.read` gives it true and false as words, too."""
    return text.lower()


def check_colour(value: object) -> bool:
    """Tell whether a value is empty, the name of a colour, or one like #ff8800."""
    return isinstance(value, str) and (
        value in ("", *_COLOURS) or re.fullmatch("#(?:[0-9a-f]{3}){1,2}", value.lower()) is not None
    )


def _parse_layers(text: str) -> LayerWeights:
    layers = []
    for part in text.split(","):
        name, colon, weight = part.strip().partition(":")
        layers.append((name.strip(), float(weight) if colon else 1.0))
    return tuple(layers)


def _check_layers(value: object) -> bool:
    if not isinstance(value, tuple) or not value:
        return False
    for name, weight in value:
        if not (has_layer("vgg19", name) and math.isfinite(weight) and weight >= 0):
            return False
    names = [name for name, _ in value]
    return len(set(names)) == len(names) and sum(weight for _, weight in value) > 0


def layers_of(default: LayerWeights, help: str) -> Any:
    """Return a field of layers with weights."""
    limit = "layers like relu4_2 or relu1_1:1,relu2_1:0.5, each once, weights 0 or more, not all 0"
    return of(default, _parse_layers, _check_layers, limit, help)


def parse_blend(text: str) -> tuple[float, ...]:
    """Read weights like 0.7|0.3. Raises `ValueError`."""
    return tuple(float(part) for part in text.split("|"))


def check_blend(value: object) -> bool:
    """Tell whether a value is weights, or none."""
    return isinstance(value, tuple) and (
        not value or (all(math.isfinite(w) and w >= 0 for w in value) and sum(value) > 0)
    )


def _plain(value: object) -> object:
    """Turn lists into tuples at all depths, and numpy's numbers into Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def as_float(value: object) -> object:
    """Turn all numbers in a value into floats, and negative zero into zero."""
    if isinstance(value, tuple):
        return tuple(as_float(part) for part in value)
    return value + 0.0 if isinstance(value, int | float) and not isinstance(value, bool) else value
