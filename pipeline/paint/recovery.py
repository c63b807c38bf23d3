"""What becomes of the pairs whose worker died. Pure: no Ray, no clock, no files.

Only deaths that are a pair's own fault count against it. A node that disappears, or memory that
runs out once, is no pair's fault. Painting several pairs one by one shows which was at fault.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from pipeline.records import Task

__all__ = ["DEATHS", "Death", "Decision", "Recovery", "What"]

DEATHS = 2
"""A pair that killed this many workers is `poison`."""

HEALTH_SECONDS = 30.0
"""Seconds until Ray surely knows that a silent node is gone."""


@dataclass(frozen=True)
class Death:
    """A worker died with tasks in hand."""

    tasks: Sequence[Task]
    node: str
    cause: str  # in one line
    of_memory: bool = False  # the kernel or Ray killed it for memory
    unreachable: bool = False  # Ray lost contact, and it may not even be dead

    @property
    def pair_id(self) -> str:
        """The first pair."""
        return self.tasks[0].pair.pair_id


class What(enum.Enum):
    """What to do with the tasks of a dead worker."""

    WAIT = "wait until it is known whether the node is alive"
    RETURN = "put back first, no pair is at fault"
    SPLIT = "put back first, to be tried one by one"
    ALONE = "put back last, to be tried with no other pair at work"
    AGAIN = "put back last, to be tried once more"
    POISON = "give up, the pair kills its workers"


@dataclass(frozen=True)
class Decision:
    """What to do about a death."""

    what: What
    death: Death


@dataclass
class Recovery:
    """Judges deaths, and remembers which pairs must be apart from others."""

    on_cluster: bool
    _apart: set[str] = field(default_factory=set)  # pairs of a group that died
    _alone: set[str] = field(default_factory=set)  # pairs whose worker was killed for memory
    _deaths: Counter[str] = field(default_factory=Counter)
    _waiting: list[tuple[float, Death]] = field(default_factory=list)  # until when

    @property
    def waits(self) -> bool:
        """Whether some deaths are not judged yet."""
        return bool(self._waiting)

    def judge(self, death: Death, now: float) -> Decision:
        """Decide about a death at the time `now`, seconds of any clock that only goes forward."""
        if not self.on_cluster:
            return Decision(self._blame(death), death)
        # The health check of a node lags behind, most where the node vanished at once.
        patience = HEALTH_SECONDS if death.unreachable else HEALTH_SECONDS / 3
        self._waiting.append((now + patience, death))
        return Decision(What.WAIT, death)

    def due(self, now: float, nodes: Collection[str], *, stopping: bool) -> list[Decision]:
        """Decide about the deaths that waited, by the ids of the nodes that are still there."""
        decisions, waiting = [], []
        for until, death in self._waiting:
            if stopping or death.node not in nodes:
                decisions.append(Decision(What.RETURN, death))
            elif now > until:
                decisions.append(Decision(self._blame(death), death))
            else:
                waiting.append((until, death))
        self._waiting = waiting
        return decisions

    def split(self, tasks: Sequence[Task]) -> None:
        """Never paint these together with others again."""
        self._apart |= {task.pair.pair_id for task in tasks}

    def must_be_apart(self, *tasks: Task) -> bool:
        """Return whether one of the tasks must not be painted together with others."""
        return any(task.pair.pair_id in self._apart for task in tasks)

    def must_wait(self, task: Task, in_hand: Sequence[Task]) -> bool:
        """Return whether a task must wait for others to end, because memory was short."""
        if not self._alone or not in_hand:
            return False
        return any(other.pair.pair_id in self._alone for other in (task, *in_hand))

    def painted(self, pair_ids: Collection[str]) -> None:
        """Stop keeping these painted pairs alone."""
        self._alone -= set(pair_ids)

    def _blame(self, death: Death) -> What:
        if len(death.tasks) > 1:
            self.split(death.tasks)
            return What.SPLIT
        if death.of_memory and death.pair_id not in self._alone:
            self._alone.add(death.pair_id)
            return What.ALONE
        self._deaths[death.pair_id] += 1
        return What.POISON if self._deaths[death.pair_id] >= DEATHS else What.AGAIN
