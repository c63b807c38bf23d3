"""The painting's manner without its things: what a layer may see, the scales, and the pictures."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from stylize import StyleConfig, Stylizer
from stylize.encoder import Encoder
from stylize.image import fit, scaled, to_tensor
from stylize.inputs import Inputs
from stylize.layers import sees
from stylize.motifs import evenness, layer_weights, least_side, reach_of
from stylize.stages import plan_stages
from stylize.transfer import Request, StyleResult
from stylize.weights import Weights

IMAGES = Path(__file__).parents[1] / "manifests" / "images"
THINGS = 0.04
TEXTURE = 0.3


@pytest.fixture(scope="module")
def stylizer(bundled: Weights) -> Stylizer:
    return Stylizer(bundled, device="cpu", dtype="float32")


def reach(stylizer: Stylizer, style: str, **settings: Any) -> float:
    picture = Image.open(IMAGES / f"{style}.jpg")
    config = StyleConfig(size=64, **settings)
    return stylizer.reach(Inputs(picture, [picture], config))


# What a layer sees, and may see


def test_what_a_layer_sees_is_the_square_that_its_convolutions_and_poolings_cover() -> None:
    # 3x3; then 3 + 2 (conv1_2) + 1 (pooling) + 4 (conv2_1); and so on down VGG-19.
    assert [sees(f"relu{block}_1") for block in range(1, 6)] == [3, 10, 24, 68, 156]


def test_evenness_is_one_over_even_features_and_the_share_that_has_them_else() -> None:
    features = torch.ones(1, 3, 4, 5)
    assert evenness(features) == pytest.approx(1)
    features[..., 2:, :] = 0  # half of the positions: (1/2)^2 / (1/2)
    assert evenness(features) == pytest.approx(1 / 2)
    features[..., 1:, :] = 0
    assert evenness(features) == pytest.approx(1 / 4)
    assert evenness(10 * features) == pytest.approx(1 / 4)


def test_the_reach_goes_from_things_to_texture_and_with_motifs_to_no_limit() -> None:
    assert reach_of(0.5, 0) == reach_of(0.68, 0) == pytest.approx(THINGS)
    assert reach_of(0.75, 0) == reach_of(0.9, 0) == pytest.approx(TEXTURE)
    assert reach_of(0.715, 0) == pytest.approx(math.sqrt(THINGS * TEXTURE))
    assert reach_of(0.5, 0.5) == pytest.approx(2 * THINGS)
    assert reach_of(0.5, 1) == math.inf


def test_a_layer_that_sees_too_much_counts_less_by_the_fourth_power_of_the_excess() -> None:
    layers = (("relu1_1", 4.0), ("relu3_1", 25.0), ("relu4_1", 2.0))
    config = StyleConfig(style_layers=layers, style_scale=0.5)
    # The painting's longer side is 100 pixels, and a tenth of it 10; relu3_1 sees 24, relu4_1 68.
    weights = dict(layer_weights(config, 200, reach=0.1))
    assert weights == {
        "relu1_1": 4,
        "relu3_1": pytest.approx(25 * (10 / 24) ** 4),
        "relu4_1": pytest.approx(2 * (10 / 68) ** 4),
    }
    assert layer_weights(config, 200, math.inf) == config.style_layers


def test_scales_where_single_strokes_are_too_large_are_left_out_for_the_same_work() -> None:
    config = StyleConfig(size=512, spread=0)
    assert least_side(config, THINGS) == pytest.approx(10 / THINGS / math.sqrt(2))
    whole = plan_stages((800, 600), config)
    assert [stage.size[0] for stage in whole] == [128, 256, 512]
    stages = plan_stages((800, 600), config, least_side(config, THINGS))
    assert [stage.size[0] for stage in stages] == [256, 512]
    assert stages[1] == dataclasses.replace(whole[2], content_factor=0.14)
    assert stages[0].evaluations == 45 + 11  # 45 of a quarter of the pixels, in whole ones
    assert plan_stages((800, 600), config, least_side(config, TEXTURE)) == whole


@pytest.mark.parametrize("size", [256, 512, 1024, 2048])
def test_a_painting_of_things_begins_alike_at_every_size(size: int) -> None:
    config = StyleConfig(size=size)
    stages = plan_stages((4000, 3000), config, least_side(config, THINGS))
    assert stages[0].size == fit((4000, 3000), 256)
    assert [stage.spread for stage in stages] == [0] * len(stages)
    finest = 0.14 if len(stages) > 1 else 1
    assert [s.content_factor for s in stages] == [4] * (len(stages) - 1) + [finest]


# On pictures


@pytest.mark.parametrize("style", ["night-strokes", "mosaic", "woodcut-waves", "ember-sky"])
def test_paintings_that_are_texture_all_over_keep_their_swirls(
    style: str, stylizer: Stylizer
) -> None:
    assert reach(stylizer, style) == pytest.approx(TEXTURE)


@pytest.mark.parametrize("style", ["portrait", "still-life", "harbour"])
def test_paintings_of_things_are_seen_a_little_at_a_time(style: str, stylizer: Stylizer) -> None:
    assert reach(stylizer, style) == pytest.approx(THINGS)
    assert reach(stylizer, style, motifs=0.5) == pytest.approx(2 * THINGS)
    assert reach(stylizer, style, motifs=1) == math.inf


def test_of_several_styles_the_reach_is_their_geometric_mean_by_shares(
    stylizer: Stylizer,
) -> None:
    pictures = [Image.open(IMAGES / f"{name}.jpg") for name in ("portrait", "mosaic")]
    config = StyleConfig(size=64, style_blend=(0.25, 0.75))
    both = stylizer.reach(Inputs(pictures[0], pictures, config))
    assert both == pytest.approx(THINGS**0.25 * TEXTURE**0.75, rel=1e-3)


def test_paintings_of_either_kind_are_painted_together_as_they_are_alone(bundled: Weights) -> None:
    exact = Stylizer(bundled, device="cpu", dtype="float64")
    photo = Image.open(IMAGES / "coffee.jpg")
    config = StyleConfig(size=48, steps=12, scales=2, coarsest=16, motifs=0.5)
    styles = [Image.open(IMAGES / f"{name}.jpg") for name in ("mosaic", "portrait", "ember-sky")]
    together = exact.transfer_batch([Request(photo, style, config) for style in styles])
    assert len({result.evaluations for result in together if isinstance(result, StyleResult)}) == 2
    for style, result in zip(styles, together, strict=True):
        assert isinstance(result, StyleResult)
        alone = exact.transfer(photo, style, config)
        assert [s.loss for s in result.curve] == pytest.approx(
            [s.loss for s in alone.curve], rel=1e-6
        )
        assert np.abs(np.asarray(result.image, int) - np.asarray(alone.image, int)).max() <= 1


# What was painted before

BEFORE = {
    "default": "163d9636d6d3f8b12174ce7856b4c86aba29c66eee411b10834e700ae2d8f88c",
    "paper": "a3b6265c02c0c157f6ff91151ae85e5ae08c4b99496e2f59ff7d41038d375fcc",
    "neural-style": "de926ace18531fa56ed01ebc03afa3b602a46b6c2c9a99b0f4c7f66457c88aff",
}
"""Digests of the presets' settings by version 2 of the algorithm."""


