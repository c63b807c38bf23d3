"""What takes minutes: random kills, a long run, memory that is short. `make chaos` runs it."""

import contextlib
import functools
import itertools
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import (
    TINY,
    Reader,
    alive,
    begun,
    begun_again,
    check_whole,
    cli,
    count_by_readers,
    descendants,
    index_rows,
    painters,
    pictures,
    start,
    statuses,
    tiny,
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


def gone(processes: list[psutil.Process]) -> bool:
    return not alive(processes)


@contextlib.contextmanager
def driver(*arguments: object, **env: str) -> Iterator["subprocess.Popen[str]"]:
    running = start(*arguments, **env)
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
    options = (*tiny(size=64, steps=60), "--workers", WORKERS, "--progress", "none")
    deadline = time.monotonic() + SECONDS
    kills = {"driver": 0, "worker": 0}
    log = {"STYLIZE_CRASH_LOG": str(tmp_path / "log")}
    with Reader(out, pause=1) as reader:
        while time.monotonic() < deadline:
            with driver(manifest, *options, "--retry-failed=poison", **log) as run:
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
            wait_for(functools.partial(gone, left), 20)
        done = cli(manifest, *options, "--retry-failed=poison", timeout=1200, **log)
    assert done.returncode == 0, done.stderr
    again = begun_again(tmp_path / "log")
    say(
        f"killed: {kills}; begun again: {again}; index read {reader.reads} times, "
        f"{reader.again} of them again for a part that was removed meanwhile;",
        capsys,
    )
    assert kills["worker"] > 5
    assert set(begun(tmp_path / "log")) == {str(row["id"]) for row in rows}
    assert again <= kills["worker"] + kills["driver"] * WORKERS
    assert statuses(out) == {str(row["id"]): "ok" for row in rows}
    check_whole(out)

    # The same bytes as without a kill and without Ray.
    some, undisturbed = ["p000", "p099", "p150", "p199"], tmp_path / "undisturbed"
    only = [argument for name in some for argument in ("--only", name)]
    calm = (*options, "--in-process", *only, "-o", undisturbed)
    assert cli(manifest, *calm, timeout=600).returncode == 0
    for name, row in index_rows(undisturbed).items():
        assert row["output_sha256"] == index_rows(out)[name]["output_sha256"]


def memory(process: psutil.Process) -> float:
    """Megabytes that it has to itself."""
    return float(process.memory_full_info().uss) / 1e6


def slope(points: list[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs of points (Theil-Sen): a few bad samples, or
    teeth of a saw, do not move it."""
    return statistics.median(
        (y2 - y1) / (x2 - x1)
        for (x1, y1), (x2, y2) in itertools.combinations(points, 2)
        if x2 - x1 > 0.1
    )


def test_memory_and_open_files_stay_level_over_a_long_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = int(os.environ.get("SOAK_PAIRS", "2000"))
    pictures(tmp_path, 20)
    rows = [{"id": f"p{i}", "content": f"c{i % 20}.jpg", "seed": i} for i in range(pairs)]
    manifest, out = write_csv(tmp_path / "m.csv", rows), tmp_path / "m"
    options = (*tiny(size=64, steps=2), "--workers", WORKERS)
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
        assert slope(points) < 3, name
        assert abs(slope(files[name])) < 1, name
    assert len(statuses(out)) == pairs
    check_whole(out)


def test_a_pair_too_large_for_the_memory_is_tried_alone_then_poison_and_the_others_are_done(
    tmp_path: Path,
) -> None:
    """Ray's own monitor kills it, at a limit of 3 GB above what the machine uses now. (The
    kernel's kills are in test_memory.py.)"""
    from ray._common.utils import get_system_memory
    from ray._private.utils import get_used_memory

    pictures(tmp_path, 1)
    names = ["large", "a", "b", "c"]
    rows = [{"id": name, "content": "c0.jpg", "seed": i} for i, name in enumerate(names)]
    manifest, out = write_csv(tmp_path / "m.csv", rows), tmp_path / "m"
    used = get_used_memory()  # type: ignore[no-untyped-call]  # Ray gives it no types
    limit = (used + 3e9) / get_system_memory()
    env = {"RAY_memory_usage_threshold": f"{limit:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    env["STYLIZE_CRASH_AT"] = "pair-begun@large!eat"
    done = cli(manifest, *TINY, "--workers", 2, timeout=600, **env)
    assert done.returncode == 3, done.stderr
    assert "large: its worker was killed for memory; it is tried alone" in done.stderr
    assert statuses(out) == {"large": "poison", "a": "ok", "b": "ok", "c": "ok"}
    assert index_rows(out)["large"]["error_type"] == "WorkerDied"
    check_whole(out)
