"""Paints pairs on Ray actors, by way of `ray_session`.

The driver owns recovery: actors never restart by themselves, and a pair whose worker died goes
back into the queue, as `recovery` decides.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipeline import storage
from pipeline.paint.attempts import failed_row, new_row
from pipeline.paint.caller import Caller, ClusterError, Stop
from pipeline.paint.fleet import Fleet, Headcount, Nodes, Wanted, order, size_fleet
from pipeline.paint.ray_session import (
    Actor,
    Ray,
    Reference,
    alive_nodes,
    first_line,
    logical_gpus,
    session,
)
from pipeline.paint.recovery import DEATHS, Death, Decision, Recovery, What
from pipeline.paint.resources import kernel_kills, memory_limit
from pipeline.paint.worker import DeviceLostError, Job, Worker
from pipeline.records import Result, Status, Task, objective
from pipeline.text import count

__all__ = ["run_ray"]

_GRACE = 15.0  # seconds past the time limit before a worker that does not answer is killed
_STOP = 6.0  # seconds that pairs in hand have to end after the first Ctrl-C
_POLL = 0.5  # seconds between looks at what the workers are doing
_WAIT = 0.2  # seconds that an answer is waited for at a time
_START = 300.0  # seconds without any worker or result before the cluster counts as unable
_LOST = 20.0  # seconds of the same before it is asked whether it is there at all
_COUNT = 5.0  # seconds between looks at the nodes of a cluster
_HEAD = 40.0  # seconds that its head may not answer; after 60 Ray ends the process itself
_STARTS = 3  # workers in a row that die as they start, before the run counts on fewer
_STDERR_BYTES = 20_000  # of each worker's standard error that go into the log


def run_ray(tasks: Sequence[Task], job: Job, wanted: Wanted, caller: Caller) -> None:
    """Make all attempts on Ray actors; return when each has a row, or when told to stop.

    Raises `ClusterError` where there is nothing to run on, and `storage.StorageError` where a
    picture cannot be written.
    """
    with session(wanted) as ray:
        caller.on_started()
        nodes = list(alive_nodes(ray).values())
        fleet = size_fleet(nodes, wanted, len(tasks), memory_limit())
        real_gpus = bool(fleet.gpus) and not logical_gpus()
        job = replace(
            job,
            threads=wanted.threads or max(1, int(fleet.cpus)),
            device=job.device if real_gpus else _without_gpu(job.device),
            expect_gpu=real_gpus,
        )
        queue = order(tasks, by_objective=bool(fleet.gpus))
        _Driver(ray, queue, job, fleet, wanted, caller).run()


def _without_gpu(device: str) -> str:
    """Return the device of workers that Ray granted no GPU: they must not take one that torch
    happens to see. Apple's is none of Ray's resources."""
    return device if device == "mps" or sys.platform == "darwin" else "cpu"


class Place(NamedTuple):
    """Where a worker runs."""

    node: str
    device: str
    stderr: str  # path of the file that has its standard error


@dataclass
class _Seat:
    """One actor, and what it was last asked."""

    actor: Actor
    place: Place = Place("", "", "")
    starting: Reference | None = None  # the answer to ready(), until it came
    painting: Reference | None = None  # the answer to run()
    tasks: list[Task] = field(default_factory=list)  # in hand
    began: float = 0.0
    kernel_kills: int = 0  # for memory, when the tasks were begun
    asked: Reference | None = None  # the answer to status()
    status: Status = field(default_factory=Status)


class _NodeWatch:
    """The nodes of a cluster, looked at by a thread of its own: a cluster may take long to answer,
    and one whose head is gone never does."""

    def __init__(self, ray: Ray) -> None:
        self._ray = ray
        self._latest = time.monotonic(), alive_nodes(ray)  # replaced as a whole, never changed
        self._over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._keep_looking, daemon=True).start()

    def end(self) -> None:
        self._over.set()

    @property
    def nodes(self) -> Nodes:
        return self._latest[1]

    @property
    def silence(self) -> float:
        """Seconds since the cluster last answered."""
        return time.monotonic() - self._latest[0]

    def _keep_looking(self) -> None:
        while not self._over.wait(_COUNT):
            with contextlib.suppress(Exception):  # no answer is what `silence` shows
                self._latest = time.monotonic(), alive_nodes(self._ray)


class _Driver:
    """The loop: a queue of tasks, a few actors, and `ray.wait`."""

    def __init__(
        self,
        ray: Ray,
        queue: Sequence[Task],
        job: Job,
        fleet: Fleet,
        wanted: Wanted,
        caller: Caller,
    ) -> None:
        self.ray = ray
        self.queue = deque(queue)
        self.job = job
        self.fleet = fleet
        self.caller = caller
        self.on_cluster = bool(wanted.address)
        self.headcount = Headcount(fleet, grows=self.on_cluster and not wanted.workers)
        self.recovery = Recovery(self.on_cluster)
        self.watch = _NodeWatch(ray)
        self.seats: list[_Seat] = []
        self.refusals: list[str] = []  # of workers that cannot work, not told yet
        self.failed_starts = 0
        self.stopping_since = 0.0
        self.progressed = time.monotonic()
        self.polled = 0.0
        self.actor_class = ray.remote(**_actor_options(fleet))(_actor_type(ray))

    def run(self) -> None:
        if self.on_cluster:
            self.watch.start()
        try:
            while self.queue or self.recovery.waits or self._busy():
                stop = self.caller.stop_requested()
                if stop and not self._wind_down(stop):
                    return
                if not stop:
                    self.headcount.see(self.watch.nodes)
                    self._hire()
                self._wait()
                self._judge_waiting()
                self._watch_clocks()
                self._look()
        finally:
            self.watch.end()
            for seat in list(self.seats):
                self._dismiss(seat)

    def _busy(self) -> list[_Seat]:
        return [seat for seat in self.seats if seat.painting is not None]

    def _wind_down(self, stop: Stop) -> bool:
        """Ask the workers to stop; return False when there is nothing left to wait for."""
        if not self.stopping_since:
            self.stopping_since = time.monotonic()
            for seat in self.seats:
                seat.actor.stop.remote()
        waited = time.monotonic() - self.stopping_since
        return stop < Stop.AT_ONCE and waited < _STOP and bool(self._busy())

    # --- giving work ---

    def _hire(self) -> None:
        """Give idle workers a task, and ask for more workers while tasks are left over."""
        for seat in self.seats:
            if seat.starting is None and seat.painting is None and self.queue:
                self._give(seat)
        most = self.headcount.most
        starting = [seat for seat in self.seats if seat.starting is not None]
        while len(self.seats) > most and starting:
            self._dismiss(starting.pop())
        pending = len(starting)
        while len(self.seats) < most and pending < len(self.queue):
            actor = self.actor_class.remote(self.job)
            self.seats.append(_Seat(actor, starting=actor.ready.remote()))
            pending += 1

    def _give(self, seat: _Seat) -> None:
        in_hand = [task for other in self._busy() for task in other.tasks]
        if self.recovery.must_wait(self.queue[0], in_hand):
            return
        seat.tasks = self._take()
        seat.began = time.monotonic()
        seat.kernel_kills = kernel_kills()
        first = seat.tasks[0].pair
        seat.status = Status(first.pair_id, 0, first.config.steps, batch=len(seat.tasks))
        seat.painting = seat.actor.run.remote(seat.tasks)

    def _take(self) -> list[Task]:
        """Return the next task, and those behind it that can be painted together with it."""
        tasks = [self.queue.popleft()]
        first, alike = tasks[0], objective(tasks[0].pair)
        # Towards the end the last workers must not wait for one that has many.
        share = -(-(len(self.queue) + 1) // self.headcount.most)
        size = self.job.batch or min(self.fleet.batch(first.pair), share)
        while (
            len(tasks) < size
            and self.queue
            and objective(self.queue[0].pair) == alike
            and not self.recovery.must_be_apart(first, self.queue[0])
        ):
            tasks.append(self.queue.popleft())
        return tasks

    def _put_first(self, tasks: Sequence[Task]) -> None:
        self.queue.extendleft(reversed(tasks))

    # --- taking answers ---

    def _wait(self) -> None:
        """Take the next answer, if one comes soon."""
        waiting: dict[Reference, _Seat] = {}
        for seat in self.seats:
            awaited = seat.painting if seat.starting is None else seat.starting
            if awaited is not None:
                waiting[awaited] = seat
        if not waiting:
            time.sleep(0.05)
            return
        answers, _ = self.ray.wait(list(waiting), num_returns=1, timeout=_WAIT)
        for answer in answers:
            self.progressed = time.monotonic()
            seat = waiting[answer]
            if seat.starting is not None:
                self._readied(seat)
            else:
                self._finished(seat)
        self._check_cluster()

    def _check_cluster(self) -> None:
        """Raise `ClusterError` where nothing can come any more."""
        if self.on_cluster and self.watch.silence > _HEAD:
            raise ClusterError("the cluster's head does not answer; run again when it does")
        # While workers are at work, a cluster may take its time to grant another one.
        idle = time.monotonic() - self.progressed
        if idle < _LOST or self._busy():
            return
        if not alive_nodes(self.ray):
            raise ClusterError("Ray itself ended: it has no node left; run again to go on")
        if idle > _START:
            raise ClusterError(
                f"no worker could start within {_START:.0f} s; the cluster has too few free "
                f"resources (each worker wants {self.fleet.cpus:g} CPUs, {self.fleet.gpus:g} GPUs)"
            )

    def _readied(self, seat: _Seat) -> None:
        try:
            seat.place = Place(*self.ray.get(seat.starting))
        except self.ray.exceptions.RayTaskError as error:
            self._refused(seat, str(error.cause))
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts < _STARTS:
                self._dismiss(seat)
            else:
                self._refused(seat, f"workers die as they start: {first_line(error)}")
        else:
            seat.starting = None
            self.failed_starts = 0
            self.caller.on_event("worker started", **seat.place._asdict())
            for refusal in self.refusals:
                self._tell_refusal(refusal)
            self.refusals = []

    def _refused(self, seat: _Seat, reason: str) -> None:
        """A worker cannot work. The run goes on as long as there is another one."""
        self._dismiss(seat)
        self.headcount.refused += 1
        if any(other.starting is None for other in self.seats):
            self._tell_refusal(reason)
        elif self.seats:
            self.refusals.append(reason)
        else:
            raise ClusterError(reason)

    def _tell_refusal(self, reason: str) -> None:
        self.caller.on_note(f"one worker fewer: {reason}")

    def _finished(self, seat: _Seat) -> None:
        answer, tasks = seat.painting, seat.tasks
        seat.painting, seat.tasks, seat.status = None, [], Status()
        try:
            rows: list[Result | None] = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, storage.StorageError):
                raise error.cause from None
            for task in tasks:  # `Worker.run` catches what a pair can do, so this is a bug
                self._record(replace(failed_row(new_row(task), error.cause), traceback=str(error)))
        except self.ray.exceptions.RayError as error:
            self._died(seat, tasks, error)
        else:
            # What was stopped stays pending.
            stopped = [task for task, row in zip(tasks, rows, strict=True) if row is None]
            self.queue.extendleft(stopped)
            if painted := [row for row in rows if row is not None]:
                self.recovery.painted({row.pair_id for row in painted})
                if not self.stopping_since:
                    self._hire()  # before what takes the disk's time
                self.caller.on_results(painted)

    def _record(self, row: Result) -> None:
        self.caller.on_results([replace(row, finished_at=row.started_at)])

    # --- deaths ---

    def _died(self, seat: _Seat, tasks: Sequence[Task], error: Exception) -> None:
        """A worker died with tasks in hand."""
        self._dismiss(seat)
        unpainted = [task for task in tasks if not self._is_painted(task)]
        if not unpainted or self.stopping_since:
            self._put_first(unpainted)
            return
        of_memory = (
            isinstance(error, self.ray.exceptions.OutOfMemoryError)
            # Ray's text for any death by SIGKILL speaks of memory; these are its monitor's words.
            or "running low on memory" in str(error)
            or kernel_kills() > seat.kernel_kills
        )
        unreachable = isinstance(error, self.ray.exceptions.ActorUnavailableError)
        death = Death(unpainted, seat.place.node, first_line(error), of_memory, unreachable)
        self.caller.on_event(
            "worker died",
            pairs=[task.pair.pair_id for task in unpainted],
            cause=str(error),
            of_memory=of_memory,
        )
        self._carry_out(self.recovery.judge(death, time.monotonic()))

    def _judge_waiting(self) -> None:
        stopping = bool(self.stopping_since)
        for decision in self.recovery.due(time.monotonic(), self.watch.nodes, stopping=stopping):
            self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> None:
        what, death = decision.what, decision.death
        pair_ids = [task.pair.pair_id for task in death.tasks]
        self.caller.on_event("death judged", pairs=pair_ids, decision=what.value)
        if what is What.SPLIT:
            self.caller.on_note(
                f"{death.pair_id} and {len(death.tasks) - 1} more: their worker died; each is "
                "tried alone"
            )
        elif what is What.ALONE:
            self.headcount.short_of_memory += 1
            self.caller.on_note(
                f"{death.pair_id}: its worker was killed for memory; it is tried alone, and the "
                f"run keeps at most {count(self.headcount.most, 'worker')}"
            )
        elif what is What.AGAIN:
            self.caller.on_note(f"{death.pair_id}: its worker died; trying again")
        if what in (What.SPLIT, What.RETURN):
            self._put_first(death.tasks)
        elif what in (What.ALONE, What.AGAIN):
            self.queue.extend(death.tasks)
        elif what is What.POISON:
            (task,) = death.tasks
            self._record(
                replace(
                    new_row(task),
                    status="poison",
                    error_type="WorkerDied",
                    error_message=f"its worker died {DEATHS} times: {death.cause}",
                )
            )

    def _is_painted(self, task: Task) -> bool:
        """Whether its picture was written before its worker died; then it is recorded."""
        row = self.caller.finished_row(task.pair)
        if row is not None:
            self.caller.on_results([row])
        return row is not None

    def _watch_clocks(self) -> None:
        """Kill workers that are past their time limit and do not answer."""
        if not self.job.timeout:
            return
        for seat in self._busy():
            limit = self.job.timeout * len(seat.tasks)
            if time.monotonic() - seat.began <= limit + _GRACE:
                continue
            self._dismiss(seat)
            unpainted = [task for task in seat.tasks if not self._is_painted(task)]
            if len(seat.tasks) > 1:  # which one hangs shows when each is alone
                self.recovery.split(unpainted)
                self._put_first(unpainted)
                continue
            for task in unpainted:
                message = f"hung: no answer {_GRACE:g} s after the limit of {limit:g} s"
                self._record(
                    replace(
                        new_row(task),
                        status="timeout",
                        error_type="TimeLimitError",
                        error_message=message,
                    )
                )

    def _dismiss(self, seat: _Seat) -> None:
        """End a worker, dead or alive."""
        self.seats.remove(seat)
        said = _end_of(seat.place.stderr)
        self.caller.on_event("worker ended", **seat.place._asdict(), said=said)
        with contextlib.suppress(Exception):
            self.ray.kill(seat.actor)

    # --- looking ---

    def _look(self) -> None:
        """Ask what the workers are doing, without waiting for the answers."""
        if time.monotonic() - self.polled < _POLL:
            return
        self.polled = time.monotonic()
        asked = {seat.asked: seat for seat in self.seats if seat.asked is not None}
        answers = list(asked)
        if answers:
            answers, _ = self.ray.wait(answers, num_returns=len(answers), timeout=0)
        for answer in answers:
            seat = asked[answer]
            seat.asked = None
            with contextlib.suppress(self.ray.exceptions.RayError):
                status: Status = self.ray.get(answer)
                if status.pair_id in {task.pair.pair_id for task in seat.tasks}:
                    seat.status = status
        for seat in self._busy():
            if seat.asked is None:
                seat.asked = seat.actor.status.remote()
        self.caller.on_status([seat.status for seat in self.seats])


def _actor_options(fleet: Fleet) -> Mapping[str, Any]:
    """Return what Ray grants each actor. It never restarts one by itself."""
    gpus = {"num_gpus": fleet.gpus} if fleet.gpus else {}
    return {
        "num_cpus": fleet.cpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "concurrency_groups": {"control": 1},
        **gpus,
    }


def _actor_type(ray: Any) -> type:
    """Return `Worker` as an actor. Questions have a thread of their own, beside the tasks."""

    class StyleWorker(Worker):
        def ready(self) -> Any:
            device = super().ready()
            return ray.get_runtime_context().get_node_id(), device, _path_of(2)

        def run(self, tasks: Sequence[Task]) -> list[Result | None]:
            try:
                return super().run(tasks)
            except DeviceLostError as error:  # this process is of no use any more
                print(f"worker ends: {error}", file=sys.stderr, flush=True)
                os._exit(70)

        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def status(self) -> Status:
            return super().status()

        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def stop(self) -> None:
            super().stop()

    return StyleWorker


def _path_of(descriptor: int) -> str:
    """Return the path of an open file, "" where the system does not tell."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _end_of(path: str) -> str:
    """Return the last lines of a text file; "" where it is not on this machine."""
    try:
        with open(path, "rb") as file:
            file.seek(-min(_STDERR_BYTES, os.path.getsize(path)), os.SEEK_END)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
