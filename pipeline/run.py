"""A run: reads the manifest, plans, has the pairs painted, records, and balances the books.

Composes the other modules. Prints only through `Progress`.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import objects, storage
from pipeline.crash import crash_point
from pipeline.display.progress import Progress
from pipeline.ledger import FailureStreak, Ledger
from pipeline.manifest.files import overwritten, unstorable
from pipeline.manifest.reader import Manifest, read_manifest
from pipeline.manifest.table import ManifestError, Problem
from pipeline.options import Options
from pipeline.paint.attempts import BUG
from pipeline.paint.backbones import Backbones, GivenWeights
from pipeline.paint.caller import Stop
from pipeline.paint.fleet import Wanted
from pipeline.paint.local import run_local
from pipeline.paint.ray_driver import run_ray
from pipeline.paint.ray_folder import is_copy_of_working_dir
from pipeline.paint.worker import Job
from pipeline.plan import Plan, pending, taken_outputs
from pipeline.records import FAILURES, Pair, Result, Status, Task
from pipeline.settled import settle, with_settled
from pipeline.shard import Shard, parse_shard
from pipeline.signals import Handlers
from pipeline.store.facts import FileFacts
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from pipeline.store.lock import Lock, LockedError
from pipeline.store.log import NOTE, RunLog
from pipeline.store.reading import read_columns, read_results, read_sample
from pipeline.store.watch import PLANNED
from pipeline.text import count, quoted
from stylize import __version__
from stylize.errors import ConfigError

__all__ = ["Finished", "folder_of_inputs", "make_plan", "run"]

_SAMPLE = 4096  # rows by which a plan estimates times


@dataclass(frozen=True)
class Finished:
    """A run that ended: its books, and where its log is."""

    ledger: Ledger
    log: str


def run(manifest: str, settings: Mapping[str, str], options: Options) -> Finished:
    """Paint what is not done yet.

    Raises `ManifestError`, `ConfigError`, `LockedError`, `StorageError`, `ClusterError` and
    `UnableError`. What was finished by then is recorded.
    """
    began = time.monotonic()
    out = OutFolder(options.out)
    if not out.medium.is_remote and is_copy_of_working_dir(out.root):
        raise ConfigError(
            f"--out {quoted(str(out))} is in Ray's copy of --working-dir, which Ray removes after "
            "the job; give --out a folder that all nodes reach, or object storage"
        )
    whole = _read(manifest, settings, out, options.name)
    shard = parse_shard(options.shard, os.environ)
    pairs = _selected(whole, options, shard)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    run_id += f".{shard.name}" if shard else ""
    lock = _lock(out, run_id, options, shard)
    try:
        out.remove_leftovers(probes=shard is None)
        with (
            RunLog(out, run_id, shard.count if shard else 1, show=options.log_json) as log,
            Index(out, run_id, shard=shard, alone=lock.alone) as index,
        ):
            log.write("run begun", version=__version__, manifest=manifest, options=asdict(options))
            session = _Session(out, whole, pairs, options, index, log, lock)
            plan, results = session.plan()
            out.fix(inputs=folder_of_inputs(manifest, out))
            session.carry_out(plan, results)
        ledger = session.balance(plan, time.monotonic() - began)  # by the closed index
        if shard is None and not (options.only or ledger.left or ledger.failed):
            out.remove_checkpoints()  # of pairs that changed since
        if shard is not None and lock.alone():
            out.remove_leftovers()  # of shards that were killed
        log.write("run ended", **{**vars(ledger), "skipped": len(ledger.skipped)})
        return Finished(ledger, log.path)
    finally:
        lock.release()


def make_plan(
    manifest: str, settings: Mapping[str, str], options: Options, say: Callable[[str], None]
) -> tuple[Plan, Manifest, list[Result]]:
    """Return what a run would do and why, its pairs, and some rows by which to estimate times.

    Writes nothing. Raises as `run` does.
    """
    out = OutFolder(options.out)
    whole = _read(manifest, settings, out, options.name)
    pairs = _selected(whole, options, parse_shard(options.shard, os.environ))
    for note in whole.notes:
        say(note)
    backbones = Backbones(out, _given_weights(options), say, dry=True)
    sample = read_sample(out, _SAMPLE)
    if sample or any(out.medium.has_picture(line.output) for line in pairs.outlines()):
        pairs = backbones.resolve(pairs)
    facts = FileFacts(out, backbones.sha256, verify_inputs=options.verify_inputs)
    return _plan(whole, pairs, options, facts)[0], pairs, sample


def _read(manifest: str, settings: Mapping[str, str], out: OutFolder, name: str) -> Manifest:
    """Return all pairs of a manifest. Raises `ManifestError`."""
    pairs = read_manifest(manifest, defaults=settings, name=name)
    if problems := [*overwritten(pairs, out), *unstorable(pairs, out)]:
        raise ManifestError(problems, pairs, len(pairs))
    return pairs


def _selected(pairs: Manifest, options: Options, shard: Shard | None) -> Manifest:
    """Return the pairs that were asked for. Raises `ConfigError`."""
    if options.only:
        pairs = _named(pairs, options)
    if shard is not None:
        ids = pairs.ids.to_pylist()
        pairs = pairs.picked([at for at, pair_id in enumerate(ids) if shard.has(pair_id)])
    return pairs


def _named(pairs: Manifest, options: Options) -> Manifest:
    places = {pair_id: at for at, pair_id in enumerate(pairs.ids.to_pylist())}
    for pair_id in options.only:
        if pair_id not in places:
            raise ConfigError(f"--only {pair_id!r}: the manifest has no such id")
    return pairs.picked(sorted({places[pair_id] for pair_id in options.only}))


def _given_weights(options: Options) -> GivenWeights:
    return GivenWeights(options.weights, options.weights_convention)


def _plan(
    whole: Manifest, pairs: Manifest, options: Options, facts: FileFacts
) -> tuple[Plan, dict[str, Result]]:
    """Return what is to be done with pairs of a manifest, and the rows of those that need them.

    Raises `ManifestError` where a finished picture of another manifest would be painted over.
    """
    settled = settle(whole, pairs, facts, redo=options.force, older=options.redo_older)
    unsure = (settled.recorded & ~settled.done) | settled.stale
    results = read_results(facts.out, pairs.picked(np.flatnonzero(unsure)).ids)
    rest = pairs.picked(np.flatnonzero(~settled.done))
    facts.look_ahead(rest, results)
    plan = pending(
        rest,
        results,
        facts=facts,
        force=options.force,
        retry_failed=options.retries,
        redo_changed=options.redo_changed,
        redo_older=options.redo_older,
    )
    _check_strangers(whole, [pair for pair, _ in plan.todo], settled.strangers, options, facts)
    return with_settled(plan, pairs, settled), results


def _check_strangers(
    whole: Manifest,
    todo: Sequence[Pair],
    strangers: Sequence[pa.Table],
    options: Options,
    facts: FileFacts,
) -> None:
    """Raise `ManifestError` where the picture of a pair that the manifest lacks is at an output."""
    outputs = pa.array([pair.output for pair in todo], pa.string())
    ids = [table.filter(pc.is_in(table["output"], outputs))["pair_id"] for table in strangers]
    only = pa.array([text for column in ids for text in column.to_pylist()], pa.string())
    owners = read_results(facts.out, only) if len(only) else {}
    problems = [
        Problem(
            pair.row,
            whole.lines.get(pair.row),
            "output",
            f"{quoted(pair.output)} in {quoted(str(facts.out))} is the finished picture of another "
            f"manifest's row {owner.row}, {quoted(owner.content)} in the style of "
            f"{quoted(owner.style)}; name another output or another --out, or replace it with "
            "--redo-changed",
        )
        for pair, owner in taken_outputs(todo, owners.values())
        if facts.out.medium.has_picture(pair.output) and not options.redo_changed
    ]
    if problems:
        raise ManifestError(problems, rows=len(whole))


def _lacking(ids: pa.Array, *others: pa.Array) -> int:
    """Return how many ids are in none of the others."""
    left = ids.cast(pa.string())
    for other in others:
        left = left.filter(pc.invert(pc.is_in(left, value_set=pc.cast(other, pa.string()))))
    return len(left)


def folder_of_inputs(manifest: str, out: OutFolder) -> str:
    """Return where the manifest's relative paths start, seen from OUT, for `report` and `montage`.

    It is relative, so that no folder of this machine is given away. "" stands for the folder where
    `report` and `montage` are called.
    """
    if storage.is_uri(manifest):
        return storage.join(manifest, os.pardir)
    if out.medium.is_remote:
        return ""  # nobody else has this folder, so its name tells them nothing
    folder = os.path.realpath(os.path.dirname(manifest))
    return os.path.relpath(folder, os.path.realpath(out.root))


def _lock(out: OutFolder, run_id: str, options: Options, shard: Shard | None) -> Lock:
    say = Progress([], style=options.progress).note
    while True:
        try:
            return Lock(out, run_id, shard, say)
        except LockedError as error:
            if not (options.wait or error.passes_soon):
                raise
            time.sleep(1)


class _Session:
    """One run under the lock. It is the `Caller` of whoever paints."""

    def __init__(
        self,
        out: OutFolder,
        whole: Manifest,
        pairs: Manifest,
        options: Options,
        index: Index,
        log: RunLog,
        lock: Lock,
    ) -> None:
        self.out = out
        self.whole = whole
        self.pairs = pairs
        self.options = options
        self.index = index
        self.log = log
        self.lock = lock
        self.backbones = Backbones(out, _given_weights(options), self.on_note, self.on_bytes)
        self.facts = FileFacts(out, self.backbones.sha256, verify_inputs=options.verify_inputs)
        self.handlers = Handlers(self._on_signal)
        self.progress = Progress([], style=options.progress)
        self.counts: Counter[str] = Counter()  # of painted pairs, by status
        self.streak = FailureStreak(options.max_failures)
        self.bugs = 0
        self.stop = Stop.NO
        self.problems_told = 0  # of the index

    def plan(self) -> tuple[Plan, dict[str, Result]]:
        """Return what is to be done, and the rows of the pairs that need a look.

        Raises `ManifestError`.
        """
        with self.progress:
            for note in self.whole.notes:
                self.on_note(note)
            objects.tell_waits_to(self.on_note)
            self._tell_problems()
            pairs = self.backbones.resolve(self.pairs)
            return _plan(self.whole, pairs, self.options, self.facts)

    def carry_out(self, plan: Plan, results: Mapping[str, Result]) -> None:
        """Adopt, restate and paint what the plan says."""
        with self.progress:
            if plan.adopt:
                self.index.extend(plan.adopt)
            self._restate(plan, results)
        tasks = self._tasks(plan, results)
        self.log.write(PLANNED, todo=len(tasks))
        if tasks:
            self.log.flush()
            backbones = sorted({task.pair.config.backbone for task in tasks})
            paths = self.backbones.paths(backbones)
            self.backbones.fix()
            if self.options.address:
                paths = self._copied_for_nodes(paths)
            self._check_space(tasks)
            self._paint(tasks, paths)

    def _tasks(self, plan: Plan, results: Mapping[str, Result]) -> list[Task]:
        """Return the attempts to make: as many as --limit allows, retries last."""
        failed = {pair_id: r.attempt for pair_id, r in results.items() if r.status != "ok"}
        tasks = [Task(pair, failed.get(pair.pair_id, 0) + 1) for pair, _ in plan.todo]
        return sorted(tasks, key=lambda task: task.is_retry)[: self.options.limit or None]

    def _tell_problems(self) -> None:
        """Tell what was found damaged in the index since the last look."""
        for problem in self.index.problems[self.problems_told :]:
            self.on_note(problem)
        self.problems_told = len(self.index.problems)

    def _restate(self, plan: Plan, results: Mapping[str, Result]) -> None:
        """Write the rows of finished pairs again where the manifest's other columns, its order or
        the dates of inputs have changed."""
        todays = (self.facts.restate(pair, results[pair.pair_id]) for pair in plan.stale)
        changed = [today for today in todays if today != results[today.pair_id]]
        if changed:
            self.index.restate(changed)

    def _copied_for_nodes(self, paths: Mapping[str, str]) -> dict[str, str]:
        """Copy weights below OUT, which every node of a cluster reaches; return the copies."""
        copies = {}
        for backbone, path in paths.items():
            copies[backbone] = self.out.weights(backbone, self.backbones.sha256(backbone))
            if not storage.exists(copies[backbone]):
                storage.put(copies[backbone], storage.read_bytes(path))
        return copies

    def _check_space(self, tasks: Sequence[Task]) -> None:
        """Refuse to begin what the disk cannot hold. A PNG of paint takes 1.5 bytes a pixel or
        more, and the shorter side of a picture is about two thirds of the longer."""
        need = 0.0
        for task in tasks:
            need += task.pair.config.side**2 * 2 / 3 * 1.5
            need -= self.out.picture_bytes(task.pair.output)  # it makes room
        free = self.out.medium.free_bytes()
        if need > free:
            raise storage.StorageError(
                f"{count(len(tasks), 'picture')}: about {need / 1e6:,.0f} MB are needed, "
                f"{free / 1e6:,.0f} MB are free; make room, choose another --out, or paint fewer "
                "with --limit"
            )

    def _paint(self, tasks: Sequence[Task], paths: Mapping[str, str]) -> None:
        options = self.options
        job = Job(
            out=self.out.absolute,
            folder=storage.current_folder(),
            weights={b: storage.absolute(path) for b, path in paths.items()},
            probe=self.out.probe(self.index.run_id),
            **options.paint_options(),
        )
        wanted = Wanted(
            options.workers,
            options.threads,
            options.device,
            options.address,
            options.wait_nodes,
            rows=len(self.pairs),
            side=max(self.pairs.settings.config(cells).side for _, cells in self.pairs.cells()),
        )
        start = run_local if options.in_process else run_ray
        storage.put(job.probe, b"")
        self.progress = Progress([task.pair for task in tasks], style=options.progress)
        with self.progress, self.handlers:
            try:
                start(tasks, job, wanted, self)
            finally:
                storage.remove(job.probe)
                self.out.remove_leftovers(probes=False)  # of workers that died

    # --- what `Caller` asks for ---

    def on_started(self) -> None:
        self.handlers.install()  # again: ray.init puts its own handler on SIGTERM

    def on_results(self, results: Sequence[Result]) -> None:
        self.lock.check()
        for result in results:
            crash_point("record-returned", pair_id=result.pair_id)
            if result.checkpoint:
                self.log.write("checkpoint", pair_id=result.pair_id, text=result.checkpoint)
            if result.status != "ok":
                self._log_failure(result)
        for result in self.index.extend(results):
            self.counts[result.status] += 1
            self.bugs += result.error_type.startswith(BUG)
            self.progress.result(result)
            self.streak.add(result)
        if self.streak.reason_to_stop:
            self.stop = max(self.stop, Stop.SOON)

    def _log_failure(self, result: Result) -> None:
        self.log.write(
            "pair failed",
            pair_id=result.pair_id,
            row=result.row,
            attempt=result.attempt,
            status=result.status,
            error_type=result.error_type,
            error_message=result.error_message,
            host=result.host,
            traceback=result.traceback,
        )

    def on_status(self, statuses: Sequence[Status]) -> None:
        self.progress.status(statuses)

    def status_every(self) -> float:
        return self.progress.every

    def on_note(self, line: str) -> None:
        self.log.write(NOTE, text=line)
        self.progress.note(line)

    def on_bytes(self, there: int, whole: int) -> None:
        """Show how far the download of the weights is."""
        self.progress.download(there, whole)

    def on_event(self, event: str, **facts: Any) -> None:
        self.log.write(event, **facts)

    def stop_requested(self) -> Stop:
        self.lock.check()
        if self.out.medium.is_remote:  # on a disk the journal has the rows
            self.index.seal_if_due()
        return self.stop

    def finished_row(self, pair: Pair) -> Result | None:
        if self.options.force or self.options.redo_changed:
            return None  # what stands there may be the picture from before
        # Its own facts: the picture may have been looked at before it was painted.
        return FileFacts(self.out, self.backbones.sha256).adoptable(pair)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop = Stop.AT_ONCE if self.stop else Stop.SOON
        if self.stop is Stop.SOON:
            self.on_note("stopping: pairs in hand end now and stay pending (again: at once)")

    # --- the end ---

    def balance(self, plan: Plan, seconds: float) -> Ledger:
        """Balance the books: what is in the closed index must be what was counted."""
        # Only a merge reads all columns of a file.
        damaged = len(self.index.problems) > self.problems_told
        self._tell_problems()
        rows = read_columns(self.out, ["status"])
        painted = self.counts["ok"]
        failed = sum(self.counts[kind] for kind in FAILURES)
        left = len(plan.todo) - painted - failed
        skipped = pa.array([pair.pair_id for pair, _ in plan.skipped], pa.string())
        # A row for each pair, except those that were skipped or left and never had one.
        excused = pa.array([pair.pair_id for pair, _ in plan.todo] if left else [], pa.string())
        without = _lacking(self.pairs.ids, rows["pair_id"], excused, skipped)
        good = rows.filter(pc.equal(rows["status"], "ok"))["pair_id"]
        return Ledger(
            rows=len(self.pairs),
            done=len(plan.done) + len(plan.adopt),
            painted=painted,
            failed=failed,
            skipped=plan.skipped,
            left=left,
            unrecorded=without,
            bugs=self.bugs,
            # One that was edited by hand and is kept has its picture all the same.
            skipped_without_picture=_lacking(skipped, good) > 0,
            index_damaged=damaged,
            limited=bool(self.options.limit) and len(plan.todo) > self.options.limit,
            stopped=bool(self.stop),
            too_many_failures=self.streak.reason_to_stop,
            seconds=seconds,
        )
