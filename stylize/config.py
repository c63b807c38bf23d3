"""StyleConfig: every setting of a transfer, its default, its check, its text form, its digest.

Standard library only: the command line and the manifest reader import it without loading torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Number
from typing import Any, Self

from stylize.errors import ConfigError
from stylize.layers import CONVS, block, has_layer
from stylize.presets import PRESETS

__all__ = [
    "ALGORITHM",
    "AT_ONCE",
    "FORMATS",
    "INIT_WORDS",
    "MAX_SIDE",
    "MIN_SIDE",
    "SETTINGS",
    "WEBP_SIDE",
    "LayerWeights",
    "Setting",
    "StyleConfig",
    "as_text",
    "parse_setting",
    "side_problem",
    "together",
]

ALGORITHM = 3
"""Version of what the same settings give; raised when results change on purpose."""

AT_ONCE = 2048**2
"""Pixels of the largest picture that the network sees whole, with some 7 GB; larger ones are seen
in tiles, and pictures that are optimised together are as many as make these."""


def together(side: int) -> int:
    """Pictures of a side, pixels, that fill a GPU without crowding it, optimised together."""
    return max(1, AT_ONCE // side**2)


MIN_SIDE = 16
"""Least side of a picture, pixels: four poolings halve it to 1 at relu5_1."""

MAX_SIDE = 16384
"""Longest side of a result, pixels."""

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""File endings that a result may have, and Pillow's name of the format."""

WEBP_SIDE = 16383
"""Longest side that a .webp has room for, pixels."""


def side_problem(suffix: str, side: int) -> str | None:
    """What is wrong with a longest side, pixels, in a file with an ending, or None."""
    if suffix.lower() == ".webp" and side > WEBP_SIDE:
        return f"{side} pixels a side do not fit a .webp ({WEBP_SIDE} do); name it .png or .tif"
    return None


LayerWeights = tuple[tuple[str, float], ...]
"""Layers with relative weights, shallow or deep first: (("relu1_1", 1.0), ("relu2_1", 0.5))."""

INIT_WORDS = ("matched", "content", "style", "noise")
"""Words for where to start; any other text is the path of a picture."""


@dataclass(frozen=True)
class Setting:
    """How one setting is read from text and checked, and the line that explains it."""

    parse: Callable[[str], Any]
    check: Callable[[Any], bool]
    limit: str
    help: str

    def read(self, given: Any) -> Any:
        """The value of what is given for it: text as on the command line, a path or lists, too.
        What cannot be read stays as it is, for the check to refuse."""
        value = _plain(os.fspath(given) if isinstance(given, os.PathLike) else given)
        if self.parse is _parse_layers and isinstance(value, dict):
            value = tuple(value.items())
        elif self.parse is _parse_layers and isinstance(value, tuple):
            value = ",".join(value) if all(isinstance(one, str) for one in value) else value
        whole = self.parse is _parse_whole and isinstance(value, float)  # 64.0, as its text is
        if whole or (isinstance(value, str) and self.parse is not str):
            with contextlib.suppress(ValueError, KeyError):
                return self.parse(str(value).strip())
        return value

    def checked(self, name: str, given: Any) -> Any:
        """The value of what is given, see `read`. Raises `ConfigError` naming it and the limit."""
        value = self.read(given)
        try:
            accepted = self.check(value)
        except (TypeError, ValueError, OverflowError):  # it has another shape
            accepted = False
        if not accepted:
            raise ConfigError(f"{name} is {given!r}; it must be {self.limit}")
        return value


def _setting(
    default: Any, parse: Callable[[str], Any], check: Callable[[Any], bool], limit: str, help: str
) -> Any:
    return field(default=default, metadata={"setting": Setting(parse, check, limit, help)})


