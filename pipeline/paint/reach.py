"""Which nodes could not take a task that others may, and the tasks that wait for others. Pure.

An input that one node cannot open may be missing everywhere, or that node lacks what others have.
Another node shows which it is. Until then, and from then on, no pair fails for it. A pair that does
not fit into the memory of one node's device may fit where the device has more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from pipeline.records import Result, Task

__all__ = ["PATIENCE", "Reach"]

PATIENCE = 60.0
"""Seconds that a task waits for a worker on a node that could try it. Then it has failed."""


@dataclass(frozen=True)
class _Waiting:
    """A task for another node."""

    task: Task
    row: Result  # the failure where it was tried last
    since: float


@dataclass
class Reach:
    """What is known of the nodes and of the pairs that one of them could not paint."""

    memory: dict[str, int] = field(default_factory=dict)  # of a device, by node, as workers tell
    _waiting: dict[str, _Waiting] = field(default_factory=dict)  # by pair id
    _failures: defaultdict[str, dict[str, Result]] = field(  # pair id -> node -> the failure there
        default_factory=lambda: defaultdict(dict)
    )
    _suspects: defaultdict[str, set[str]] = field(  # node -> pairs whose inputs the driver can open
        default_factory=lambda: defaultdict(set)
    )

    @property
    def tasks(self) -> list[Task]:
        """The tasks that wait for another node."""
        return [waiting.task for waiting in self._waiting.values()]

    @property
    def closed(self) -> set[str]:
        """The nodes on which some task that waits cannot be tried."""
        return {node for pair_id in self._waiting for node in self._closed(pair_id)}

    def failed(self, task: Task, row: Result, node: str, now: float, *, suspect: bool) -> None:
        """Keep a task for other nodes: an input could not be opened, or memory did not suffice.

        A `suspect` node gets no other task until it is known what others make of this one.
        """
        pair_id = task.pair.pair_id
        self._waiting[pair_id] = _Waiting(task, row, now)
        self._failures[pair_id][node] = row
        if suspect:
            self._suspects[node].add(pair_id)

    def opened(self, pair_id: str) -> dict[str, Result]:
        """Note that a node could open a pair's inputs; return the failures of those that could
        not, by node."""
        return {node: row for node, row in self._forget(pair_id).items() if row.unopened}

    def is_suspect(self, node: str) -> bool:
        """Return whether a node is to get no task that no other node has tried."""
        return bool(self._suspects.get(node))

    def take(self, node: str) -> Task | None:
        """Return a task that waits for a node like this one, if there is one."""
        for pair_id, waiting in self._waiting.items():
            if node not in self._closed(pair_id):
                del self._waiting[pair_id]
                return waiting.task
        return None

    def give_up(self, nodes: Collection[str], staffed: Collection[str], now: float) -> list[Result]:
        """Return the failures of tasks that need not wait any longer: no node is left that could
        try them, or those left have had no worker for too long. `staffed` nodes have one."""
        hopeless = []
        for pair_id, waiting in self._waiting.items():
            left = set(nodes) - self._closed(pair_id)
            late = now - waiting.since > PATIENCE
            if not left or (late and left.isdisjoint(staffed)):
                hopeless.append((pair_id, waiting.row))
        for pair_id, _ in hopeless:
            del self._waiting[pair_id]
            self._forget(pair_id)
        return [row for _, row in hopeless]

    def _closed(self, pair_id: str) -> set[str]:
        """Return the nodes that have tried a pair, and those with too little memory for it."""
        failures = self._failures[pair_id]
        too_small = max(
            (self.memory.get(node, 0) for node, row in failures.items() if row.too_large), default=0
        )
        return {*failures, *(node for node, room in self.memory.items() if room <= too_small)}

    def _forget(self, pair_id: str) -> dict[str, Result]:
        failures = self._failures.pop(pair_id, {})
        for node in failures:
            self._suspects[node].discard(pair_id)
        return failures
