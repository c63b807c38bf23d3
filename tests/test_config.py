"""Settings: checked one by one, canonical as text, digested by what decides the picture."""

import copy
import dataclasses
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stylize.config import INIT_WORDS, SETTINGS, StyleConfig, parse_setting
from stylize.errors import ConfigError, StylizeError
from stylize.image import fit
from stylize.presets import PRESETS

WHOLE = {n for n, s in SETTINGS.items() if re.fullmatch(r"a whole number from \S+ to \S+", s.limit)}
NUMBERS = {n for n, s in SETTINGS.items() if s.limit.startswith("a number")}
LAYERS = {"content_layers", "style_layers"}
FLAGS = {n for n, s in SETTINGS.items() if s.limit == "true or false"}
PATHS = {"init", "mask", "style_mask"}  # any text may be the path of a picture
SEVERAL = {"size", "bits", "background"}  # of several kinds, each with its own tests
CHOICES = {
    n: s.limit.split(" or ")
    for n, s in SETTINGS.items()
    if n not in WHOLE | NUMBERS | LAYERS | FLAGS | PATHS | {"style_blend", *SEVERAL}
}

# Valid values for settings of the kinds whose next value cannot be told from the limit.
OTHER: dict[str, Any] = {
    "content_layers": (("relu3_2", 1.0),),
    "style_layers": (("conv2_1", 1.0),),
    "style_blend": (0.2, 0.8),
    "size": 256,
    "bits": 16,
    "background": "#ff8800",
}


def with_setting(name: str, value: Any) -> StyleConfig:
    return StyleConfig(**{name: value})


def other(name: str) -> Any:
    """A valid value that is not the default."""
    default = getattr(StyleConfig(), name)
    if name in CHOICES:
        return next(value for value in CHOICES[name] if value != default)
    if name in OTHER:
        assert OTHER[name] != default
        return OTHER[name]
    if isinstance(default, bool):
        return not default
    if name == "init":
        return next(word for word in INIT_WORDS if word != default)
    if name in PATHS:
        return "mask.png"
    low, high = limits(name)
    if isinstance(default, int):
        return default + 1 if default + 1 <= high else default - 1
    return default + 1 if default + 1 <= high else (default + low) / 2 if default > low else high


def limits(name: str) -> tuple[float, float]:
    """The two numbers of "a number from LOW to HIGH"."""
    low, _, high = SETTINGS[name].limit.rpartition(" to ")
    return float(low.rpartition(" ")[2]), float(high)


class Nothing:
    """What is no value, and has the same name in every process."""

    def __repr__(self) -> str:
        return "Nothing()"


NOTHING = Nothing()


def bad_values() -> list[tuple[str, Any]]:
    bad: list[tuple[str, Any]] = []
    for name in SETTINGS:
        bad += [(name, None), (name, NOTHING), (name, b"x")]
        if name not in PATHS:
            bad.append((name, "no such value"))
    for name in sorted(WHOLE):
        low, high = limits(name)
        bad += [(name, int(low) - 1), (name, 2.5), (name, True), (name, math.nan)]
        bad += [(name, int(high) * 2), (name, "1.5")]
    for name in sorted(NUMBERS):
        low, high = limits(name)
        bad += [(name, math.nan), (name, math.inf), (name, -math.inf), (name, True)]
        bad += [(name, low - 1), (name, high * 2), (name, 10**400), (name, "nan")]
    for name in sorted(LAYERS):
        bad += [(name, value) for value in BAD_LAYERS]
    blends: list[Any] = [(0.0, 0.0), (-1.0, 2.0), (math.nan,), (math.inf, 1.0), ("a",), 0.5]
    bad += [("style_blend", value) for value in blends]
    for name in sorted(FLAGS):
        bad += [(name, 1), (name, "yes")]
    sizes: list[Any] = [15, 16385, 2.5, True, "1920x", "8x600", "0MP", "300MP", "natives", "1e400"]
    bad += [("size", value) for value in sizes]
    bad += [("bits", value) for value in (7, 12, True, "16.5")]
    bad += [("background", value) for value in ("#12", "#gggggg", "nocolour", 3)]
    bad += [("init", ""), ("init", 3), ("mask", 3), ("seed", 2.0**60)]
    return bad


