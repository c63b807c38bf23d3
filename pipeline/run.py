"""A run from manifest to exit code: reads, plans, schedules, records, balances the books.

Composes the other modules; prints nothing but through `Progress` and the summary it returns.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from pipeline import scheduler, storage
from pipeline.crash import crash_point
from pipeline.facts import FileFacts
from pipeline.index import Index, read_results
from pipeline.lock import Lock, LockedError, read_run, write_run
from pipeline.manifest import Manifest, ManifestError, Problem, overwritten, read_manifest
from pipeline.progress import Progress
from pipeline.records import FAILURES, Pair, Result, Task
from pipeline.resume import Plan, pending
from pipeline.signals import Handlers
from pipeline.words import count, duration
from pipeline.worker import Job, Status
from stylize import weights
from stylize.config import StyleConfig
from stylize.errors import ConfigError, WeightsError
from stylize.image import Limits

__all__ = ["Exit", "Options", "Summary", "make_plan", "run"]


class Exit(enum.IntEnum):
    """What the process returns."""

    DONE = 0
    BUG = 1
    USAGE = 2
    FAILED = 3
    STOPPED_BY_FAILURES = 4
    UNABLE = 5
    INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """Everything that is not a setting of a picture."""

    out: str
    weights_file: str = ""
    weights_convention: str = "torchvision"
    device: str = "auto"
    dtype: str = "auto"
    workers: int = 0  # 0: as many as fit
    threads: int = 0  # CPU threads of each worker; 0: the default of the device
    address: str = ""
    timeout: float = 0.0  # seconds
    max_failures: int = 20
    limit: int = 0  # 0: all
    only: tuple[str, ...] = ()
    force: bool = False
    retry_failed: str = "all"  # (but poison), "none", or one of FAILURES
    redo_changed: bool = False
    redo_older: bool = False
    verify_inputs: bool = False
    wait: bool = False
    batch: int = 0  # pairs optimised together; 0 chooses
    tile: int = 0  # pixels; 0 chooses
    compile: bool = False
    previews: int = 0
    limits: Limits = field(default_factory=Limits)
    progress: str = "auto"
    in_process: bool = False  # without Ray


@dataclass(frozen=True)
class Summary:
    """How a run ended. rows = done + ok + failed + skipped + left."""

    exit: Exit
    rows: int
    done: int  # before this run
    ok: int
    failed: int
    skipped: Sequence[tuple[Pair, str]]
    left: int  # stopped, or beyond --limit
    seconds: float
    message: str = ""  # why it ended early, if it did


class UnableError(Exception):
    """The run cannot go on, for a reason outside the pairs; the text has the remedy."""


@functools.lru_cache(maxsize=1024)  # most pairs of a manifest share their settings
def _with_backbone(config: StyleConfig, backbone: str) -> StyleConfig:
    """Raises `ConfigError` for layers that the backbone does not have."""
    return replace(config, backbone=backbone)


class Backbones:
    """Which weights a run uses: fixed by the first run of OUT, found when first asked for.

    `auto` is what the first run made of it. Raises `UnableError` if weights cannot be had, or are
    no longer those that OUT was begun with.
    """

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        fixed = read_run(options.out)
        self._options = options
        self._say = say
        self._auto: str = fixed.get("backbone", "")
        self._fixed: dict[str, str] = dict(fixed.get("weights", {}))
        self._paths: dict[str, str] = {}

    def resolve(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs with `auto` replaced by the backbone that it stands for.

        Raises `ManifestError` for pairs that want layers which that has not, `UnableError` too if
        --weights is of a backbone that no pair wants.
        """
        resolved, problems = [], []
        for pair in pairs:
            if pair.config.backbone == "auto":
                if not self._auto:
                    self._find("auto")
                try:
                    pair = replace(pair, config=_with_backbone(pair.config, self._auto))
                except ConfigError as error:
                    problems.append(Problem(pair.row, None, "", str(error)))
            resolved.append(pair)
        if problems:
            raise ManifestError(problems)
        if self._options.weights_file:
            _, given, _ = self._given
            wanted = sorted({pair.config.backbone for pair in resolved})
            if given not in wanted:
                raise UnableError(
                    f"--weights is a {given}, and the pairs want {' and '.join(wanted)}; give such "
                    f"a file, or set --backbone {given} and choose another --out"
                )
        return resolved

    def sha256(self, backbone: str) -> str:
        """The identity of a backbone's weights."""
        if backbone == "auto" and self._auto:
            backbone = self._auto
        if backbone not in self._fixed:
            self._find(backbone)
        return self._fixed[self._auto if backbone == "auto" else backbone]

    def paths(self, names: Sequence[str]) -> dict[str, str]:
        """backbone -> file, checked to hold what OUT was begun with."""
        for backbone in names:
            if backbone not in self._paths:
                self._find(backbone)
        return {backbone: self._paths[backbone] for backbone in names}

    def fix(self) -> None:
        """Write down for later runs what this one uses."""
        fixed = {"backbone": self._auto, "weights": self._fixed}
        write_run(self._options.out, {**read_run(self._options.out), **fixed})

    def _find(self, backbone: str) -> None:
        try:
            path, name, sha256 = self._locate(backbone)
        except WeightsError as error:
            raise UnableError(str(error)) from error
        if self._fixed.setdefault(name, sha256) != sha256:
            raise UnableError(
                f"this output was begun with other {name} weights ({self._fixed[name][:12]}…, "
                f"these are {sha256[:12]}…); give those with --weights, or choose another --out"
            )
        if backbone == "auto":
            self._auto = name
        self._paths[name] = path

    def _locate(self, backbone: str) -> tuple[str, str, str]:
        if self._options.weights_file and backbone in ("auto", self._given[1]):
            return self._given
        path = weights.find(backbone, self._say)
        return str(path), *weights.identity(path)

    @functools.cached_property
    def _given(self) -> tuple[str, str, str]:
        """Path, backbone and SHA-256 of --weights, read once. Raises `UnableError`."""
        convention: Any = self._options.weights_convention
        try:
            path = weights.import_file(self._options.weights_file, convention)
            return str(path), *weights.identity(path)
        except WeightsError as error:
            raise UnableError(str(error)) from error


