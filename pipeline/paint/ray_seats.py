"""The workers of a run, as the driver sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.paint.ray_session import Actor, Reference
from pipeline.records import Status, Task

__all__ = ["Place", "Seat"]


class Place(NamedTuple):
    """Where a worker runs."""

    node: str
    device: str
    stderr: str  # path of the file that has its standard error
    memory: int  # of the device, bytes


@dataclass
class Seat:
    """One actor, and what it was last asked."""

    actor: Actor
    place: Place = Place("", "", "", 0)
    awaited: Reference | None = None  # the answer to ready(), and then to run(); None: it is idle
    is_ready: bool = False
    tasks: list[Task] = field(default_factory=list)  # in hand
    began: float = 0.0
    kernel_kills: int = 0  # for memory, when the tasks were begun
    rests_until: float = 0.0  # its GPU was full
    is_old: bool = False  # of a fleet that another one replaces
    asked: Reference | None = None  # the answer to status()
    status: Status = field(default_factory=Status)

    @property
    def is_painting(self) -> bool:
        """Whether it has tasks in hand."""
        return self.is_ready and self.awaited is not None
