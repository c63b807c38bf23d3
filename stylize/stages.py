"""Coarse to fine: which sizes a picture is painted at, and how often it is looked at in each.

Never imports torch: the batch plans by it, too.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from stylize.config import StyleConfig
from stylize.image import fit

__all__ = ["Stage", "plan_stages"]


_FINEST_OF_THINGS = 0.3
"""Factor on the content weight at the finest scale, for a painting of things."""


@dataclass(frozen=True)
class Stage:
    """One scale, or a part of the coarsest's evaluations: what is minimised, and how often it is
    looked at."""

    size: tuple[int, int]  # width, height
    evaluations: int
    content_factor: float = 1.0  # on the content weight
    spread: float = 0.0  # share of the style loss that is over each quarter by itself


def plan_stages(
    content_size: tuple[int, int], config: StyleConfig, least_side: float = 0
) -> list[Stage]:
    """Plan the sizes from coarse to fine, and the evaluations of each.

    The finest has two sevenths of `config.steps`; the others, each four times cheaper than the
    next, share the rest evenly. With `config.spread` the coarsest is two stages: painted in every
    quarter of the picture first, then as the painting has it all in all.

    `least_side`, pixels, is for paintings of things, see `stylize.motifs`. Scales with a longer
    side below it are left out, and the next has as many evaluations more as make the same work.
    Where it is above `config.coarsest` there is no spread, since each quarter would get the
    painting's things, and the finest of several scales holds on to the photograph less: places have
    been decided by then, and without the deep layers less pulls at them.
    """
    sizes = [fit(content_size, config.size)]
    for k in range(1, config.scales):
        longest = round(config.size / 2**k)
        if longest < config.coarsest:
            break
        sizes.insert(0, fit(content_size, longest))
    finest = config.steps if len(sizes) == 1 else round(config.steps * 2 / 7)
    coarse, extra = divmod(config.steps - finest, max(1, len(sizes) - 1))
    counts = [coarse + (i < extra) for i in range(len(sizes) - 1)] + [finest]
    stages = [
        Stage(size, count, config.coarse_content) for size, count in zip(sizes, counts, strict=True)
    ]
    of_things = least_side > config.coarsest
    stages[-1] = dataclasses.replace(stages[-1], content_factor=1.0)
    left_out = [stage for stage in stages[:-1] if max(stage.size) < least_side]
    if left_out:
        stages = stages[len(left_out) :]
        work = sum(stage.evaluations * math.prod(stage.size) for stage in left_out)
        more = round(work / math.prod(stages[0].size))
        stages[0] = dataclasses.replace(stages[0], evaluations=stages[0].evaluations + more)
    if of_things and len(stages) > 1:
        stages[-1] = dataclasses.replace(stages[-1], content_factor=_FINEST_OF_THINGS)
    if config.spread and not of_things and len(stages) > 1:
        first = stages[0]
        third = first.evaluations // 3
        stages[:1] = [
            dataclasses.replace(first, evaluations=third, spread=config.spread),
            dataclasses.replace(first, evaluations=first.evaluations - third),
        ]
    return stages
