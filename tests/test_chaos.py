"""What takes minutes: random kills, a long run, memory that is short. `make chaos` runs it."""

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import (
    TINY,
    alive,
    check_whole,
    cli,
    count_by_readers,
    descendants,
    index_rows,
    painters,
    pictures,
    start,
    statuses,
    wait_for,
    write_csv,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("CHAOS_SECONDS", "180"))
WORKERS = 2


def say(line: str, capture: pytest.CaptureFixture[str]) -> None:
    """A figure for whoever runs this."""
    with capture.disabled():
        print(f"\n{line}", end=" ", flush=True)


class Watch(threading.Thread):
    """Looks at OUT all the time: pictures that are written a second time, an index that some
    program cannot read."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out, self.over = out, threading.Event()
        self.written: dict[str, int] = {}
        self.again, self.reads, self.retries = 0, 0, 0
        self.failures: list[str] = []

    def run(self) -> None:
        due = 0.0
        while not self.over.is_set():
            self.look()
            if time.monotonic() > due and (self.out / "index").exists():
                self.read()
                due = time.monotonic() + 2
            time.sleep(0.05)

    def look(self) -> None:
        for path in (self.out / "images").glob("[!.]*"):
            inode = path.stat().st_ino
            self.again += self.written.setdefault(path.name, inode) != inode
            self.written[path.name] = inode

    def read(self) -> None:
        self.reads += 1
        try:
            count_by_readers(self.out)
        except Exception as error:
            # A listing is no snapshot: a part may be merged away before it is opened.
            if "No such file" in str(error) or isinstance(error, FileNotFoundError):
                self.retries += 1
            else:
                self.failures.append(repr(error))

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


@contextlib.contextmanager
def driver(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    running = start(*arguments)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def test_random_kills_of_driver_and_workers_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(20150826)
    pictures(tmp_path, 20)
    rows = [{"id": f"p{i:03}", "content": f"c{i % 20}.jpg", "seed": i} for i in range(200)]
    manifest, out = write_csv(tmp_path / "m.csv", rows), tmp_path / "m"
    options = ("--size", 64, "--steps", 60, *TINY[4:], "--workers", WORKERS, "--progress", "none")
    deadline = time.monotonic() + SECONDS
    kills = {"driver": 0, "worker": 0}
    with Watch(out) as watch:
        while time.monotonic() < deadline:
            with driver(manifest, *options, "--retry-failed=poison") as run:
                end = time.monotonic() + chance.uniform(8, 40)  # of this driver
                while run.poll() is None and time.monotonic() < min(end, deadline):
                    time.sleep(chance.uniform(1, 8))
                    if victims := painters(run.pid):
                        chance.choice(victims).kill()
                        kills["worker"] += 1
                left = descendants(run.pid)
                if run.poll() is None:
                    run.kill()
                    kills["driver"] += 1
                else:
                    stderr = run.communicate()[1]
                    # Three killed in a row before their first pair look like a broken cluster.
                    if "workers die as they start" not in stderr:
                        assert run.returncode in (0, 3), stderr
                        break
            count_by_readers(out)
            wait_for(lambda left=left: not alive(left), 20)
        done = cli(manifest, *options, "--retry-failed=poison", timeout=1200)
    assert done.returncode == 0, done.stderr
    say(
        f"killed: {kills}; painted again: {watch.again}; index read {watch.reads} times, "
        f"{watch.retries} of them during a merge;",
        capsys,
    )
    assert watch.failures == []
    assert kills["worker"] > 5
    assert watch.again <= sum(kills.values()) * WORKERS
    assert statuses(out) == {str(row["id"]): "ok" for row in rows}
    check_whole(out)


def memory(process: psutil.Process) -> float:
    """Megabytes that it has to itself."""
    return float(process.memory_full_info().uss) / 1e6


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line of least squares."""
    mean = [sum(values) / len(points) for values in zip(*points, strict=True)]
    over = sum((x - mean[0]) * (y - mean[1]) for x, y in points)
    return over / sum((x - mean[0]) ** 2 for x, _ in points)


def test_memory_and_open_files_stay_level_over_a_long_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = int(os.environ.get("SOAK_PAIRS", "2000"))
    pictures(tmp_path, 20)
    rows = [{"id": f"p{i}", "content": f"c{i % 20}.jpg", "seed": i} for i in range(pairs)]
    manifest, out = write_csv(tmp_path / "m.csv", rows), tmp_path / "m"
    options = ("--size", 64, "--steps", 2, *TINY[4:], "--workers", WORKERS)
    used: dict[str, list[tuple[float, float]]] = {}
    files: dict[str, list[tuple[float, float]]] = {}
    with driver(manifest, *options, "--progress", "none") as run:
        while run.poll() is None:
            time.sleep(1)
            finished = len(list((out / "images").glob("[!.]*")))
            if finished < pairs * 0.2:
                continue  # buffers and caches are still filling
            with contextlib.suppress(psutil.Error):
                found = [("driver", psutil.Process(run.pid))]
                found += [(f"worker {p.pid}", p) for p in painters(run.pid)]
                for name, process in found:
                    megabytes, handles = memory(process), process.num_fds()
                    if megabytes and run.poll() is None:  # none: it is ending
                        used.setdefault(name, []).append((finished / 1000, megabytes))
                        files.setdefault(name, []).append((finished / 1000, handles))
        assert run.returncode == 0, run.communicate()
    for name, points in used.items():
        say(
            f"{name}: {points[0][1]:.0f} MB -> {points[-1][1]:.0f} MB, "
            f"{slope(points):+.1f} MB and {slope(files[name]):+.1f} files per 1,000 pairs;",
            capsys,
        )
    assert len(used) == 1 + WORKERS
    for name, points in used.items():
        assert slope(points) < 20, name
        assert abs(slope(files[name])) < 3, name
    assert len(statuses(out)) == pairs
    check_whole(out)


def test_a_pair_too_large_for_the_memory_is_tried_alone_then_poison_and_the_others_are_done(
    tmp_path: Path,
) -> None:
    """Ray's own monitor kills it, at a limit of 3 GB above what the machine uses now."""
    from ray._private.utils import get_system_memory, get_used_memory

    pictures(tmp_path, 2)
    rows: list[dict[str, object]] = [{"id": "large", "content": "c0.jpg", "size": 2000}]
    rows += [{"id": name, "content": "c1.jpg", "seed": i} for i, name in enumerate("abc")]
    manifest, out = write_csv(tmp_path / "m.csv", rows), tmp_path / "m"
    limit = (get_used_memory() + 3e9) / get_system_memory()
    env = {"RAY_memory_usage_threshold": f"{limit:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    done = cli(manifest, *TINY, "--workers", 2, timeout=600, **env)
    assert done.returncode == 3, done.stderr
    assert "large: its worker was killed for memory; it is tried alone" in done.stderr
    assert statuses(out) == {"large": "poison", "a": "ok", "b": "ok", "c": "ok"}
    assert index_rows(out)["large"]["error_type"] == "WorkerDied"
    check_whole(out)
