"""What a stage minimises: the pictures of a batch at the stage's size, and the loss over them.

Pictures are (1, 3, H, W). The targets of the styles are computed by `Stylizer`, which caches them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylize import color
from stylize.config import StyleConfig
from stylize.encoder import GRID, Encoder
from stylize.losses import PerceptualLoss, Statistic, relative
from stylize.motifs import layer_weights
from stylize.regions import RegionLoss, TiledRegionLoss, covered
from stylize.stages import Stage
from stylize.tiles import TiledLoss, features_in_tiles, statistics_in_tiles

__all__ = ["Frame", "StageInputs", "Style", "stage_loss", "start_of"]


class Frame:
    """A picture's size, and the size it is extended to so that poolings cut nothing off.

    With `padding=replicate` both sides are extended to multiples of `GRID` by repeating the edge.
    """

    def __init__(self, size: tuple[int, int], config: StyleConfig) -> None:
        on_grid = config.padding == "replicate"
        self.width, self.height = size
        self.right = -self.width % GRID if on_grid else 0
        self.bottom = -self.height % GRID if on_grid else 0

    def pad(self, x: Tensor) -> Tensor:
        """Extend pictures (B, 3, h, w) to (B, 3, H, W)."""
        return F.pad(x, (0, self.right, 0, self.bottom), mode="replicate")

    def pad_mask(self, mask: Tensor | None, picture: Tensor) -> Tensor | None:
        """Extend a picture's mask by zeros, (1, 1, H, W): what is painted there is cropped.

        `picture` is (1, 3, h, w). The result is None where the style counts everywhere.
        """
        if not (self.right or self.bottom):
            return mask
        inside = torch.ones_like(picture[:, :1]) if mask is None else mask
        return F.pad(inside, (0, self.right, 0, self.bottom))

    def crop(self, x: Tensor) -> Tensor:
        """Undo `pad`."""
        return x[..., : self.height, : self.width]


@dataclass(frozen=True)
class Style:
    """A style picture at one stage."""

    pixels: Tensor  # (1, 3, H, W)
    key: tuple[object, ...]  # equal keys mean equal pixels and masks
    mask: Tensor | None = None  # (1, 1, H, W); the part that counts, None for the whole

    def as_start(self, size: tuple[int, int]) -> Tensor:
        """Return the painting with this height and width; outside its part it has the mean colour
        of the part."""
        pixels = self.pixels
        if self.mask is not None:
            mean = (self.mask * pixels).mean(dim=(2, 3), keepdim=True) / self.mask.mean()
            pixels = self.mask * pixels + (1 - self.mask) * mean
        return F.interpolate(pixels, size, mode="bicubic", antialias=True)


@dataclass(frozen=True)
class StageInputs:
    """The inputs of one transfer at one stage."""

    frame: Frame
    content: Tensor  # (1, 3, H, W)
    styles: list[Style]
    init: Tensor | None  # (1, 3, H, W)
    mask: Tensor | None  # (1, R, H, W); several regions have a style each
    reach: float = math.inf  # share of the painting's longer side, see `stylize.motifs`

    def weight(self) -> Tensor | None:
        """Return where the style counts, extended by the frame, or None for everywhere."""
        return self.frame.pad_mask(self.mask, self.content)

    @property
    def by_region(self) -> bool:
        """Whether each style has a region of its own."""
        return self.mask is not None and self.mask.shape[1] > 1

    def in_colours_of_styles(self, shares: Sequence[float]) -> Tensor:
        """Return the photograph as with `init=matched`, clamped and extended by the frame."""
        content = self.frame.pad(self.content)
        return _in_colours(content, self.styles, shares).clamp(0, 1)


def _in_colours(picture: Tensor, styles: Sequence[Style], shares: Sequence[float]) -> Tensor:
    """Give a picture (1, 3, H, W) the colours of styles, see `color.transport`."""
    masks = [style.mask for style in styles]
    return color.transport(picture, *(s.pixels for s in styles), shares=shares, masks=masks)


def start_of(config: StyleConfig, inputs: StageInputs, mean: Sequence[float]) -> Tensor:
    """Return the picture (1, 3, H, W) to start a stage from, see `config.init`.

    Noise is centred on `mean`, the colour that the encoder subtracts. All other starts are the
    photograph where a mask is black.
    """
    content, styles, mask = inputs.content, inputs.styles, inputs.mask
    if mask is not None and inputs.by_region:
        if inputs.init is None and config.init in ("matched", "style"):
            alone = (dataclasses.replace(inputs, styles=[s], mask=None) for s in styles)
            one = dataclasses.replace(config, style_blend=())
            starts = torch.cat([start_of(one, each, mean) for each in alone])  # (R, 3, H, W)
            painted = (mask.transpose(0, 1) * starts).sum(dim=0, keepdim=True)
            return painted + (1 - covered(mask)) * content
        mask = covered(mask)
    if inputs.init is not None:
        start = inputs.init
    elif config.init == "noise":
        generator = torch.Generator().manual_seed(config.seed)  # on the CPU: the same everywhere
        noise = torch.randn(content.shape, generator=generator, dtype=torch.float32, device="cpu")
        colour = noise.new_tensor(mean).view(1, 3, 1, 1)
        return (colour + config.noise * noise).to(content)
    elif config.init == "style":
        start = styles[0].as_start((content.shape[-2], content.shape[-1]))
    elif config.init == "matched" and config.weights()[1]:
        start = _in_colours(content, styles, config.shares(len(styles)))
    else:
        start = content
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
    """Return the loss over the pictures of a batch.

    `styles` holds for each picture the targets of its styles, and is empty where the style weight
    is 0. `side` is the side of the tiles in pixels; 0: pictures are seen as a whole.
    """
    frame = inputs[0].frame
    shares = config.shares(len(inputs[0].styles))
    content: Mapping[str, Tensor] = {}
    if config.weights()[0] and (layers := relative(config.content_layers)):
        pictures = torch.cat([frame.pad(picture.content) for picture in inputs])
        content = features_in_tiles(encoder, pictures, layers, side)

    def matched(shares: Sequence[float]) -> Mapping[str, Statistic]:
        pictures = torch.cat([picture.in_colours_of_styles(shares) for picture in inputs])
        layers = relative(config.style_layers)
        return statistics_in_tiles(encoder, pictures, layers, config.style_loss, side)

    # Either all pictures have a weight or none has.
    weights = [weight for picture in inputs if (weight := picture.weight()) is not None]
    mask = torch.cat(weights) if weights else None
    options: dict[str, Any] = {
        "style_layers": _layer_weights(config, max(stage.size), inputs),
        "content_factor": stage.content_factor,
        "spread": stage.spread,
        **({"side": side} if side else {}),
    }
    if styles and mask is not None and inputs[0].by_region:
        count = len(shares)
        alone = [[float(other == number) for other in range(count)] for number in range(count)]
        return (TiledRegionLoss if side else RegionLoss)(
            encoder,
            config,
            content,
            styles=[_stack([_blend(targets, only) for targets in styles]) for only in alone],
            starts=[matched(only) if config.relative else {} for only in alone],
            strengths=[count * share for share in shares],
            mask=mask,
            **options,
        )
    style = _stack([_blend(targets, shares) for targets in styles]) if styles else {}
    start = matched(shares) if styles and config.relative else {}
    loss = TiledLoss if side else PerceptualLoss
    return loss(encoder, config, content, style, mask=mask, start=start, **options)


def _layer_weights(
    config: StyleConfig, side: int, inputs: Sequence[StageInputs]
) -> dict[str, float | Tensor]:
    """Return the weights of the style layers, sum 1.

    The weight of a layer is a number where the batch's pictures agree, else (B,).
    """
    weights = [relative(layer_weights(config, side, picture.reach)) for picture in inputs]
    first = weights[0]
    if all(other == first for other in weights):
        return dict(first)
    like = inputs[0].content
    return {layer: like.new_tensor([by_layer[layer] for by_layer in weights]) for layer in first}


def _stack(statistics: Sequence[Mapping[str, Statistic]]) -> Mapping[str, Statistic]:
    """Concatenate the targets of several pictures to those of a batch."""
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
    """Average the targets of several styles, weighted by their shares."""
    if len(statistics) == 1:
        return statistics[0]

    def mix(parts: list[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]  # all, or none
        if not present:
            return None
        return torch.stack([w * p for w, p in zip(shares, present, strict=True)]).sum(dim=0)

    mixed = {}
    for layer in statistics[0]:
        gram = mix([s[layer].gram for s in statistics])
        assert gram is not None
        mixed[layer] = Statistic(gram, mix([s[layer].mean for s in statistics]))
    return mixed
