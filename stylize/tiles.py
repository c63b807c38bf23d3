"""Large pictures in tiles: the same features, losses and gradients from one part at a time.

The results are exact except for rounding, so there are no seams. Each tile is seen with the
surroundings that its deepest layer depends on, and Gram matrices are summed over all tiles before
they are compared. Their gradient is then sent back through each tile: two passes forward and one
back, about 1.8 times the work.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylize.encoder import GRID, Encoder
from stylize.layers import cell, deepest, reach
from stylize.losses import PerceptualLoss, Statistic, counts_at, positions

__all__ = ["TiledLoss", "features_in_tiles", "statistics_in_tiles"]

Box = tuple[int, int, int, int]
"""A part of a picture: top, bottom, left, right, in pixels."""


@dataclass(frozen=True)
class Tile:
    """A part of a picture: the `core`, and with its surroundings the `whole`.

    The cores of all tiles cover the picture without overlap.
    """

    core: Box
    whole: Box
    last: tuple[bool, bool]  # whether the core ends at the picture's bottom, and at its right

    def cut(self, picture: Tensor) -> Tensor:
        """Return the tile's view of a picture (…, H, W), with the surroundings."""
        top, bottom, left, right = self.whole
        return picture[..., top:bottom, left:right]

    def core_of(self, features: Tensor, layer: str) -> Tensor:
        """Return the core's part of a layer's features (…, h, w) of the whole tile."""
        side = cell(layer)
        top, left = (self.core[i] - self.whole[i] for i in (0, 2))
        bottom, right = (self.core[i] - self.whole[i - 1] for i in (1, 3))
        rows = slice(top // side, None if self.last[0] else bottom // side)
        columns = slice(left // side, None if self.last[1] else right // side)
        return features[..., rows, columns]

    def place_in(self, features: Tensor, layer: str) -> Tensor:
        """Return the core's part of a layer's features (…, h, w) of the picture, as a view."""
        side = cell(layer)
        top, bottom, left, right = self.core
        rows = slice(top // side, None if self.last[0] else bottom // side)
        columns = slice(left // side, None if self.last[1] else right // side)
        return features[..., rows, columns]


def split(height: int, width: int, side: int, around: int) -> list[Tile]:
    """Divide a picture into tiles with cores of about `side` pixels and `around` pixels around."""
    around = -(-around // GRID) * GRID

    def cuts(length: int) -> list[tuple[int, int]]:
        count = max(1, round(length / side))
        step = -(-length // (count * GRID)) * GRID
        ends = [*range(step, length, step), length]
        if len(ends) > 1 and ends[-1] - ends[-2] < GRID:  # too narrow for deep layers
            del ends[-2]
        return list(zip([0, *ends[:-1]], ends, strict=True))

    return [
        Tile(
            (top, bottom, left, right),
            (
                max(0, top - around),
                min(height, bottom + around),
                max(0, left - around),
                min(width, right + around),
            ),
            (bottom == height, right == width),
        )
        for top, bottom in cuts(height)
        for left, right in cuts(width)
    ]


def _tiles(encoder: Encoder, picture: Tensor, layers: Collection[str], side: int) -> list[Tile]:
    """Divide a picture into tiles with the surroundings that the deepest layer needs."""
    height, width = picture.shape[-2:]
    around = reach(deepest(layers, encoder.backbone), encoder.backbone)
    return split(height, width, side, around)


def _size_at(picture: Tensor, layer: str) -> tuple[int, int]:
    """Return height and width of a layer's features of a picture (…, H, W)."""
    return picture.shape[-2] // cell(layer), picture.shape[-1] // cell(layer)


def _cores(
    encoder: Encoder, picture: Tensor, layers: Collection[str], tiles: Iterable[Tile]
) -> Iterator[tuple[Tile, dict[str, Tensor]]]:
    """Yield each tile with the features of its core, without gradients."""
    for tile in tiles:
        with torch.no_grad():
            features = encoder(tile.cut(picture), layers)
        yield tile, {layer: tile.core_of(features[layer], layer) for layer in layers}


def features_in_tiles(
    encoder: Encoder, picture: Tensor, layers: Collection[str], side: int
) -> dict[str, Tensor]:
    """Return `encoder(picture, layers)`, computed in tiles of about `side` pixels; 0: at once."""
    if not side:  # copies, since a compiled network may reuse its output's memory
        return {layer: features.clone() for layer, features in encoder(picture, layers).items()}
    whole: dict[str, Tensor] = {}
    tiles = _tiles(encoder, picture, layers, side)
    for tile, features in _cores(encoder, picture, layers, tiles):
        for layer, part in features.items():
            if layer not in whole:
                size = _size_at(picture, layer)
                whole[layer] = part.new_empty(*part.shape[:2], *size).contiguous(
                    memory_format=torch.channels_last
                )
            tile.place_in(whole[layer], layer).copy_(part)
    return whole


def statistics_in_tiles(
    encoder: Encoder,
    picture: Tensor,
    layers: Collection[str],
    kind: str,
    side: int,
    mask: Tensor | None = None,
) -> dict[str, Statistic]:
    """Return `Statistic.of` each layer's features, in tiles of about `side` pixels; 0: at once.

    With a mask (1, 1, H, W) of the picture (1, 3, H, W), each pixel counts by its value.
    """
    counts = {layer: counts_at(mask, layer) for layer in layers}
    if not side:
        walk = encoder.walk(picture, layers)
        return {layer: Statistic.of(features, kind, counts[layer]) for layer, features in walk}
    sums: dict[str, Statistic] = {}
    tiles = _tiles(encoder, picture, layers, side)
    for tile, parts in _cores(encoder, picture, layers, tiles):
        for layer, part in parts.items():
            whole = counts[layer]
            here = None if whole is None else tile.place_in(whole, layer)
            more = Statistic.sums(part, kind, here)
            sums[layer] = sums[layer] + more if layer in sums else more
    whole_size = {layer: picture.new_empty(1, 1, *_size_at(picture, layer)) for layer in layers}
    return {
        layer: sums[layer].over(positions(whole_size[layer], counts[layer])) for layer in layers
    }


class TiledLoss(PerceptualLoss):
    """A `PerceptualLoss` whose network sees one tile of about `side` pixels at a time."""

    def __init__(self, *targets: Any, side: int, **options: Any) -> None:
        super().__init__(*targets, **options)
        self.side = side

    def perceive(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `PerceptualLoss.perceive` does; the gradient is computed here already."""
        weighted: tuple[Tensor, Tensor, Tensor] = _Weighted.apply(seen, self)
        return weighted

    def tiles(self, picture: Tensor) -> list[Tile]:
        """Divide a picture (B, 3, H, W) into tiles."""
        return _tiles(self.encoder, picture, self.layers, self.side)

    def parts(self, picture: Tensor) -> _Parts:
        """Return `parts_at` for each style layer of the whole picture."""
        return {
            layer: self.parts_at(picture.new_empty(1, 1, *_size_at(picture, layer)))
            for layer in self.style_layers
        }


_Parts = Mapping[str, Sequence[Tensor | None]]
"""How much the style counts at each position, by style layer, see `PerceptualLoss.parts_at`."""

_Powers = Mapping[str, Tensor]
"""`PerceptualLoss.content_powers` (B,) of the whole picture, by content layer; also gradients."""

_Sums = Mapping[str, Sequence[Statistic]]
"""`Statistic.sums` of each of those parts, by style layer; also gradients along the sums."""


class _Weighted(torch.autograd.Function):
    """content_weight * content + style_weight * style of pictures, and both losses; each (B,).

    Only the weighted sum has a gradient, which the forward pass computes.
    """

    @staticmethod
    def forward(ctx: Any, seen: Tensor, loss: TiledLoss) -> tuple[Tensor, Tensor, Tensor]:
        parts = loss.parts(seen)
        powers, sums = _first_pass(loss, seen, parts)
        content, along = _content_slopes(loss, powers, seen)
        style, slopes = _compare(loss, sums, parts, seen)
        ctx.save_for_backward(_second_pass(loss, seen, along, slopes, parts))
        ctx.mark_non_differentiable(content, style)
        return loss.content_weight * content + loss.style_weight * style, content, style

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0].view(-1, 1, 1, 1) * gradient, None


def _first_pass(loss: TiledLoss, seen: Tensor, parts: _Parts) -> tuple[_Powers, _Sums]:
    """Return the content's powers and the sums of the statistics over all tiles."""
    powers: dict[str, Tensor] = {}
    sums: dict[str, list[Statistic]] = {}
    for tile, features in _cores(loss.encoder, seen, loss.layers, loss.tiles(seen)):
        for layer in loss.content_layers:
            powers[layer] = powers.get(layer, 0) + _powers(loss, tile, features[layer], layer)
        for layer in loss.style_layers:
            more = _sums_of(loss, tile, features[layer], layer, parts)
            sums[layer] = list(map(operator.add, sums[layer], more)) if layer in sums else more
    return powers, sums


def _sums_of(
    loss: TiledLoss, tile: Tile, features: Tensor, layer: str, parts: _Parts
) -> list[Statistic]:
    """Return what a tile's features add to the sums of each part of the picture."""
    in_tile = [None if part is None else tile.place_in(part, layer) for part in parts[layer]]
    return [Statistic.sums(features, loss.config.style_loss, part) for part in in_tile]


def _powers(loss: TiledLoss, tile: Tile, features: Tensor, layer: str) -> Tensor:
    """Return a tile's share of the content's powers at a layer, (B,)."""
    whole, focus = loss.content[layer], loss.focus[layer]
    target = tile.place_in(whole, layer)
    focus_here = None if focus is None else tile.place_in(focus, layer)
    area = target[0, 0].numel() / whole[0, 0].numel()
    return area * loss.content_powers(layer, features, target, focus_here)


def _content_slopes(loss: TiledLoss, powers: _Powers, seen: Tensor) -> tuple[Tensor, _Powers]:
    """Return the content loss (B,), and its gradient along the powers of each layer."""
    content = seen.new_zeros(len(seen), dtype=torch.float32)
    slopes = {}
    with torch.enable_grad():
        for layer, power in powers.items():
            leaf = power.detach().requires_grad_()
            part = loss.content_part(layer, leaf)
            (slopes[layer],) = torch.autograd.grad(part.sum(), leaf)
            content = content + part.detach()
    return content, slopes


def _compare(loss: TiledLoss, sums: _Sums, parts: _Parts, seen: Tensor) -> tuple[Tensor, _Sums]:
    """Return the style loss (B,), and its gradient along the sums of each layer."""
    style = seen.new_zeros(len(seen))
    leaves: dict[str, list[Statistic]] = {}
    with torch.enable_grad():
        for layer, by_part in sums.items():
            leaves[layer] = [
                statistic.map(lambda x: x.detach().requires_grad_()) for statistic in by_part
            ]
            whole = seen.new_empty(1, 1, *_size_at(seen, layer))
            totals = [positions(whole, part) for part in parts[layer]]
            style = style + loss.style_part(layer, leaves[layer], totals)
        slopes = {
            layer: [
                Statistic(*torch.autograd.grad(style.sum(), leaf.parts(), retain_graph=True))
                for leaf in by_part
            ]
            for layer, by_part in leaves.items()
        }
    return style.detach(), slopes


def _second_pass(
    loss: TiledLoss, seen: Tensor, along: _Powers, slopes: _Sums, parts: _Parts
) -> Tensor:
    """Return the gradient of the weighted sum, in the shape of `seen`."""
    gradient = torch.zeros_like(seen)
    scale = seen[0].numel()  # keeps gradients of mean losses within the range of half precision
    for tile in loss.tiles(seen):
        with torch.enable_grad():
            view = tile.cut(seen).detach().requires_grad_()
            features = loss.encoder(view, loss.layers)
            cores = {layer: tile.core_of(features[layer], layer) for layer in loss.layers}
            # A function of the tile alone that has the same gradient there as the loss.
            surrogate = view.new_zeros((), dtype=torch.float32)
            for layer, along_powers in along.items():
                powers = _powers(loss, tile, cores[layer], layer)
                surrogate = surrogate + loss.content_weight * (along_powers * powers).sum()
            for layer, by_part in slopes.items():
                sums = _sums_of(loss, tile, cores[layer], layer, parts)
                for slope, statistic in zip(by_part, sums, strict=True):
                    for a, b in zip(slope.parts(), statistic.parts(), strict=True):
                        surrogate = surrogate + loss.style_weight * (a * b).sum()
            (tile_gradient,) = torch.autograd.grad(surrogate * scale, view)
        tile.cut(gradient).add_(tile_gradient, alpha=1 / scale)
    return gradient
