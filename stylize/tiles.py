"""Large pictures in tiles: the same features, losses and gradients from a part at a time.

Exact but for rounding, so there are no seams: each tile is seen with all that its deepest layer
looks at around it, Gram matrices are summed over all tiles before they are compared, and their
gradient is sent back through each tile (two passes forward, one back: about 1.8 times the work).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylize.encoder import GRID, Encoder, deepest, minimum_side, reach
from stylize.losses import Box, PerceptualLoss, Statistic, content_loss, positions, quarters

__all__ = ["Tile", "TiledLoss", "features_in_tiles", "split", "statistics_in_tiles"]


@dataclass(frozen=True)
class Tile:
    """A part of a picture, `core`, and what is seen with it, `whole`. The cores of all tiles are
    the picture, each position once."""

    core: Box
    whole: Box
    last: tuple[bool, bool]  # the core ends where the picture ends, downwards and to the right
    part: int  # of the picture that the core is in

    def cut(self, picture: Tensor) -> Tensor:
        """(…, H, W) -> what is seen of it."""
        top, bottom, left, right = self.whole
        return picture[..., top:bottom, left:right]

    def core_of(self, features: Tensor, layer: str) -> Tensor:
        """A layer's features of the whole (…, h, w) -> those of the core."""
        cell = minimum_side(layer)
        top, left = (self.core[i] - self.whole[i] for i in (0, 2))
        bottom, right = (self.core[i] - self.whole[i - 1] for i in (1, 3))
        rows = slice(top // cell, None if self.last[0] else bottom // cell)
        columns = slice(left // cell, None if self.last[1] else right // cell)
        return features[..., rows, columns]

    def place_in(self, features: Tensor, layer: str) -> Tensor:
        """A layer's features of the picture (…, h, w) -> the core's place in them."""
        cell = minimum_side(layer)
        top, bottom, left, right = self.core
        rows = slice(top // cell, None if self.last[0] else bottom // cell)
        columns = slice(left // cell, None if self.last[1] else right // cell)
        return features[..., rows, columns]


def split(height: int, width: int, side: int, around: int, parts: Sequence[Box] = ()) -> list[Tile]:
    """Tiles with cores of about `side` pixels, seen with `around` pixels on each side of them; no
    core is in two of the picture's `parts`."""
    around = -(-around // GRID) * GRID

    def cuts(begin: int, end: int) -> list[tuple[int, int]]:
        length = end - begin
        count = max(1, round(length / side))
        step = -(-length // (count * GRID)) * GRID
        ends = [*range(begin + step, end, step), end]
        if len(ends) > 1 and ends[-1] - ends[-2] < GRID:  # deeper layers have no cell there
            del ends[-2]
        return list(zip([begin, *ends[:-1]], ends, strict=True))

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
            number,
        )
        for number, part in enumerate(parts or [(0, height, 0, width)])
        for top, bottom in cuts(*part[:2])
        for left, right in cuts(*part[2:])
    ]


def _tiles(
    encoder: Encoder,
    picture: Tensor,
    layers: Collection[str],
    side: int,
    parts: Sequence[Box] = (),
) -> list[Tile]:
    height, width = picture.shape[-2:]
    around = reach(deepest(layers, encoder.backbone), encoder.backbone)
    return split(height, width, side, around, parts)


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
    height, width = picture.shape[-2:]
    whole: dict[str, Tensor] = {}
    tiles = _tiles(encoder, picture, layers, side)
    for tile, features in _cores(encoder, picture, layers, tiles):
        for layer, part in features.items():
            if layer not in whole:
                size = (height // minimum_side(layer), width // minimum_side(layer))
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

    def __init__(self, *arguments: Any, side: int) -> None:
        super().__init__(*arguments)
        self.side = side

    def perceive(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `PerceptualLoss`; the gradient is there before it is asked for."""
        weighted: tuple[Tensor, Tensor, Tensor] = _Weighted.apply(seen, self)
        return weighted

    def tiles(self, picture: Tensor) -> list[Tile]:
        parts = quarters(*picture.shape[-2:]) if self.spread else ()
        return _tiles(self.encoder, picture, self.layers, self.side, parts)

    def masks(self, picture: Tensor) -> dict[str, Tensor | None]:
        """The mask at each style layer, of the whole picture."""
        height, width = picture.shape[-2:]
        return {
            layer: self.mask_at((height // minimum_side(layer), width // minimum_side(layer)))
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

_Sums = Mapping[str, Sequence[Statistic]]
"""Of each layer: the whole picture's, or those of its quarters."""


def _first_pass(loss: TiledLoss, seen: Tensor) -> tuple[Tensor, _Sums, _Masks]:
    """The content loss (B,), and the sums of the statistics over all tiles."""
    content = seen.new_zeros(len(seen))
    sums: dict[str, list[Statistic]] = {layer: [] for layer in loss.style_layers}
    masks = loss.masks(seen)
    for tile, features in _cores(loss.encoder, seen, loss.layers, loss.tiles(seen)):
        content = content + _content(loss, tile, features)
        for layer, found in sums.items():
            mask = masks[layer]
            here = None if mask is None else tile.place_in(mask, layer)
            more = Statistic.sums(features[layer], loss.config.style_loss, here)
            if tile.part == len(found):  # tiles come part by part
                found.append(more)
            else:
                found[-1] = found[-1] + more
    return content, sums, masks


def _content(loss: TiledLoss, tile: Tile, features: Mapping[str, Tensor]) -> Tensor:
    """The tile's share of the content loss, (B,)."""
    share = torch.zeros(())
    for layer, weight in loss.content_layers.items():
        target = tile.place_in(loss.content[layer], layer)
        part = target[0, 0].numel() / loss.content[layer][0, 0].numel()
        focus = loss.focus[layer]
        here = None if focus is None else tile.place_in(focus, layer)
        away = content_loss(features[layer], target, here)
        share = share.to(target.device) + weight * part * away
    return share


def _compare(loss: TiledLoss, sums: _Sums, masks: _Masks, seen: Tensor) -> tuple[Tensor, _Sums]:
    """The style loss (B,), and its slope along the sums of each layer."""
    style = seen.new_zeros(len(seen))
    leaves: dict[str, list[Statistic]] = {}
    with torch.enable_grad():
        for layer, found in sums.items():
            leaves[layer] = [one.map(lambda x: x.detach().requires_grad_()) for one in found]
            mask = masks[layer]
            size = [side // minimum_side(layer) for side in seen.shape[-2:]]
            here = torch.empty(1, 1, *size) if mask is None else mask
            parts = loss.apart(here, layer, seen)
            totals = [positions(part, None if mask is None else part) for part in parts]
            style = style + loss.style_part(layer, leaves[layer], totals)
        slopes = {
            layer: [
                Statistic(*torch.autograd.grad(style.sum(), one.parts(), retain_graph=True))
                for one in found
            ]
            for layer, found in leaves.items()
        }
    return style.detach(), slopes


def _second_pass(loss: TiledLoss, seen: Tensor, slopes: _Sums, masks: _Masks) -> Tensor:
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
                mask = masks[layer]
                here = None if mask is None else tile.place_in(mask, layer)
                sums = Statistic.sums(cores[layer], loss.config.style_loss, here)
                for one, other in zip(found[tile.part].parts(), sums.parts(), strict=True):
                    along = along + loss.style_weight * (one * other).sum()
            (slope_here,) = torch.autograd.grad(along * scale, part)
        tile.cut(gradient).add_(slope_here, alpha=1 / scale)
    return gradient