def select(manifest: Manifest, only: Sequence[str]) -> list[Pair]:
    """The pairs named by id, or all. Raises `ConfigError` for an id that is not there."""
    if not only:
        return list(manifest)
    there = {pair.pair_id for pair in manifest}
    for pair_id in only:
        if pair_id not in there:
            raise ConfigError(f"--only {pair_id!r}: the manifest has no such id")
    return [pair for pair in manifest if pair.pair_id in set(only)]


def _selected(manifest: str, settings: Mapping[str, str], options: Options) -> list[Pair]:
    """The manifest's pairs that were asked for. Raises `ManifestError`, `ConfigError`."""
    pairs = read_manifest(manifest, defaults=settings)
    if problems := overwritten(pairs, options.out):
        raise ManifestError(problems, pairs, len(pairs))
    return select(pairs, options.only)


def make_plan(
    manifest: str, settings: Mapping[str, str], options: Options, say: Callable[[str], None]
) -> tuple[Plan, list[Pair], dict[str, Result]]:
    """What would run and why; writes nothing. Raises as `run` does."""
    pairs = _selected(manifest, settings, options)
    backbones = Backbones(options, say)
    results = read_results(options.out)
    if results or _has_pictures(options.out, pairs):
        pairs = backbones.resolve(pairs)
    return _plan(pairs, results, options, _facts(options, backbones)), pairs, results


def _has_pictures(out: str, pairs: Sequence[Pair]) -> bool:
    """Whether a run was here that painted, though it may have written no row."""
    root = storage.local_path(out) or out
    return any(os.path.isfile(os.path.join(root, pair.output)) for pair in pairs)


def _facts(options: Options, backbones: Backbones) -> FileFacts:
    return FileFacts(options.out, backbones.sha256, verify_inputs=options.verify_inputs)


