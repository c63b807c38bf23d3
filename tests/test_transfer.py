"""transfer_style as its users call it: tiny pictures, few evaluations, the bundled network."""

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from torch import Tensor

from stylize import StyleConfig, StyleResult, Stylizer, transfer_style
from stylize import transfer as transfer_module
from stylize.color import YIQ
from stylize.device import choose_device, choose_dtype, undisturbed
from stylize.errors import ConfigError, ImageReadError, ImageSizeError, Interrupted, StylizeError
from stylize.image import decode, fit, read_metadata, to_tensor
from stylize.stages import Stage, plan_stages
from stylize.transfer import Request, Step
from stylize.weights import BUNDLED, Weights

IMAGES = Path(__file__).parent.parent / "manifests" / "images"


def shipped(name: str, width: int, height: int) -> Image.Image:
    return decode((IMAGES / f"{name}.jpg").read_bytes()).resize((width, height))


PHOTO, PAINTING = shipped("chelsea", 48, 32), shipped("mosaic", 40, 40)

SMALL: dict[str, Any] = {
    "size": 32,
    "steps": 4,
    "scales": 1,
    "content_layers": (("relu3_1", 1.0),),
    "style_layers": (("relu1_1", 1.0), ("relu2_1", 1.0)),
}
"""Shallow layers and one scale: what is tested here is the way round the network."""


def small(**settings: Any) -> StyleConfig:
    return StyleConfig.of("default", **{**SMALL, **settings})


@pytest.fixture(scope="module")
def stylizer(bundled: Weights) -> Stylizer:
    return Stylizer(bundled, device="cpu", dtype="float32")


Transfer = Callable[..., StyleResult]


@pytest.fixture
def transfer(stylizer: Stylizer) -> Transfer:
    def call(
        config: StyleConfig, content: Any = PHOTO, style: Any = PAINTING, **options: Any
    ) -> StyleResult:
        return stylizer.transfer(content, style, config, **options)

    return call


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


# What goes in


def test_the_front_door_works_from_paths_with_the_default_preset(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "photo.png")
    PAINTING.save(tmp_path / "painting.png")
    result = transfer_style(
        tmp_path / "photo.png",
        str(tmp_path / "painting.png"),
        StyleConfig.of("default", size=48, steps=6),
    )
    assert result.image.size == (48, 32)
    assert result.evaluations == 6
    assert result.stop_reason == "steps"
    assert result.seconds > 0


def test_a_stylizer_is_made_from_a_backbones_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(backbone: str) -> Path:
        asked.append(backbone)
        return BUNDLED

    monkeypatch.setattr("stylize.weights.find", find)
    assert Stylizer().weights.backbone == "vgg16"
    result = Stylizer("vgg16", device="cpu").transfer(PHOTO, PAINTING, small(backbone="vgg16"))
    assert result.evaluations == 4
    assert asked == ["auto", "vgg16"]
    with pytest.raises(ConfigError, match="backbone is 'vgg17'; it must be auto or vgg19 or vgg16"):
        Stylizer("vgg17")


@pytest.mark.parametrize("config", ["draft", {"size": 64}, None])
def test_what_is_no_config_is_refused_with_the_remedy(stylizer: Stylizer, config: Any) -> None:
    says = "it must be a StyleConfig, like StyleConfig.of\\('draft'\\)"
    for paint in (transfer_style, stylizer.transfer, Request):
        with pytest.raises(ConfigError, match=f"config is {config!r}; {says}"):
            paint(PHOTO, PAINTING, config)


def test_pictures_tensors_and_paths_give_the_same(transfer: Transfer, tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "photo.png")
    PAINTING.save(tmp_path / "painting.png")
    from_pil = transfer(small())
    from_tensor = transfer(small(), to_tensor(PHOTO), to_tensor(PAINTING))
    from_path = transfer(small(), tmp_path / "photo.png", str(tmp_path / "painting.png"))
    assert from_pil.image.tobytes() == from_tensor.image.tobytes() == from_path.image.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "I;16", "CMYK"])
def test_a_pil_picture_of_any_mode_gives_what_its_file_gives(
    transfer: Transfer, mode: str, tmp_path: Path
) -> None:
    if mode == "RGBA":
        picture = PHOTO.convert("RGBA")
        picture.putalpha(PHOTO.convert("L"))
    elif mode == "LA":
        picture = Image.merge("LA", [PHOTO.convert("L"), PAINTING.resize(PHOTO.size).convert("L")])
    elif mode == "I;16":
        picture = Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257)
    else:
        picture = PHOTO.convert(mode)
    assert picture.mode == mode
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    picture.save(path)
    config = small(steps=1)
    assert transfer(config, picture).image.tobytes() == transfer(config, path).image.tobytes()