BAD_LAYERS: list[Any] = [
    (),
    "relu4_2:",
    ["relu4_2", 1],
    ["relu4_2", "relu4_2"],
    [],
    (("relu4_2",),),
    (("relu4_2", 1.0, 2.0),),
    (("relu4_2", "much"),),
    ((42, 1.0),),
    (("relu1_3", 1.0),),  # blocks 1 and 2 have two convolutions
    (("relu2_3", 1.0),),
    (("relu3_5", 1.0),),  # blocks 3 to 5 of VGG-19 have four
    (("relu6_1", 1.0),),
    (("relu0_1", 1.0),),
    (("pool1_1", 1.0),),
    (("relu4_2 ", 1.0),),
    (("relu4_2", math.nan),),
    (("relu4_2", math.inf),),
    (("relu4_2", -1.0),),
    (("relu4_2", 0.0),),  # nothing left
    (("relu4_2", 1.0), ("relu4_2", 2.0)),  # twice
]


@pytest.mark.parametrize(("name", "value"), bad_values(), ids=lambda v: repr(v)[:40])
def test_a_bad_value_is_named_with_its_limit(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        StyleConfig(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"{name} is ")
    assert repr(value) in text
    assert SETTINGS[name].limit in text


def test_config_errors_are_value_errors_and_stylize_errors() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, StylizeError)


BAD_TEXTS = [
    *[(name, text) for name in sorted(WHOLE) for text in ("nan", "inf", "1.5", "", "ten", "-1.0")],
    *[(name, text) for name in sorted(WHOLE) for text in ("1e400", "1" * 5000, "1" * 5000 + ".0")],
    ("seed", "9007199254740993e0"),  # as a float it is one less
    *[(name, text) for name in sorted(NUMBERS) for text in ("nan", "inf", "-inf", "", "1,5")],
    *[(name, text) for name in CHOICES for text in ("", "NONE?", "nan")],
    *[
        (name, text)
        for name in sorted(LAYERS)
        for text in ("", "relu4_2,", "relu4_2:nan", "relu4_2:", "relu4_2:1:2", "relu1_9", "4_2")
    ],
    *[("style_blend", text) for text in ("", "a", "0.5|", "nan", "0|0", "-1|2", "inf|1")],
    *[(name, text) for name in sorted(FLAGS) for text in ("", "1", "yes")],
    ("init", ""),
]


@pytest.mark.parametrize(("name", "text"), BAD_TEXTS, ids=lambda v: repr(v)[:40])
def test_bad_text_is_named_with_its_limit(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_setting(name, text)
    assert str(caught.value) == f"{name} is {text!r}; it must be {SETTINGS[name].limit}"


@pytest.mark.parametrize("name", sorted(WHOLE | NUMBERS))
def test_the_ends_of_a_range_are_within_it(name: str) -> None:
    for end in limits(name):
        value = int(end) if name in WHOLE else end
        if name == "seed" and end > 1:  # 2^63 - 1 has no float: the limit's text has all digits
            value = 2**63 - 1
        assert getattr(with_setting(name, value), name) == value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", " 512 ", 512),
        ("size", "64.0", 64),
        ("steps", "1e3", 1000),
        ("content_weight", "1e-3", 0.001),
        ("clamp", "False", False),
        ("clamp", "true", True),
        ("style_layers", "relu1_1", (("relu1_1", 1.0),)),
        ("style_layers", "relu1_1:1, conv2_2:0.5", (("relu1_1", 1.0), ("conv2_2", 0.5))),
        ("style_layers", "relu5_4:0,relu1_1", (("relu5_4", 0.0), ("relu1_1", 1.0))),
        ("style_blend", "0.7|0.3", (0.7, 0.3)),
        ("init", "start.png", "start.png"),
        ("seed", str(2**63 - 1), 2**63 - 1),
    ],
)
def test_text_becomes_the_value(name: str, text: str, value: Any) -> None:
    assert parse_setting(name, text) == value


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("content_layers", "relu4_2", (("relu4_2", 1.0),)),
        ("style_layers", [["relu1_1", 1], ("relu2_1", 2)], (("relu1_1", 1.0), ("relu2_1", 2.0))),
        ("style_blend", "0.7|0.3", (0.7, 0.3)),
        ("style_blend", [0.7, 0.3], (0.7, 0.3)),
        ("mask", Path("x.png"), "x.png"),
        ("init", Path("x.png"), "x.png"),
        ("size", "64", 64),
        ("size", "64.0", 64),
        ("size", 64.0, 64),
        ("size", np.int64(64), 64),
        ("strength", np.float32(0.25), 0.25),
        ("style_blend", [np.float32(0.75), np.int64(1)], (0.75, 1.0)),
        ("clamp", "false", False),
    ],
)
def test_what_the_limit_asks_for_is_taken(name: str, given: Any, value: Any) -> None:
    config = StyleConfig(**{name: given})
    assert getattr(config, name) == value
    assert config == StyleConfig(**{name: value})
    assert config.to_json() == StyleConfig(**{name: value}).to_json()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_has_the_values_of_its_table(name: str) -> None:
    config = StyleConfig.of(name)
    assert config.preset == name
    for setting, text in PRESETS[name].items():
        assert getattr(config, setting) == parse_setting(setting, text)


