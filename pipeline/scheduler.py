"""Runs pairs on workers: in this process, or on Ray actors. The only module that touches ray.

The driver owns recovery: actors never restart by themselves, a pair whose worker died goes back
to the queue, and only deaths that are the pair's own count against it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pipeline import storage
from pipeline.guard import ray_folder
from pipeline.memory import cores, kernel_kills, memory_limit
from pipeline.records import Pair, Result, Task, objective
from pipeline.timing import work
from pipeline.words import count
from pipeline.worker import Job, NotReadyError, Status, Worker, new_result
from stylize.config import AT_ONCE, together

__all__ = [
    "ClusterError",
    "Events",
    "Fleet",
    "Wanted",
    "order",
    "run_local",
    "run_ray",
    "size_fleet",
]

WORKER_MEMORY = 1.2e9, 1700
"""Bytes that a worker on the CPU takes: the libraries' own, and for each pixel of its picture up to
`AT_ONCE` of them; larger ones are seen in tiles. Measured; the highest of 512 to 2048 px, and the
0.3e9 more that Winograd's convolutions take, measured at 512."""

DEATHS = 2
"""A pair that took this many workers down with it is `poison`."""

_GRACE = 15.0  # seconds past the time limit before a worker that does not answer is killed
_STOP = 6.0  # seconds that pairs in hand have to end after the first Ctrl-C
_POLL = 0.5  # seconds between looks at what the workers are doing
_START = 300.0  # seconds without any worker or result before the cluster counts as unable
_LOST = 20.0  # the same before it is asked whether it is there at all
_JOIN = 5.0  # seconds that a cluster has to take a connection
_COUNT = 5.0  # seconds between looks at the nodes of a cluster
_HEAD = 40.0  # seconds that its head may not answer; after 60 Ray ends the process itself
_HEALTH = 30.0  # seconds until Ray knows for sure that a node went without a word
_STARTS = 3  # workers in a row that die as they start, before the run counts on fewer
_STORE = 80 * 2**20  # bytes of object store: only small records pass through


class ClusterError(Exception):
    """No cluster, no device, or no worker that can work: the run cannot go on."""


@dataclass(frozen=True)
class Wanted:
    """What the user asks for; 0 and "" leave it to the scheduler."""

    workers: int = 0
    threads: int = 0  # CPU threads of each worker
    device: str = "auto"
    address: str = ""  # of a cluster to join; "" starts Ray here
    rows: int = 0  # of the whole manifest; 0: unknown
    side: int = 512  # of its largest picture, pixels


@dataclass(frozen=True)
class Fleet:
    """How many workers, and what Ray is to grant each."""

    workers: int
    cpus: float
    gpus: float

    def room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many such workers these nodes hold: each must find its place on one of them."""
        return sum(
            int(node.get("GPU", 0)) * round(1 / self.gpus)
            if self.gpus
            else int(node.get("CPU", 0) / self.cpus)
            for node in nodes
        )


def size_fleet(nodes: Sequence[Mapping[str, float]], wanted: Wanted, todo: int = 0) -> Fleet:
    """The fleet that the resources of a cluster's nodes allow: two workers for each GPU, of which
    one decodes and encodes while the other paints, or one where it has but one batch of the `todo`
    pairs (0: unknown). Without a GPU, one for each core, as far as pairs and memory suffice; cores
    that are left over are their threads.

    One thread a worker does most (24 pairs at 256 px on two cores: 2 workers x 1 thread take
    0.90 of 1 x 2), for some of the work between convolutions runs on one thread alone. Threads are
    by the whole manifest and not by what is left of it, so that a run that goes on has the same,
    and so makes the same bytes. Raises `ClusterError` for a device that is not there.
    """
    cpus = max(1, sum(int(node.get("CPU", 0)) for node in nodes))
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if wanted.device == "cuda" and not gpus:
        raise ClusterError("--device cuda: Ray sees no GPU; use --device cpu, or --address")
    if gpus and wanted.device in ("auto", "cuda"):
        several = not todo or todo > gpus * together(wanted.side)  # batches for each
        cores = min(node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU", 0) >= 1)
        workers = wanted.workers or (2 * gpus if several and cores >= 2 else gpus)
        of_each = -(-workers // gpus)
        return Fleet(workers, cpus=min(1.0, cores / of_each), gpus=1 / of_each)
    fit = cpus if wanted.address else min(cpus, _fit_memory(wanted.side))
    most = wanted.workers or max(1, min(fit, wanted.rows or cpus))
    threads = wanted.threads or max(
        (n for n in range(1, cpus + 1) if Fleet(most, n, 0).room(nodes) >= most), default=1
    )
    workers = wanted.workers or max(1, min(fit, Fleet(most, threads, 0).room(nodes)))
    return Fleet(workers, cpus=min(threads, cpus / workers), gpus=0.0)


def _fit_memory(side: int) -> int:
    """How many workers three quarters of the memory hold that this process may use."""
    libraries, a_pixel = WORKER_MEMORY
    need = libraries + a_pixel * min(side**2, AT_ONCE)
    return max(1, int(0.75 * memory_limit() // need))


class Events(Protocol):
    """What the scheduler tells its caller, from the caller's own thread."""

    def on_results(self, results: Sequence[Result]) -> None: ...
    def on_status(self, statuses: Sequence[Status]) -> None: ...
    def on_note(self, line: str) -> None: ...
    def finished(self, pair: Pair) -> Result | None: ...  # what a dead worker had finished of it
    def on_started(self) -> None: ...  # Ray is up: signal handlers may be installed now
    def stop(self) -> int: ...  # 0 go on, 1 stop soon, 2 stop at once