def _parse_whole(text: str) -> int:
    """The whole number in a text, also in 64.0, which pandas makes of 64 in a column with a blank;
    not from 2^53 on, where a float is not what was written."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer() or abs(number) >= 2**53:
            raise
        return int(number)


def _whole(default: int, low: int, high: int, help: str) -> Any:
    def check(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return _setting(default, _parse_whole, check, f"a whole number from {low} to {high}", help)


def _number(default: float, low: float, high: float, help: str) -> Any:
    def check(value: Any) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and low <= value <= high
        )

    return _setting(default, float, check, f"a number from {low:g} to {high:g}", help)


def _choice(default: str, values: tuple[str, ...], help: str) -> Any:
    return _setting(default, str, lambda value: value in values, " or ".join(values), help)


def _flag(default: bool, help: str) -> Any:
    def parse(text: str) -> bool:
        return {"true": True, "false": False}[text.lower()]

    return _setting(default, parse, lambda v: isinstance(v, bool), "true or false", help)


def _path_or(default: str, words: tuple[str, ...], help: str) -> Any:
    limit = " or ".join((*words, "the path of a picture")) if words else "the path of a picture"

    def check(value: Any) -> bool:
        return isinstance(value, str) and (value != "" or not words)

    return _setting(default, str, check, limit, help)


def _parse_layers(text: str) -> LayerWeights:
    layers = []
    for part in text.split(","):
        name, colon, weight = part.strip().partition(":")
        layers.append((name.strip(), float(weight) if colon else 1.0))
    return tuple(layers)


def _check_layers(value: Any) -> bool:
    if not isinstance(value, tuple) or not value:
        return False
    for name, weight in value:
        if not (has_layer("vgg19", name) and math.isfinite(weight) and weight >= 0):
            return False
    names = [name for name, _ in value]
    return len(set(names)) == len(names) and sum(weight for _, weight in value) > 0


def _layers(default: LayerWeights, help: str) -> Any:
    limit = "layers like relu4_2 or relu1_1:1,relu2_1:0.5, each once, weights 0 or more, not all 0"
    return _setting(default, _parse_layers, _check_layers, limit, help)


def _parse_blend(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split("|"))


def _check_blend(value: Any) -> bool:
    return isinstance(value, tuple) and (
        not value or (all(math.isfinite(w) and w >= 0 for w in value) and sum(value) > 0)
    )


def _plain(value: Any) -> Any:
    """The value with every list in it a tuple, and numpy's numbers Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def _as_float(value: Any) -> Any:
    """The value with every number in it a float, and no negative zero."""
    if isinstance(value, tuple):
        return tuple(_as_float(part) for part in value)
    return value + 0.0 if isinstance(value, int | float) and not isinstance(value, bool) else value


_LATER_SETTINGS: Mapping[str, tuple[int, Any]] = {"motifs": (3, 1.0), "margins": (3, "keep")}
"""Settings that came after the first version: the version of the algorithm that brought each, and
the value that paints as the versions before did."""


class _Spelt:
    """Refuses a preset's name without its values. Before `__init__`, which cannot tell a value
    that was given from a default: settings that are all there, as in a record, may be defaults."""

    def __new__(cls, **settings: Any) -> Self:
        preset = settings.get("preset")
        if PRESETS.get(str(preset), {}).keys() - settings.keys():
            raise ConfigError(
                f"preset={preset!r} sets nothing here; use StyleConfig.of({preset!r}, …)"
            )
        return super().__new__(cls)