def test_a_presets_name_without_its_values_is_refused() -> None:
    nothing: dict[str, Any] = {}
    for settings in (nothing, {"size": 256}):
        with pytest.raises(ConfigError, match=r"preset='draft' sets nothing here; use StyleConfig"):
            StyleConfig(preset="draft", **settings)
    # A row may set the values of its preset back; its settings are all given again.
    row = StyleConfig.of("draft", size=StyleConfig().size, steps=StyleConfig().steps)
    assert StyleConfig(**vars(row)) == dataclasses.replace(row) == copy.copy(row) == row
    assert "size" in inspect.signature(StyleConfig).parameters


def test_presets_differ_in_more_than_their_name() -> None:
    assert len({StyleConfig.of(name).digest() for name in PRESETS}) == len(PRESETS)


def test_given_settings_win_over_the_preset() -> None:
    config = StyleConfig.of("paper", pooling="max", size=99)
    assert (config.pooling, config.size, config.init) == ("max", 99, PRESETS["paper"]["init"])


def test_an_unknown_preset_or_setting_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"preset is 'fancy'; it must be .*paper"):
        StyleConfig.of("fancy")
    with pytest.raises(ConfigError, match="'sytle_weight' is not a setting"):
        StyleConfig.of("paper", sytle_weight=3.0)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        StyleConfig().size = 7  # type: ignore[misc]


def test_every_setting_has_help_and_a_limit() -> None:
    assert list(SETTINGS) == [f.name for f in dataclasses.fields(StyleConfig)]
    assert all(setting.help and setting.limit for setting in SETTINGS.values())


@pytest.mark.parametrize("name", [n for n in SETTINGS if n != "preset"])
def test_the_digest_and_the_text_change_with_every_setting(name: str) -> None:
    base, changed = StyleConfig(), StyleConfig(**{name: other(name)})
    assert changed != base
    # The format shows in the output's name, so that the digest need not have it.
    assert (changed.digest() != base.digest()) == (name != "format")
    assert changed.to_json() != base.to_json()


def test_digests_of_settings_that_came_later_change_only_where_they_are_used() -> None:
    """So that finished pictures stay done: these are digests of the version before."""
    before = {
        StyleConfig(): "bd0b104ebbfa6534857756fbad2d98c6023d0f5c2c3848763a8479cf569e1337",
        StyleConfig.of("paper"): "b9b5e0c2c956218cd482fde3b120da86ed8a739a722b47a7694b098919109b64",
        StyleConfig.of(
            "draft", size=64, mask="m.png", style_blend="1|2"
        ): "dfd3fc76334ee0878dd96ebe85de91bb1782edfc3ac545830326e5051f11cc1e",
        StyleConfig.of(
            "neural-style", init="x.png"
        ): "a90858a63a2787af6375a0c37145f4e5415b2ae14d24b11dbf2d56aa44c0c9cc",
    }
    for config, digest in before.items():
        assert config.digest(3) == digest  # by the version of the method then
    assert StyleConfig().digest(2)[:12] == "163d9636d6d3"


@pytest.mark.parametrize(
    ("size", "photograph", "side"),
    [
        ("native", (1200, 800), 1200),
        ("native", (300, 900), 900),
        ("1920x1080", (3000, 2000), 1620),  # 1080 high
        ("1920x1080", (3000, 1000), 1920),
        ("64x48", (10, 20), 48),  # it grows, too
        ("100x33", (3000, 1001), 99),  # 33.03 high, which is 33 pixels
        ("100x33", (2970, 1001), 98),  # 97.91; 33.03 high
        ("12MP", (3000, 2000), 4243),  # sqrt(12e6 * 3 / 2)
        ("0.5mp", (1000, 1000), 707),
        ("1MP", (500, 2000), 2000),
        (700, (1, 1), 700),
    ],
)
def test_a_size_is_resolved_for_each_photograph(
    size: Any, photograph: tuple[int, int], side: int
) -> None:
    config = StyleConfig(size=size).sized(photograph)
    assert config.size == config.side == side
    if "x" in str(size):
        width, height = (int(part) for part in size.split("x"))
        assert fit(photograph, side)[0] <= width
        assert fit(photograph, side)[1] <= height


