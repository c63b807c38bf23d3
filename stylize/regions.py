"""Several styles in one picture, each in its own region: spatial control after Gatys et al. 2017,
*Controlling Perceptual Factors in Neural Style Transfer*, section 4.

Each region has a Gram matrix of its own, of features weighted by its mask, and its own style to
match. Regions are masks (1 or B, R, H, W) in [0, 1] that sum to 1 at most at each position; where
they sum to less, the photograph shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylize.config import StyleConfig
from stylize.encoder import Encoder
from stylize.losses import PerceptualLoss, Statistic, quarters
from stylize.tiles import TiledLoss

__all__ = ["RegionLoss", "TiledRegionLoss", "covered", "regions_of"]


def regions_of(masks: Sequence[Tensor]) -> Tensor:
    """Return masks (1, 1, H, W) as regions (1, R, H, W). Where masks overlap, they share."""
    regions = torch.cat(list(masks), dim=1)
    if len(masks) == 1:
        return regions
    return regions / regions.sum(dim=1, keepdim=True).clamp(min=1)


def covered(regions: Tensor) -> Tensor:
    """Return how much of each position is painted at all, (B, 1, H, W)."""
    return regions if regions.shape[1] == 1 else regions.sum(dim=1, keepdim=True).clamp(max=1)


class RegionLoss(PerceptualLoss):
    """A `PerceptualLoss` with a style for each region.

    `styles` and `starts` have the targets and the starts of each region, and `mask` (B, R, H, W)
    the regions. A region's style loss counts by its share of the painted area, times `strengths`,
    whose mean is 1: so the style is as strong in a small region as in a large one.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: StyleConfig,
        content: Mapping[str, Tensor],
        *,
        styles: Sequence[Mapping[str, Statistic]],
        starts: Sequence[Mapping[str, Statistic]],
        strengths: Sequence[float],
        mask: Tensor,
        **options: Any,
    ) -> None:
        targets = (encoder, config, content)
        super().__init__(*targets, styles[0], mask=mask, start=starts[0], **options)
        self.each = [
            PerceptualLoss(*targets, style, start=start, **options)
            for style, start in zip(styles, starts, strict=True)
        ]
        area = mask.sum(dim=(2, 3))  # (B, R)
        shares = area / area.sum(dim=1, keepdim=True).clamp(min=1e-6)
        self.shares = shares * shares.new_tensor(strengths)

    def parts_at(self, features: Tensor) -> list[Tensor | None]:
        """Return the parts of the first region at a layer's positions, then those of the next."""
        height, width = features.shape[-2:]
        assert self.mask is not None
        regions = torch.split(F.adaptive_avg_pool2d(self.mask, (height, width)), 1, dim=1)
        if not self.spread:
            return list(regions)
        like = features if features.dtype == torch.float64 else features.float()
        parts = quarters(height, width, like)
        return [region * part for region in regions for part in parts]

    def style_part(
        self, layer: str, sums: Sequence[Statistic], totals: Sequence[Tensor | int]
    ) -> Tensor:
        """Return a layer's weighted share of the style loss of all regions, (B,)."""
        count = len(sums) // len(self.each)
        losses = []
        for number, (loss, share) in enumerate(zip(self.each, self.shares.unbind(1), strict=True)):
            own = slice(number * count, (number + 1) * count)
            losses.append(share * loss.style_part(layer, sums[own], totals[own]))
        return torch.stack(losses).sum(dim=0)


class TiledRegionLoss(TiledLoss, RegionLoss):
    """A `RegionLoss` whose network sees one tile at a time."""
