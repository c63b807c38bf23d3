"""Several styles in one picture, each in its own region, told by masks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import cli
from helpers import TINY, index_rows, picture, write_csv
from numpy.typing import NDArray
from PIL import Image

from stylize import Request, StyleConfig, Stylizer
from stylize.encoder import Encoder
from stylize.errors import ConfigError
from stylize.losses import PerceptualLoss, Statistic
from stylize.regions import RegionLoss, TiledRegionLoss, covered, regions_of
from stylize.weights import Weights

SIDE = 64


@pytest.fixture(scope="module")
def stylizer(bundled: Weights) -> Stylizer:
    return Stylizer(bundled, device="cpu", dtype="float32")


def half(left: bool = True, size: int = SIDE, width: int | None = None) -> Image.Image:
    mask = Image.new("L", (size, size), 0)
    width = size // 2 if width is None else width
    mask.paste(255, (0, 0, width, size) if left else (size - width, 0, size, size))
    return mask


def stripes(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (20, 20, 20))
    for x in range(0, SIDE, 8):
        image.paste(colour, (x, 0, x + 4, SIDE))
    return image


RED, BLUE = stripes((230, 30, 30)), stripes((30, 30, 230))
PHOTO = Image.effect_noise((SIDE, SIDE), 50).convert("RGB")


def painted(stylizer: Stylizer, masks: Any, styles: Any = (RED, BLUE), **settings: Any) -> Any:
    settings = {"size": SIDE, "steps": 25, "scales": 1, "margins": "keep", **settings}
    request = Request(PHOTO, list(styles), StyleConfig(**settings), mask=masks)
    (result,) = stylizer.transfer_batch([request])
    return result


def array(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), float)


def test_each_region_has_its_own_style_and_the_rest_stays_the_photograph(
    stylizer: Stylizer,
) -> None:
    third = SIDE // 3
    result = painted(stylizer, [half(width=third), half(False, width=third)])
    pixels, photo = array(result.image), array(PHOTO)
    reds = (pixels[..., 0] - pixels[..., 2]).mean(axis=0)
    assert reds[: third - 2].mean() > 15
    assert reds[-third + 2 :].mean() < -15
    rest = slice(third + 1, SIDE - third - 1)
    assert np.array_equal(pixels[:, rest], photo[:, rest])


def test_complementary_masks_recombine(stylizer: Stylizer) -> None:
    """Nothing of the photograph shows through, also where soft masks meet; and two regions with
    one style are painted like the whole picture, to the noise that any change of masks makes."""
    ramp = Image.linear_gradient("L").rotate(90).resize((SIDE, SIDE))
    other = ramp.point(lambda value: 255 - value)
    whole = array(painted(stylizer, None, [RED], steps=60).image)
    result = painted(stylizer, [ramp, other], [RED, RED], steps=60)
    again = array(result.image)
    assert abs(again.mean() - whole.mean()) < 6
    change = np.abs(again - array(PHOTO)).mean(axis=(0, 2))
    assert change.min() > 0.5 * change.mean()  # no column is left as it was
    regions = regions_of([torch.tensor(np.asarray(m) / 255.0)[None, None] for m in (ramp, other)])
    assert torch.allclose(covered(regions), torch.ones(1, dtype=torch.float64))


def test_masks_that_overlap_share() -> None:
    both = regions_of([torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)])
    assert torch.equal(both, torch.full((1, 2, 4, 4), 0.5))
    faint = regions_of([torch.full((1, 1, 4, 4), 0.3), torch.full((1, 1, 4, 4), 0.2)])
    assert torch.allclose(covered(faint), torch.tensor(0.5))
    one = torch.rand(1, 1, 4, 4)
    assert torch.equal(regions_of([one]), one)
    assert torch.equal(covered(one), one)


def loss_of(
    bundled: Weights, kind: type[RegionLoss], regions: torch.Tensor, **options: Any
) -> RegionLoss:
    """The style loss of relu1_1 over two regions, in float64."""
    config = StyleConfig(
        style_layers=(("relu1_1", 1.0),),
        content_weight=0,
        relative=False,
        padding="zeros",
        clamp=False,
    )
    encoder = Encoder(bundled, dtype=torch.float64, padding="zeros")
    generator = torch.Generator().manual_seed(0)
    styles = [
        {
            layer: Statistic.of(features, "gram")
            for layer, features in encoder(
                torch.rand(1, 3, 32, 32, generator=generator, dtype=torch.float64), ["relu1_1"]
            ).items()
        }
        for _ in range(2)
    ]
    return kind(
        encoder,
        config,
        {},
        styles=styles,
        starts=[{}, {}],
        strengths=[1.0, 1.0],
        mask=regions,
        **options,
    )


def left_and_right(share: float = 0.5, side: int = 64) -> torch.Tensor:
    left = torch.zeros(1, 1, side, side, dtype=torch.float64)
    left[..., : round(share * side)] = 1
    return torch.cat([left, 1 - left], dim=1)


def test_the_style_loss_of_a_region_does_not_see_the_other(bundled: Weights) -> None:
    loss = loss_of(bundled, RegionLoss, left_and_right())
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    other = image.detach().clone()
    other[..., 33:] = torch.rand(1, 3, 64, 31, dtype=torch.float64)  # relu1_1 sees 1 pixel around

    def style_of(number: int, picture: torch.Tensor) -> torch.Tensor:
        features = loss.encoder(picture, ["relu1_1"])["relu1_1"]
        mask = left_and_right()[:, number : number + 1]
        return loss.each[number].style_part(
            "relu1_1", [Statistic.sums(features, "gram", mask)], [mask.sum(dim=(2, 3))]
        )

    assert torch.equal(style_of(0, image.detach()), style_of(0, other))
    assert not torch.equal(style_of(1, image.detach()), style_of(1, other))
    (gradient,) = torch.autograd.grad(style_of(0, image).sum(), image)
    assert gradient[..., 33:].abs().max() == 0
    assert gradient[..., :32].abs().max() > 0
    # The whole is the sum over regions, each by its share of the area.
    whole = (style_of(0, image) + style_of(1, image)) / 2
    assert torch.allclose(loss(image).style, whole)


def test_the_style_is_as_strong_in_a_small_region_as_in_a_large_one(bundled: Weights) -> None:
    loss = loss_of(bundled, RegionLoss, left_and_right(0.25))
    assert torch.allclose(loss.shares, torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    noise = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    alone = loss_of(
        bundled, RegionLoss, torch.ones(1, 1, 64, 64, dtype=torch.float64).repeat(1, 2, 1, 1) / 2
    )
    slopes = [torch.autograd.grad(each(noise).style.sum(), noise)[0] for each in (loss, alone)]
    sizes = [slope[..., 1:15].square().mean().sqrt() for slope in slopes]
    assert 0.4 < float(sizes[0] / sizes[1]) < 2.5  # with shares of 1 it would be four times


def test_regions_in_tiles_are_the_same(bundled: Weights) -> None:
    regions = left_and_right(0.4, 96)
    image = torch.rand(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    values = []
    for loss in (
        loss_of(bundled, RegionLoss, regions, spread=0.3),
        loss_of(bundled, TiledRegionLoss, regions, spread=0.3, side=48),
    ):
        losses = loss(image)
        (gradient,) = torch.autograd.grad(losses.total.sum(), image)
        values.append((losses.style.detach(), gradient))
    assert torch.allclose(values[0][0], values[1][0], rtol=1e-9)
    assert torch.allclose(values[0][1], values[1][1], rtol=1e-6, atol=1e-12)
    assert issubclass(TiledRegionLoss, PerceptualLoss)


def test_one_mask_for_several_styles_paints_as_before(stylizer: Stylizer) -> None:
    alone = painted(stylizer, half())
    listed = painted(stylizer, [half()])
    assert alone.image.tobytes() == listed.image.tobytes()


@pytest.mark.parametrize("masks", [2, 4])
def test_masks_that_are_neither_one_nor_one_for_each_style_are_refused(
    stylizer: Stylizer, masks: int
) -> None:
    with pytest.raises(ConfigError, match=f"mask has {masks} masks for 3 styles; give one for all"):
        painted(stylizer, [half()] * masks, [RED, BLUE, RED])


# The batch


def test_a_run_paints_regions_and_the_row_names_each_mask(tmp_path: Path) -> None:
    picture(tmp_path / "p.png", 1, (48, 48))
    RED.save(tmp_path / "r.png")
    BLUE.save(tmp_path / "b.png")
    (tmp_path / "masks").mkdir()
    half(size=48).save(tmp_path / "masks/left.png")
    half(False, size=48).save(tmp_path / "masks/right.png")
    row: dict[str, object] = {
        "id": "a", "content": "p.png", "style": "r.png|b.png",
        "mask": "masks/left.png|masks/right.png", "steps": 20, "size": 48,
    }  # fmt: skip
    swapped = {**row, "id": "b", "mask": "masks/right.png|masks/left.png"}
    manifest = write_csv(tmp_path / "m.csv", [row, swapped])
    options = [*TINY[4:], "--in-process"]
    assert cli(manifest, *options).returncode == 0
    found = index_rows(tmp_path / "m")
    roles = [(entry["role"], entry["path"]) for entry in found["a"]["inputs"]]
    assert ("mask", "masks/left.png") in roles
    assert ("mask2", "masks/right.png") in roles
    assert json.loads(found["a"]["settings"])["mask"] == "masks/left.png|masks/right.png"
    assert found["a"]["key"] != found["b"]["key"]
    for name, sign in (("a", 1), ("b", -1)):
        with Image.open(tmp_path / "m" / found[name]["output"]) as image:
            pixels = array(image)
        reds = (pixels[..., 0] - pixels[..., 2]).mean(axis=0)
        assert sign * (reds[:20].mean() - reds[-20:].mean()) > 20
    assert "2 done" in cli("plan", manifest, "--backbone", "vgg16", "--scales", 1).stdout
    shown = cli("show", tmp_path / "m" / found["a"]["output"])
    assert "masks/left.png|" in shown.stdout


def test_masks_of_a_manifest_are_checked_beforehand(tmp_path: Path) -> None:
    picture(tmp_path / "p.png", 1, (48, 48))
    picture(tmp_path / "s.png", 2)
    half(size=48).save(tmp_path / "l.png")
    Image.new("L", (48, 48), 0).save(tmp_path / "black.png")
    rows: list[dict[str, object]] = [
        {"id": "a", "content": "p.png", "style": "s.png", "mask": "l.png|l.png"},
        {"id": "b", "content": "p.png", "style": "s.png|s.png", "mask": "l.png|"},
    ]
    told = cli("validate", write_csv(tmp_path / "m.csv", rows)).stderr
    assert "line 2, column mask: mask has 2 masks for 1 styles; give one for all, or each" in told
    assert 'line 3, column mask: "l.png|" has an empty name before or after a |' in told
    more: list[dict[str, object]] = [
        {"id": "c", "content": "p.png", "style": "s.png|s.png", "mask": "l.png|gone.png"},
        {"id": "d", "content": "p.png", "style": "s.png|s.png", "mask": "l.png|black.png"},
    ]
    told = cli("validate", write_csv(tmp_path / "m.csv", more), "--images").stderr
    assert 'line 2, column mask: "gone.png" does not exist' in told
    assert "line 3, column mask: black.png: the mask is black all over" in told
