"""How much of a painting a layer may see, so that its manner is taken over but not its motifs.

The Gram matrix of a layer that sees the whole painting describes the things in it, down to the eyes
in a face; that of a layer that sees a small part of it can only describe how it is painted. What a
layer sees is a fixed number of pixels, so its share of the painting differs from scale to scale: at
96 pixels relu3_1 sees as much of the painting as relu5_1 does at 624.

Two kinds of paintings are told apart by their `evenness`: texture all over, in which stars and
swirls may come along whole, and paintings of things, such as a portrait, whose things must not. The
`reach` is the share of a painting's longer side that a layer may see and still count in full.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stylize.config import LayerWeights, StyleConfig
from stylize.layers import sees

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MEASURED_LAYER", "MEASURED_SIDE", "evenness", "layer_weights", "least_side", "reach_of"]

MEASURED_LAYER = "relu2_1"
"""The layer that `evenness` is measured at. It sees single strokes, see `least_side`."""

MEASURED_SIDE = 256
"""Longer side of the painting that `evenness` is measured on, pixels."""

_THINGS = 0.04
"""The reach for a painting of things."""

_TEXTURE = 0.3
"""The reach for a painting that is texture all over."""

_UNEVEN, _EVEN = 0.68, 0.75
"""Values of `evenness` between which the reach goes from `_THINGS` to `_TEXTURE`."""


def evenness(features: Tensor, mask: Tensor | None = None) -> float:
    """Measure how evenly a painting is worked all over: (mean e)^2 / mean e^2, from 0 to 1.

    `features` (1, N, h, w) are the painting's at `MEASURED_LAYER`, and e_k = |f_k|^2 is the energy
    at position k. Brush strokes that fill the picture have similar energy everywhere, which gives
    0.75 or more; a face before a wall has much energy in a few places, which gives 0.68 or less.
    With a mask (1, 1, h, w) each position counts by its value.
    """
    energy = features.square().sum(dim=1).cpu().double()  # not every device has float64
    if mask is not None:
        weights = mask[0].cpu().double() / mask.mean().cpu().double()
        return float((weights * energy).mean() ** 2 / (weights * energy**2).mean().clamp(min=1e-30))
    return float(energy.mean() ** 2 / energy.square().mean().clamp(min=1e-30))


def reach_of(evenness: float, motifs: float) -> float:
    """Return the share of a painting's longer side that a layer may see and still count in full.

    `motifs` in [0, 1] is the setting; at 1 there is no limit, and the result is infinite.
    """
    if motifs == 1:
        return math.inf
    texture = min(1.0, max(0.0, (evenness - _UNEVEN) / (_EVEN - _UNEVEN)))
    share: float = _THINGS * (_TEXTURE / _THINGS) ** texture
    return share / (1 - motifs)


def layer_weights(config: StyleConfig, side: int, reach: float) -> LayerWeights:
    """Return the weights of the style layers for a result with a longer side of `side` pixels.

    A layer that sees k times the `reach`, k > 1, counts 1/k^4 as much: it sees k^2 times the area,
    and the loss is of products of two features.
    """
    limit = reach * config.style_side(side)
    return tuple(
        (layer, weight * min(1.0, limit / sees(layer)) ** 4)
        for layer, weight in config.style_layers
    )


def least_side(config: StyleConfig, reach: float) -> float:
    """Return the longer side in pixels below which a scale is left out.

    Below it even `MEASURED_LAYER` counts less than a quarter. Strokes that large grow into things.
    """
    return sees(MEASURED_LAYER) / (math.sqrt(2) * reach * config.style_scale)
