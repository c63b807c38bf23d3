"""Which workers are asked what they are doing, and when. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["A_SECOND", "Polls"]

A_SECOND = 20
"""Questions a second at most, whatever the number of workers. Each takes the driver 1 ms."""


@dataclass
class Polls:
    """Takes turns among the workers, so that many of them cost no more than a few."""

    every: float  # seconds between looks; infinite: never
    _last: float = -math.inf
    _next: int = 0

    def turn(self, now: float, busy: int) -> Sequence[int] | None:
        """Return which of the busy workers to ask, by number; None while it is too early."""
        if now - self._last < self.every or math.isinf(self.every):
            return None
        self._last = now
        number = min(busy, max(1, int(A_SECOND * self.every)))
        turn = [(self._next + step) % busy for step in range(number)]
        self._next = (self._next + number) % max(1, busy)
        return turn
