"""What a stage minimises: the pictures of a batch at the stage's size, and the loss over them.

Pictures are (1, 3, H, W). `Stylizer` makes the targets of the styles, and keeps them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stylize import color
from stylize.config import StyleConfig
from stylize.encoder import GRID, Encoder
from stylize.losses import PerceptualLoss, Statistic, relative
from stylize.motifs import layer_weights
from stylize.stages import Stage
from stylize.tiles import TiledLoss, features_in_tiles, statistics_in_tiles

__all__ = ["Frame", "StageInputs", "Style", "stage_loss", "start_of"]


class Frame:
    """A picture's size, and the larger one on the grid that it is worked on, edges repeated."""

    def __init__(self, size: tuple[int, int], config: StyleConfig) -> None:
        on_grid = config.padding == "replicate"
        self.width, self.height = size
        self.right = -self.width % GRID if on_grid else 0
        self.bottom = -self.height % GRID if on_grid else 0

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.right, 0, self.bottom), mode="replicate")

    def weigh(self, mask: Tensor | None, picture: Tensor) -> Tensor | None:
        """Where the style counts, (1, 1, H, W): not beyond the picture (1, 3, h, w), for what is
        painted there is cut off. None: everywhere."""
        if not (self.right or self.bottom):
            return mask
        inside = torch.ones_like(picture[:, :1]) if mask is None else mask
        return F.pad(inside, (0, self.right, 0, self.bottom))

    def crop(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]


@dataclass(frozen=True)
class Style:
    """A style picture at one stage, (1, 3, H, W), and what tells it from all others."""

    pixels: Tensor
    key: tuple[object, ...]


@dataclass(frozen=True)
class StageInputs:
    """The inputs of one transfer at one stage."""

    frame: Frame
    content: Tensor
    styles: list[Style]
    init: Tensor | None
    mask: Tensor | None  # (1, 1, H, W)
    reach: float = math.inf  # share of the painting's longer side, see `stylize.motifs`

    def weight(self) -> Tensor | None:
        """Where the style counts, on the grid, or None for everywhere."""
        return self.frame.weigh(self.mask, self.content)

    def in_colours_of_styles(self, shares: Sequence[float]) -> Tensor:
        """The photograph on the grid, as `init=matched` starts from it, but as it can be saved."""
        pixels = [style.pixels for style in self.styles]
        return color.transport(self.frame.pad(self.content), *pixels, shares=shares).clamp(0, 1)


def start_of(config: StyleConfig, inputs: StageInputs, mean: Sequence[float]) -> Tensor:
    """The picture that a stage starts from; noise is around the encoder's `mean` colour."""
    content, styles = inputs.content, [style.pixels for style in inputs.styles]
    if inputs.init is not None:
        start = inputs.init
    elif config.init == "noise":
        generator = torch.Generator().manual_seed(config.seed)  # the CPU's: same on any device
        noise = torch.randn(content.shape, generator=generator, dtype=torch.float32, device="cpu")
        colour = noise.new_tensor(mean).view(1, 3, 1, 1)
        return (colour + config.noise * noise).to(content)
    elif config.init == "style":
        start = F.interpolate(styles[0], content.shape[-2:], mode="bicubic", antialias=True)
    elif config.init == "matched" and config.weights()[1]:
        start = color.transport(content, *styles, shares=config.shares(len(styles)))
    else:
        start = content
    mask = inputs.mask
    return start if mask is None else mask * start + (1 - mask) * content


@torch.no_grad()
def stage_loss(
    encoder: Encoder,
    config: StyleConfig,
    stage: Stage,
    inputs: Sequence[StageInputs],
    styles: Sequence[list[dict[str, Statistic]]],
    side: int,
) -> PerceptualLoss:
    """The loss over the pictures of a batch. `styles`: for each of them the targets of its styles;
    none where the style weighs nothing. `side`: of tiles, or 0."""
    frame = inputs[0].frame
    shares = config.shares(len(inputs[0].styles))
    content: Mapping[str, Tensor] = {}
    if config.weights()[0] and (layers := relative(config.content_layers)):
        pictures = torch.cat([frame.pad(one.content) for one in inputs])
        content = features_in_tiles(encoder, pictures, layers, side)
    style: Mapping[str, Statistic] = {}
    start: Mapping[str, Statistic] = {}
    if styles:
        style = _stack([_blend(targets, shares) for targets in styles])
        if config.relative:
            near = torch.cat([one.in_colours_of_styles(shares) for one in inputs])
            layers = relative(config.style_layers)
            start = statistics_in_tiles(encoder, near, layers, config.style_loss, side)
    weights = [weight for one in inputs if (weight := one.weight()) is not None]  # of all, or none
    make: Callable[..., PerceptualLoss] = PerceptualLoss
    if side:
        make = functools.partial(TiledLoss, side=side)
    return make(
        encoder,
        config,
        content,
        style,
        style_layers=_layer_weights(config, max(stage.size), inputs),
        mask=torch.cat(weights) if weights else None,
        content_factor=stage.content_factor,
        start=start,
        spread=stage.spread,
    )


def _layer_weights(
    config: StyleConfig, side: int, inputs: Sequence[StageInputs]
) -> dict[str, float | Tensor]:
    """Weights of the style layers, sum 1, by layer: one for all pictures of a batch, or (B,)."""
    each = [relative(layer_weights(config, side, one.reach)) for one in inputs]
    if all(one == each[0] for one in each):
        return dict(each[0])
    like = inputs[0].content
    return {layer: like.new_tensor([one[layer] for one in each]) for layer in each[0]}


def _stack(statistics: Sequence[Mapping[str, Statistic]]) -> Mapping[str, Statistic]:
    """Targets of several pictures as those of a batch."""
    if len(statistics) == 1:
        return statistics[0]
    return {
        layer: Statistic(
            *(
                torch.cat(parts)
                for parts in zip(*(s[layer].parts() for s in statistics), strict=True)
            )
        )
        for layer in statistics[0]
    }


def _blend(statistics: list[dict[str, Statistic]], shares: list[float]) -> dict[str, Statistic]:
    if len(statistics) == 1:
        return statistics[0]

    def mix(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        if not there:
            return None
        return torch.stack([w * p for w, p in zip(shares, there, strict=True)]).sum(dim=0)

    mixed = {}
    for layer in statistics[0]:
        gram = mix([s[layer].gram for s in statistics])
        assert gram is not None
        mixed[layer] = Statistic(gram, mix([s[layer].mean for s in statistics]))
    return mixed
