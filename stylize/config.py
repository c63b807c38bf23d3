"""`StyleConfig`: every setting of a transfer with its default, limits, text form and digest.

Standard library only, so that the command line and the manifest reader need not load torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
    "StyleConfig",
    "as_text",
    "parse_setting",
    "side_problem",
    "together",
]

ALGORITHM = 4
"""Version of the algorithm, to be raised when the same settings give other pictures on purpose."""

AT_ONCE = 2048**2
"""Pixels that the network sees at once, which takes some 7 GB. Larger pictures are seen in tiles;
smaller ones are optimised together, up to this many pixels."""


def together(side: int) -> int:
    """Return how many square pictures of a side in pixels are best optimised together on a GPU."""
    return max(1, AT_ONCE // side**2)


MIN_SIDE = 16
"""Least side of a picture in pixels: four poolings halve it to 1 at relu5_1."""

MAX_SIDE = 16384
"""Greatest side of a result in pixels."""

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""File suffixes that a result may have, with Pillow's name of the format."""

WEBP_SIDE = 16383
"""Greatest side of a .webp in pixels."""


def side_problem(suffix: str, side: int) -> str | None:
    """Return why a file with this suffix cannot hold a longest side of `side` pixels, or None."""
    if suffix.lower() == ".webp" and side > WEBP_SIDE:
        return f"{side} pixels a side do not fit a .webp ({WEBP_SIDE} do); name it .png or .tif"
    return None


LayerWeights = tuple[tuple[str, float], ...]
"""Layers with relative weights, in any order: (("relu1_1", 1.0), ("relu2_1", 0.5))."""

INIT_WORDS = ("matched", "content", "style", "noise")
"""Words that `init` may be; any other text is the path of a picture."""


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
        if self.parse is _parse_layers and isinstance(value, dict):
            value = tuple(value.items())
        elif self.parse is _parse_layers and isinstance(value, tuple):
            value = ",".join(value) if all(isinstance(part, str) for part in value) else value
        whole = self.parse is _parse_whole and isinstance(value, float)  # 64.0, like its text
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


def _setting(
    default: object,
    parse: Callable[[str], object],
    check: Callable[[object], bool],
    limit: str,
    help: str,
) -> Any:
    return field(default=default, metadata={"setting": Setting(parse, check, limit, help)})


def _parse_whole(text: str) -> int:
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