def _plan(
    pairs: Sequence[Pair], results: Mapping[str, Result], options: Options, facts: FileFacts
) -> Plan:
    return pending(
        pairs,
        results,
        facts=facts,
        force=options.force,
        retry_failed=options.retry_failed,
        redo_changed=options.redo_changed,
        redo_older=options.redo_older,
    )


def run(manifest: str, settings: Mapping[str, str], options: Options) -> Summary:
    """Do what is not done yet. Raises `ManifestError`, `ConfigError`, `LockedError`,
    `StorageError`, `ClusterError`, `UnableError`; everything finished is recorded by then."""
    began = time.monotonic()
    pairs = _selected(manifest, settings, options)
    if not storage.local_path(options.out):
        raise UnableError(f"--out {options.out}: results go to a local or mounted folder for now")
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    lock = _lock(options, run_id)
    try:
        storage.sweep_temporaries(options.out)
        _remove_probes(options.out)
        with Index(options.out, run_id) as index:
            _note_inputs(manifest, options.out)
            session = _Session(pairs, options, index, run_id, began)
            plan = session.run()
        return session.balance(plan)  # of what is in the index when it is closed
    finally:
        lock.release()


def _note_inputs(manifest: str, out: str) -> None:
    """Write down where the manifest's relative paths start, seen from OUT: `report` and `montage`
    show the inputs. Relative, so that no folder of this machine is told."""
    folder = manifest.rpartition("/")[0]
    if not storage.is_uri(manifest):
        there = os.path.realpath(os.path.dirname(manifest))
        folder = os.path.relpath(there, os.path.realpath(storage.local_path(out) or out))
    fixed = read_run(out)
    if fixed.get("inputs") != folder:
        write_run(out, {**fixed, "inputs": folder})


def _remove_probes(out: str) -> None:
    """Of runs that were killed; the lock is ours, so nobody needs them."""
    state = os.path.join(storage.local_path(out) or out, "_state")
    for name in os.listdir(state):
        if name.startswith("probe-"):
            storage.remove(os.path.join(state, name))


def _lock(options: Options, run_id: str) -> Lock:
    while True:
        try:
            return Lock(options.out, run_id)
        except LockedError:
            if not options.wait:
                raise
            time.sleep(1)


_OF_A_FILE = ("ImageReadError", "ImageSizeError")
"""Failures that are of one file, which the message names."""


