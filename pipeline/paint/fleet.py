"""How many workers a machine or cluster gets, and in which order they take the pairs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.cost import work
from pipeline.paint.caller import ClusterError
from pipeline.records import Pair, Task, objective
from stylize.config import AT_ONCE, together

__all__ = ["WORKER_MEMORY", "Fleet", "Headcount", "Nodes", "Wanted", "order", "size_fleet"]

WORKER_MEMORY = 1.2e9, 1700
"""Bytes that a worker on the CPU needs: for the libraries, and for each pixel of its picture, of
which it sees at most `AT_ONCE` at a time. Measured: the highest of 512 to 2048 px, plus 0.3e9 for
Winograd's convolutions, measured at 512."""

Nodes = Mapping[str, Mapping[str, float]]
"""The resources of each node of a cluster, by its id: ``{"…": {"CPU": 8, "GPU": 1}}``."""


@dataclass(frozen=True)
class Wanted:
    """What the user asks for. 0 and "" mean that it is chosen automatically."""

    workers: int = 0
    threads: int = 0  # CPU threads of each worker
    device: str = "auto"
    address: str = ""  # of a cluster to join; "" starts Ray here
    wait_nodes: float = 600.0  # seconds that a cluster has to offer a node to work on
    rows: int = 0  # of the whole manifest; 0: unknown
    side: int = 512  # of its largest picture, pixels


@dataclass(frozen=True)
class Fleet:
    """How many workers, and what Ray is to grant each."""

    workers: int
    cpus: float
    gpus: float

    def room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many such workers the nodes hold. Each worker must fit on one node."""
        return sum(
            int(node.get("GPU", 0)) * round(1 / self.gpus)
            if self.gpus
            else int(node.get("CPU", 0) / self.cpus)
            for node in nodes
        )

    def batch(self, pair: Pair) -> int:
        """Return how many pairs of this size are painted together. One fills a CPU."""
        return together(pair.config.side) if self.gpus else 1


def size_fleet(
    nodes: Sequence[Mapping[str, float]], wanted: Wanted, todo: int = 0, memory: int | None = None
) -> Fleet:
    """Return the fleet that the nodes' resources allow for `todo` pairs (0: unknown).

    With GPUs: two workers for each, so that one decodes and encodes while the other paints; or one
    where `todo` is a single batch for each GPU. Without: one worker for each core, as far as pairs
    and `memory` (bytes of this machine) suffice; the cores that are left over become threads.

    Many workers with one thread each paint more than few with many (24 pairs at 256 px on two
    cores: 2 workers x 1 thread take 0.90 of the time of 1 x 2), because part of the work between
    convolutions runs on one thread. The number of threads depends on the whole manifest, not on
    what is left of it, so that a resumed run has the same and writes the same bytes.
    Raises `ClusterError` for a device that is not there. A cluster may yet get a node that has it.
    """
    cpus = max(1, sum(int(node.get("CPU", 0)) for node in nodes))
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if wanted.device == "cuda" and not gpus and wanted.address:
        return Fleet(wanted.workers or 1, cpus=1.0, gpus=1.0)
    if wanted.device == "cuda" and not gpus:
        raise ClusterError("--device cuda: Ray sees no GPU; use --device cpu, or --address")
    if gpus and wanted.device in ("auto", "cuda"):
        several = not todo or todo > gpus * together(wanted.side)  # batches for each
        cores = min(node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU", 0) >= 1)
        workers = wanted.workers or (2 * gpus if several and cores >= 2 else gpus)
        of_each = -(-workers // gpus)
        return Fleet(workers, cpus=min(1.0, cores / of_each), gpus=1 / of_each)
    fit = cpus if wanted.address or memory is None else min(cpus, _fit_memory(wanted.side, memory))
    most = wanted.workers or max(1, min(fit, wanted.rows or cpus))
    threads = wanted.threads or max(
        (n for n in range(1, cpus + 1) if Fleet(most, n, 0).room(nodes) >= most), default=1
    )
    workers = wanted.workers or max(1, min(fit, Fleet(most, threads, 0).room(nodes)))
    return Fleet(workers, cpus=min(threads, cpus / workers), gpus=0.0)


def _fit_memory(side: int, memory: int) -> int:
    """Return how many workers fit into three quarters of the memory."""
    libraries, a_pixel = WORKER_MEMORY
    need = libraries + a_pixel * min(side**2, AT_ONCE)
    return max(1, int(0.75 * memory // need))


def order(tasks: Sequence[Task], *, by_objective: bool = False) -> list[Task]:
    """Return the tasks in the order in which they are begun.

    Retries come last. The longest come first, so that no long one is left for the end. Among
    equally long ones, those with one style are together, because its targets are then at hand;
    with `by_objective`, so are those that can be painted together.
    """

    def turn(task: Task) -> tuple[Any, ...]:
        pair = task.pair
        group = objective(pair) if by_objective else ()
        return task.is_retry, -work(pair.config), group, pair.style, pair.row

    return sorted(tasks, key=turn)


@dataclass
class Headcount:
    """How many workers to have, as nodes join and workers turn out to be useless.

    On a cluster that grows, one worker more than there is room for is asked for: its pending
    request tells an autoscaler that there is work.
    """

    fleet: Fleet
    grows: bool  # with the nodes that join
    workers: int = field(init=False)
    short_of_memory: int = 0  # workers that are not replaced, because memory ran out
    refused: int = 0  # workers that could not work where they started
    _known: set[str] = field(default_factory=set)  # nodes that `workers` counts

    def __post_init__(self) -> None:
        self.workers = self.fleet.workers

    @property
    def most(self) -> int:
        """The number of workers at most, at least 1."""
        fewer = self.short_of_memory + self.refused
        one_more = self.grows and not fewer
        return max(1, self.workers + one_more - fewer)

    def see(self, nodes: Nodes) -> bool:
        """Count the nodes that joined; return whether there are any. Work that others refused may
        go there."""
        if not self.grows or not nodes.keys() - self._known:
            return False
        self._known |= nodes.keys()
        self.refused = 0
        self.workers = max(self.workers, self.fleet.room(list(nodes.values())))
        return True

    def leave_out(self, rest: Nodes) -> None:
        """Go on with the rest of the nodes alone."""
        self.workers = min(self.workers, max(1, self.fleet.room(list(rest.values()))))