@pytest.mark.parametrize("kind", ["orientation", "transparent colour", "profile"])
def test_a_pil_picture_in_rgb_gives_what_its_file_gives(
    transfer: Transfer, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    if kind == "orientation":
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        PHOTO.save(path, exif=exif)
    elif kind == "transparent colour":
        Image.new("RGB", PHOTO.size, "red").save(path, transparency=(255, 0, 0))
    else:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        PHOTO.save(path, icc_profile=profile.tobytes())
    config = small(steps=1)
    with Image.open(path) as picture:
        assert transfer(config, picture).image.tobytes() == transfer(config, path).image.tobytes()


def test_the_precision_of_products_on_a_gpu_is_the_callers_again_afterwards() -> None:
    before = torch.get_float32_matmul_precision()
    with undisturbed(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == before
    with undisturbed(torch.device("cuda")):
        with undisturbed(torch.device("cuda")):
            pass
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before == "highest"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_picture(
    transfer: Transfer, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    with mode():
        there = transfer(small())
    assert there.image.tobytes() == transfer(small()).image.tobytes()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 64, "tv_weight": 1.0},  # large enough for Winograd's convolutions
        {"init": "noise", "style_loss": "wasserstein", "style_layers": (("relu1_1", 1.0),)},
        {"init": "content", "preserve_color": "histogram", "optimizer": "adam"},
    ],
    ids=repr,
)
def test_a_callers_defaults_of_torch_change_nothing(
    bundled: Weights, settings: dict[str, Any]
) -> None:
    def paint(tile: int = 0) -> tuple[bytes, float]:
        fresh = Stylizer(bundled, device="cpu", dtype="float32", tile=tile)
        result = fresh.transfer(PHOTO, PAINTING, small(**{"steps": 2, **settings}))
        return result.image.tobytes(), result.loss

    for tile in (0, 32):
        wanted = paint(tile)
        for mode in (
            default_dtype(torch.float64),
            default_dtype(torch.bfloat16),
            torch.device("meta"),  # as torch.set_default_device sets it
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            with mode:
                there = paint(tile)
            assert there == wanted


def test_features_taken_in_inference_mode_leave_the_stylizer_usable(
    bundled: Weights, transfer: Transfer
) -> None:
    config = small(size=64, steps=2)
    fresh = Stylizer(bundled, device="cpu", dtype="float32")
    with torch.inference_mode():
        encoder = fresh.encoder(config, 64 * 48)
        encoder(torch.rand(1, 3, 64, 64), ["relu3_1"])  # Winograd's filters are made at first use
    there = fresh.transfer(PHOTO, PAINTING, config)
    assert there.image.tobytes() == transfer(config).image.tobytes()


def test_files_that_cannot_be_read_are_stylize_errors_naming_them(
    transfer: Transfer, tmp_path: Path
) -> None:
    (tmp_path / "words.jpg").write_text("no picture")
    with pytest.raises(ImageReadError, match=r"none\.jpg cannot be read: No such file"):
        transfer(small(), tmp_path / "none.jpg")
    with pytest.raises(ImageReadError, match="cannot be read"):
        transfer(small(), PHOTO, str(tmp_path))  # a folder
    with pytest.raises(ImageReadError, match=r"words\.jpg: not a picture"):
        transfer(small(), PHOTO, tmp_path / "words.jpg")
    with pytest.raises(ImageReadError, match="cannot be read: embedded null"):
        transfer(small(), "a\0b.png")
    (tmp_path / "cut.jpg").write_bytes((IMAGES / "chelsea.jpg").read_bytes()[:9000])
    for cut in (tmp_path / "cut.jpg", Image.open(tmp_path / "cut.jpg")):
        with pytest.raises(ImageReadError, match="the picture is damaged or cut short"):
            transfer(small(), cut)
    with pytest.raises(ImageReadError):
        transfer(small(mask=str(tmp_path / "none.png")))
    with pytest.raises(ImageReadError):
        transfer(small(init=str(tmp_path / "none.png")))


TENSOR = to_tensor(PHOTO)  # (1, 3, 32, 48)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (TENSOR * 255, r"\(1, 3, 32, 48\) with values from \d+ to \d+; it must be floating"),
        (TENSOR * 2 - 1, r"with values from -0.\d+ to 0.\d+; it must be floating"),
        ((TENSOR * 255).byte(), r"torch.uint8 \(1, 3, 32, 48\); it must be floating, \(1, 3, H, W"),
        (TENSOR.where(TENSOR > 0.1, torch.nan), r"tensor is \(1, 3, 32, 48\) with NaN"),
        (torch.cat([TENSOR, TENSOR]), r"tensor is \(2, 3, 32, 48\); it must be"),
        (TENSOR[0], r"tensor is \(3, 32, 48\); it must be"),
        (TENSOR[0].movedim(0, 2), r"tensor is \(32, 48, 3\); it must be"),
        (torch.rand(1, 4, 32, 48), r"tensor is \(1, 4, 32, 48\); it must be"),
        (torch.rand(1, 3, 0, 48), r"tensor is \(1, 3, 0, 48\); it must be"),
        (np.asarray(PHOTO), "a picture is a ndarray; it must be a PIL image, a tensor or a path"),
        (None, "a picture is a NoneType; it must be"),
    ],
)
def test_what_is_no_picture_is_refused_by_what_it_is(
    transfer: Transfer, what: object, said: str
) -> None:
    with pytest.raises(ImageReadError, match=said):
        transfer(small(), what)
    with pytest.raises(ImageReadError, match=said):
        transfer(small(), style=what)


def test_a_tensor_of_one_channel_is_a_grey_picture_or_a_mask(transfer: Transfer) -> None:
    grey = PHOTO.convert("L")
    for role in ("content", "style", "mask"):
        made = [transfer(small(), **{role: one}).image for one in (grey, to_tensor(grey))]
        assert made[0].tobytes() == made[1].tobytes()


