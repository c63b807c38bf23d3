"""The work of pairs, and an estimate of their time from that of earlier pairs. Pure.

The unit of work is a pixel in one evaluation. Work is summed over all scales and evaluations.
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
from stylize.config import StyleConfig, nominal_side
from stylize.stages import plan_stages

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["estimate", "share_done", "work"]

_DECIDING = ("size", "steps", "scales", "coarsest")
"""The settings that the work depends on."""


def work(config: StyleConfig) -> int:
    """Return the work of a pair with these settings, for a square picture."""
    return _square_work(config.side, *(getattr(config, name) for name in _DECIDING[1:]))


def _work_of_row(row: Result, settings: Mapping[str, Any]) -> int:
    """Return the work by a row's settings, of which a row of an older version may lack some."""
    size, *rest = (settings.get(name, getattr(StyleConfig, name)) for name in _DECIDING)
    if isinstance(size, str):  # it depended on the photograph
        size = max(row.width or 0, row.height or 0) or nominal_side(size)
    return _square_work(size, *rest)


@functools.cache
def _square_work(size: int, steps: int, scales: int, coarsest: int) -> int:
    config = StyleConfig(size=size, steps=steps, scales=scales, coarsest=coarsest)
    return _all_pixels((size, size), config)


def _all_pixels(size: tuple[int, int], config: StyleConfig) -> int:
    """Return the work for a photograph of this size, pixels over all evaluations; at least 1.

    A painting of things leaves out scales, but not their work: see `plan_stages`.
    """
    return max(1, sum(math.prod(s.size) * s.evaluations for s in plan_stages(size, config)))


def share_done(size: tuple[int, int], config: StyleConfig) -> Callable[[Tensor], float]:
    """Return a function that measures the progress of one pair, for a photograph of this size.

    It must be called with the picture (1, 3, H, W) of each evaluation, and returns the share of the
    work that is done by then, from 0 to 1.
    """
    total, seen = _all_pixels(size, config), 0

    def share(picture: Tensor) -> float:
        nonlocal seen
        seen += int(math.prod(picture.shape[-2:]))
        return min(1.0, seen / total)

    return share


def estimate(pairs: Sequence[Pair], results: Iterable[Result]) -> dict[str, float]:
    """Return the seconds that one worker would need for the pairs, on each device of the results.

    It is the work of the pairs times the median time of a unit of work on that device.
    """
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for r in results:
        if r.status == "ok" and r.seconds and r.evaluations:
            settings = json.loads(r.settings)
            # A pair that made all its steps did all its work, even in fewer evaluations.
            is_complete = r.stop_reason == "steps"
            share = 1 if is_complete else r.evaluations / max(1, settings["steps"])
            done = _work_of_row(r, settings) * share
            rates[r.device].append(r.seconds / (done * (r.batch or 1)))
    left = sum(work(pair.config) for pair in pairs)
    return {device: left * statistics.median(times) for device, times in sorted(rates.items())}