class _Session:
    """One run under the lock: the events of the scheduler end up here."""

    def __init__(
        self, pairs: list[Pair], options: Options, index: Index, run_id: str, began: float
    ) -> None:
        self.pairs = pairs
        self.options = options
        self.index = index
        self.run_id = run_id
        self.began = began
        self.backbones = Backbones(options, self.on_note)
        self.handlers = Handlers(self._on_signal)
        self.progress = Progress([], style=options.progress)
        self.counts: Counter[str] = Counter()
        self.told = 0  # of the index's problems
        self.in_a_row: tuple[str, list[str]] = ("", [])  # kind of failure, messages
        self.stop_level = 0
        self.stopped_by = 0
        self.too_many_failures = ""

    def run(self) -> Plan:
        """Paint what is pending; returns the plan."""
        with self.progress:
            self._tell_problems()
            pairs = self.backbones.resolve(self.pairs)
            results = read_results(self.options.out)
            facts = _facts(self.options, self.backbones)  # which looks at each file once
            plan = _plan(pairs, results, self.options, facts)
            self._adopt(plan)
            self._restate(plan, results, facts)
        failed = {pair_id: r.attempt for pair_id, r in results.items() if r.status != "ok"}
        todo = [Task(pair, failed.get(pair.pair_id, 0) + 1) for pair, _ in plan.todo]
        todo = sorted(todo, key=lambda task: task.is_retry)[: self.options.limit or None]
        if todo:
            names = sorted({task.pair.config.backbone for task in todo})
            paths = self.backbones.paths(names)
            self.backbones.fix()
            if self.options.address:
                paths = self._at_hand_everywhere(paths)
            self._check_space(todo)
            self._schedule(todo, paths)
        return plan

    def _at_hand_everywhere(self, paths: Mapping[str, str]) -> dict[str, str]:
        """Copies of weights below OUT, which every node of a cluster reaches."""
        state = os.path.join(os.path.abspath(storage.local_path(self.options.out) or "."), "_state")
        copies = {}
        for backbone, path in paths.items():
            name = f"{backbone}-{self.backbones.sha256(backbone)[:16]}.safetensors"
            copies[backbone] = os.path.join(state, "weights", name)
            if not os.path.exists(copies[backbone]):
                storage.put(copies[backbone], storage.read_bytes(path))
        return copies

    def _tell_problems(self) -> None:
        """What was found damaged in the index since the last look."""
        for problem in self.index.problems[self.told :]:
            self.on_note(problem)
        self.told = len(self.index.problems)

    def _adopt(self, plan: Plan) -> None:
        if plan.adopt:
            self.index.extend(plan.adopt)
            self.counts["adopted"] += len(plan.adopt)

    def _restate(self, plan: Plan, results: Mapping[str, Result], facts: FileFacts) -> None:
        """Write the rows of finished pairs again where the manifest's other columns, its order or
        the dates of inputs have changed."""
        todays = {p.pair_id: facts.restate(p, results[p.pair_id]) for p in plan.done}
        changed = [today for name, today in todays.items() if today != results[name]]
        if changed:
            self.index.restate(changed)

    def _check_space(self, todo: Sequence[Task]) -> None:
        """Refuse to begin what the disk cannot hold: a PNG of paint takes 1.5 bytes a pixel or
        more, of a picture whose shorter side is about two thirds of the longer."""
        root = storage.local_path(self.options.out) or "."
        need = 0.0
        for task in todo:
            with contextlib.suppress(OSError):  # a picture that is there makes room
                need -= os.path.getsize(os.path.join(root, task.pair.output))
            need += task.pair.config.size**2 * 2 / 3 * 1.5
        free = shutil.disk_usage(root).free
        if need > free:
            raise storage.StorageError(
                f"{len(todo)} pictures need about {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are "
                "free; make room, choose another --out, or take fewer with --limit"
            )

    def _schedule(self, todo: list[Task], paths: Mapping[str, str]) -> None:
        options = self.options
        out = os.path.abspath(storage.local_path(options.out) or options.out)
        probe = os.path.join(out, "_state", f"probe-{self.run_id}")
        job = Job(
            out=out,
            folder=os.getcwd(),
            weights={name: os.path.abspath(path) for name, path in paths.items()},
            device=options.device,
            dtype=options.dtype,
            timeout=options.timeout,
            limits=options.limits,
            probe=probe,
            batch=options.batch,
            tile=options.tile,
            compile=options.compile,
            previews=options.previews,
        )
        wanted = scheduler.Wanted(
            options.workers,
            options.threads,
            options.device,
            options.address,
            rows=len(self.pairs),
            side=max(pair.config.size for pair in self.pairs),
        )
        start = scheduler.run_local if options.in_process else scheduler.run_ray
        storage.put(probe, b"")
        self.progress = Progress([task.pair for task in todo], style=options.progress)
        with self.progress, self.handlers:
            try:
                start(todo, job, wanted, self)
            finally:
                storage.remove(probe)
                storage.sweep_temporaries(options.out)  # of workers that died

    # --- what the scheduler tells ---

    def on_results(self, results: Sequence[Result]) -> None:
        for result in results:
            crash_point("record-returned", pair_id=result.pair_id)
        for result in self.index.extend(results):
            self._count(result)

    def _count(self, result: Result) -> None:
        self.counts[result.status] += 1
        self.progress.result(result)
        cause, messages = self.in_a_row
        if result.status == "ok":
            self.in_a_row = ("", [])
            return
        if cause != result.error_type:
            messages = []
        # A file that cannot be read counts once, however many pairs have that style.
        if result.error_type not in _OF_A_FILE or result.error_message not in messages:
            messages.append(result.error_message)
        self.in_a_row = (result.error_type, messages)
        if self.options.max_failures and len(messages) >= self.options.max_failures:
            self.too_many_failures = (
                f"{len(messages)} failures in a row with the same cause, the last: "
                f"{result.error_message} (--max-failures)"
            )
            self.stop_level = max(self.stop_level, 1)

    def finished(self, pair: Pair) -> Result | None:
        """The row of a picture whose worker died when it had just written it."""
        if self.options.force or self.options.redo_changed:
            return None  # what stands there may be the picture from before
        facts = FileFacts(self.options.out, self.backbones.sha256)
        return facts.adoptable(pair)

    def on_status(self, statuses: Sequence[Status]) -> None:
        self.progress.status(statuses)

    def on_note(self, line: str) -> None:
        self.progress.note(line)

    def on_started(self) -> None:
        self.handlers.install()  # again: ray.init puts its own handler on SIGTERM

    def stop(self) -> int:
        return self.stop_level

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = number
        self.stop_level += 1
        if self.stop_level == 1:
            self.progress.note("stopping: pairs in hand end now and stay pending (again: at once)")

    # --- the end ---

    def balance(self, plan: Plan) -> Summary:
        """How it ended, by what the closed index has."""
        damaged = len(self.index.problems) > self.told  # only a merge reads all columns of a file
        self._tell_problems()
        rows = len(self.pairs)
        ok = self.counts["ok"]
        failed = sum(self.counts[kind] for kind in FAILURES)
        done = len(plan.done) + self.counts["adopted"]
        left = len(plan.todo) - ok - failed
        message = ""
        # A row for each: what is in the index now must be what was counted.
        newest = read_results(self.options.out)
        recorded = sum(pair.pair_id in newest for pair in self.pairs)
        unrecorded = sum(pair.pair_id not in newest for pair, _ in plan.skipped)
        limited = self.options.limit and len(plan.todo) > self.options.limit
        stopped = bool(self.stop_level)
        refused = any(not _kept(newest.get(pair.pair_id)) for pair, _ in plan.skipped)
        if self.too_many_failures:
            code, message = Exit.STOPPED_BY_FAILURES, self.too_many_failures
        elif stopped:
            code, message = Exit.INTERRUPTED, "stopped; run again to go on"
        elif failed:
            code = Exit.FAILED
            message = f"some pairs failed; see why with: stylize-batch status {self.options.out}"
        elif refused:
            code = Exit.FAILED
            message = "some pairs were skipped and have no picture; see why above"
        else:
            code = Exit.DONE
        never = sum(pair.pair_id not in newest for pair, _ in plan.todo) if left else 0
        missing = rows - recorded - unrecorded - never
        if damaged and missing > 0:
            code = Exit.FAILED
            message = (
                f"{count(missing, 'row')} stood in a damaged file of the index; run again: it is "
                "filled from the pictures"
            )
        elif left < 0 or missing or (left and not (stopped or limited)):
            code = Exit.BUG
            message = (
                f"the books do not balance: {rows} rows, {done} done before, {ok} painted, "
                f"{failed} failed, {len(plan.skipped)} skipped, {left} left, {missing} without a "
                "row; please report this with the command"
            )
        return Summary(
            exit=code,
            rows=rows,
            done=done,
            ok=ok,
            failed=failed,
            skipped=plan.skipped,
            left=left,
            seconds=time.monotonic() - self.began,
            message=message,
        )


def _kept(result: Result | None) -> bool:
    """Whether a skipped pair has its picture all the same: edited by hand, and kept."""
    return result is not None and result.status == "ok"


def describe(summary: Summary, out: str) -> str:
    """The one line that says how it ended and where to look."""
    parts = [f"{summary.ok} painted"]
    if summary.done:
        parts.append(f"{summary.done} done before")
    if summary.failed:
        parts.append(f"{summary.failed} failed")
    if summary.skipped:
        parts.append(f"{len(summary.skipped)} skipped")
    if summary.left:
        parts.append(f"{summary.left} left")
    where = os.path.join(out, "images")
    return (
        f"{count(summary.rows, 'pair')}: {', '.join(parts)} in {duration(summary.seconds)}. "
        f"Pictures: {where}/  Index: {os.path.join(out, 'index')}/"
    )