# What comes out


@pytest.mark.parametrize(
    ("size", "longest", "wanted"),
    # The other side is rounded: 33 * 47 / 61 = 25.4; 61 * 31 / 37 = 51.1 of a size of 31 is 19.
    [
        ((61, 33), 47, (47, 25)),
        ((37, 61), 31, (19, 31)),
        ((48, 48), 33, (33, 33)),
        ((100, 50), 32, (32, 16)),
        ((20, 30), 45, (30, 45)),
    ],
)
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_the_longest_side_is_size_and_the_aspect_is_kept(
    transfer: Transfer,
    size: tuple[int, int],
    longest: int,
    wanted: tuple[int, int],
    padding: str,
) -> None:
    result = transfer(small(size=longest, steps=1, padding=padding), PHOTO.resize(size))
    assert result.image.size == wanted
    assert result.image.mode == "RGB"


def test_the_loss_falls_and_the_kept_picture_is_the_best(transfer: Transfer) -> None:
    result = transfer(small(steps=25))
    losses = [step.loss for step in result.curve]
    assert losses[-1] < 0.7 * losses[0]
    assert result.loss == min(losses)


def test_the_curve_counts_every_evaluation_over_all_scales(transfer: Transfer) -> None:
    seen: list[tuple[Step, tuple[int, ...]]] = []
    config = small(size=48, steps=9, scales=3, coarsest=16, motifs=1)
    result = transfer(config, on_step=lambda step, x: seen.append((step, tuple(x.shape))))
    assert [step.step for step in result.curve] == list(range(1, 10))
    assert [step for step, _ in seen] == list(result.curve)
    assert result.evaluations == 9
    # The picture that is shown has the stage's own size, without the frame up to the grid of 16.
    sizes = [
        (s.size[1], s.size[0]) for s in plan_stages((48, 32), config) for _ in range(s.evaluations)
    ]
    assert [shape for _, shape in seen] == [(1, 3, *size) for size in sizes]
    assert len(set(sizes)) > 1
    seconds = [step.seconds for step in result.curve]
    assert seconds == sorted(seconds)
    assert result.seconds >= seconds[-1]


def test_the_loss_of_a_step_is_the_weighted_sum_of_its_parts(transfer: Transfer) -> None:
    config = small(content_weight=2.0, style_weight=3.0, tv_weight=5.0, strength=0.25)
    for step in transfer(config).curve:
        # strength 1/4: content times (3/2)^2 = 9/4, style times (1/2)^2 = 1/4.
        by_hand = 4.5 * step.content_loss + 0.75 * step.style_loss + 5 * step.tv_loss
        assert step.loss == pytest.approx(by_hand, rel=1e-9)
        assert min(step.content_loss, step.style_loss, step.tv_loss) > 0


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("scales", [1, 2, 5])
def test_the_stages_evaluations_sum_to_steps_and_sizes_grow(steps: int, scales: int) -> None:
    config = StyleConfig(size=256, steps=steps, scales=scales, coarsest=40, spread=0)
    stages = plan_stages((300, 200), config)
    assert sum(stage.evaluations for stage in stages) == steps
    assert all(stage.evaluations >= 0 for stage in stages)
    # Halved until below 40: 256, 128, 64.
    longest = [64, 128, 256][-min(scales, 3) :]
    assert [stage.size for stage in stages] == [fit((300, 200), side) for side in longest]


@pytest.mark.parametrize(("steps", "parts"), [(0, (0, 0)), (1, (0, 1)), (140, (30, 60))])
def test_with_spread_the_coarsest_scale_is_two_stages_the_first_by_quarters(
    steps: int, parts: tuple[int, int]
) -> None:
    config = StyleConfig(size=256, steps=steps, scales=2, spread=0.3, coarse_content=2)
    first, second, finest = plan_stages((300, 200), config)
    assert (first.evaluations, second.evaluations) == parts
    assert first.evaluations + second.evaluations + finest.evaluations == steps
    assert first.size == second.size == fit((300, 200), 128)
    assert (first.spread, second.spread, finest.spread) == (0.3, 0, 0)
    assert (first.content_factor, second.content_factor, finest.content_factor) == (2, 2, 1)


@pytest.mark.parametrize("size", [96, 200, 512, 1024, 4096, 12000])
def test_by_default_pictures_of_every_size_begin_alike(size: int) -> None:
    sizes = list(
        dict.fromkeys(max(s.size) for s in plan_stages((16000, 12000), StyleConfig(size=size)))
    )
    assert 96 <= sizes[0] < 192
    assert sizes[-1] == size
    assert all(abs(fine - 2 * coarse) <= 1 for coarse, fine in itertools.pairwise(sizes))


def test_one_scale_has_all_evaluations() -> None:
    config = StyleConfig(size=64, steps=50, scales=1)
    assert plan_stages((64, 64), config) == [Stage((64, 64), 50)]


@pytest.mark.parametrize("steps", [0, 1])
def test_few_steps_over_many_scales_still_give_a_picture(transfer: Transfer, steps: int) -> None:
    result = transfer(small(size=48, steps=steps, scales=3, coarsest=16, motifs=1))
    assert result.image.size == (48, 32)
    assert (result.evaluations, len(result.curve)) == (steps, steps)
    assert result.loss > 0


