"""How much of a painting a layer may see: what takes over its manner, and leaves its things behind.

A Gram matrix of a layer that sees the whole painting says where everything in it is, down to the
eyes in a face; one of a layer that sees a small part of it can only say how it is painted. What a
layer sees is a number of pixels, and so another share of the painting at every scale: at 96 pixels
relu3_1 sees as much of it as relu5_1 does at 512.
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
"""The layer of `evenness`, which also says at which scales strokes can be seen, `least_side`."""

MEASURED_SIDE = 256
"""Longer side of the painting that `evenness` is measured on, pixels."""

_THINGS = 0.04
"""The reach for a painting of things, as a share of its longer side."""

_TEXTURE = 0.25
"""The reach for a painting that is texture all over: stars and swirls are whole."""

_UNEVEN, _EVEN = 0.68, 0.75
"""Between these values of `evenness` the reach goes from `_THINGS` to `_TEXTURE`."""


def evenness(features: Tensor) -> float:
    """Measure how evenly a painting is worked all over, from 0 to 1: (mean e)^2 / mean e^2.

    `features` (1, N, h, w) are the painting's at `MEASURED_LAYER`, and e_k = |f_k|^2 the energy at
    position k. Brush strokes that fill the picture have about the same energy everywhere, 0.75 and
    more; a face before a wall has much in a few places, 0.68 and less.
    """
    energy = features.square().sum(dim=1).cpu().double()  # not every device has float64
    return float(energy.mean() ** 2 / energy.square().mean().clamp(min=1e-30))


def reach_of(evenness: float, motifs: float) -> float:
    """Return the share of a painting's longer side that a layer may see and count in full.

    `motifs` in [0, 1] is the setting; with 1 there is no limit, and the result is infinite.
    """
    if motifs == 1:
        return math.inf
    texture = min(1.0, max(0.0, (evenness - _UNEVEN) / (_EVEN - _UNEVEN)))
    share: float = _THINGS * (_TEXTURE / _THINGS) ** texture
    return share / (1 - motifs)


def layer_weights(config: StyleConfig, side: int, reach: float) -> LayerWeights:
    """Return the weights of the style layers for a result with a longer side of `side` pixels.

    A layer that sees more of the painting than `reach` counts less by the square of the excess.
    """
    limit = reach * config.style_side(side)
    return tuple(
        (layer, weight * min(1.0, limit / sees(layer)) ** 2)
        for layer, weight in config.style_layers
    )


def least_side(config: StyleConfig, reach: float) -> float:
    """Return the longer side, pixels, below which a scale is left out: even `MEASURED_LAYER`, which
    sees single strokes, would count less than half there, and strokes so large grow into things."""
    return sees(MEASURED_LAYER) / (math.sqrt(2) * reach * config.style_scale)
