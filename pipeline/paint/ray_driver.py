"""Paints pairs on Ray actors, by way of `ray_session`.

The driver owns recovery: actors never restart by themselves, and a pair whose worker died goes
back into the queue, as `recovery` decides.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from pipeline import storage
from pipeline.paint.attempts import failed_row, new_row
from pipeline.paint.caller import Caller, ClusterError, Stop
from pipeline.paint.fleet import Fleet, Headcount, Nodes, Wanted, order, size_fleet
from pipeline.paint.polls import Polls
from pipeline.paint.ray_actor import actor_options, actor_type, elsewhere, end_of, fitted
from pipeline.paint.ray_metrics import Metrics
from pipeline.paint.ray_nodes import NodeWatch
from pipeline.paint.ray_seats import Place, Seat
from pipeline.paint.ray_session import (
    Ray,
    alive_nodes,
    first_line,
    home_of,
    missing_module,
    session,
)
from pipeline.paint.reach import Reach
from pipeline.paint.recovery import DEATHS, Death, Decision, Recovery, What
from pipeline.paint.resources import Kills, confined, memory_limit
from pipeline.paint.room import DeviceFullError
from pipeline.paint.worker import Job, NotReadyError
from pipeline.records import Result, Status, Task, objective
from pipeline.text import count, duration

__all__ = ["run_ray"]

_GRACE = 15.0  # seconds past the time limit before a worker that does not answer is killed
_STOP = 6.0  # seconds that pairs in hand have to end after the first Ctrl-C
_WAIT = 0.2  # seconds to wait for an answer at a time
_START = 300.0  # seconds without any worker or result before a Ray started here counts as unable
_LOST = 20.0  # seconds of the same before asking whether Ray is there at all
_HEAD = 40.0  # seconds that its head may be silent; after 60 Ray ends the process itself
_STARTS = 3  # workers in a row that die as they start, before the run counts on fewer
_REST = 60.0  # seconds that a worker gets no pairs after its GPU was found full


def run_ray(tasks: Sequence[Task], job: Job, wanted: Wanted, caller: Caller) -> None:
    """Make all attempts on Ray actors; return when each has a row, or when told to stop.

    Raises `ClusterError` where there is nothing to run on, and `storage.StorageError` where a
    picture cannot be written.
    """
    with session(wanted) as ray:
        caller.on_started()
        nodes = list(alive_nodes(ray).values())
        fleet = size_fleet(nodes, wanted, len(tasks), memory_limit())
        _Driver(ray, tasks, job, fleet, wanted, caller).run()


class _Driver:
    """The loop: a queue of tasks, a few actors, and `ray.wait`."""

    def __init__(
        self,
        ray: Ray,
        tasks: Sequence[Task],
        job: Job,
        fleet: Fleet,
        wanted: Wanted,
        caller: Caller,
    ) -> None:
        self.ray = ray
        self.wanted = wanted
        self.given_job = job
        self.queue = deque(tasks)
        self.caller = caller
        self.on_cluster = bool(wanted.address)
        self.recovery = Recovery(self.on_cluster)
        self.kills = Kills()
        self.reach = Reach()
        self.watch = NodeWatch(ray)
        self.seats: list[Seat] = []
        self.left_out: set[str] = set()  # nodes that cannot work
        self.refusals: list[str] = []  # of workers and nodes that cannot work, not told yet
        self.failed_starts = 0
        self.stopping_since = 0.0
        self.progressed = time.monotonic()
        self.told_waiting = False  # that there is no node to work on
        self.polls = Polls(caller.status_every())
        self.metrics = Metrics(job.out) if self.on_cluster else None
        self._equip(fleet)

    def run(self) -> None:
        if self.on_cluster:
            self.watch.start()
        try:
            while self.queue or self.recovery.waits or self.reach.tasks or self._busy():
                stop = self.caller.stop_requested()
                if stop and not self._wind_down(stop):
                    return
                if not stop:
                    self._follow_nodes()
                    self._hire()
                self._wait()
                self._check_cluster()
                self._judge_waiting()
                self._watch_clocks()
                self._look()
        finally:
            self.watch.end()
            for seat in list(self.seats):
                self._dismiss(seat)

    def _equip(self, fleet: Fleet) -> None:
        """Take workers of this kind from now on. Others end with the pairs that they have in
        hand."""
        for seat in list(self.seats):
            seat.is_old = True
            if not seat.is_ready:
                self._dismiss(seat)
        self.fleet = fleet
        self.job = fitted(self.given_job, fleet, self.wanted)
        self.headcount = Headcount(fleet, grows=self.on_cluster and not self.wanted.workers)
        self.queue = deque(order(list(self.queue), by_objective=bool(fleet.gpus)))
        self.actor_class = self.ray.remote(**actor_options(fleet))(actor_type(self.ray))

    def _follow_nodes(self) -> None:
        """Count the nodes that joined, and change to GPUs when the first of them joins."""
        for node in self.watch.draining - self.left_out:
            self._empty(node)
        nodes = self._nodes()
        if self.headcount.see(nodes) and not self.wanted.workers:
            fleet = size_fleet(list(nodes.values()), self.wanted, len(self.queue), memory_limit())
            at_work = any(seat.is_ready for seat in self.seats)
            another = (fleet.cpus, fleet.gpus) != (self.fleet.cpus, self.fleet.gpus)
            if fleet.gpus and another and not (at_work and self.fleet.gpus):
                self._equip(fleet)
                self.headcount.see(nodes)
        if not self.on_cluster or self.told_waiting or self.fleet.room(list(nodes.values())):
            return
        self.told_waiting = True
        self.caller.on_note(f"waiting for {self._lacking()}, at most {self._patience_in_words()}")

    def _nodes(self) -> Nodes:
        """Return the nodes that may work."""
        nodes = self.watch.nodes
        return {node: has for node, has in nodes.items() if node not in self.left_out}

    def _able(self) -> list[str]:
        """Return the nodes with room for a worker."""
        return [node for node, has in self._nodes().items() if self.fleet.room([has])]

    def _lacking(self) -> str:
        """Return what kind of node is missing."""
        return "a node with a GPU" if self.fleet.gpus else f"a node with {self.fleet.cpus:g} CPUs"

    def _patience(self) -> float:
        return self.wanted.wait_nodes if self.on_cluster else _START

    def _patience_in_words(self) -> str:
        option = f" (--wait-nodes {self._patience():g})" if self.on_cluster else ""
        return f"{duration(self._patience())}{option}"

    def _busy(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.is_painting]

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
        for seat in list(self.seats):
            if seat.is_ready and not seat.is_painting:
                self._employ(seat)
        most = self.headcount.most
        starting = [seat for seat in self.seats if not seat.is_ready]
        number = sum(not seat.is_old for seat in self.seats)
        while number > most and starting:
            self._dismiss(starting.pop())
            number -= 1
        wanted = len(self.queue) + len(self.reach.tasks) - len(starting)
        for _ in range(min(wanted, most - number)):
            avoided = self.left_out | (self.reach.closed if not self.queue else set())
            actor = self.actor_class.options(**elsewhere(avoided)).remote(self.job)
            self.seats.append(Seat(actor, awaited=actor.ready.remote()))

    def _employ(self, seat: Seat) -> None:
        """Give an idle worker a task, or end it if there will be none for it."""
        node = seat.place.node
        if seat.is_old or node in self.left_out:
            self._dismiss(seat)
        elif time.monotonic() < seat.rests_until:
            return
        elif (task := self.reach.take(node)) is not None:
            self._give(seat, [task])
        elif self.queue and not self.reach.is_suspect(node):
            in_hand = [task for other in self._busy() for task in other.tasks]
            if not self.recovery.must_wait(self.queue[0], in_hand):
                self._give(seat, self._take())
        elif self._is_in_the_way():
            self._dismiss(seat)

    def _is_in_the_way(self) -> bool:
        """Return whether an idle worker takes the place of one that is wanted on another node."""
        wanted = self.reach.tasks and set(self._able()) - self.reach.closed
        return bool(wanted) and len(self.seats) >= self.headcount.most

    def _give(self, seat: Seat, tasks: list[Task]) -> None:
        seat.tasks = tasks
        seat.began = time.monotonic()
        seat.kernel_kills = self.kills.lately()
        first = tasks[0].pair
        seat.status = Status(first.pair_id, 0, first.config.steps, batch=len(tasks))
        seat.awaited = seat.actor.run.remote(tasks)

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
        """Wait a moment for an answer, and take all that came: their rows are synced together."""
        waiting = {seat.awaited: seat for seat in self.seats if seat.awaited is not None}
        if not waiting:
            time.sleep(0.05)
            return
        answers, others = self.ray.wait(list(waiting), num_returns=1, timeout=_WAIT)
        if answers and others:
            answers += self.ray.wait(others, num_returns=len(others), timeout=0)[0]
        rows: list[Result] = []
        try:
            for answer in answers:
                seat = waiting[answer]
                if seat.is_ready:
                    rows += self._finished(seat)
                else:
                    self._readied(seat)
                if not seat.rests_until:  # a GPU that is still full is no progress
                    self.progressed = time.monotonic()
            self.recovery.painted({row.pair_id for row in rows})
            if rows and not self.stopping_since:
                self._hire()  # before what takes the disk's time
        finally:
            if rows:
                self._report(rows)

    def _check_cluster(self) -> None:
        """Raise `ClusterError` where nothing can come any more."""
        if self.on_cluster and self.watch.silence > _HEAD:
            raise ClusterError("the cluster's head does not answer; run again when it does")
        # While workers are at work, a cluster may take its time to grant another one.
        idle = time.monotonic() - self.progressed
        if idle < _LOST or self._busy():
            return
        if not (self.watch.nodes if self.on_cluster else alive_nodes(self.ray)):
            raise ClusterError("Ray itself ended: it has no node left; run again to go on")
        if idle > self._patience():
            raise ClusterError(self._why_idle())

    def _why_idle(self) -> str:
        """Return why no pair is at work, and what to do about it."""
        if self.refusals:
            return self.refusals[-1]
        if any(seat.rests_until for seat in self.seats):
            return "every GPU is full of what other programs hold; end them, or run again later"
        waited = self._patience_in_words()
        if self.on_cluster and not self.fleet.room(list(self._nodes().values())):
            return f"{self._lacking()} did not join within {waited}; start one, or wait longer"
        return (
            f"no worker could start within {waited}; the cluster has too few free resources "
            f"(each worker wants {self.fleet.cpus:g} CPUs, {self.fleet.gpus:g} GPUs)"
        )

    def _readied(self, seat: Seat) -> None:
        try:
            seat.place = Place(*self.ray.get(seat.awaited))
        except self.ray.exceptions.RayTaskError as error:
            self._refused(seat, error.cause)
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if module := missing_module(error):
                self._refused(seat, ModuleNotFoundError(module))
            elif self.failed_starts < _STARTS:
                self._dismiss(seat)
            else:
                self._refused(seat, RuntimeError(f"workers die as they start: {first_line(error)}"))
        else:
            seat.awaited, seat.is_ready = None, True
            self.reach.memory[seat.place.node] = seat.place.memory
            self.failed_starts = 0
            self.caller.on_event("worker started", **seat.place._asdict())
            for refusal in self.refusals:
                self.caller.on_note(refusal)
            self.refusals = []

    def _refused(self, seat: Seat, error: BaseException) -> None:
        """A worker cannot work. The run goes on as long as there is another one.

        Where the reason holds for its whole node, no other worker is tried there.
        """
        node, name = home_of(self.ray, seat.actor)
        self._dismiss(seat)
        if isinstance(error, ModuleNotFoundError) and "pipeline" in str(error):
            error = NotReadyError(
                f"{name}: stylize-batch is not installed there ({error}); install the same version "
                "in the Python that Ray runs with"
            )
        elif isinstance(error, ImportError):
            error = NotReadyError(f"{name}: {error}{confined()}")
        if self.on_cluster and node and isinstance(error, NotReadyError):
            self._leave_out(node, str(error))
            return
        self.headcount.refused += 1
        self._tell_refusal(f"one worker fewer: {error}", str(error), self.seats)

    def _leave_out(self, node: str, reason: str) -> None:
        """Give a node no more work. Its workers end with what they have in hand."""
        is_new = node not in self.left_out
        self.left_out.add(node)
        nodes = self._nodes()
        self.headcount.leave_out(nodes)
        others = self.fleet.room(list(nodes.values())) or self._busy()
        if is_new or not others:
            self._tell_refusal(f"one node fewer: {reason}", reason, others)

    def _empty(self, node: str) -> None:
        """Stop the pairs in hand on a node that is being drained. Even if it is the last one, the
        run goes on: another may join."""
        self.left_out.add(node)
        self.headcount.leave_out(self._nodes())
        for seat in self.seats:
            if seat.place.node == node:
                seat.actor.stop.remote()
        self.caller.on_note("one node fewer: it is being drained; its pairs go elsewhere")

    def _tell_refusal(self, line: str, reason: str, others: object) -> None:
        """Tell why there is less to work with, once something works. Raises `ClusterError` if
        there is nothing else."""
        if any(seat.is_ready and seat.place.node not in self.left_out for seat in self.seats):
            self.caller.on_note(line)
        elif others:
            self.refusals.append(line)
        else:
            raise ClusterError(reason)

    def _finished(self, seat: Seat) -> list[Result]:
        """Take a worker's answer, and return the rows that are to be recorded."""
        answer, tasks = seat.awaited, seat.tasks
        seat.awaited, seat.tasks, seat.status = None, [], Status()
        try:
            rows: list[Result | None] = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, storage.RefusedError) and self.on_cluster:
                self._put_first(self._unpainted(tasks))
                node, name = home_of(self.ray, seat.actor)
                self._leave_out(node, f"{name}: {error.cause}")
                return []
            if isinstance(error.cause, storage.StorageError):
                raise error.cause from None
            if isinstance(error.cause, DeviceFullError):
                self._let_rest(seat, tasks, str(error.cause))
                return []
            for task in tasks:  # `Worker.run` catches what a pair can do, so this is a bug
                self._record(replace(failed_row(new_row(task), error.cause), traceback=str(error)))
        except self.ray.exceptions.RayError as error:
            self._died(seat, tasks, error)
        else:
            seat.rests_until = 0.0
            # What was stopped stays pending.
            stopped = [task for task, row in zip(tasks, rows, strict=True) if row is None]
            self._put_first(stopped)
            if stopped and not self.stopping_since:
                self._told_to_end(seat, stopped)
            return self._to_record(seat, tasks, rows)
        return []

    def _told_to_end(self, seat: Seat, stopped: Sequence[Task]) -> None:
        """A worker ended its pairs by itself: its node is drained, or it got a SIGTERM. That is no
        death, and no attempt."""
        self._dismiss(seat)
        self.caller.on_event("worker told to end", pairs=[task.pair.pair_id for task in stopped])
        if seat.place.node not in self.left_out:
            self.caller.on_note(
                f"a worker was told to end by SIGTERM; {count(len(stopped), 'pair')} "
                f"{'goes' if len(stopped) == 1 else 'go'} back to the queue"
            )

    def _let_rest(self, seat: Seat, tasks: Sequence[Task], why: str) -> None:
        """Give a worker whose GPU is full no pairs for a while. They are no pairs' failures."""
        self._put_first(self._unpainted(tasks))
        if not seat.rests_until:
            self.caller.on_note(f"{why}; it gets no pairs until there is room again")
        seat.rests_until = time.monotonic() + _REST

    def _to_record(
        self, seat: Seat, tasks: Sequence[Task], rows: Sequence[Result | None]
    ) -> list[Result]:
        """Return the rows to record. A pair whose input could not be opened on this node, or that
        is too large for it, is kept for another one. Where others can open what a node could not,
        that node is left out."""
        painted = []
        for task, row in zip(tasks, rows, strict=True):
            if row is not None and (row.unopened or row.too_large) and self.on_cluster:
                suspect = row.unopened and self._can_open(task)
                now = time.monotonic()
                self.reach.failed(task, row, seat.place.node, now, suspect=suspect)
            elif row is not None:
                painted.append(row)
                for node, failure in self.reach.opened(row.pair_id).items():
                    self._leave_out(
                        node,
                        f"{failure.host} cannot open what other nodes can ("
                        f"{failure.error_message}); mount the inputs there too, by the same path",
                    )
        return painted

    def _can_open(self, task: Task) -> bool:
        """Return whether this process finds the inputs of a pair."""
        folder = self.job.folder
        try:
            return all(storage.exists(storage.join(folder, r.path)) for r in task.pair.inputs)
        except OSError:
            return False

    def _report(self, rows: Sequence[Result]) -> None:
        if self.metrics:
            self.metrics.ended(rows)
        self.caller.on_results(rows)

    def _give_up(self, task: Task, status: str, kind: str, message: str) -> None:
        """Record a failure that no worker could report itself."""
        row = replace(new_row(task), status=status, error_type=kind, error_message=message)
        self._record(row)

    def _record(self, row: Result) -> None:
        self._report([replace(row, finished_at=row.started_at)])

    # --- deaths ---

    def _died(self, seat: Seat, tasks: Sequence[Task], error: Exception) -> None:
        """A worker died with tasks in hand."""
        self._dismiss(seat)
        unpainted = self._unpainted(tasks)
        if not unpainted or self.stopping_since:
            self._put_first(unpainted)
            return
        of_memory = (
            isinstance(error, self.ray.exceptions.OutOfMemoryError)
            # Ray's text for any death by SIGKILL speaks of memory; these are its monitor's words.
            or "running low on memory" in str(error)
            or self.kills.now() > seat.kernel_kills
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
        staffed = {seat.place.node for seat in self.seats if seat.is_ready}
        for row in self.reach.give_up(self._able(), staffed, time.monotonic()):
            self._report([row])

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
            message = f"its worker died {DEATHS} times: {death.cause}"
            self._give_up(task, "poison", "WorkerDied", message)

    def _unpainted(self, tasks: Sequence[Task]) -> list[Task]:
        """Return the tasks that a worker left without a picture; record the others."""
        unpainted = []
        for task in tasks:
            row = self.caller.finished_row(task.pair)
            if row is None:
                unpainted.append(task)
            else:
                self._report([row])
        return unpainted

    def _watch_clocks(self) -> None:
        """Kill workers that are past their time limit and do not answer."""
        if not self.job.timeout:
            return
        for seat in self._busy():
            limit = self.job.timeout * len(seat.tasks)
            if time.monotonic() - seat.began <= limit + _GRACE:
                continue
            self._dismiss(seat)
            unpainted = self._unpainted(seat.tasks)
            if len(seat.tasks) > 1:  # which one hangs shows when each is alone
                self.recovery.split(unpainted)
                self._put_first(unpainted)
                continue
            for task in unpainted:
                message = f"hung: no answer {_GRACE:g} s after the limit of {limit:g} s"
                self._give_up(task, "timeout", "TimeLimitError", message)

    def _dismiss(self, seat: Seat) -> None:
        """End a worker, dead or alive."""
        self.seats.remove(seat)
        said = end_of(seat.place.stderr)
        self.caller.on_event("worker ended", **seat.place._asdict(), said=said)
        with contextlib.suppress(Exception):
            self.ray.kill(seat.actor)

    # --- looking ---

    def _look(self) -> None:
        """Ask what some workers are doing, without waiting for the answers."""
        busy = self._busy()
        if self.metrics:
            ready = sum(seat.is_ready for seat in self.seats)
            self.metrics.look(len(self.queue), sum(len(seat.tasks) for seat in busy), ready)
        turn = self.polls.turn(time.monotonic(), len(busy))
        if turn is None:
            return
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
        for at in turn:
            if busy[at].asked is None:
                busy[at].asked = busy[at].actor.status.remote()
        self.caller.on_status([seat.status for seat in self.seats])
