"""Which nodes cannot open inputs that others can, and the tasks that wait for another node. Pure.

An input that one node cannot open may be missing everywhere, or that node lacks what others have.
Another node shows which it is. Until then, and from then on, no pair fails for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from pipeline.records import Result, Task

__all__ = ["PATIENCE", "Reach"]

PATIENCE = 60.0
"""Seconds that a task waits for a node that could try it, before it counts as failed."""


@dataclass(frozen=True)
class _Waiting:
    """A task for another node."""

    task: Task
    row: Result  # the failure where it was tried last
    since: float


@dataclass
class Reach:
    """What is known of the nodes and the inputs of pairs."""

    _waiting: dict[str, _Waiting] = field(default_factory=dict)  # by pair id
    _closed: defaultdict[str, dict[str, Result]] = field(  # pair id -> node -> the failure there
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
        """The nodes that could not open an input of a task that waits."""
        return {node for pair_id in self._waiting for node in self._closed[pair_id]}

    def could_not_open(
        self, task: Task, row: Result, node: str, now: float, *, driver_can: bool
    ) -> None:
        """Keep a task for other nodes. Where the driver can open its inputs, the node is suspect,
        and gets no other task until it is known."""
        pair_id = task.pair.pair_id
        self._waiting[pair_id] = _Waiting(task, row, now)
        self._closed[pair_id][node] = row
        if driver_can:
            self._suspects[node].add(pair_id)

    def opened(self, pair_id: str) -> dict[str, Result]:
        """Note that a node could open a pair's inputs; return the failures of those that could
        not, by node."""
        return self._forget(pair_id)

    def is_suspect(self, node: str) -> bool:
        """Return whether a node is to get no task that no other node has tried."""
        return bool(self._suspects.get(node))

    def take(self, node: str) -> Task | None:
        """Return a task that waits for a node like this one, if there is one."""
        for pair_id, waiting in self._waiting.items():
            if node not in self._closed[pair_id]:
                del self._waiting[pair_id]
                return waiting.task
        return None

    def give_up(self, nodes: Collection[str], now: float) -> list[Result]:
        """Return the failures of tasks that none of the nodes is left to try, or for too long has
        tried. They wait no longer."""
        hopeless = [
            (pair_id, waiting.row)
            for pair_id, waiting in self._waiting.items()
            if not set(nodes) - self._closed[pair_id].keys() or now - waiting.since > PATIENCE
        ]
        for pair_id, _ in hopeless:
            del self._waiting[pair_id]
            self._forget(pair_id)
        return [row for _, row in hopeless]

    def _forget(self, pair_id: str) -> dict[str, Result]:
        closed = self._closed.pop(pair_id, {})
        for node in closed:
            self._suspects[node].discard(pair_id)
        return closed