@pytest.mark.parametrize("preset", BEFORE)
def test_pictures_of_the_version_before_stay_done(preset: str) -> None:
    config = StyleConfig.of(preset)
    assert config.digest(2) == BEFORE[preset]
    assert config.digest() != BEFORE[preset]
    changed = dataclasses.replace(config, motifs=0.5)
    assert changed.digest(2) != BEFORE[preset]


# Copies of the painting's pieces in the picture


@torch.no_grad()
def copied_share(style: Image.Image, picture: Image.Image, encoder: Encoder) -> float:
    """Return the share of a picture's positions that belong to pieces copied from the style.

    At relu4_1 of both, 256 px, each 5x5 patch of the picture looks for its nearest in the style.
    In texture, neighbours find theirs in unrelated places; in a copied thing, in neighbouring
    ones. Counted are pieces of 12 positions and more, of patches with a cosine above 0.4.
    """

    def features(image: Image.Image, side: int) -> torch.Tensor:
        small = to_tensor(scaled(image.convert("RGB"), side))
        seen: torch.Tensor = encoder(small, ["relu4_1"])["relu4_1"]
        return seen

    def patches(maps: torch.Tensor) -> torch.Tensor:
        rows = F.unfold(maps, 5)[0].T
        return F.normalize(rows - rows.mean(dim=0), dim=1)

    mean = features(style, 256).mean(dim=(2, 3), keepdim=True)
    seen = features(picture, 256) - mean
    height, width = seen.shape[2] - 4, seen.shape[3] - 4
    mine = patches(seen)
    best, place = torch.full((len(mine),), -1.0), torch.zeros(len(mine), 3, dtype=torch.long)
    for side in (128, 182, 256):
        maps = features(style, side) - mean
        likeness, at = (mine @ patches(maps).T).max(dim=1)
        across = maps.shape[3] - 4
        found = torch.stack([torch.full_like(at, side), at // across, at % across], dim=1)
        place[likeness > best] = found[likeness > best]
        best = torch.maximum(best, likeness)
    alike = (best > 0.4).view(height, width).tolist()
    where = place.view(height, width, 3).tolist()
    return sum(n for n in _pieces(alike, where) if n >= 12) / (height * width)


def _pieces(alike: list[list[bool]], where: list[list[list[int]]]) -> Iterator[int]:
    """Sizes of the pieces: of neighbours whose likes are neighbours, up to a shift of 1."""
    height, width = len(alike), len(alike[0])

    def together(a: tuple[int, int], b: tuple[int, int]) -> bool:
        (side, *at), (other, *then) = where[a[0]][a[1]], where[b[0]][b[1]]
        moved = [then[i] - at[i] for i in (0, 1)]
        shift = max(abs(moved[i] - (b[i] - a[i])) for i in (0, 1))
        return side == other and shift <= 1 and any(moved)

    left = {(y, x) for y in range(height) for x in range(width) if alike[y][x]}
    while left:
        size, pending = 0, [left.pop()]
        while pending:
            y, x = pending.pop()
            size += 1
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left and together((y, x), near):
                    left.remove(near)
                    pending.append(near)
        yield size


@pytest.fixture(scope="module")
def encoder(bundled: Weights) -> Encoder:
    return Encoder(bundled)


def test_a_pasted_piece_is_counted_and_a_photograph_as_it_is_is_not(encoder: Encoder) -> None:
    style = Image.open(IMAGES / "still-life.jpg")
    photo = Image.open(IMAGES / "rocket.jpg")
    assert copied_share(style, photo, encoder) == 0
    photo.paste(style.crop((120, 60, 420, 320)), (200, 60))
    assert copied_share(style, photo, encoder) > 0.1


@pytest.mark.parametrize("style", ["still-life", pytest.param("portrait", marks=pytest.mark.slow)])
def test_a_paintings_things_stay_in_the_painting(
    style: str, stylizer: Stylizer, encoder: Encoder
) -> None:
    photo, painting = (Image.open(IMAGES / f"{name}.jpg") for name in ("rocket", style))

    def copied(motifs: float, norm: float) -> float:
        config = StyleConfig(size=192, steps=100, motifs=motifs, content_norm=norm)
        return copied_share(painting, stylizer.transfer(photo, painting, config).image, encoder)

    things = copied(1, norm=1)  # 0.06 to 0.28, by style, processor and number of threads
    assert things > 0.04
    assert copied(0, norm=1) <= 0.03
    assert copied(0, norm=8) < 0.75 * things


def test_a_face_is_not_lost_under_the_stripes_of_an_evening_sky(stylizer: Stylizer) -> None:
    photograph = Image.open(IMAGES / "hopper.jpg").convert("RGB")

    def lost(norm: float) -> float:
        """Return how far the face is from the photograph's at relu4_2, over that layer's energy."""
        config = StyleConfig(size=96, steps=20, content_norm=norm)
        result = stylizer.transfer(photograph, IMAGES / "ember-sky.jpg", config)
        encoder = stylizer.encoder(config)
        small = photograph.resize(result.image.size, Image.Resampling.LANCZOS)
        with torch.no_grad():
            painted, before = (
                encoder(to_tensor(image), ["relu4_2"])["relu4_2"] for image in (result.image, small)
            )
        distance = (painted - before).square().mean(dim=1)[0] / before.square().mean()
        height, width = distance.shape
        face = distance[
            int(0.24 * height) : int(0.58 * height), int(0.3 * width) : int(0.72 * width)
        ]
        return float(face.mean())

    assert lost(norm=8) < 0.75 * lost(norm=1)
