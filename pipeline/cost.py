"""How much work pairs are, and how long they may take, from what earlier ones took. Pure.

Work is pixels looked at: those of each scale, as often as it is evaluated.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.records import Pair, Result
from stylize.config import StyleConfig
from stylize.stages import plan_stages

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["estimate", "share_done", "work"]


_DECIDING = ("size", "steps", "scales", "coarsest")
"""The settings that the work depends on."""


def work(config: StyleConfig) -> int:
    """Return the work of a pair with these settings, as if its picture were square."""
    return _square(*(getattr(config, name) for name in _DECIDING))


def _work_of_row(settings: Mapping[str, Any]) -> int:
    """Return the same by a row's settings; a row of an older version may lack some."""
    return _square(*(settings.get(name, getattr(StyleConfig, name)) for name in _DECIDING))


@functools.cache
def _square(size: int, steps: int, scales: int, coarsest: int) -> int:
    config = StyleConfig(size=size, steps=steps, scales=scales, coarsest=coarsest)
    return _all_pixels((size, size), config)


def _all_pixels(size: tuple[int, int], config: StyleConfig) -> int:
    """Return how many pixels all evaluations look at, for a photograph of a size; at least 1. A
    painting of things leaves out scales, but not their work: see `plan_stages`."""
    return max(1, sum(math.prod(s.size) * s.evaluations for s in plan_stages(size, config)))


def share_done(size: tuple[int, int], config: StyleConfig) -> Callable[[Tensor], float]:
    """Return a function that is told the picture (1, 3, H, W) of each evaluation, and returns the
    share of the work that is done by then, for a photograph of a size."""
    total, seen = _all_pixels(size, config), 0

    def share(picture: Tensor) -> float:
        nonlocal seen
        seen += int(math.prod(picture.shape[-2:]))
        return min(1.0, seen / total)

    return share


def estimate(pairs: Sequence[Pair], results: Iterable[Result]) -> dict[str, float]:
    """{device: seconds of one worker}, by the median of what a unit of work took there."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for r in results:
        if r.status == "ok" and r.seconds and r.evaluations:
            settings = json.loads(r.settings)
            planned = r.stop_reason == "steps"  # it may be fewer than `steps`, for the same work
            done = _work_of_row(settings) * (
                1 if planned else r.evaluations / max(1, settings["steps"])
            )
            rates[r.device].append(r.seconds / (done * (r.batch or 1)))
    left = sum(work(pair.config) for pair in pairs)
    return {device: left * statistics.median(found) for device, found in sorted(rates.items())}