def test_what_on_step_raises_ends_the_transfer(transfer: Transfer) -> None:
    steps: list[int] = []

    def stop(step: Step, image: Tensor) -> None:
        steps.append(step.step)
        if step.step == 3:
            raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        transfer(small(steps=10), on_step=stop)
    assert steps == [1, 2, 3]


def test_a_result_is_saved_whole_with_its_settings(transfer: Transfer, tmp_path: Path) -> None:
    result = transfer(small())
    for name in ("out.png", "out.jpg"):
        result.save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        assert read_metadata(data) == result.config.to_json()
        assert decode(data).size == result.image.size
    assert decode((tmp_path / "out.png").read_bytes()).tobytes() == result.image.tobytes()
    with pytest.raises(ImageReadError, match=r"cannot write '\.gif'"):
        result.save(tmp_path / "out.gif")
    with pytest.raises(OSError, match="No such file"):
        result.save(tmp_path / "no" / "out.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jpg", "out.png"]


def test_notebooks_are_shown_the_picture(transfer: Transfer) -> None:
    result = transfer(small(steps=1))
    shown = Image.open(io.BytesIO(result._repr_png_()))
    assert shown.format == "PNG"
    assert shown.tobytes() == result.image.tobytes()


# Seeds and starts


def test_the_same_seed_gives_the_same_bytes_and_another_others(transfer: Transfer) -> None:
    one, again, other = (transfer(small(init="noise", noise=0.1, seed=s)) for s in (5, 5, 6))
    assert one.image.tobytes() == again.image.tobytes()
    assert one.image.tobytes() != other.image.tobytes()


def test_without_noise_the_seed_changes_nothing(transfer: Transfer) -> None:
    one, other = (transfer(small(init="content", seed=s)) for s in (5, 6))
    assert one.image.tobytes() == other.image.tobytes()


def started(transfer: Transfer, config: StyleConfig, **options: Any) -> np.ndarray[Any, Any]:
    """Where a transfer starts: it ends there without evaluations."""
    return pixels(transfer(config, **options).image)


def test_init_says_where_to_start(transfer: Transfer, tmp_path: Path) -> None:
    def at(init: str, **settings: Any) -> np.ndarray[Any, Any]:
        return started(transfer, small(steps=0, size=48, init=init, **settings))

    assert (at("content") == pixels(PHOTO)).all()
    # The style, stretched to the picture's size: here it has that size already.
    same_size = shipped("mosaic", 48, 32)
    style = started(transfer, small(steps=0, size=48, init="style"), style=same_size)
    assert (style == pixels(same_size)).all()
    # Mean colour (123.68, 116.779, 103.939), noise of 1e-4 aside; 10,000 numbers of spread 25.5
    # have a mean to 25.5 / sqrt(1536) = 0.65.
    plain, noisy = at("noise", noise=1e-4), at("noise", noise=0.1)
    assert (plain == [124, 117, 104]).all()
    assert np.abs(noisy.mean(axis=(0, 1)) - [124, 117, 104]).max() < 3
    assert noisy.std(axis=(0, 1)) == pytest.approx(25.5, rel=0.1)
    # matched: the photograph in the style's mean colour, but for values clamped at 0 and 255.
    matched, wanted = at("matched"), pixels(PAINTING.resize((48, 48))).mean(axis=(0, 1))
    assert np.abs(matched.mean(axis=(0, 1)) - wanted).max() < 6
    assert np.abs(pixels(PHOTO).mean(axis=(0, 1)) - wanted).max() > 20
    # A file, stretched.
    drawing = shipped("coffee", 48, 32)
    drawing.save(tmp_path / "start.png")
    assert (at(str(tmp_path / "start.png")) == pixels(drawing)).all()
    given = started(transfer, small(steps=0, size=48), init=drawing)
    assert (given == pixels(drawing)).all()


def test_the_coarse_scales_gain_is_carried_to_the_fine_one(transfer: Transfer) -> None:
    # All of 20 evaluations but a few are made on the coarse scale; the first loss on the fine one
    # is then below the loss of its own start.
    config = small(size=48, steps=20, scales=2, coarsest=16, motifs=1)
    first = transfer(small(size=48, steps=1)).curve[0].loss
    coarse = sum(stage.evaluations for stage in plan_stages((48, 32), config)[:-1])
    carried = transfer(config).curve[coarse].loss
    assert carried < 0.9 * first


# Weights of the parts


def test_strength_0_pays_no_heed_to_the_style_and_1_none_to_the_content(
    transfer: Transfer,
) -> None:
    zero, one = transfer(small(strength=0.0, init="style")), transfer(small(strength=1.0))
    assert {step.style_loss for step in zero.curve} == {0.0}
    assert {step.content_loss for step in one.curve} == {0.0}
    assert zero.content_loss > 0
    assert one.style_loss > 0


