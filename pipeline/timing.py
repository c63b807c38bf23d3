"""How much work pairs are, and how long they may take, from what earlier ones took. Pure.

Work is pixels looked at: those of each scale, as often as it is evaluated.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.records import Pair, Result
from stylize.config import StyleConfig
from stylize.stages import plan_stages

__all__ = ["estimate", "work", "work_done"]


def work(settings: Mapping[str, Any]) -> int:
    """Of a pair with these settings, as if its picture were square; rows of older versions may
    lack some."""
    names = ("size", "steps", "scales", "coarsest")
    return _seen(*(settings.get(name, getattr(StyleConfig, name)) for name in names))[-1]


@functools.cache
def _seen(size: int, steps: int, scales: int, coarsest: int) -> list[int]:
    config = StyleConfig(size=size, steps=steps, scales=scales, coarsest=coarsest)
    return _pixels((size, size), config)


def _pixels(size: tuple[int, int], config: StyleConfig) -> list[int]:
    """Pixels that were looked at before the first evaluation, 0, and after each."""
    each = [math.prod(s.size) for s in plan_stages(size, config) for _ in range(s.evaluations)]
    return list(itertools.accumulate(each, initial=0))


def work_done(size: tuple[int, int], config: StyleConfig) -> list[float]:
    """Share of the work that is done after each evaluation, for a photograph of a size."""
    pixels = _pixels(size, config)
    return [done / max(1, pixels[-1]) for done in pixels]


def estimate(pairs: Sequence[Pair], results: Iterable[Result]) -> dict[str, float]:
    """{device: seconds of one worker}, by the median of what a unit of work took there."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for r in results:
        if r.status == "ok" and r.seconds and r.evaluations:
            settings = json.loads(r.settings)
            done = work(settings) * r.evaluations / max(1, settings["steps"])
            rates[r.device].append(r.seconds / (done * (r.batch or 1)))
    left = sum(work(pair.settings) for pair in pairs)
    return {device: left * statistics.median(found) for device, found in sorted(rates.items())}
