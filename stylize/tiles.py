"""Large pictures in tiles: the same features, losses and gradients from a part at a time.

Exact but for rounding, so there are no seams: each tile is seen with all that its deepest layer
looks at around it, Gram matrices are summed over all tiles before they are compared, and their
gradient is sent back through each tile (two passes forward, one back: about 1.8 times the work).
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
from stylize.losses import PerceptualLoss, Statistic, content_loss, positions

__all__ = ["Tile", "TiledLoss", "features_in_tiles", "split", "statistics_in_tiles"]


Box = tuple[int, int, int, int]
"""A part of a picture: top, bottom, left, right, pixels."""


@dataclass(frozen=True)
class Tile:
    """A part of a picture, `core`, and what is seen with it, `whole`. The cores of all tiles are
    the picture, each position once."""

    core: Box
    whole: Box
    last: tuple[bool, bool]  # the core ends where the picture ends, downwards and to the right

    def cut(self, picture: Tensor) -> Tensor:
        """(…, H, W) -> what is seen of it."""
        top, bottom, left, right = self.whole
        return picture[..., top:bottom, left:right]

    def core_of(self, features: Tensor, layer: str) -> Tensor:
        """A layer's features of the whole (…, h, w) -> those of the core."""
        side = cell(layer)
        top, left = (self.core[i] - self.whole[i] for i in (0, 2))
        bottom, right = (self.core[i] - self.whole[i - 1] for i in (1, 3))
        rows = slice(top // side, None if self.last[0] else bottom // side)
        columns = slice(left // side, None if self.last[1] else right // side)
        return features[..., rows, columns]

    def place_in(self, features: Tensor, layer: str) -> Tensor:
        """A layer's features of the picture (…, h, w) -> the core's place in them."""
        side = cell(layer)
        top, bottom, left, right = self.core
        rows = slice(top // side, None if self.last[0] else bottom // side)
        columns = slice(left // side, None if self.last[1] else right // side)
        return features[..., rows, columns]


def split(height: int, width: int, side: int, around: int) -> list[Tile]:
    """Tiles with cores of about `side` pixels, seen with `around` pixels on each side of them."""
    around = -(-around // GRID) * GRID

    def cuts(length: int) -> list[tuple[int, int]]:
        count = max(1, round(length / side))
        step = -(-length // (count * GRID)) * GRID
        ends = [*range(step, length, step), length]
        if len(ends) > 1 and ends[-1] - ends[-2] < GRID:  # deeper layers have no cell there
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
    height, width = picture.shape[-2:]
    around = reach(deepest(layers, encoder.backbone), encoder.backbone)
    return split(height, width, side, around)


def _size_at(picture: Tensor, layer: str) -> tuple[int, int]:
    """Height and width of a layer's features of a whole picture (…, H, W)."""
    return picture.shape[-2] // cell(layer), picture.shape[-1] // cell(layer)


def _cores(
    encoder: Encoder, picture: Tensor, layers: Collection[str], tiles: Iterable[Tile]
) -> Iterator[tuple[Tile, dict[str, Tensor]]]:
    """Each tile with its features; nothing is kept for a gradient."""
    for tile in tiles:
        with torch.no_grad():
            features = encoder(tile.cut(picture), layers)
        yield tile, {layer: tile.core_of(features[layer], layer) for layer in layers}


def features_in_tiles(
    encoder: Encoder, picture: Tensor, layers: Collection[str], side: int
) -> dict[str, Tensor]:
    """What `encoder(picture, layers)` gives; `side` 0: at once."""
    if not side:  # copies: a compiled network may write its next answer over this one
        return {layer: found.clone() for layer, found in encoder(picture, layers).items()}
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
    encoder: Encoder, picture: Tensor, layers: Collection[str], kind: str, side: int
) -> dict[str, Statistic]:
    """`Statistic.of` each layer's features; `side` 0: at once."""
    if not side:
        return {layer: Statistic.of(found, kind) for layer, found in encoder.walk(picture, layers)}
    sums: dict[str, Statistic] = {}
    count: dict[str, Tensor | int] = {}
    tiles = _tiles(encoder, picture, layers, side)
    for _, parts in _cores(encoder, picture, layers, tiles):
        for layer, part in parts.items():
            more = Statistic.sums(part, kind)
            sums[layer] = sums[layer] + more if layer in sums else more
            count[layer] = count.get(layer, 0) + positions(part, None)
    return {layer: sums[layer].over(count[layer]) for layer in layers}


class TiledLoss(PerceptualLoss):
    """A `PerceptualLoss` whose network never sees more than a tile of about `side` pixels."""

    def __init__(self, *targets: Any, side: int, **options: Any) -> None:
        super().__init__(*targets, **options)
        self.side = side

    def perceive(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `PerceptualLoss`; the gradient is there before it is asked for."""
        weighted: tuple[Tensor, Tensor, Tensor] = _Weighted.apply(seen, self)
        return weighted

    def tiles(self, picture: Tensor) -> list[Tile]:
        return _tiles(self.encoder, picture, self.layers, self.side)

    def parts(self, picture: Tensor) -> _Parts:
        """`parts_at` each style layer of the whole picture."""
        return {
            layer: self.parts_at(picture.new_empty(1, 1, *_size_at(picture, layer)))
            for layer in self.style_layers
        }


_Parts = Mapping[str, Sequence[Tensor | None]]
"""Where each part of the picture counts, by style layer, see `PerceptualLoss.parts_at`."""

_Sums = Mapping[str, Sequence[Statistic]]
"""The sums of each of those parts, by style layer."""


class _Weighted(torch.autograd.Function):
    """content_weight * content + style_weight * style of a picture, with both apart; only the
    weighted sum has a gradient, which is computed on the way."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, loss: TiledLoss) -> tuple[Tensor, Tensor, Tensor]:
        parts = loss.parts(seen)
        content, sums = _first_pass(loss, seen, parts)
        style, slopes = _compare(loss, sums, parts, seen)
        ctx.save_for_backward(_second_pass(loss, seen, slopes, parts))
        ctx.mark_non_differentiable(content, style)
        return loss.content_weight * content + loss.style_weight * style, content, style

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0].view(-1, 1, 1, 1) * gradient, None


def _first_pass(loss: TiledLoss, seen: Tensor, parts: _Parts) -> tuple[Tensor, _Sums]:
    """The content loss (B,), and the sums of the statistics over all tiles."""
    content = seen.new_zeros(len(seen))
    sums: dict[str, list[Statistic]] = {}
    for tile, features in _cores(loss.encoder, seen, loss.layers, loss.tiles(seen)):
        content = content + _content(loss, tile, features)
        for layer in loss.style_layers:
            more = _sums_of(loss, tile, features[layer], layer, parts)
            sums[layer] = list(map(operator.add, sums[layer], more)) if layer in sums else more
    return content, sums


def _sums_of(
    loss: TiledLoss, tile: Tile, features: Tensor, layer: str, parts: _Parts
) -> list[Statistic]:
    """What a tile's features add to the sums of each part of the picture."""
    here = [None if part is None else tile.place_in(part, layer) for part in parts[layer]]
    return [Statistic.sums(features, loss.config.style_loss, part) for part in here]


def _content(loss: TiledLoss, tile: Tile, features: Mapping[str, Tensor]) -> Tensor:
    """The tile's share of the content loss, (B,)."""
    share = torch.zeros((), dtype=torch.float32, device="cpu")
    for layer, weight in loss.content_layers.items():
        target = tile.place_in(loss.content[layer], layer)
        part = target[0, 0].numel() / loss.content[layer][0, 0].numel()
        focus = loss.focus[layer]
        here = None if focus is None else tile.place_in(focus, layer)
        away = content_loss(features[layer], target, here)
        share = share.to(target.device) + weight * part * away
    return share


def _compare(loss: TiledLoss, sums: _Sums, parts: _Parts, seen: Tensor) -> tuple[Tensor, _Sums]:
    """The style loss (B,), and its slope along the sums of each layer."""
    style = seen.new_zeros(len(seen))
    leaves: dict[str, list[Statistic]] = {}
    with torch.enable_grad():
        for layer, found in sums.items():
            leaves[layer] = [one.map(lambda x: x.detach().requires_grad_()) for one in found]
            whole = seen.new_empty(1, 1, *_size_at(seen, layer))
            totals = [positions(whole, part) for part in parts[layer]]
            style = style + loss.style_part(layer, leaves[layer], totals)
        slopes = {
            layer: [
                Statistic(*torch.autograd.grad(style.sum(), one.parts(), retain_graph=True))
                for one in found
            ]
            for layer, found in leaves.items()
        }
    return style.detach(), slopes


def _second_pass(loss: TiledLoss, seen: Tensor, slopes: _Sums, parts: _Parts) -> Tensor:
    """The gradient of the weighted sum, of the shape of `seen`."""
    gradient = torch.zeros_like(seen)
    scale = seen[0].numel()  # keeps gradients of mean losses within the range of half precision
    for tile in loss.tiles(seen):
        with torch.enable_grad():
            part = tile.cut(seen).detach().requires_grad_()
            features = loss.encoder(part, loss.layers)
            cores = {layer: tile.core_of(features[layer], layer) for layer in loss.layers}
            along = loss.content_weight * _content(loss, tile, cores).sum()
            for layer, found in slopes.items():
                sums = _sums_of(loss, tile, cores[layer], layer, parts)
                for slope, one in zip(found, sums, strict=True):
                    for a, b in zip(slope.parts(), one.parts(), strict=True):
                        along = along + loss.style_weight * (a * b).sum()
            (slope_here,) = torch.autograd.grad(along * scale, part)
        tile.cut(gradient).add_(slope_here, alpha=1 / scale)
    return gradient
