"""How long pairs may take, from what earlier ones took. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pipeline.records import Pair, Result

__all__ = ["estimate"]


def estimate(pairs: Sequence[Pair], results: Iterable[Result]) -> dict[str, float]:
    """{device: seconds of one worker}, by the median seconds a pixel and evaluation there took."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for r in results:
        if r.status == "ok" and r.seconds and r.width and r.height and r.evaluations:
            work = max(r.width, r.height) ** 2 * r.evaluations * (r.batch or 1)
            rates[r.device].append(r.seconds / work)
    work = sum(pair.settings["size"] ** 2 * pair.settings["steps"] for pair in pairs)
    return {device: work * statistics.median(found) for device, found in sorted(rates.items())}
