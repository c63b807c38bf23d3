"""Compares a run through Ray with a bare loop of `ray.wait` over the same files.

    python tests/bare_loop.py [PAIRS [ROUNDS]]

Each pair has no steps and 16 px, so that little but the batch is left. `bare` only reads, writes
and syncs the same files; `painting` also paints them with the library. The three take turns. Prints
milliseconds a pair, as the median of the rounds with their spread: wall time, and CPU time of all
processes together, which other programs disturb less. At the end: of what a pair consists.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from helpers import picture, write_csv

from pipeline import storage
from pipeline.manifest.reader import read_manifest
from pipeline.options import Options
from pipeline.paint.fleet import Wanted
from pipeline.paint.inputs import InputReader
from pipeline.paint.ray_session import session
from pipeline.paint.worker import Job, Worker
from pipeline.records import Result, Task
from pipeline.run import run
from pipeline.store.index import Index
from pipeline.store.rows import to_line
from stylize import Stylizer, weights
from stylize.config import StyleConfig
from stylize.files import write_atomic
from stylize.request import StyleResult

WORKERS = 2
SETTINGS = {"size": "16", "steps": "0", "scales": "1", "backbone": "vgg16"}
CONFIG = StyleConfig.of("default", size=16, steps=0, scales=1, backbone="vgg16")


class Clock:
    """Wall time, CPU time of this process with all below it, and of this thread, in seconds.

    It starts after a quarter of the pairs, when all workers have started.
    """

    def __init__(self, pairs: int) -> None:
        self._pairs = pairs
        self._done = 0
        self._looks: list[tuple[float, ...]] = []

    def add(self, done: int) -> None:
        """Count pairs that are done."""
        before, self._done = self._done, self._done + done
        if before < self._pairs // 4 <= self._done or self._done == self._pairs:
            spent = 0.0
            here = psutil.Process()
            for process in (here, *here.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    spent += times.user + times.system
            now = time.perf_counter(), spent, time.thread_time()
            self._looks.append((self._done, *now))

    def a_pair(self) -> list[float]:
        """Return milliseconds of each for a pair."""
        (before, *first), (after, *last) = self._looks
        return [1e3 * (b - a) / (after - before) for a, b in zip(first, last, strict=True)]


def whole(folder: Path, pairs: int) -> list[float]:
    """Paint a manifest; return what `Clock.a_pair` says."""
    out = folder / "m"
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock(pairs)
    before = Index.extend

    def extend(self: Index, results: Sequence[Result]) -> list[Result]:
        rows = before(self, results)
        clock.add(len(rows))
        return rows

    with mock.patch.object(Index, "extend", extend):
        options = Options(out=str(out), workers=WORKERS, threads=1, progress="none")
        assert run(str(folder / "m.csv"), SETTINGS, options).ledger.painted == pairs
    return clock.a_pair()


class Bare:
    """Reads the files of a pair and writes its picture; paints it first if it has a stylizer."""

    def __init__(self, folder: str, painted: bytes, paints: bool) -> None:
        self.folder = Path(folder)
        self.painted = painted
        self.stylizer = Stylizer(weights.load(), device="cpu") if paints else None

    def ready(self) -> None:
        """Answers when the worker can work."""
        if self.stylizer:
            import torch

            torch.set_num_threads(1)

    def run(self, number: int) -> int:
        """Makes one picture."""
        content, style = self.folder / f"c{number}.jpg", self.folder / "s.png"
        data = content.read_bytes(), style.read_bytes()
        if self.stylizer:
            result = self.stylizer.transfer(content, style, CONFIG)
            painted = result.encode(".png", "{}")
        else:
            painted = self.painted
        assert all(data)
        write_atomic(self.folder / "bare" / f"{number}.png", painted)
        return number


def bare(folder: Path, pairs: int, *, paints: bool) -> list[float]:
    """Run a bare loop; return what `Clock.a_pair` says."""
    shutil.rmtree(folder / "bare", ignore_errors=True)
    (folder / "bare").mkdir()
    painted = next((folder / "m" / "images").iterdir()).read_bytes()
    line = b"x" * 1600  # as long as a row in the journal
    clock = Clock(pairs)
    with session(Wanted(workers=WORKERS, threads=1)) as ray, open(folder / "lines", "ab") as lines:
        kind = ray.remote(num_cpus=1)(Bare)
        actors = [kind.remote(str(folder), painted, paints) for _ in range(WORKERS)]
        for actor in actors:
            ray.get(actor.ready.remote())
        numbers: Iterator[int] = iter(range(pairs))
        asked = {a.run.remote(n): a for a, n in zip(actors, numbers, strict=False)}
        while asked:
            answers, _ = ray.wait(list(asked), num_returns=1, timeout=60)
            for answer in answers:
                actor = asked.pop(answer)
                ray.get(answer)
                for number in itertools.islice(numbers, 1):
                    asked[actor.run.remote(number)] = actor
                lines.write(line)
                lines.flush()
                os.fsync(lines.fileno())
                clock.add(1)
        for actor in actors:
            ray.kill(actor)
    return clock.a_pair()


def pieces(folder: Path, pairs: int) -> dict[str, tuple[float, float]]:
    """Milliseconds a pair of the parts of a worker's work: CPU time and wall time."""
    spent: dict[str, list[float]] = {}

    def timed(owner: Any, name: str, called: str) -> Callable[[], None]:
        function = getattr(owner, name)
        total = spent.setdefault(called, [0.0, 0.0])

        def call(*arguments: Any, **options: Any) -> Any:
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                total[0] += time.thread_time() - cpu
                total[1] += time.perf_counter() - wall

        setattr(owner, name, call)
        return lambda: setattr(owner, name, function)

    out = folder / "alone"
    options = {**Options().paint_options(), "threads": 1, "device": "cpu"}
    worker = Worker(
        Job(out=str(out), folder="", weights={"vgg16": str(weights.BUNDLED)}, **options)
    )
    tasks = [Task(pair) for pair in read_manifest(str(folder / "m.csv"), defaults=SETTINGS)]
    (first,) = worker.run(tasks[:1])
    assert first is not None
    assert first.status == "ok", first.error_message
    back = [
        timed(Worker, "run", "all"),
        timed(InputReader, "read", "reading, hashing, decoding and resizing"),
        timed(Stylizer, "transfer_batch", "the method: losses of a picture of no steps"),
        timed(StyleResult, "encode", "encoding"),
        timed(storage, "put", "writing and syncing"),
    ]
    for task in tasks[:pairs]:
        worker.run([task])
    for undo in back:
        undo()
    began = time.thread_time()
    for _ in range(pairs):
        to_line(first)
    spent["a line of the journal"] = [time.thread_time() - began] * 2
    return {name: (1e3 * cpu / pairs, 1e3 * wall / pairs) for name, (cpu, wall) in spent.items()}