def test_strength_0_from_the_content_is_the_photograph(transfer: Transfer) -> None:
    # Its content loss is exactly 0 there, so there is no slope and no step.
    result = transfer(small(size=48, strength=0.0, init="content", steps=5))
    assert (pixels(result.image) == pixels(PHOTO)).all()
    assert result.loss == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"style_weight": 0.0},
        {"content_weight": 0.0},
        {"style_weight": 0.0, "content_weight": 0.0},
        {"style_weight": 0.0, "content_weight": 0.0, "tv_weight": 1.0},
        {"style_weight": 0.0, "coarse_content": 0.0, "scales": 2, "coarsest": 16, "motifs": 1},
        {"strength": 1.0, "style_weight": 0.0},
    ],
    ids=str,
)
def test_weights_of_0_work(transfer: Transfer, settings: dict[str, Any]) -> None:
    result = transfer(small(**settings))
    assert np.isfinite([result.loss, result.content_loss, result.style_loss]).all()
    assert result.evaluations == 4


def test_total_variation_weight_smooths(transfer: Transfer) -> None:
    smooth = transfer(small(tv_weight=1e3, content_weight=0.0, style_weight=0.0, steps=20))
    plain = transfer(small(tv_weight=1e-9, content_weight=0.0, style_weight=0.0, steps=1))
    assert smooth.tv_loss < 0.8 * plain.tv_loss


# Several styles


def test_a_blend_of_1_and_0_is_the_first_style_alone(transfer: Transfer) -> None:
    other = shipped("woodcut-waves", 40, 40)
    alone = transfer(small())
    blend = transfer(small(style_blend=(1.0, 0.0)), style=[PAINTING, other])
    assert blend.image.tobytes() == alone.image.tobytes()
    even = transfer(small(), style=[PAINTING, other])
    assert even.image.tobytes() != alone.image.tobytes()


@pytest.mark.parametrize("shares", [(0.0, 1.0), (0.3, 0.7)])
def test_the_order_of_the_styles_is_of_no_matter(
    transfer: Transfer, shares: tuple[float, float]
) -> None:
    other = shipped("woodcut-waves", 40, 40)
    one = transfer(small(style_blend=shares, steps=4), style=[PAINTING, other])
    two = transfer(small(style_blend=shares[::-1], steps=4), style=[other, PAINTING])
    assert np.abs(pixels(one.image) - pixels(two.image)).max() <= 2


def test_two_equal_styles_are_one(transfer: Transfer) -> None:
    one = transfer(small())
    two = transfer(small(style_blend=(3.0, 1.0)), style=[PAINTING, PAINTING])
    # 3/4 A + 1/4 A = A up to rounding, which a few steps leave below a unit or two.
    assert np.abs(pixels(one.image) - pixels(two.image)).max() <= 2


@pytest.mark.parametrize("kind", ["moments", "wasserstein"])
def test_the_other_statistics_blend_too(transfer: Transfer, kind: str) -> None:
    result = transfer(small(style_loss=kind, steps=2), style=[PAINTING, PHOTO])
    assert np.isfinite(result.loss)


def test_no_style_is_refused_and_no_request_is_no_result(
    stylizer: Stylizer, transfer: Transfer
) -> None:
    with pytest.raises(ConfigError, match="there is no style; give a picture, or several"):
        transfer(small(), style=[])
    assert stylizer.transfer_batch([]) == []


def test_a_blend_of_another_length_is_refused(transfer: Transfer) -> None:
    with pytest.raises(ConfigError, match="style_blend has 2 weights for 1 styles"):
        transfer(small(style_blend=(0.5, 0.5)))


def test_targets_are_kept_and_keeping_them_changes_nothing(bundled: Weights) -> None:
    used = Stylizer(bundled, device="cpu", dtype="float32")
    for style in (PAINTING, PHOTO):  # one Stylizer, several styles and settings
        used.transfer(PHOTO, style, small(steps=1))
        used.transfer(PHOTO, style, small(steps=1, style_loss="moments", pooling="max"))
    fresh = Stylizer(bundled, device="cpu", dtype="float32")
    a, b = (s.transfer(PHOTO, PAINTING, small()) for s in (used, fresh))
    assert a.image.tobytes() == b.image.tobytes()
    assert a.loss == b.loss


# Masks and colours


def test_the_black_part_of_a_mask_is_exactly_the_photograph(
    transfer: Transfer, tmp_path: Path
) -> None:
    mask = Image.new("L", (48, 32), 0)
    mask.paste(255, (24, 0, 48, 32))
    mask.save(tmp_path / "mask.png")
    given = transfer(small(size=48, init="matched", steps=8), mask=mask)
    out, photo = pixels(given.image), pixels(PHOTO)
    assert (out[:, :24] == photo[:, :24]).all()
    assert np.abs(out[:, 24:] - photo[:, 24:]).mean() > 3
    from_path = transfer(small(size=48, init="matched", steps=8, mask=str(tmp_path / "mask.png")))
    assert from_path.image.tobytes() == given.image.tobytes()


def test_a_white_mask_paints_all_and_a_black_one_nothing(transfer: Transfer) -> None:
    white, black = (Image.new("L", (20, 20), value) for value in (255, 0))
    free = transfer(small(size=48, steps=8))
    painted = transfer(small(size=48, steps=8), mask=white)
    # Averages over a mask of ones are averages: rounding apart, a unit or two after eight steps.
    assert np.abs(pixels(painted.image) - pixels(free.image)).max() <= 3
    nothing = transfer(small(size=48, steps=8), mask=black)
    assert (pixels(nothing.image) == pixels(PHOTO)).all()