def _whole(default: int, low: int, high: int, help: str) -> Any:
    def check(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return _setting(default, _parse_whole, check, f"a whole number from {low} to {high}", help)


def _number(default: float, low: float, high: float, help: str) -> Any:
    def check(value: object) -> bool:
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

    def check(value: object) -> bool:
        return isinstance(value, str) and (value != "" or not words)

    return _setting(default, str, check, limit, help)


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


def _layers(default: LayerWeights, help: str) -> Any:
    limit = "layers like relu4_2 or relu1_1:1,relu2_1:0.5, each once, weights 0 or more, not all 0"
    return _setting(default, _parse_layers, _check_layers, limit, help)


def _parse_blend(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split("|"))


def _check_blend(value: object) -> bool:
    return isinstance(value, tuple) and (
        not value or (all(math.isfinite(w) and w >= 0 for w in value) and sum(value) > 0)
    )


def _plain(value: object) -> object:
    """Turn lists into tuples at all depths, and numpy's numbers into Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def _as_float(value: object) -> object:
    """Turn all numbers in a value into floats, and negative zero into zero."""
    if isinstance(value, tuple):
        return tuple(_as_float(part) for part in value)
    return value + 0.0 if isinstance(value, int | float) and not isinstance(value, bool) else value


_LATER_SETTINGS: Mapping[str, tuple[int, object]] = {"motifs": (3, 1.0), "margins": (3, "keep")}
"""Settings that came after the first version of the algorithm: the version that brought each, and
the value that paints as earlier versions did."""


class _PresetGuard:
    """Refuses a preset's name without the preset's values.

    This has to be in `__new__`: `__init__` cannot tell an explicit value from a default, and a
    record that lists all settings may well list defaults.
    """

    def __new__(cls, **settings: object) -> Self:
        preset = settings.get("preset")
        if PRESETS.get(str(preset), {}).keys() - settings.keys():
            raise ConfigError(
                f"preset={preset!r} sets nothing here; use StyleConfig.of({preset!r}, …)"
            )
        return super().__new__(cls)


@dataclass(frozen=True, kw_only=True)
class StyleConfig(_PresetGuard):
    """Every setting of one transfer, checked on construction.

    The defaults are those of the preset ``default``. To start from another preset use
    `StyleConfig.of`; the field `preset` only names it. Values may also be text as on the command
    line, lists and `Path`s. Raises `ConfigError`, naming setting, value and limit, for a value that
    is not allowed.
    """

    preset: str = _choice("default", tuple(PRESETS), "named group of settings to start from")
    backbone: str = _choice(
        "auto",
        ("auto", "vgg19", "vgg16"),
        "network whose features are matched; auto: vgg19 if available, else the bundled vgg16",
    )
    size: int = _whole(512, MIN_SIDE, MAX_SIDE, "longest side of the result, pixels")
    steps: int = _whole(
        140, 0, 1_000_000, "number of evaluations of loss and gradient, all scales together"
    )
    strength: float = _number(
        0.5, 0, 1, "0: the photograph; 0.5: the preset's balance; 1: only the style"
    )
    content_weight: float = _number(1.0, 0, 1e30, "weight of the content loss")
    style_weight: float = _number(70.0, 0, 1e30, "weight of the style loss")
    tv_weight: float = _number(0.0, 0, 1e30, "weight of the total variation loss")
    content_layers: LayerWeights = _layers(
        (("relu4_2", 1.0),), "layers of the content loss, with relative weights"
    )
    style_layers: LayerWeights = _layers(
        (
            ("relu1_1", 4.0),
            ("relu2_1", 18.0),
            ("relu3_1", 25.0),
            ("relu4_1", 2.6),
            ("relu5_1", 1.5),
        ),
        "layers of the style loss, with relative weights",
    )
    style_loss: str = _choice(
        "gram", ("gram", "moments", "wasserstein"), "statistic of the features that is matched"
    )
    relative: bool = _flag(
        True, "normalise the losses for each pair, so that the same weights suit all pairs"
    )
    feature_scale: str = _choice(
        "caffe",
        ("unit", "caffe"),
        "unit: features scaled to mean one; caffe: as the networks of 2014 give them",
    )
    pooling: str = _choice("average", ("average", "max"), "pooling between the network's blocks")
    padding: str = _choice(
        "replicate", ("zeros", "replicate"), "what the first convolution sees beyond the edge"
    )
    init: str = _path_or(
        "matched",
        INIT_WORDS,
        "what to start from; matched: the photograph in the style's colours",
    )
    noise: float = _number(1 / 255, 0, 1, "standard deviation of the noise for init=noise")
    optimizer: str = _choice("lbfgs", ("lbfgs", "adam"), "method of optimisation")
    learning_rate: float = _number(0.02, 1e-6, 10, "step size of Adam")
    history: int = _whole(20, 1, 200, "number of past steps that L-BFGS remembers")
    plateau: float = _number(
        0.005, 0, 1, "end a scale when 15 evaluations lower its loss by less than this share"
    )
    clamp: bool = _flag(True, "compute the losses of the picture as saved, clamped to [0, 1]")
    tv_reduction: str = _choice(
        "mean", ("mean", "sum"), "mean over values in [0, 1], or neural-style's sum over 0-255"
    )
    scales: int = _whole(
        8, 1, 8, "greatest number of coarse-to-fine scales, each half the size of the next"
    )
    coarsest: int = _whole(
        96, MIN_SIDE, MAX_SIDE, "least size of the coarsest scale: its longest side in pixels"
    )
    coarse_content: float = _number(
        4.0, 0, 1e6, "factor on the content weight at all scales except the finest"
    )
    content_norm: float = _number(
        8,
        1,
        16,
        "how much more content counts where it has been lost most; 1: no more",
    )
    focus: float = _number(
        0.5,
        0,
        4,
        "how much more content counts where the photograph stands out; 0: no more",
    )
    spread: float = _number(
        0.4, 0, 1, "share of the style loss computed for each quarter separately, at first"
    )
    motifs: float = _number(
        0.0, 0, 1, "0: take over only how the painting is painted; 1: also the things in it"
    )
    margins: str = _choice(
        "crop", ("crop", "keep"), "crop or keep plain borders and frames of style pictures"
    )
    style_scale: float = _number(1.0, 0.1, 10, "size of the style picture relative to the result")
    style_blend: tuple[float, ...] = _setting(
        (), _parse_blend, _check_blend, "weights like 0.7|0.3", "share of each of several styles"
    )
    preserve_color: str = _choice(
        "none", ("none", "histogram", "luminance"), "how to keep the photograph's colours"
    )
    mask: str = _path_or("", (), "grey picture; white is painted, black keeps the photograph")
    seed: int = _whole(0, 0, 2**63 - 1, "seed of the noise")

    def __post_init__(self) -> None:
        for name in SETTINGS:
            given = getattr(self, name)
            is_default = given is getattr(StyleConfig, name)  # most are, in 100,000 rows
            value = _default(name) if is_default else _checked(name, given)
            object.__setattr__(self, name, value)
        if self.backbone != "auto":
            for name in ("content_layers", "style_layers"):
                self._check_depth(name)

    def _check_depth(self, name: str) -> None:
        """Raise `ConfigError` for a layer that the backbone does not have."""
        for layer, weight in getattr(self, name):
            if weight and not has_layer(self.backbone, layer):
                last = [conv for conv in CONVS[self.backbone] if block(conv) == block(layer)][-1]
                raise ConfigError(
                    f"{name} has {layer}, which {self.backbone} does not have; the last layer "
                    f"there is {layer[:4]}{last[4:]}"
                )

    @classmethod
    def of(cls, preset: str = "default", **settings: Any) -> StyleConfig:
        """Return a preset's config with some settings changed. Raises `ConfigError`."""
        if preset not in PRESETS:
            raise ConfigError(f"preset is {preset!r}; it must be {SETTINGS['preset'].limit}")
        unknown = set(settings) - set(SETTINGS)
        if unknown:
            raise ConfigError(f"{sorted(unknown)[0]!r} is not a setting; see StyleConfig")
        preset_values = {k: parse_setting(k, v) for k, v in PRESETS[preset].items()}
        return cls(**{**preset_values, **settings, "preset": preset})

    def weights(self) -> tuple[float, float]:
        """Return content and style weight times (2(1-s))^2 and (2s)^2, where s is `strength`."""
        return (
            self.content_weight * (2 * (1 - self.strength)) ** 2,
            self.style_weight * (2 * self.strength) ** 2,
        )

    def shares(self, count: int) -> list[float]:
        """Return the share of each of `count` styles, sum 1.

        Raises `ConfigError` unless `style_blend` is empty or has as many weights.
        """
        blend = self.style_blend or (1.0,) * count
        if len(blend) != count:
            raise ConfigError(
                f"style_blend has {len(blend)} weights for {count} styles; give each one, like "
                "0.7|0.3"
            )
        return [share / sum(blend) for share in blend]

    def style_side(self, side: int) -> int:
        """Return the longer side of a style picture where the result's is `side`, in pixels."""
        return max(MIN_SIDE, round(side * self.style_scale))

    def to_json(self) -> str:
        """Return the settings as JSON with sorted keys, so that equal settings give equal text."""
        return json.dumps(vars(self), sort_keys=True, separators=(",", ":"))

    def without_folders(self) -> StyleConfig:
        """Return the settings as written into a picture: init and mask without their folders."""
        names = {name: getattr(self, name).rpartition("/")[2] for name in ("init", "mask")}
        return dataclasses.replace(self, **names)

    def digest(self, algorithm: int = ALGORITHM) -> str:
        """Return the SHA-256 in hex of the settings that decide how the picture looks.

        The preset's name is left out, since its values count, and so are the paths of init and
        mask, whose bytes are hashed with the other inputs. A setting that came after the given
        version of the algorithm is left out unless it was changed, so that pictures made before
        remain up to date.
        """
        values = dict(vars(self))
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
        """The path in `init`, or "" where it is one of `INIT_WORDS`."""
        return "" if self.init in INIT_WORDS else self.init


SETTINGS: Mapping[str, Setting] = {
    f.name: f.metadata["setting"] for f in dataclasses.fields(StyleConfig)
}
"""All settings by name, in the order in which help shows them."""


def _checked(name: str, raw: object) -> object:
    """Return a value as configs have it. Raises `ConfigError` naming value and limit."""
    setting = SETTINGS[name]
    value = setting.checked(name, raw)
    # 5 and 5.0 must have the same text and digest.
    return value if setting.parse is _parse_whole else _as_float(value)


@functools.cache
def _default(name: str) -> object:
    return _checked(name, getattr(StyleConfig, name))


def parse_setting(name: str, text: str) -> Any:
    """Read a setting from its text form. Raises `ConfigError` naming value and limit."""
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
