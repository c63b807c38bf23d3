"""Coarse to fine: the sizes that a picture is painted at, and the evaluations spent on each.

Does not import torch, since the batch's driver uses it to plan.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from stylize.config import StyleConfig
from stylize.image import fit

__all__ = ["Stage", "plan_stages"]

_FINEST_OF_THINGS = 0.14
"""Factor on the content weight at the finest scale, for a painting of things."""


_FINEST_SHARE = 5 / 14
"""Share of the evaluations that the finest of several scales gets: 50 of the default's 140.

With fewer, too little of the style arrives while the photograph is held where it has been lost
most (`StyleConfig.content_norm`). Measured in docs/performance.md.
"""


@dataclass(frozen=True)
class Stage:
    """One optimisation: a scale, or one of the two parts that the coarsest scale may have."""

    size: tuple[int, int]  # width, height, pixels
    evaluations: int  # of loss and gradient
    content_factor: float = 1.0  # on the content weight
    spread: float = 0.0  # share of the style loss that is taken of each quarter by itself


def plan_stages(
    content_size: tuple[int, int], config: StyleConfig, least_side: float = 0
) -> list[Stage]:
    """Plan the stages of a transfer, from coarse to fine.

    The finest scale gets 5/14 of `config.steps`. The others, each of which costs a quarter
    of the next per evaluation, share the rest evenly. With `config.spread` the coarsest scale is
    two stages: at first every quarter of the picture has to be painted, then the picture as a
    whole.

    `least_side`, pixels, is above `config.coarsest` for paintings of things, see `stylize.motifs`.
    For these, scales with a longer side below it are left out, and their work goes to the next one.
    There is no spread, which would put the painting's things into each quarter. The finest of
    several scales weighs the photograph less: where things are has been decided by then, and
    without the deep layers the style moves them less.
    """
    stages = _without_coarsest(_by_scale(content_size, config), least_side)
    if len(stages) == 1:
        return stages
    if least_side > config.coarsest:
        stages[-1] = dataclasses.replace(stages[-1], content_factor=_FINEST_OF_THINGS)
    elif config.spread:
        first = stages[0]
        third = first.evaluations // 3
        stages[:1] = [
            dataclasses.replace(first, evaluations=third, spread=config.spread),
            dataclasses.replace(first, evaluations=first.evaluations - third),
        ]
    return stages


def _by_scale(content_size: tuple[int, int], config: StyleConfig) -> list[Stage]:
    """Return one stage for each scale, each half as large as the next."""
    sizes = [fit(content_size, config.side)]
    for k in range(1, config.scales):
        longest = round(config.side / 2**k)
        if longest < config.coarsest:
            break
        sizes.insert(0, fit(content_size, longest))
    finest = config.steps if len(sizes) == 1 else round(config.steps * _FINEST_SHARE)
    each, extra = divmod(config.steps - finest, max(1, len(sizes) - 1))
    coarse = [
        Stage(size, each + (i < extra), config.coarse_content) for i, size in enumerate(sizes[:-1])
    ]
    return [*coarse, Stage(sizes[-1], finest)]


def _without_coarsest(stages: list[Stage], least_side: float) -> list[Stage]:
    """Leave out the scales with a longer side below `least_side`, except the finest.

    The first that is kept gets as many more evaluations as make up for the pixels looked at.
    """
    left_out = [stage for stage in stages[:-1] if max(stage.size) < least_side]
    if not left_out:
        return stages
    first, *finer = stages[len(left_out) :]
    work = sum(stage.evaluations * math.prod(stage.size) for stage in left_out)
    more = round(work / math.prod(first.size))
    return [dataclasses.replace(first, evaluations=first.evaluations + more), *finer]