@dataclass(frozen=True, kw_only=True)
class StyleConfig(_Spelt):
    """Every setting of one transfer, checked when made.

    The defaults are those of the preset ``default``; `StyleConfig.of` starts from another one,
    which `preset` by itself only names. Values may also be texts as on the command line, lists
    and `Path`s.
    Raises `ConfigError`, naming setting, value and limit, for a value that cannot be.
    """

    preset: str = _choice("default", tuple(PRESETS), "named settings to start from")
    backbone: str = _choice(
        "auto",
        ("auto", "vgg19", "vgg16"),
        "network whose features are matched; auto is vgg19 if it can be had, else bundled vgg16",
    )
    size: int = _whole(512, MIN_SIDE, MAX_SIDE, "longest side of the result, pixels")
    steps: int = _whole(140, 0, 1_000_000, "evaluations of loss and gradient, over all scales")
    strength: float = _number(0.5, 0, 1, "0 is the photograph, 0.5 the preset, 1 style alone")
    content_weight: float = _number(1.0, 0, 1e30, "weight of the content loss")
    style_weight: float = _number(70.0, 0, 1e30, "weight of the style loss")
    tv_weight: float = _number(0.0, 0, 1e30, "weight of the total variation loss")
    content_layers: LayerWeights = _layers(
        (("relu4_2", 1.0),), "layers of the content loss; weights are relative"
    )
    style_layers: LayerWeights = _layers(
        (
            ("relu1_1", 4.0),
            ("relu2_1", 18.0),
            ("relu3_1", 25.0),
            ("relu4_1", 2.6),
            ("relu5_1", 1.5),
        ),
        "layers of the style loss; weights are relative",
    )
    style_loss: str = _choice(
        "gram", ("gram", "moments", "wasserstein"), "statistic of the features that is matched"
    )
    relative: bool = _flag(
        True, "content over its energy, style over its loss at the start, to balance pairs alike"
    )
    feature_scale: str = _choice(
        "caffe", ("unit", "caffe"), "features with mean one, or as the 2014 networks gave them"
    )
    pooling: str = _choice("average", ("average", "max"), "pooling between the blocks")
    padding: str = _choice(
        "replicate", ("zeros", "replicate"), "what the first convolution sees beyond the edge"
    )
    init: str = _path_or(
        "matched",
        INIT_WORDS,
        "where to start; matched is the content image in the style's colours",
    )
    noise: float = _number(1 / 255, 0, 1, "standard deviation of the noise of init=noise")
    optimizer: str = _choice("lbfgs", ("lbfgs", "adam"), "how the image is optimised")
    learning_rate: float = _number(0.02, 1e-6, 10, "step length of Adam")
    history: int = _whole(20, 1, 200, "gradients that L-BFGS remembers")
    plateau: float = _number(
        0.005, 0, 1, "end a scale when 15 evaluations lowered its loss by less than this share"
    )
    clamp: bool = _flag(True, "show the network the picture clamped to [0, 1], as it will be saved")
    tv_reduction: str = _choice(
        "mean", ("mean", "sum"), "mean over [0, 1] values, or neural-style's sum over 0-255"
    )
    scales: int = _whole(8, 1, 8, "coarse-to-fine scales at most, each half the size of the next")
    coarsest: int = _whole(96, MIN_SIDE, MAX_SIDE, "no scale's longest side is below this, pixels")
    coarse_content: float = _number(
        4.0, 0, 1e6, "factor on the content weight at all but the finest scale"
    )
    focus: float = _number(
        0.5, 0, 4, "how much more content counts where the photograph stands out; 0: no more"
    )
    spread: float = _number(
        0.4, 0, 1, "share of the style that each quarter must have by itself, at first"
    )
    motifs: float = _number(
        0.0, 0, 1, "how much of the painting's things comes along; 0: its manner alone, 1: both"
    )
    margins: str = _choice(
        "crop", ("crop", "keep"), "leave out plain borders and frames of style pictures, or keep"
    )
    style_scale: float = _number(1.0, 0.1, 10, "size of the style picture relative to the result")
    style_blend: tuple[float, ...] = _setting(
        (), _parse_blend, _check_blend, "weights like 0.7|0.3", "share of each style of several"
    )
    preserve_color: str = _choice(
        "none", ("none", "histogram", "luminance"), "keep the photograph's colours"
    )
    mask: str = _path_or("", (), "grey picture: white is painted, black keeps the photograph")
    seed: int = _whole(0, 0, 2**63 - 1, "seed of the noise")

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            value = setting.checked(name, getattr(self, name))
            if setting.parse is not _parse_whole:  # 5 and 5.0 are equal, and their text must be too
                value = _as_float(value)
            object.__setattr__(self, name, value)
        if self.backbone != "auto":
            for name in ("content_layers", "style_layers"):
                self._check_depth(name)

    def _check_depth(self, name: str) -> None:
        """Raise `ConfigError` for a layer that the backbone has not."""
        for layer, weight in getattr(self, name):
            if weight and not has_layer(self.backbone, layer):
                last = [conv for conv in CONVS[self.backbone] if block(conv) == block(layer)][-1]
                raise ConfigError(
                    f"{name} has {layer}, which {self.backbone} has not; the last one there is "
                    f"{layer[:4]}{last[4:]}"
                )

    @classmethod
    def of(cls, preset: str = "default", **settings: Any) -> StyleConfig:
        """A preset with some settings changed. Raises `ConfigError`."""
        if preset not in PRESETS:
            raise ConfigError(f"preset is {preset!r}; it must be {SETTINGS['preset'].limit}")
        unknown = set(settings) - set(SETTINGS)
        if unknown:
            raise ConfigError(f"{sorted(unknown)[0]!r} is no setting; see StyleConfig")
        preset_values = {k: parse_setting(k, v) for k, v in PRESETS[preset].items()}
        return cls(**{**preset_values, **settings, "preset": preset})

    def weights(self) -> tuple[float, float]:
        """Content and style weight after `strength`: times (2(1-s))^2 and (2s)^2."""
        return (
            self.content_weight * (2 * (1 - self.strength)) ** 2,
            self.style_weight * (2 * self.strength) ** 2,
        )

    def shares(self, count: int) -> list[float]:
        """The share of each of `count` styles, sum 1. Raises `ConfigError` where `style_blend` has
        more or fewer."""
        blend = self.style_blend or (1.0,) * count
        if len(blend) != count:
            raise ConfigError(
                f"style_blend has {len(blend)} weights for {count} styles; give each one, like "
                "0.7|0.3"
            )
        return [share / sum(blend) for share in blend]

    def style_side(self, side: int) -> int:
        """The longer side of a style picture where the result's is `side`, pixels."""
        return max(MIN_SIDE, round(side * self.style_scale))

    def to_json(self) -> str:
        """The settings as canonical JSON: sorted keys, so equal settings give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    def without_folders(self) -> StyleConfig:
        """What a picture may tell of its settings: init and mask by their names alone."""
        names = {name: getattr(self, name).rpartition("/")[2] for name in ("init", "mask")}
        return dataclasses.replace(self, **names)

    def digest(self, algorithm: int = ALGORITHM) -> str:
        """Return the SHA-256 of what decides the picture, hex, by a version of the algorithm.

        The preset's name is left out (its values count), and so are the paths of init and mask,
        whose bytes are hashed with the other inputs. A setting that the version did not have yet
        is left out unless it was changed, so that pictures made before it stay done.
        """
        values = dataclasses.asdict(self)
        del values["preset"]
        for name, (since, before) in _LATER_SETTINGS.items():
            if algorithm < since and values[name] in (before, getattr(StyleConfig, name)):
                del values[name]
        values["mask"] = bool(self.mask)
        if self.init_path:
            values["init"] = "file"
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def init_path(self) -> str:
        """The path in `init`, or "" where it is one of the words."""
        return "" if self.init in INIT_WORDS else self.init


SETTINGS: Mapping[str, Setting] = {
    f.name: f.metadata["setting"] for f in dataclasses.fields(StyleConfig)
}
"""Every setting by name, in the order in which help shows them."""


def parse_setting(name: str, text: str) -> Any:
    """The value of a setting from its text form. Raises `ConfigError` naming value and limit."""
    return SETTINGS[name].checked(name, text.strip())


_JOINED = {"style_blend": "|", "content_layers": ",", "style_layers": ","}
"""Between the parts of a setting that is a list, in its text form."""


def as_text(name: str, value: Any) -> str:
    """Return the text form of a value, which `parse_setting` reads. Raises `ValueError`.

    `name` is a setting, or anything else whose value is no list.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return str(int(value)) if whole else repr(value)
    if isinstance(value, list | tuple | dict):
        if name not in _JOINED:
            raise ValueError("a list or object is given; write one value")
        items = value.items() if isinstance(value, dict) else value
        return _JOINED[name].join(_part_as_text(name, item) for item in items)
    return str(value)


def _part_as_text(name: str, value: Any) -> str:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if is_pair and name.endswith("_layers") and isinstance(value[0], str):
        return f"{value[0]}:{_part_as_text(name, value[1])}"
    if isinstance(value, str | int | float):
        return as_text(name, value)
    raise ValueError("the list holds something that is neither text nor number")