def compare(folder: Path, pairs: int, rounds: int) -> None:
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        times = {
            "run": whole(folder, pairs),
            "bare": bare(folder, pairs, paints=False),
            "painting": bare(folder, pairs, paints=True),
        }
        for at, kind in enumerate(("wall", "CPU")):
            for name, values in times.items():
                found.setdefault(f"{name}, {kind}", []).append(values[at])
            for name in ("bare", "painting"):
                ratio = times[name][at] / times["run"][at]
                found.setdefault(f"{name} / run, {kind}", []).append(ratio)
        found.setdefault("driver's thread, CPU", []).append(times["run"][2])
        print(f"round {number + 1} of {rounds}", {n: round(v[-1], 2) for n, v in found.items()})
    for name, values in found.items():
        middle = statistics.median(values)
        print(f"{name:24} {middle:8.2f}  ({min(values):.2f} to {max(values):.2f})")


def main(pairs: int = 200, rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(pairs):
            picture(folder / f"c{number}.jpg", number, (16, 16))
        picture(folder / "s.png", 1000, (16, 16))
        rows = [{"id": f"p{n}", "content": f"c{n}.jpg"} for n in range(pairs)]
        write_csv(folder / "m.csv", rows)
        for piece, (cpu, wall) in pieces(folder, pairs).items():
            print(f"{piece:48} {cpu:6.2f} ms of CPU, {wall:6.2f} ms")
        compare(folder, pairs, rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
