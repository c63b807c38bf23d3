"""Tiles: every position once, and the losses and gradients of the whole picture."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stylize import StyleConfig, Stylizer
from stylize.encoder import Encoder
from stylize.image import to_image
from stylize.layers import reach
from stylize.losses import PerceptualLoss, Statistic
from stylize.tiles import TiledLoss, features_in_tiles, split, statistics_in_tiles
from stylize.weights import Weights


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(height: int, width: int, seed: int) -> Tensor:
    coarse = noise(1, 3, height // 8, width // 8, seed=seed)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (200, 170), (129, 1000), (16, 31)])
def test_every_pixel_is_in_one_core_and_tiles_begin_where_all_cells_do(
    height: int, width: int
) -> None:
    seen = torch.zeros(height, width)
    tiles = split(height, width, side=64, around=58)
    for tile in tiles:
        top, bottom, left, right = tile.core
        seen[top:bottom, left:right] += 1
        assert top % 16 == left % 16 == tile.whole[0] % 16 == tile.whole[2] % 16 == 0
        assert tile.whole[0] in (0, top - 64)
        assert min(bottom - top, right - left) >= 16
    assert torch.equal(seen, torch.ones(height, width))


def test_a_layer_sees_as_far_as_its_receptive_field() -> None:
    # conv5_1 of VGG-16 sees 132 pixels, its own square of 16 and 58 on each side of it; VGG-19
    # has a convolution more in blocks 3 and 4: 4 and 8 pixels more.
    assert reach("relu5_1", "vgg16") == 58 == (132 - 16) // 2
    assert reach("relu5_1", "vgg19") == 58 + 4 + 8
    assert reach("conv1_1", "vgg16") == 1


@pytest.mark.parametrize(
    ("kind", "size", "masked", "padding", "spread"),
    [
        ("gram", (200, 170), False, "zeros", 0.0),  # no multiples of 16
        ("gram", (96, 144), True, "replicate", 0.0),
        ("moments", (144, 96), True, "replicate", 0.0),
        ("gram", (200, 170), False, "zeros", 0.4),
        ("moments", (96, 144), True, "replicate", 0.4),
        ("gram", (31, 144), False, "zeros", 0.4),
    ],
)
def test_losses_and_gradient_in_tiles_are_those_of_the_whole_picture(
    bundled: Weights,
    kind: str,
    size: tuple[int, int],
    masked: bool,
    padding: str,
    spread: float,
) -> None:
    config = StyleConfig(style_loss=kind, tv_weight=0.1)
    encoder = Encoder(bundled, padding=padding)
    layers = [layer for layer, _ in config.style_layers]
    pictures = torch.cat([smooth(*size, seed=1), smooth(*size, seed=2)])
    style = smooth(160, 160, seed=3)
    mask = noise(2, 1, *size, seed=4) if masked else None
    with torch.no_grad():
        content = encoder(pictures.flip(3), ["relu4_2"])
        found = encoder(style, layers)
        target = {name: Statistic.of(found[name], kind) for name in layers}
    in_tiles = features_in_tiles(encoder, pictures.flip(3), ["relu4_2"], 64)["relu4_2"]
    assert torch.allclose(in_tiles, content["relu4_2"], rtol=1e-4, atol=1e-3)
    for name, statistic in statistics_in_tiles(encoder, style, layers, kind, 64).items():
        for one, other in zip(statistic.parts(), target[name].parts(), strict=True):
            assert float((one - other).norm() / other.norm()) < 1e-5

    whole = PerceptualLoss(encoder, config, content, target, mask=mask, spread=spread)
    tiled = TiledLoss(encoder, config, content, target, mask=mask, spread=spread, side=64)
    assert len(tiled.tiles(pictures)) > 1
    gradients, values = [], []
    for loss in (whole, tiled):
        at = pictures.clone().requires_grad_()
        losses = loss(at)
        gradients.append(torch.autograd.grad(losses.total.sum(), at)[0])
        values.append([*losses.total.tolist(), *losses.content.tolist(), *losses.style.tolist()])
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    wanted, got = gradients
    assert float((got - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_gradients_in_tiles_are_those_of_the_whole_picture_whatever_convolves(
    bundled: Weights, dtype: torch.dtype, limit: float
) -> None:
    config = StyleConfig(tv_weight=0.1)
    encoder = Encoder(bundled, winograd=True, dtype=dtype)  # where it pays: in float32
    layers = [layer for layer, _ in config.style_layers]
    # The tile in the middle of three sees nothing beyond the picture above and below.
    picture, style = smooth(192, 96, seed=1).to(dtype), smooth(96, 96, seed=3).to(dtype)
    with torch.no_grad():
        content = encoder(picture.flip(3), ["relu4_2"])
        found = encoder(style, layers)
        target = {name: Statistic.of(found[name], "gram") for name in layers}
    at = picture.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(PerceptualLoss(encoder, config, content, target)(at).total, at)
    tiled = TiledLoss(encoder, config, content, target, side=64)
    (got,) = torch.autograd.grad(tiled(at).total, at)
    # By the norm, and 3e-4 of it at the most that was seen: Winograd's rounding depends on where a
    # tile begins, and where it takes a feature over the kink of its ReLU, one pixel's gradient
    # differs by more.
    assert float((got - wanted).norm() / wanted.norm()) < limit


def test_a_transfer_in_tiles_ends_where_the_whole_one_does_and_says_so(bundled: Weights) -> None:
    photo, painting = to_image(smooth(96, 144, seed=5)), to_image(smooth(144, 96, seed=6))
    config = StyleConfig.of("draft", size=144, steps=5)
    whole = Stylizer(bundled, device="cpu", dtype="float32").transfer(photo, painting, config)
    tiled = Stylizer(bundled, device="cpu", dtype="float32", tile=64).transfer(
        photo, painting, config
    )
    assert tiled.loss == pytest.approx(whole.loss, rel=1e-3)
    assert (whole.notes, tiled.notes) == ("", "seen in tiles of 64 pixels")


def test_a_style_picture_is_seen_in_tiles_by_its_own_size(
    bundled: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def statistics(encoder: Encoder, picture: Tensor, *others: Any) -> dict[str, Statistic]:
        seen.append((picture.shape[-1], others[2]))  # layers, kind, side, mask
        return statistics_in_tiles(encoder, picture, *others)

    monkeypatch.setattr("stylize.transfer.statistics_in_tiles", statistics)
    stylizer = Stylizer(bundled, device="cpu", dtype="float32", tile=48)
    painting = to_image(smooth(64, 64, seed=6))
    settings: dict[str, Any] = {"steps": 1, "scales": 1, "relative": False}
    for size, scale in ((32, 3.0), (96, 0.5)):  # a small photograph's large style, and otherwise
        config = StyleConfig.of("default", size=size, style_scale=scale, **settings)
        stylizer.transfer(to_image(smooth(size, size, seed=5)), painting, config)
    assert seen == [(96, 48), (48, 0)]