def test_luminance_keeps_the_photographs_i_and_q(transfer: Transfer) -> None:
    # Colours near grey, so that no channel is cut off when Y changes.
    photo = Image.blend(PHOTO, Image.new("RGB", PHOTO.size, (128, 128, 128)), 0.6)
    result = transfer(small(size=48, preserve_color="luminance", steps=8), photo)
    out, before = pixels(result.image), pixels(photo)
    inside = ((out > 0) & (out < 255)).all(axis=2)
    assert inside.mean() > 0.9
    chroma = YIQ[1:].numpy()
    apart = np.abs((out - before)[inside] @ chroma.T)
    # Each channel is rounded by at most 1/2: |I| changes by 1/2 (0.596 + 0.274 + 0.321) = 0.596,
    # |Q| by 1/2 (0.211 + 0.523 + 0.311) = 0.523.
    assert apart[:, 0].max() < 0.597
    assert apart[:, 1].max() < 0.524
    assert np.abs((out - before)[inside] @ YIQ[0].numpy()).mean() > 2  # Y has changed


def test_a_style_in_the_photographs_colours_is_not_that_of_another_scale(bundled: Weights) -> None:
    # So small a style picture has the same size at both scales.
    settings = {
        "size": 64,
        "style_scale": 0.1,
        "preserve_color": "histogram",
        "coarsest": 32,
        "motifs": 1,
    }

    def paint(stylizer: Stylizer, scales: int) -> float:
        config = small(**{"init": "content", "relative": False, **settings, "scales": scales})
        return stylizer.transfer(PHOTO, PAINTING, config).curve[0].style_loss

    used, fresh = (Stylizer(bundled, device="cpu", dtype="float64") for _ in range(2))
    paint(used, 2)
    assert paint(used, 1) == paint(fresh, 1)


def test_histogram_gives_the_style_the_photographs_colours(transfer: Transfer) -> None:
    # With the start at the style, what is seen is the recoloured style.
    config = small(size=48, steps=0, init="style", preserve_color="histogram")
    recoloured = started(transfer, config)
    plain = started(transfer, small(size=48, steps=0, init="style"))
    wanted = pixels(PHOTO).mean(axis=(0, 1))
    assert np.abs(plain.mean(axis=(0, 1)) - wanted).max() > 20
    assert np.abs(recoloured.mean(axis=(0, 1)) - wanted).max() < 6  # what clamping leaves


# Flat and extreme pictures

FLAT = {
    "black": Image.new("RGB", (32, 32), (0, 0, 0)),
    "white": Image.new("RGB", (32, 32), (255, 255, 255)),
    "grey": Image.new("RGB", (32, 32), (119, 119, 119)),
    "red": Image.new("RGB", (32, 32), (255, 0, 0)),
}


@pytest.mark.parametrize("kind", ["gram", "moments", "wasserstein"])
@pytest.mark.parametrize(
    ("content", "style"),
    [
        ("photo", "black"),
        ("photo", "white"),
        ("grey", "red"),
        ("black", "painting"),
        ("red", "red"),
    ],
)
def test_constant_pictures_give_finite_losses(
    transfer: Transfer, kind: str, content: str, style: str
) -> None:
    pictures = {**FLAT, "photo": PHOTO, "painting": PAINTING}
    result = transfer(small(style_loss=kind, steps=6), pictures[content], pictures[style])
    assert np.isfinite([step.loss for step in result.curve]).all()
    assert result.evaluations == len(result.curve) == 6
    assert result.stop_reason == "steps"


@pytest.mark.parametrize("preserve", ["histogram", "luminance"])
def test_constant_pictures_keep_colours_without_a_crash(transfer: Transfer, preserve: str) -> None:
    for content, style in ((PHOTO, FLAT["black"]), (FLAT["red"], PAINTING)):
        result = transfer(small(preserve_color=preserve, steps=3), content, style)
        assert np.isfinite(result.loss)


@pytest.mark.parametrize("feature_scale", ["unit", "caffe"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_black_content_on_a_black_style_is_left_black(
    transfer: Transfer, feature_scale: str, relative: bool
) -> None:
    config = small(feature_scale=feature_scale, relative=relative)
    result = transfer(config, FLAT["black"], FLAT["black"])
    # Content and style are met exactly at the start, but for the colour match's rounding.
    assert pixels(result.image).max() <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam"},
        {"style_loss": "moments"},
        {"style_loss": "wasserstein"},
        {"clamp": False},
        {"padding": "zeros"},
        {"pooling": "max"},
        {"feature_scale": "unit"},
        {"relative": False},
        {"tv_reduction": "sum", "tv_weight": 1e-6},
        {"style_scale": 0.5},
        {"history": 1},
    ],
    ids=str,
)
def test_every_other_way_lowers_the_loss(transfer: Transfer, settings: dict[str, Any]) -> None:
    result = transfer(small(steps=12, **settings))
    losses = [step.loss for step in result.curve]
    assert min(losses) < 0.98 * losses[0]


def test_style_scale_changes_the_size_at_which_the_style_is_seen(transfer: Transfer) -> None:
    large, small_ = (transfer(small(steps=2, style_scale=s)) for s in (1.0, 0.5))
    assert large.style_loss != small_.style_loss


