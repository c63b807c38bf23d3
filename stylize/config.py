"""`StyleConfig`: every setting of a transfer with its default, limits, text form and digest.

Standard library only, so that the command line and the manifest reader need not load torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import stylize.fields as fields
from stylize.errors import ConfigError
from stylize.fields import MAX_SIDE, MIN_SIDE, LayerWeights, Setting, nominal_side
from stylize.layers import CONVS, block, has_layer
from stylize.presets import PRESETS

__all__ = [
    "ALGORITHM",
    "AT_ONCE",
    "BETWEEN",
    "FORMATS",
    "INIT_WORDS",
    "MAX_SIDE",
    "MIN_SIDE",
    "OF_THE_FILE",
    "SETTINGS",
    "WEBP_SIDE",
    "LayerWeights",
    "StyleConfig",
    "as_text",
    "depth_problem",
    "format_of",
    "has_alpha",
    "masks_problem",
    "nominal_side",
    "parse_setting",
    "side_problem",
    "style_masks_problem",
    "together",
]

ALGORITHM = 5
"""Version of the algorithm, to be raised when the same settings give other pictures on purpose."""

AT_ONCE = 2048**2
"""Pixels that the network sees at once, which takes some 7 GB. Larger pictures are seen in tiles;
smaller ones are optimised together, up to this many pixels."""


def together(side: int) -> int:
    """Return how many square pictures of a side in pixels are best optimised together on a GPU."""
    return max(1, AT_ONCE // side**2)


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


def format_of(suffix: str) -> str:
    """Return the value of the setting `format` for a suffix in `FORMATS`."""
    return {"JPEG": "jpg", "TIFF": "tif"}.get(kind := FORMATS[suffix.lower()], kind.lower())


BETWEEN = "|"
"""Separates styles, and masks."""


def masks_problem(masks: int, styles: int) -> str:
    """Return what is wrong with several masks that are not one for each style."""
    return f"mask has {masks} masks for {styles} styles; give one for all, or each style one"


def style_masks_problem(masks: int, styles: int) -> str:
    """Return what is wrong with masks of styles that are not one for each style."""
    return (
        f"style_mask has {masks} masks for {styles} styles; give each style one, or leave its "
        "place empty, like a.png|"
    )


def has_alpha(suffix: str) -> bool:
    """Tell whether a file with this suffix can be transparent."""
    return FORMATS.get(suffix.lower()) in ("PNG", "WEBP", "TIFF")


def depth_problem(suffix: str, bits: int) -> str | None:
    """Return why a file with this suffix cannot hold so many bits per channel, or None."""
    if bits > 8 and suffix.lower() not in (".png", ".tif", ".tiff"):
        return f"{bits} bits per channel do not fit a {suffix}; name it .png or .tif"
    return None


def side_problem(suffix: str, side: int) -> str | None:
    """Return why a file with this suffix cannot hold a longest side of `side` pixels, or None."""
    if suffix.lower() == ".webp" and side > WEBP_SIDE:
        return f"{side} pixels a side do not fit a .webp ({WEBP_SIDE} do); name it .png or .tif"
    return None


INIT_WORDS = ("matched", "content", "style", "noise")
"""Words that `init` may be; any other text is the path of a picture."""


_LATER_SETTINGS: Mapping[str, tuple[int, object]] = {
    "motifs": (3, 1.0),
    "margins": (3, "keep"),
    "content_norm": (4, 1.0),
}
"""Settings that came after the first version of the algorithm: the version that brought each, and
the value that paints as earlier versions did."""


OF_THE_FILE = ("quality", "bits", "background", "keep_metadata")
"""Settings of how a picture is written. They came later, too, and count where they are changed."""


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

    preset: str = fields.choice("default", tuple(PRESETS), "named group of settings to start from")
    backbone: str = fields.choice(
        "auto",
        ("auto", "vgg19", "vgg16"),
        "network whose features are matched; auto: vgg19 if available, else the bundled vgg16",
    )
    size: int | str = fields.of(
        512,
        fields.parse_size,
        fields.check_size,
        f"a whole number from {MIN_SIDE} to {MAX_SIDE}, native, a box like 1920x1080 or megapixels "
        "like 12MP",
        "longest side of the result in pixels; or the photograph's size, a box, or megapixels",
    )
    steps: int = fields.whole(
        140, 0, 1_000_000, "number of evaluations of loss and gradient, all scales together"
    )
    strength: float = fields.number(
        0.5, 0, 1, "0: the photograph; 0.5: the preset's balance; 1: only the style"
    )
    content_weight: float = fields.number(1.0, 0, 1e30, "weight of the content loss")
    style_weight: float = fields.number(70.0, 0, 1e30, "weight of the style loss")
    tv_weight: float = fields.number(0.0, 0, 1e30, "weight of the total variation loss")
    content_layers: LayerWeights = fields.layers_of(
        (("relu4_2", 1.0),), "layers of the content loss, with relative weights"
    )
    style_layers: LayerWeights = fields.layers_of(
        (
            ("relu1_1", 4.0),
            ("relu2_1", 18.0),
            ("relu3_1", 25.0),
            ("relu4_1", 2.6),
            ("relu5_1", 1.5),
        ),
        "layers of the style loss, with relative weights",
    )
    style_loss: str = fields.choice(
        "gram", ("gram", "moments", "wasserstein"), "statistic of the features that is matched"
    )
    relative: bool = fields.flag(
        True, "normalise the losses for each pair, so that the same weights suit all pairs"
    )
    feature_scale: str = fields.choice(
        "caffe",
        ("unit", "caffe"),
        "unit: features scaled to mean one; caffe: as the networks of 2014 give them",
    )
    pooling: str = fields.choice(
        "average", ("average", "max"), "pooling between the network's blocks"
    )
    padding: str = fields.choice(
        "replicate", ("zeros", "replicate"), "what the first convolution sees beyond the edge"
    )
    init: str = fields.path_or(
        "matched",
        INIT_WORDS,
        "what to start from; matched: the photograph in the style's colours",
    )
    noise: float = fields.number(1 / 255, 0, 1, "standard deviation of the noise for init=noise")
    optimizer: str = fields.choice("lbfgs", ("lbfgs", "adam"), "method of optimisation")
    learning_rate: float = fields.number(0.02, 1e-6, 10, "step size of Adam")
    history: int = fields.whole(20, 1, 200, "number of past steps that L-BFGS remembers")
    plateau: float = fields.number(
        0.005, 0, 1, "end a scale when 15 evaluations lower its loss by less than this share"
    )
    clamp: bool = fields.flag(True, "compute the losses of the picture as saved, clamped to [0, 1]")
    tv_reduction: str = fields.choice(
        "mean", ("mean", "sum"), "mean over values in [0, 1], or neural-style's sum over 0-255"
    )
    scales: int = fields.whole(
        8, 1, 8, "greatest number of coarse-to-fine scales, each half the size of the next"
    )
    coarsest: int = fields.whole(
        96, MIN_SIDE, MAX_SIDE, "least size of the coarsest scale: its longest side in pixels"
    )
    coarse_content: float = fields.number(
        4.0, 0, 1e6, "factor on the content weight at all scales except the finest"
    )
    content_norm: float = fields.number(
        4,
        1,
        16,
        "how much more content counts where it has been lost most; 1: no more",
    )
    focus: float = fields.number(
        0.5,
        0,
        4,
        "how much more content counts where the photograph stands out; 0: no more",
    )
    spread: float = fields.number(
        0.4, 0, 1, "share of the style loss computed for each quarter separately, at first"
    )
    motifs: float = fields.number(
        0.0, 0, 1, "0: take over only how the painting is painted; 1: also the things in it"
    )
    margins: str = fields.choice(
        "crop", ("crop", "keep"), "crop or keep plain borders and frames of style pictures"
    )
    style_scale: float = fields.number(
        1.0, 0.1, 10, "size of the style picture relative to the result"
    )
    style_blend: tuple[float, ...] = fields.of(
        (),
        fields.parse_blend,
        fields.check_blend,
        "weights like 0.7|0.3",
        "share of each of several styles",
    )
    preserve_color: str = fields.choice(
        "none", ("none", "histogram", "luminance"), "how to keep the photograph's colours"
    )
    mask: str = fields.path_or(
        "", (), "grey picture: white is painted; or one for each style, like sky.png|sea.png"
    )
    style_mask: str = fields.path_or(
        "",
        (),
        "grey picture of the painting: white is the part whose style counts; with several styles "
        "one for each, like a.png|b.png, or empty for the whole",
    )
    seed: int = fields.whole(0, 0, 2**63 - 1, "seed of the noise")
    format: str = fields.choice(
        "png", ("png", "jpg", "webp", "tif"), "format of results whose row names no output"
    )
    quality: int = fields.whole(95, 1, 100, "quality of JPEG and WebP")
    bits: int = fields.of(
        8,
        fields.parse_whole,
        lambda value: value in (8, 16),
        "8 or 16",
        "bits per channel in PNG, TIFF",
    )
    background: str = fields.of(
        "",
        str,
        fields.check_colour,
        "a colour like white or #ff8800",
        "colour beneath transparent parts; without it a PNG, WebP or TIFF stays transparent",
    )
    keep_metadata: str = fields.of(
        "false",
        fields.parse_words,
        lambda value: value in ("true", "false", "places"),
        "true or false or places",
        "copy date, author, rights, camera and caption of the photograph; places: also where",
    )

    def __post_init__(self) -> None:
        for name in SETTINGS:
            given = getattr(self, name)
            is_default = given is getattr(StyleConfig, name)  # most are, in 100,000 rows
            value = _default(name) if is_default else _checked(name, given)
            object.__setattr__(self, name, value)
        self._check_depths()

    def _check_depths(self) -> None:
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

    def changed(self, **settings: Any) -> Self:
        """Return these settings with some changed. Only those are checked, which is quick.

        Raises `ConfigError`.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        for name, given in settings.items():
            other.__dict__[name] = _checked(name, given)
        if settings.keys() & {"backbone", "content_layers", "style_layers"}:
            other._check_depths()
        return other

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

    def sized(self, photograph: tuple[int, int]) -> StyleConfig:
        """Return the settings with the longest side in pixels as `size`.

        `photograph` is its width and height. Raises `ConfigError` for a result that is too large or
        too small.
        """
        if isinstance(self.size, int):
            return self
        side = fields.side_for(self.size, photograph)
        if not MIN_SIDE <= side <= MAX_SIDE:
            width, height = photograph
            raise ConfigError(
                f"size is {self.size!r}, which is {side} pixels for a photograph of "
                f"{width}x{height}; the longest side must be from {MIN_SIDE} to {MAX_SIDE} pixels"
            )
        return dataclasses.replace(self, size=side)

    @property
    def side(self) -> int:
        """The longest side of the result in pixels; a guess unless `size` is a number."""
        return nominal_side(self.size)

    def style_side(self, side: int) -> int:
        """Return the longer side of a style picture where the result's is `side`, in pixels."""
        return max(MIN_SIDE, round(side * self.style_scale))

    def to_json(self) -> str:
        """Return the settings as JSON with sorted keys, so that equal settings give equal text."""
        return json.dumps(vars(self), sort_keys=True, separators=(",", ":"))

    def without_folders(self) -> StyleConfig:
        """Return the settings as written into a picture: init and masks without their folders."""
        masks, style_masks = (
            BETWEEN.join(path.rpartition("/")[2] for path in paths)
            for paths in (self.masks, self.style_masks)
        )
        init = self.init.rpartition("/")[2]
        return dataclasses.replace(self, init=init, mask=masks, style_mask=style_masks)

    def digest(self, algorithm: int = ALGORITHM) -> str:
        """Return the SHA-256 in hex of the settings that decide how the picture looks.

        The preset's name is left out, since its values count, and so are the paths of init and
        masks, whose bytes are hashed with the other inputs. A setting that came after the given
        version of the algorithm is left out unless it was changed, so that pictures made before
        remain up to date. So are the settings of the file. Its format shows in its name.
        """
        values = dict(vars(self))
        del values["preset"], values["format"]
        for name in OF_THE_FILE:
            if values[name] == getattr(StyleConfig, name):
                del values[name]
        for name, (since, before) in _LATER_SETTINGS.items():
            if algorithm < since and values[name] in (before, getattr(StyleConfig, name)):
                del values[name]
        values["mask"] = len(self.masks) if len(self.masks) > 1 else bool(self.mask)
        values["style_mask"] = tuple(bool(path) for path in self.style_masks)
        if not self.style_masks:
            del values["style_mask"]
        if self.init_path:
            values["init"] = "file"
        # It is what json.dumps makes of them with sorted keys. Most values are those of many pairs.
        text = ",".join([_member(name, values[name]) for name in _SORTED if name in values])
        text = f"{{{text}}}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def masks(self) -> tuple[str, ...]:
        """The paths in `mask`: none, one, or one for each style."""
        return tuple(self.mask.split(BETWEEN)) if self.mask else ()

    @property
    def style_masks(self) -> tuple[str, ...]:
        """The paths in `style_mask`: none, or one for each style, "" for a whole painting."""
        paths = tuple(path if path.strip() else "" for path in self.style_mask.split(BETWEEN))
        return paths if any(paths) else ()

    @property
    def init_path(self) -> str:
        """The path in `init`, or "" where it is one of `INIT_WORDS`."""
        return "" if self.init in INIT_WORDS else self.init


SETTINGS: Mapping[str, Setting] = {
    f.name: f.metadata["setting"] for f in dataclasses.fields(StyleConfig)
}
"""All settings by name, in the order in which help shows them."""


_SORTED = sorted(SETTINGS)


@functools.lru_cache(maxsize=4096, typed=True)
def _member(name: str, value: object) -> str:
    """Return a member of a JSON object."""
    return f"{json.dumps(name)}:{json.dumps(value, separators=(',', ':'))}"


def _checked(name: str, raw: object) -> object:
    """Return a value as configs have it. Raises `ConfigError` naming value and limit."""
    setting = SETTINGS[name]
    value = setting.checked(name, raw)
    if setting.parse in (fields.parse_whole, fields.parse_size):
        return value
    return fields.as_float(value)  # 5 and 5.0 must have the same text and digest


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