def order(tasks: Sequence[Task], *, by_objective: bool = False) -> list[Task]:
    """Return the tasks in the order in which they are begun.

    Retries come last. The longest come first, so that no long one is left for the end. Of equally
    long ones those with one style are together, whose targets are then at hand; with
    `by_objective`, so are those that can be painted together.
    """

    def turn(task: Task) -> tuple[Any, ...]:
        pair = task.pair
        group = objective(pair) if by_objective else ()
        return task.is_retry, -work(pair.config), group, pair.style, pair.row

    return sorted(tasks, key=turn)


def _batch(pair: Pair, fleet: Fleet) -> int:
    """How many pairs of a size are painted together: one fills a CPU."""
    return together(pair.config.size) if fleet.gpus else 1


def run_local(tasks: Sequence[Task], job: Job, wanted: Wanted, events: Events) -> None:
    """Make all attempts in this process, one after the other, without Ray; the same contract as
    `run_ray`."""

    def on_status(status: Status) -> None:
        events.on_status([status])
        if events.stop():
            worker.stop()

    worker = Worker(replace(job, threads=wanted.threads), on_status)
    try:
        worker.ready()
    except NotReadyError as error:
        raise ClusterError(str(error)) from error
    events.on_started()
    for task in order(tasks):
        if events.stop():
            return
        events.on_status([Status(task.pair.pair_id, 0, task.pair.config.steps)])
        (result,) = worker.run([task])
        if result is not None:
            events.on_results([result])


@dataclass
class _Slot:
    """One actor, and what it was last asked."""

    actor: Any
    node: str = ""
    ready: Any = None  # the pending answer to ready(), until it came
    answer: Any = None  # the pending answer to run()
    tasks: list[Task] = field(default_factory=list)  # in hand
    began: float = 0.0
    kernel_kills: int = 0  # for memory, when the pairs were begun
    asked: Any = None  # the pending answer to status()
    status: Status = field(default_factory=Status)


@dataclass(frozen=True)
class _Death:
    """Of a worker with pairs in hand, on a node of which it shows in a while whether it lives."""

    tasks: list[Task]
    slot: _Slot
    error: Exception
    until: float


def run_ray(tasks: Sequence[Task], job: Job, wanted: Wanted, events: Events) -> None:
    """Make all attempts on Ray actors; return when each has a result, or when told to stop.

    Raises `ClusterError` where there is nothing to run on, and `storage.StorageError` where a
    picture cannot be written.
    """
    with _ray(wanted) as ray:
        events.on_started()
        fleet = size_fleet(list(_nodes(ray).values()), wanted, len(tasks))
        job = replace(
            job,
            threads=wanted.threads or max(1, int(fleet.cpus)),
            device=job.device if fleet.gpus and not _logical_gpus() else _without_gpu(job.device),
            expect_gpu=bool(fleet.gpus) and not _logical_gpus(),
        )
        queue = order(tasks, by_objective=bool(fleet.gpus))
        _Run(ray, queue, job, fleet, wanted, events).run()