# What cannot be


# Batches


def batch(**settings: Any) -> list[Request]:
    """Three pictures of one size in two styles."""
    photos = [shipped(name, 48, 32) for name in ("chelsea", "coffee", "rocket")]
    styles = [PAINTING, shipped("ember-sky", 40, 40), PAINTING]
    config = small(**settings)
    return [Request(p, s, config) for p, s in zip(photos, styles, strict=True)]


def paint_alone(stylizer: Stylizer, request: Request) -> StyleResult:
    assert isinstance(request.style, Image.Image)
    return stylizer.transfer(request.content, request.style, request.config)


@pytest.mark.parametrize(
    "settings",
    [{}, {"style_loss": "moments"}, {"preserve_color": "luminance"}, {"optimizer": "adam"}],
    ids=str,
)
def test_a_batch_gives_what_separate_runs_give(bundled: Weights, settings: dict[str, Any]) -> None:
    exact = Stylizer(bundled, device="cpu", dtype="float64")
    requests = batch(steps=20, scales=2, coarsest=16, motifs=1, **settings)
    for request, together in zip(requests, exact.transfer_batch(requests), strict=True):
        assert isinstance(together, StyleResult)
        alone = paint_alone(exact, request)
        assert [s.loss for s in together.curve] == pytest.approx(
            [s.loss for s in alone.curve], rel=1e-6
        )
        assert np.abs(pixels(together.image) - pixels(alone.image)).max() <= 1


def test_seeds_differ_within_a_batch_and_each_gives_the_picture_that_it_gives_alone(
    bundled: Weights,
) -> None:
    exact = Stylizer(bundled, device="cpu", dtype="float64")
    config = small(steps=20, scales=2, coarsest=16, motifs=1, init="noise")
    requests = [Request(PHOTO, PAINTING, replace(config, seed=seed)) for seed in (0, 1, 2)]
    results = exact.transfer_batch(requests)
    for request, together in zip(requests, results, strict=True):
        assert isinstance(together, StyleResult)
        assert together.config.seed == request.config.seed
        alone = paint_alone(exact, request)
        assert np.abs(pixels(together.image) - pixels(alone.image)).max() <= 1
    assert len({pixels(r.image).tobytes() for r in results if isinstance(r, StyleResult)}) == 3


def test_a_batch_in_float32_ends_within_1_percent_of_separate_runs(stylizer: Stylizer) -> None:
    # With all layers and until it is level: rounding sways a loss that still falls fast.
    config = StyleConfig.of("draft", size=64, steps=100)
    requests = [replace(request, config=config) for request in batch()[:2]]
    for request, together in zip(requests, stylizer.transfer_batch(requests), strict=True):
        assert isinstance(together, StyleResult)
        alone = paint_alone(stylizer, request)
        assert together.loss == pytest.approx(alone.loss, rel=0.01)


def teller(losses: list[float]) -> Callable[[Step, Tensor], None]:
    """Puts the loss of each step that it is told at the end of a list."""

    def tell(step: Step, _: Tensor) -> None:
        losses.append(step.loss)

    return tell


def test_each_picture_of_a_batch_tells_its_own_steps_and_ends_on_its_own(
    stylizer: Stylizer,
) -> None:
    told: list[list[float]] = [[], [], []]
    requests = [
        replace(request, on_step=teller(losses))
        for losses, request in zip(told, batch(steps=300, plateau=0.1), strict=True)
    ]
    results = stylizer.transfer_batch(requests)
    for losses, result in zip(told, results, strict=True):
        assert isinstance(result, StyleResult)
        assert losses == [step.loss for step in result.curve]
        assert result.evaluations == len(losses) < 300
        assert result.stop_reason == "plateau"
    assert len({len(losses) for losses in told}) > 1


def test_pictures_that_cannot_go_together_are_refused(stylizer: Stylizer) -> None:
    one, other = batch()[:2]
    with pytest.raises(ConfigError, match="settings of pictures in one batch differ"):
        stylizer.transfer_batch([one, replace(other, config=small(steps=5))])
    with pytest.raises(ConfigError, match="32x21 and 21x32"):
        stylizer.transfer_batch([one, replace(other, content=shipped("coffee", 32, 48))])
    with pytest.raises(ConfigError, match="same number of styles"):
        stylizer.transfer_batch([one, replace(other, style=[PAINTING, PAINTING])])


@pytest.mark.slow
def test_the_compiled_network_gives_the_same(bundled: Weights, transfer: Transfer) -> None:
    there = Stylizer(bundled, device="cpu", dtype="float32", compile=True)
    result = there.transfer(PHOTO, PAINTING, small())
    assert result.loss == pytest.approx(transfer(small()).loss, rel=1e-3)


def test_a_panorama_too_flat_for_the_layers_is_refused(transfer: Transfer) -> None:
    config = small(padding="zeros", style_layers=(("relu5_1", 1.0),))
    with pytest.raises(ImageSizeError, match=r"image is 32x8; .* at least 16x16"):
        transfer(config, PHOTO.resize((64, 16)))


def test_another_backbone_than_the_stylizers_is_refused(transfer: Transfer) -> None:
    with pytest.raises(ConfigError, match="backbone is 'vgg19', not 'vgg16'"):
        transfer(small(backbone="vgg19"))