def test_a_size_that_is_no_result_for_a_photograph_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"size is 'native', which is 19000 pixels .* to 16384"):
        StyleConfig(size="native").sized((19000, 16))
    assert StyleConfig(size=" 1920X1080").size == "1920x1080"
    assert StyleConfig(size="640.0").size == 640
    assert StyleConfig.of(keep_metadata=True).keep_metadata == "true"


def test_the_digest_ignores_the_presets_name_and_the_paths_of_init_and_mask() -> None:
    assert dataclasses.replace(StyleConfig(), preset="paper").digest() == StyleConfig().digest()
    for name in sorted(PATHS):
        a, b = (with_setting(name, path) for path in ("a.png", "folder/b.png"))
        assert a.digest() == b.digest()
        assert a.digest() != StyleConfig().digest()  # that there is one at all counts
    first, second = (StyleConfig(style_mask=text).digest() for text in ("a.png|", "|a.png"))
    assert first != second  # and whose it is
    assert StyleConfig(style_mask=" | ").digest() == StyleConfig().digest()  # no mask at all


def test_init_path_is_empty_for_the_words() -> None:
    assert [StyleConfig(init=word).init_path for word in INIT_WORDS] == [""] * len(INIT_WORDS)
    assert StyleConfig(init="start.png").init_path == "start.png"


def test_equal_settings_give_equal_text_and_digest() -> None:
    whole = StyleConfig(
        content_weight=5, tv_weight=0, style_layers=(("relu1_1", 2),), style_blend=(1, 3)
    )
    point = StyleConfig(
        content_weight=5.0, tv_weight=-0.0, style_layers=(("relu1_1", 2.0),), style_blend=(1.0, 3.0)
    )
    assert whole == point
    assert whole.to_json() == point.to_json()
    assert whole.digest() == point.digest()


def test_to_json_is_canonical_and_reads_back() -> None:
    config = StyleConfig.of("paper", style_blend=(0.25, 0.75), mask="Maske ä.png")
    text = config.to_json()
    values = json.loads(text)
    assert list(values) == sorted(SETTINGS)
    assert text == json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert text.isascii()  # it goes into ASCII-only tags of pictures
    back: dict[str, Any] = {
        name: tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }
    assert StyleConfig(**back) == config


def test_the_digest_does_not_depend_on_the_process() -> None:
    code = "from stylize.config import StyleConfig as S; print(S.of('paper', seed=3).digest())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == StyleConfig.of("paper", seed=3).digest()


@pytest.mark.parametrize(
    # (2(1-s))^2 and (2s)^2: s = 0 -> 4, 0; 1/4 -> 9/4, 1/4; 1/2 -> 1, 1; 1 -> 0, 4.
    ("strength", "content", "style"),
    [(0.0, 4.0, 0.0), (0.25, 2.25, 0.25), (0.5, 1.0, 1.0), (1.0, 0.0, 4.0)],
)
def test_strength_scales_the_two_weights(strength: float, content: float, style: float) -> None:
    config = StyleConfig(strength=strength, content_weight=3.0, style_weight=7.0)
    assert config.weights() == (3 * content, 7 * style)


def test_a_layer_that_the_backbone_has_not_is_refused() -> None:
    layers = (("relu1_1", 1.0), ("relu3_4", 1.0))
    message = "style_layers has relu3_4, which vgg16 does not have; the last layer there is relu3_3"
    with pytest.raises(ConfigError, match=message):
        StyleConfig(backbone="vgg16", style_layers=layers)
    for backbone in ("vgg19", "auto"):  # auto may turn out to be either
        assert StyleConfig(backbone=backbone, style_layers=layers).style_layers == layers
    StyleConfig(backbone="vgg16", content_layers=(("conv3_3", 1.0), ("conv4_4", 0.0)))


def test_layers_may_be_a_list_of_names_or_weights_by_name() -> None:
    names = with_setting("style_layers", ["relu1_1", "relu2_1:0.5"])
    assert names.style_layers == (("relu1_1", 1.0), ("relu2_1", 0.5))
    weights = with_setting("style_layers", {"relu1_1": 1, "relu2_1": 0.5})
    assert weights == names