def _nodes(ray: Any) -> dict[str, Mapping[str, float]]:
    """The resources of each node that is there, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _without_gpu(device: str) -> str:
    """The device of workers that Ray granted no GPU: they must not take one that torch happens to
    see. Apple's is none of Ray's resources."""
    return device if device == "mps" or sys.platform == "darwin" else "cpu"


def _logical_gpus() -> int:
    """How many GPUs a local Ray is told that it has, for tests on machines without one."""
    return int(os.environ.get("STYLIZE_LOGICAL_GPUS") or 0)


class _Run:
    """The driver's loop: a queue of pairs, a few slots, and `ray.wait`."""

    def __init__(
        self,
        ray: Any,
        queue: list[Task],
        job: Job,
        fleet: Fleet,
        wanted: Wanted,
        events: Events,
    ) -> None:
        self.ray = ray
        self.queue = queue[::-1]  # taken from the end
        self.job = job
        self.fleet = fleet
        self.wanted = wanted
        self.events = events
        self.workers = fleet.workers
        self.lost = 0  # workers that are not asked for again, for want of memory
        self.refused = 0  # and those that could not work where they started
        self.nodes = _nodes(ray)
        self.known: set[str] = set()  # nodes that `workers` counts
        self.grows = bool(wanted.address) and not wanted.workers
        self.over = threading.Event()
        self.refusals: list[str] = []  # of workers that cannot work, not told yet
        self.slots: list[_Slot] = []
        self.parked: list[_Death] = []
        self.deaths: dict[str, int] = {}
        self.short_of_memory: set[str] = set()
        self.apart: set[str] = set()  # of a group that died: from now on alone
        self.failed_starts = 0
        self.stopping_since = 0.0
        self.progressed = self.counted = time.monotonic()
        self.polled = 0.0
        options: dict[str, Any] = {
            "num_cpus": fleet.cpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {"control": 1},
        }
        if fleet.gpus:
            options["num_gpus"] = fleet.gpus
        self.actor_class = ray.remote(**options)(_actor(ray))

    def run(self) -> None:
        if self.wanted.address:
            threading.Thread(target=self._watch_nodes, daemon=True).start()
        try:
            while self.queue or self.parked or any(slot.answer for slot in self.slots):
                level = self.events.stop()
                if level and not self._wind_down(level):
                    return
                if not level:
                    self._count_nodes()
                    self._hire()
                self._wait()
                self._judge_parked()
                self._watch_clocks()
                self._look()
        finally:
            self.over.set()
            for slot in self.slots:
                with contextlib.suppress(Exception):
                    self.ray.kill(slot.actor)

    def _wind_down(self, level: int) -> bool:
        """Ask the workers to stop; False when there is nothing left to wait for."""
        if not self.stopping_since:
            self.stopping_since = time.monotonic()
            for slot in self.slots:
                slot.actor.stop.remote()
        waited = time.monotonic() - self.stopping_since
        return level < 2 and waited < _STOP and any(slot.answer for slot in self.slots)

    def _hire(self) -> None:
        """Give idle workers a pair, and ask for more workers while pairs are left over."""
        for slot in self.slots:
            if slot.ready is None and slot.answer is None and self.queue:
                self._give(slot)
        most = self._most_workers()
        pending = [slot for slot in self.slots if slot.ready is not None]
        while len(self.slots) > most and pending:
            self._drop(pending.pop())
        starting = len(pending)
        while len(self.slots) < most and starting < len(self.queue):
            actor = self.actor_class.remote(self.job)
            self.slots.append(_Slot(actor, ready=actor.ready.remote()))
            starting += 1

    def _most_workers(self) -> int:
        """As many as there is room for, but those that were lost; on a cluster one more, whose
        request tells an autoscaler that there is work."""
        lost = self.lost + self.refused
        one_more = self.grows and not lost
        return max(1, self.workers + one_more - lost)

    def _count_nodes(self) -> None:
        """More workers where nodes joined; what others refused may go on those."""
        nodes = self.nodes  # another thread's, which puts others in their place
        if self.grows and nodes.keys() - self.known:
            self.known |= nodes.keys()
            self.refused = 0
            self.workers = max(self.workers, self.fleet.room(list(nodes.values())))

    def _watch_nodes(self) -> None:
        """Look at the nodes of a cluster in a thread of its own: it may take long to answer, and
        where its head is gone it never does."""
        while not self.over.wait(_COUNT):
            with contextlib.suppress(Exception):  # no answer is what `counted` shows
                self.nodes = _nodes(self.ray)
                self.counted = time.monotonic()

    def _give(self, slot: _Slot) -> None:
        if self.short_of_memory and any(s.answer for s in self.slots):
            if self.queue[-1].pair.pair_id in self.short_of_memory:
                return  # it is tried alone
            if any(t.pair.pair_id in self.short_of_memory for s in self.slots for t in s.tasks):
                return
        slot.tasks = self._take()
        slot.began = time.monotonic()
        slot.kernel_kills = kernel_kills()
        first = slot.tasks[0].pair
        slot.status = Status(first.pair_id, 0, first.config.steps, batch=len(slot.tasks))
        slot.answer = slot.actor.run.remote(slot.tasks)

    def _take(self) -> list[Task]:
        """Return the next task, and those behind it that can be painted together with it."""
        tasks = [self.queue.pop()]
        first = tasks[0].pair
        # Towards the end the last workers must not wait for one that has many.
        share = -(-(len(self.queue) + 1) // self._most_workers())
        size = self.job.batch or min(_batch(first, self.fleet), share)
        while (
            len(tasks) < size
            and self.queue
            and objective(self.queue[-1].pair) == objective(first)
            and not self.apart & {first.pair_id, self.queue[-1].pair.pair_id}
        ):
            tasks.append(self.queue.pop())
        return tasks

    def _wait(self) -> None:
        waiting = {s.answer if s.ready is None else s.ready: s for s in self.slots}
        waiting.pop(None, None)
        if not waiting:
            time.sleep(0.05)
            return
        done, _ = self.ray.wait(list(waiting), num_returns=1, timeout=0.2)
        for ref in done:
            self.progressed = time.monotonic()
            slot = waiting[ref]
            if slot.ready is not None:
                self._readied(slot)
            else:
                self._finished(slot)
        if self.wanted.address and time.monotonic() - self.counted > _HEAD:
            raise ClusterError("the cluster's head does not answer; run again when it does")
        # With workers at work a cluster may take its time to grant another one.
        idle = time.monotonic() - self.progressed
        if idle < _LOST or any(slot.answer for slot in self.slots):
            return
        if not _nodes(self.ray):
            raise ClusterError("Ray itself ended: it has no node left; run again to go on")
        if idle > _START:
            raise ClusterError(
                f"no worker could start within {_START:.0f} s; the cluster has too few free "
                f"resources (each worker wants {self.fleet.cpus:g} CPUs, {self.fleet.gpus:g} GPUs)"
            )

    def _readied(self, slot: _Slot) -> None:
        try:
            slot.node = self.ray.get(slot.ready)[0]
        except self.ray.exceptions.RayTaskError as error:
            self._refused(slot, str(error.cause))
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts < _STARTS:
                self._drop(slot)
            else:
                self._refused(slot, f"workers die as they start: {_line(error)}")
        else:
            slot.ready = None
            self.failed_starts = 0
            for refusal in self.refusals:
                self.events.on_note(f"a worker less: {refusal}")
            self.refusals = []

    def _refused(self, slot: _Slot, reason: str) -> None:
        """A worker that cannot work: the run goes on as long as there is another one."""
        self._drop(slot)
        self.refused += 1
        if any(other.ready is None for other in self.slots):
            self.events.on_note(f"a worker less: {reason}")
        elif self.slots:
            self.refusals.append(reason)
        else:
            raise ClusterError(reason)

    def _finished(self, slot: _Slot) -> None:
        answer, tasks, slot.answer, slot.tasks = slot.answer, slot.tasks, None, []
        slot.status = Status()
        try:
            results = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, storage.StorageError):
                raise error.cause from None
            for task in tasks:
                self._fail(task, "failed", type(error.cause).__name__, _line(error.cause))
            return
        except self.ray.exceptions.RayError as error:
            self._drop(slot)
            self._died(tasks, slot, error)
            return
        # What was stopped stays pending.
        self.queue += [task for task, row in zip(tasks, results, strict=True) if row is None]
        if painted := [row for row in results if row is not None]:
            self.short_of_memory -= {row.pair_id for row in painted}
            if not self.stopping_since:
                self._hire()  # before what takes the disk's time
            self.events.on_results(painted)

    def _died(self, tasks: list[Task], slot: _Slot, error: Exception) -> None:
        """A worker died with pairs in hand: is it a pair's doing?"""
        left = [task for task in tasks if not self._is_finished(task)]
        if not left or self.stopping_since:
            self.queue += left[::-1]
        elif self.wanted.address:
            # The health check of a node that is going lags behind, most where it went at once.
            unreachable = isinstance(error, self.ray.exceptions.ActorUnavailableError)
            until = time.monotonic() + (_HEALTH if unreachable else _HEALTH / 3)
            self.parked.append(_Death(left, slot, error, until))
        else:
            self._blame(left, slot, error)

    def _judge_parked(self) -> None:
        """Are the nodes of workers that died still there? Then it was the pairs' doing."""
        if not self.parked:
            return
        for death in list(self.parked):
            if death.slot.node not in self.nodes or self.stopping_since:
                self.parked.remove(death)
                self.queue += death.tasks[::-1]
            elif time.monotonic() > death.until:
                self.parked.remove(death)
                self._blame(death.tasks, death.slot, death.error)

    def _blame(self, tasks: list[Task], slot: _Slot, error: Exception) -> None:
        """What becomes of pairs that took their worker down."""
        first = tasks[0].pair.pair_id
        if len(tasks) > 1:  # whose, shows when each is alone
            self.apart |= {task.pair.pair_id for task in tasks}
            self.events.on_note(
                f"{first} and {len(tasks) - 1} more: their worker died; each is tried alone"
            )
            self.queue += tasks[::-1]
            return
        # Ray's text for any death by SIGKILL speaks of memory; these words are its monitor's own.
        memory = (
            isinstance(error, self.ray.exceptions.OutOfMemoryError)
            or "running low on memory" in str(error)
            or kernel_kills() > slot.kernel_kills
        )
        if memory and first not in self.short_of_memory:
            self.short_of_memory.add(first)
            self.lost += 1
            self.events.on_note(
                f"{first}: its worker was killed for memory; it is tried alone, and "
                f"{count(self._most_workers(), 'worker')} at most from now on"
            )
            self.queue.insert(0, tasks[0])
            return
        self.deaths[first] = self.deaths.get(first, 0) + 1
        if self.deaths[first] >= DEATHS:
            message = f"its worker died {DEATHS} times: {_line(error)}"
            self._fail(tasks[0], "poison", "WorkerDied", message)
            return
        self.events.on_note(f"{first}: its worker died; trying again")
        self.queue.insert(0, tasks[0])

    def _is_finished(self, task: Task) -> bool:
        """Whether its picture was written before its worker died; then it is recorded."""
        result = self.events.finished(task.pair)
        if result is not None:
            self.events.on_results([result])
        return result is not None

    def _watch_clocks(self) -> None:
        """Kill what is past its time limit and does not answer."""
        if not self.job.timeout:
            return
        for slot in [s for s in self.slots if s.answer]:
            limit = self.job.timeout * len(slot.tasks)
            if time.monotonic() - slot.began > limit + _GRACE:
                self._drop(slot)
                left = [task for task in slot.tasks if not self._is_finished(task)]
                if not left:
                    continue
                if len(slot.tasks) > 1:
                    self.apart |= {task.pair.pair_id for task in left}
                    self.queue += left[::-1]
                    continue
                self._fail(
                    left[0],
                    "timeout",
                    "TimeLimitError",
                    f"hung: no answer {_GRACE:g} s after the limit of {limit:g} s",
                )

    def _fail(self, task: Task, status: str, kind: str, message: str) -> None:
        row = new_result(task)
        failed = replace(
            row,
            status=status,
            error_type=kind,
            error_message=message,
            finished_at=row.started_at,
        )
        self.events.on_results([failed])

    def _drop(self, slot: _Slot) -> None:
        self.slots.remove(slot)
        with contextlib.suppress(Exception):
            self.ray.kill(slot.actor)

    def _look(self) -> None:
        """Ask what the workers are doing, without waiting for the answer."""
        if time.monotonic() - self.polled < _POLL:
            return
        self.polled = time.monotonic()
        asked = [slot for slot in self.slots if slot.asked is not None]
        refs = [slot.asked for slot in asked]
        done = self.ray.wait(refs, num_returns=len(refs), timeout=0)[0] if refs else []
        for slot in asked:
            if slot.asked in done:
                with contextlib.suppress(self.ray.exceptions.RayError):
                    status = self.ray.get(slot.asked)
                    if slot.answer and status.pair_id in {t.pair.pair_id for t in slot.tasks}:
                        slot.status = status
                slot.asked = None
        for slot in self.slots:
            if slot.answer and slot.asked is None:
                slot.asked = slot.actor.status.remote()
        self.events.on_status([slot.status for slot in self.slots])


