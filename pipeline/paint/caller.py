"""The interface between the drivers and their caller. Never imports torch or ray."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from pipeline.records import Pair, Result, Status

__all__ = ["Caller", "ClusterError", "Stop"]


class ClusterError(Exception):
    """There is no cluster, no device, or no worker that can work. The run cannot go on."""


class Stop(enum.IntEnum):
    """Whether the run is to end before all pairs are painted."""

    NO = 0
    SOON = 1  # pairs in hand end at their next evaluation and stay pending
    AT_ONCE = 2


class Caller(Protocol):
    """The code that asks for pairs to be painted. It is called in its own thread."""

    def on_started(self) -> None:
        """Work can begin: signal handlers may be installed now."""

    def on_results(self, results: Sequence[Result]) -> None:
        """Some attempts ended. What is not recorded here is lost."""

    def on_status(self, statuses: Sequence[Status]) -> None:
        """Each worker's pair in hand, as it was when the worker was asked last."""

    def status_every(self) -> float:
        """Return the seconds between two calls of `on_status`; infinite: none is needed."""

    def on_note(self, line: str) -> None:
        """Something the user should know."""

    def on_event(self, event: str, **facts: object) -> None:
        """Something for the run's log that the user need not see."""

    def stop_requested(self) -> Stop:
        """Return whether to stop, and how soon."""

    def finished_row(self, pair: Pair) -> Result | None:
        """Return the row of a picture that a worker wrote just before it died, if there is one."""