def test_layers_beyond_the_weights_are_refused(transfer: Transfer) -> None:
    with pytest.raises(ConfigError, match="end at conv5_1"):
        transfer(small(content_layers=(("relu5_2", 1.0),)))
    with pytest.raises(StylizeError, match="relu3_4 is not in vgg16"):
        transfer(small(style_layers=(("relu3_4", 1.0),)))


def test_devices_and_types_are_chosen_or_refused_by_name() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == choose_device(cpu) == cpu
    with pytest.raises(ConfigError, match="device is 'cpu:x'; write it like cpu or cuda:0"):
        choose_device("cpu:x")
    with pytest.raises(ConfigError, match=r"device is 'tpu'; torch can use .*cpu here"):
        choose_device("tpu")
    assert choose_dtype("float64", cpu) == torch.float64
    with pytest.raises(ConfigError, match="dtype is 'int8'; it must be auto or float32"):
        choose_dtype("int8", cpu)


@pytest.mark.parametrize(
    ("name", "avx512_bf16", "amx", "dtype"),
    [
        ("AMD EPYC", False, False, torch.float32),
        ("AMD EPYC", True, False, torch.bfloat16),
        ("Intel(R) Xeon(R) Processor", True, False, torch.float32),
        ("Intel(R) Xeon(R) Processor", True, True, torch.bfloat16),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_is_faster_with_it(
    monkeypatch: pytest.MonkeyPatch, name: str, avx512_bf16: bool, amx: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("stylize.device.processor", lambda: name)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_dtype("auto", torch.device("cpu")) == dtype


def test_a_torch_that_no_longer_answers_by_private_names_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_other_types_agree_with_float32_at_the_start(
    bundled: Weights, transfer: Transfer, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_module, "_FEW", 0)
    other = Stylizer(bundled, device="cpu", dtype=dtype).transfer(PHOTO, PAINTING, small(steps=1))
    wanted = transfer(small(steps=1))
    # bfloat16 keeps 8 bits: a few times 2^-9 in the features, squared in a Gram matrix.
    bar = 0.03 if dtype == "bfloat16" else 1e-4
    assert other.style_loss == pytest.approx(wanted.style_loss, rel=bar)
    assert other.content_loss == pytest.approx(wanted.content_loss, rel=bar)


def test_pictures_that_share_an_open_file_are_read_one_by_one(
    stylizer: Stylizer, tmp_path: Path
) -> None:
    PAINTING.resize((600, 600)).save(tmp_path / "style.png")
    style = Image.open(tmp_path / "style.png")  # no pixel is read yet
    requests = [Request(PHOTO, style, small(steps=1)) for _ in range(6)]
    results = stylizer.transfer_batch(requests)
    assert len({r.loss for r in results if isinstance(r, StyleResult)}) == 1


def test_paintings_of_the_same_bytes_and_another_shape_are_two(stylizer: Stylizer) -> None:
    styles = [Image.new("RGB", size, "teal") for size in ((64, 32), (32, 64))]
    config = small(steps=1, preserve_color="none")
    together = stylizer.transfer_batch([Request(PHOTO, style, config) for style in styles])
    for style, result in zip(styles, together, strict=True):
        assert isinstance(result, StyleResult)
        alone = stylizer.transfer(PHOTO, style, config)
        assert result.loss == pytest.approx(alone.loss, rel=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_pictures_are_never_seen_in_half_precision(bundled: Weights, dtype: str) -> None:
    stylizer = Stylizer(bundled, device="cpu", dtype=dtype)
    config = StyleConfig()
    assert stylizer.encoder(config, 128 * 96).dtype == torch.float32
    assert stylizer.encoder(config, 192 * 144).dtype == stylizer.dtype
    assert stylizer.encoder(config, 192 * 144) is stylizer.encoder(config)
    # The same as where all is float32.
    other = Stylizer(bundled, device="cpu", dtype="float32")
    results = [s.transfer(PHOTO, PAINTING, small(steps=3)) for s in (stylizer, other)]
    assert results[0].loss == results[1].loss


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("preserve", ["none", "histogram", "luminance"])
def test_the_gpu_agrees_with_the_cpu(bundled: Weights, transfer: Transfer, preserve: str) -> None:
    there = Stylizer(bundled, device="cuda", dtype="float32")
    config = small(preserve_color=preserve, size=48)
    mask = Image.new("L", (48, 32), 128)
    result = there.transfer(PHOTO, PAINTING, config, mask=mask)
    assert result.loss == pytest.approx(transfer(config, mask=mask).loss, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_a_batch_on_the_gpu_ends_within_1_percent_of_the_cpu(
    bundled: Weights, stylizer: Stylizer, compile: bool
) -> None:
    there = Stylizer(bundled, device="cuda", dtype="float32", compile=compile)
    config = StyleConfig.of("draft", size=96, steps=100)
    requests = [replace(request, config=config) for request in batch()]
    # Of one pair the end differs by 1 % with the last bit of its first step, of three by less.
    together = sum(
        result.loss for result in there.transfer_batch(requests) if isinstance(result, StyleResult)
    )
    alone = sum(paint_alone(stylizer, request).loss for request in requests)
    assert together == pytest.approx(alone, rel=0.01)