def _actor(ray: Any) -> type:
    """`Worker` as an actor: its questions have a thread of their own, beside the pair in hand."""

    class StyleWorker(Worker):
        def ready(self) -> Any:
            device = super().ready()
            return ray.get_runtime_context().get_node_id(), device

        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def status(self) -> Status:
            return super().status()

        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def stop(self) -> None:
            super().stop()

    return StyleWorker


def _line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""Where Ray starts: workers import first from the folder where that was, and the user's may have a
pipeline.py of its own."""

_UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")
"""What starts processes of Ray that a run on one machine has no use for: its autoscaler's, its
logs' for drivers and its dashboard's, which is there without a dashboard, too. On two cores they
keep the first pair waiting for 2 to 3 s."""


@contextlib.contextmanager
def _lean(node: Any) -> Iterator[None]:
    """Ray's `Node` starts no process of `_UNUSED` meanwhile."""
    kept = {name: getattr(node, name) for name in _UNUSED if hasattr(node, name)}
    for name in kept:
        setattr(node, name, lambda *args, **options: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(node, name, method)


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens: Ray tries for most of a minute, deaf to Ctrl-C."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=_JOIN).close()


@contextlib.contextmanager
def _ray(wanted: Wanted) -> Iterator[Any]:
    """Ray, joined or started here; what was started here is gone afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray._private.node
    import ray._private.worker

    logging.getLogger("ray").setLevel(logging.ERROR)
    # Else Ray tells of each worker that died on standard output, in colours even to a file,
    # whatever `log_to_driver` says.
    ray._private.worker._worker_logs_enabled = False
    if wanted.address:
        try:
            _knock(wanted.address)
            with contextlib.chdir(_HOME):
                ray.init(address=wanted.address, log_to_driver=False, logging_level=logging.ERROR)
        except SystemExit:  # Ray's own answer to a SIGTERM meanwhile
            raise KeyboardInterrupt from None
        except Exception as error:
            raise ClusterError(f"no Ray cluster at {wanted.address}: {_line(error)}") from error
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    with ray_folder() as folder:
        try:
            with _lean(ray._private.node.Node), contextlib.chdir(_HOME):
                ray.init(
                    address="local",
                    num_cpus=max(cores(), wanted.workers * wanted.threads),
                    num_gpus=0 if wanted.device == "cpu" else _logical_gpus() or None,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=_STORE,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                )
        except SystemExit:  # Ray's own answer to a SIGTERM meanwhile
            raise KeyboardInterrupt from None
        except Exception as error:
            raise ClusterError(f"Ray could not start here: {_line(error)}") from error
        try:
            yield ray
        finally:
            with contextlib.suppress(Exception):
                ray.shutdown()
            sys.stderr.flush()
