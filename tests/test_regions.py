"""Several styles in one picture, each in its own region, and parts of styles, told by masks."""

import json
import re
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
from stylize.inputs import Painting
from stylize.losses import PerceptualLoss, Statistic
from stylize.regions import RegionLoss, TiledRegionLoss, covered, regions_of
from stylize.request import StyleResult
from stylize.tiles import statistics_in_tiles
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


def painted(
    stylizer: Stylizer,
    masks: Any,
    styles: Any = (RED, BLUE),
    *,
    style_mask: Any = None,
    **settings: Any,
) -> Any:
    settings = {"size": SIDE, "steps": 25, "scales": 1, "margins": "keep", **settings}
    request = Request(
        PHOTO, list(styles), StyleConfig(**settings), mask=masks, style_mask=style_mask
    )
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


# Masks of styles


def both(border: int = 0) -> Image.Image:
    """A painting that is red at the left and blue at the right, perhaps on white paper."""
    image = RED.copy()
    image.paste(BLUE.crop((SIDE // 2, 0, SIDE, SIDE)), (SIDE // 2, 0))
    paper = Image.new("RGB", (SIDE + 2 * border, SIDE + 2 * border), "white")
    paper.paste(image, (border, border))
    return paper


def redness(image: Image.Image) -> float:
    pixels = array(image)
    return float((pixels[..., 0] - pixels[..., 2]).mean())


@pytest.mark.parametrize("side", [0, 32])
def test_a_parts_gram_matrix_is_that_of_its_positions_alone(bundled: Weights, side: int) -> None:
    encoder = Encoder(bundled, dtype=torch.float64, padding="zeros")
    painting = torch.rand(1, 3, 70, 64, dtype=torch.float64)  # 70 is no multiple of 4
    left = torch.zeros(1, 1, 70, 64, dtype=torch.float64)
    left[..., :24] = 1
    layers = ("relu1_1", "relu3_1")
    features = encoder(painting, layers)
    halves = [
        statistics_in_tiles(encoder, painting, layers, "moments", side, mask)
        for mask in (left, 1 - left)
    ]
    whole = statistics_in_tiles(encoder, painting, layers, "moments", side)
    for layer, columns in (("relu1_1", 24), ("relu3_1", 6)):
        for statistic, part in zip(
            halves, features[layer].tensor_split([columns], dim=3), strict=True
        ):
            rows = part[0].flatten(1)
            assert torch.allclose(statistic[layer].gram[0], rows @ rows.T / rows.shape[1])
            mean = statistic[layer].mean
            assert mean is not None
            assert torch.allclose(mean[0], rows.mean(dim=1))
        share = columns / features[layer].shape[-1]
        again = share * halves[0][layer].gram + (1 - share) * halves[1][layer].gram
        assert torch.allclose(again, whole[layer].gram)  # complementary masks recombine


@pytest.mark.parametrize(
    "settings", [{}, {"init": "style"}, {"style_loss": "moments"}, {"init": "content"}], ids=str
)
def test_a_mask_of_the_style_says_which_part_is_taken(
    stylizer: Stylizer, settings: dict[str, Any]
) -> None:
    left, right, whole = (
        redness(painted(stylizer, None, [both()], style_mask=mask, **settings).image)
        for mask in (half(), half(False), None)
    )
    assert left > whole + 15 > right + 30


def test_kept_colours_are_matched_to_those_of_the_part(stylizer: Stylizer) -> None:
    """What the rest of the painting looks like has no say, where no layer sees it."""
    bright = Image.new("RGB", (SIDE, SIDE), "white")
    bright.paste(both().crop((0, 0, SIDE // 2, SIDE)))
    mask = half(width=16)
    for keep in ("histogram", "luminance"):
        settings = {"style_layers": "relu1_1", "preserve_color": keep, "motifs": 1}
        one, other = (
            array(painted(stylizer, None, [style], style_mask=mask, **settings).image)
            for style in (both(), bright)
        )
        assert np.array_equal(one, other)


def test_each_region_takes_its_own_part_of_one_painting(stylizer: Stylizer) -> None:
    masks = [half(), half(False)]
    for swapped, sign in ((masks, 1), (masks[::-1], -1)):
        result = painted(stylizer, masks, [both(), both()], style_mask=swapped)
        pixels = array(result.image)
        reds = (pixels[..., 0] - pixels[..., 2]).mean(axis=0)
        assert sign * reds[: SIDE // 2 - 4].mean() > 15
        assert sign * reds[SIDE // 2 + 4 :].mean() < -15


def test_one_style_has_a_mask_and_the_other_counts_whole(stylizer: Stylizer) -> None:
    alone = painted(stylizer, None, [both(), BLUE], style_mask=[half(), None])
    swapped = painted(stylizer, None, [both(), BLUE], style_mask=[half(False), None])
    plain = painted(stylizer, None, [both(), BLUE])
    assert redness(alone.image) > redness(plain.image) + 5 > redness(swapped.image) + 10
    assert (
        plain.image.tobytes()
        == painted(stylizer, None, [both(), BLUE], style_mask=()).image.tobytes()
    )


def test_parts_are_painted_together_as_alone(stylizer: Stylizer) -> None:
    config = StyleConfig(size=SIDE, steps=6, scales=2, coarsest=32, margins="keep")
    requests = [
        Request(PHOTO, [both()], config, style_mask=mask) for mask in (half(), half(False), None)
    ]
    together = stylizer.transfer_batch(requests)
    for request, result in zip(requests, together, strict=True):
        assert isinstance(result, StyleResult)
        alone = array(stylizer.paint(request).image)
        assert np.abs(array(result.image) - alone).mean() < 0.1


def test_margins_are_cut_off_a_mask_as_off_its_painting() -> None:
    border = 12
    size = SIDE + 2 * border
    mask = Image.new("L", (2 * size, 2 * size), 0)  # of another size than the painting
    mask.paste(255, (0, 0, size, 2 * size))
    config = StyleConfig(size=SIDE)
    painting = Painting.of(both(border), config)
    assert painting.note
    part, note = painting.within(mask)
    assert part.part is not None
    assert note == ""
    red = np.asarray(painting.picture.convert("RGB"), int)
    is_left = np.arange(painting.picture.width) < painting.picture.width / 2
    shown = np.asarray(part.part).mean(axis=0)
    assert part.part.size == painting.picture.size
    assert shown[is_left][:-2].min() > 250
    assert shown[~is_left][2:].max() < 5
    assert red[:, is_left, 2].mean() < red[:, is_left, 0].mean() - 50
    assert part.digest != painting.digest


NOT_MEANT = {
    "black": (Image.new("L", (88, 88), 0), "the style mask is black all over: make the part"),
    "turned": (half(size=88).resize((88, 40)), "style mask is 88x40, and the painting 88x88 as it"),
    "margin": (
        half(size=88, width=6),
        "white only in the margins, which are left out: set margins",
    ),
    "small": (
        half(size=88, width=17),
        "leaves [12][0-9][0-9] pixels of the painting, which is 64x64",
    ),
}


@pytest.mark.parametrize("name", NOT_MEANT)
def test_a_mask_of_a_style_that_cannot_be_meant_is_refused(name: str) -> None:
    mask, says = NOT_MEANT[name]
    painting = Painting.of(both(12), StyleConfig(size=SIDE))
    with pytest.raises(ConfigError, match=says):
        painting.within(mask)


def test_masks_that_are_not_one_for_each_style_are_refused(stylizer: Stylizer) -> None:
    with pytest.raises(ConfigError, match="style_mask has 1 masks for 2 styles; give each style"):
        painted(stylizer, None, style_mask=half())


# The batch


def test_a_run_paints_regions_and_the_row_names_each_mask(tmp_path: Path) -> None:
    picture(tmp_path / "p.png", 1, (48, 48))
    RED.save(tmp_path / "r.png")
    BLUE.save(tmp_path / "b.png")
    both().save(tmp_path / "both.png")
    (tmp_path / "masks").mkdir()
    half(size=48).save(tmp_path / "masks/left.png")
    half(False, size=48).save(tmp_path / "masks/right.png")
    row: dict[str, object] = {
        "id": "a", "content": "p.png", "style": "r.png|b.png",
        "mask": "masks/left.png|masks/right.png", "steps": 20, "size": 48,
    }  # fmt: skip
    swapped = {**row, "id": "b", "mask": "masks/right.png|masks/left.png"}
    part = {**row, "id": "c", "style": "r.png|both.png", "style_mask": "|masks/right.png"}
    manifest = write_csv(tmp_path / "m.csv", [row, swapped, part])
    options = [*TINY[4:], "--in-process"]
    assert cli(manifest, *options).returncode == 0
    found = index_rows(tmp_path / "m")
    roles = [(entry["role"], entry["path"]) for entry in found["a"]["inputs"]]
    assert ("mask", "masks/left.png") in roles
    assert ("mask2", "masks/right.png") in roles
    assert json.loads(found["a"]["settings"])["mask"] == "masks/left.png|masks/right.png"
    assert found["a"]["key"] != found["b"]["key"]
    roles = [(entry["role"], entry["path"]) for entry in found["c"]["inputs"]]
    assert roles[-1] == ("style_mask2", "masks/right.png")
    assert json.loads(found["c"]["settings"])["style_mask"] == "|masks/right.png"
    for name, sign in (("a", 1), ("b", -1), ("c", 1)):
        with Image.open(tmp_path / "m" / found[name]["output"]) as image:
            pixels = array(image)
        reds = (pixels[..., 0] - pixels[..., 2]).mean(axis=0)
        assert sign * (reds[:20].mean() - reds[-20:].mean()) > 20
    assert "3 done" in cli("plan", manifest, "--backbone", "vgg16", "--scales", 1).stdout
    shown = cli("show", tmp_path / "m" / found["a"]["output"])
    assert "masks/left.png|" in shown.stdout
    assert "--style-mask" not in shown.stdout
    shown = cli("show", tmp_path / "m" / found["c"]["output"])
    assert f"--style-mask '|{tmp_path}/masks/right.png'" in shown.stdout
    del part["style_mask"]
    write_csv(manifest, [row, swapped, part])
    left = cli("plan", manifest, "--backbone", "vgg16", "--scales", 1).stdout
    assert "settings changed: style_mask |masks/right.png -> none" in left
    assert "2 done" in left


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
    both(12).save(tmp_path / "both.png")
    for name, (mask, _) in NOT_MEANT.items():
        mask.save(tmp_path / f"{name}.png")
    parts: list[dict[str, object]] = [
        {"content": "p.png", "style": "s.png|both.png", "size": SIDE, "style_mask": f"|{name}.png"}
        for name in NOT_MEANT
    ]
    parts.append({"id": "x", "content": "p.png", "style": "both.png", "style_mask": "|small.png"})
    told = cli("validate", write_csv(tmp_path / "m.csv", parts[:-1]), "--images").stderr
    for line, (name, (_, says)) in enumerate(NOT_MEANT.items(), 2):
        assert re.search(f"line {line}, column style_mask: {name}.png: .*{says}", told)
    told = cli("validate", write_csv(tmp_path / "m.csv", parts[-1:])).stderr
    assert "line 2, column style_mask: style_mask has 2 masks for 1 styles; give each" in told
