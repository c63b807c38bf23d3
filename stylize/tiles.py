"""Large pictures in tiles: the same features, losses and gradients from a part at a time.

Exact but for rounding, so there are no seams: each tile is seen with all that its deepest layer
looks at around it, Gram matrices are summed over all tiles before they are compared, and their
gradient is sent back through each tile (two passes forward, one back: about 1.8 times the work).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylize.encoder import Encoder, deepest, reach
from stylize.losses import PerceptualLoss, Statistic, content_loss, positions

__all__ = ["Tile", "TiledLoss", "features_in_tiles", "split", "statistics_in_tiles"]

_GRID = 16
"""Pixels: tiles begin at multiples of this, where all four poolings begin a cell."""


@dataclass(frozen=True)
class Tile:
    """A part of a picture, `core`, and what is seen with it, `whole`: (top, bottom, left, right)
    in pixels. The cores of all tiles are the picture, each position once."""

    core: tuple[int, int, int, int]
    whole: tuple[int, int, int, int]
    last: tuple[bool, bool]  # the core ends where the picture ends, downwards and to the right

    def cut(self, picture: Tensor) -> Tensor:
        """(…, H, W) -> what is seen of it."""
        top, bottom, left, right = self.whole
        return picture[..., top:bottom, left:right]

    def core_of(self, features: Tensor, layer: str) -> Tensor:
        """A layer's features of the whole (…, h, w) -> those of the core."""
        cell = _cell(layer)
        top, left = (self.core[i] - self.whole[i] for i in (0, 2))
        bottom, right = (self.core[i] - self.whole[i - 1] for i in (1, 3))
        rows = slice(top // cell, None if self.last[0] else bottom // cell)
        columns = slice(left // cell, None if self.last[1] else right // cell)
        return features[..., rows, columns]

    def place_in(self, features: Tensor, layer: str) -> Tensor:
        """A layer's features of the picture (…, h, w) -> the core's place in them."""
        cell = _cell(layer)
        top, bottom, left, right = self.core
        rows = slice(top // cell, None if self.last[0] else bottom // cell)
        columns = slice(left // cell, None if self.last[1] else right // cell)
        return features[..., rows, columns]


def _cell(layer: str) -> int:
    """Side of the square of pixels that a position of a layer stands for."""
    return int(2 ** (int(layer[4]) - 1))


def split(height: int, width: int, side: int, around: int) -> list[Tile]:
    """Tiles with cores of about `side` pixels, seen with `around` pixels on each side of them."""
    around = -(-around // _GRID) * _GRID

    def cuts(length: int) -> list[tuple[int, int]]:
        count = max(1, round(length / side))
        step = -(-length // (count * _GRID)) * _GRID
        ends = [*range(step, length, step), length]
        if len(ends) > 1 and ends[-1] - ends[-2] < _GRID:  # deeper layers have no cell there
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
    return split(height, width, side, reach(deepest(layers, encoder.backbone), encoder.backbone))


def _cores(
    encoder: Encoder, picture: Tensor, layers: Collection[str], side: int
) -> Iterator[tuple[Tile, dict[str, Tensor]]]:
    """Each tile with its features; nothing is kept for a gradient."""
    for tile in _tiles(encoder, picture, layers, side):
        with torch.no_grad():
            features = encoder(tile.cut(picture), layers)
        yield tile, {layer: tile.core_of(features[layer], layer) for layer in layers}


def features_in_tiles(
    encoder: Encoder, picture: Tensor, layers: Collection[str], side: int
) -> dict[str, Tensor]:
    """What `encoder(picture, layers)` gives; `side` 0: at once."""
    if not side:  # copies: a compiled network may write its next answer over this one
        return {layer: found.clone() for layer, found in encoder(picture, layers).items()}
    height, width = picture.shape[-2:]
    whole: dict[str, Tensor] = {}
    for tile, features in _cores(encoder, picture, layers, side):
        for layer, part in features.items():
            if layer not in whole:
                size = (height // _cell(layer), width // _cell(layer))
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
        features = encoder(picture, layers)
        return {layer: Statistic.of(features[layer], kind) for layer in layers}
    sums: dict[str, Statistic] = {}
    count: dict[str, Tensor | int] = {}
    for _, parts in _cores(encoder, picture, layers, side):
        for layer, part in parts.items():
            _add(sums, layer, Statistic.sums(part, kind))
            count[layer] = count.get(layer, 0) + positions(part, None)
    return {layer: sums[layer].over(count[layer]) for layer in layers}


def _add(sums: dict[str, Statistic], layer: str, more: Statistic) -> None:
    if layer not in sums:
        sums[layer] = more
        return
    for total, part in zip(sums[layer].parts(), more.parts(), strict=True):
        total += part


class TiledLoss(PerceptualLoss):
    """A `PerceptualLoss` whose network never sees more than a tile of about `side` pixels."""

    def __init__(self, *arguments: Any, side: int) -> None:
        super().__init__(*arguments)
        self.side = side

    def perceive(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `PerceptualLoss`; the gradient is there before it is asked for."""
        weighted: tuple[Tensor, Tensor, Tensor] = _Weighted.apply(seen, self)
        return weighted

    def tiles(self, picture: Tensor) -> list[Tile]:
        return _tiles(self.encoder, picture, self.layers, self.side)

    def masks(self, picture: Tensor) -> dict[str, Tensor | None]:
        """The mask at each style layer, of the whole picture."""
        height, width = picture.shape[-2:]
        return {
            layer: self.mask_at((height // _cell(layer), width // _cell(layer)))
            for layer in self.style_layers
        }


class _Weighted(torch.autograd.Function):
    """content_weight * content + style_weight * style of a picture, with both apart; only the
    weighted sum has a gradient, which is computed on the way."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, loss: TiledLoss) -> tuple[Tensor, Tensor, Tensor]:
        content, sums, masks = _first_pass(loss, seen)
        style, slopes = _compare(loss, sums, masks, seen)
        ctx.save_for_backward(_second_pass(loss, seen, slopes, masks))
        ctx.mark_non_differentiable(content, style)
        return loss.content_weight * content + loss.style_weight * style, content, style

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0].view(-1, 1, 1, 1) * gradient, None


_Masks = Mapping[str, Tensor | None]


def _first_pass(loss: TiledLoss, seen: Tensor) -> tuple[Tensor, dict[str, Statistic], _Masks]:
    """The content loss (B,), and the sums of the statistics over all tiles."""
    content = seen.new_zeros(len(seen))
    sums: dict[str, Statistic] = {}
    masks = loss.masks(seen)
    for tile, features in _cores(loss.encoder, seen, loss.layers, loss.side):
        content = content + _content(loss, tile, features)
        for layer in loss.style_layers:
            mask = masks[layer]
            part = None if mask is None else tile.place_in(mask, layer)
            kind = loss.config.style_loss
            _add(sums, layer, Statistic.sums(features[layer], kind, part))
    return content, sums, masks


def _content(loss: TiledLoss, tile: Tile, features: Mapping[str, Tensor]) -> Tensor:
    """The tile's share of the content loss, (B,)."""
    share = torch.zeros(())
    for layer, weight in loss.content_layers.items():
        target = tile.place_in(loss.content[layer], layer)
        part = target[0, 0].numel() / loss.content[layer][0, 0].numel()
        share = share.to(target.device) + weight * part * content_loss(features[layer], target)
    return share


def _compare(
    loss: TiledLoss, sums: Mapping[str, Statistic], masks: _Masks, seen: Tensor
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The style loss (B,), and its slope along the sums of each layer."""
    style = seen.new_zeros(len(seen))
    leaves: dict[str, list[Tensor]] = {}
    height, width = seen.shape[-2:]
    with torch.enable_grad():
        for layer, summed in sums.items():
            leaves[layer] = [part.detach().requires_grad_() for part in summed.parts()]
            mask = masks[layer]
            count = (height // _cell(layer)) * (width // _cell(layer))
            total = count if mask is None else positions(mask, mask)
            style = style + loss.style_part(layer, Statistic(*leaves[layer]).over(total))
        slopes = {
            layer: list(torch.autograd.grad(style.sum(), parts, retain_graph=True))
            for layer, parts in leaves.items()
        }
    return style.detach(), slopes


def _second_pass(
    loss: TiledLoss, seen: Tensor, slopes: Mapping[str, list[Tensor]], masks: _Masks
) -> Tensor:
    """The gradient of the weighted sum, of the shape of `seen`."""
    gradient = torch.zeros_like(seen)
    scale = seen[0].numel()  # keeps gradients of mean losses within the range of half precision
    for tile in loss.tiles(seen):
        with torch.enable_grad():
            part = tile.cut(seen).detach().requires_grad_()
            features = loss.encoder(part, loss.layers)
            cores = {layer: tile.core_of(features[layer], layer) for layer in loss.layers}
            along = loss.content_weight * _content(loss, tile, cores).sum()
            for layer, slope in slopes.items():
                mask = masks[layer]
                here = None if mask is None else tile.place_in(mask, layer)
                sums = Statistic.sums(cores[layer], loss.config.style_loss, here)
                for one, other in zip(slope, sums.parts(), strict=True):
                    along = along + loss.style_weight * (one * other).sum()
            (slope_here,) = torch.autograd.grad(along * scale, part)
        tile.cut(gradient).add_(slope_here, alpha=1 / scale)
    return gradient
