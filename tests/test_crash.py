"""Kills at every point between two writes, at random, and by the pairs themselves; nothing is lost.

The walk is without Ray, where driver and worker are one process; what Ray adds is walked on Ray.
"""

import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Done, Forks
from helpers import (
    TINY,
    check_whole,
    cli,
    count_by_readers,
    index_rows,
    pictures,
    statuses,
    write_csv,
)

from pipeline.crash import POINTS

FAST = (*TINY[:2], "--steps", "1", *TINY[4:])
PAIRS = 4
ALL = [f"g{i}" for i in range(PAIRS)]


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture(scope="module")
def _started(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A manifest of four pairs; the first and last are done, each in a run of its own."""
    folder = tmp_path_factory.mktemp("crash")
    pictures(folder, PAIRS)
    write_csv(folder / "m.csv", [{"id": name, "content": f"c{name[1]}.jpg"} for name in ALL])
    done = forks(folder / "m.csv", "--in-process", *FAST, "--only", "g0", "--only", "g3")
    assert done.returncode == 0, done.stderr
    (folder / "m" / "images" / "c3.s.g3.png").unlink()  # to be painted again: an older row
    return folder


@pytest.fixture
def manifest(_started: Path, tmp_path: Path) -> Path:
    shutil.copytree(_started, tmp_path / "crash")
    return tmp_path / "crash" / "m.csv"


class Reader(threading.Thread):
    """Reads the index by four programs, over and over, while others write it."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out, self.reads, self.over = out, 0, threading.Event()
        self.failures: list[Exception] = []

    def run(self) -> None:
        while not self.over.is_set():
            try:
                count_by_readers(self.out)
            except Exception as error:
                # A listing is no snapshot: a part may be merged away before it is opened.
                if "No such file" not in str(error) and not isinstance(error, FileNotFoundError):
                    self.failures.append(error)
            self.reads += 1
            time.sleep(0.2)

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()
        assert self.failures == []
        assert self.reads


def images(out: Path) -> dict[str, int]:
    """Finished pictures, each with the time at which it was written."""
    return {p.name: p.stat().st_mtime_ns for p in (out / "images").glob("[!.]*")}


def check_restart(done: Done, out: Path, before: dict[str, int]) -> None:
    """Everything is done, and what was finished before the restart was not painted again."""
    assert done.returncode == 0, done.stderr
    after = images(out)
    assert len(after) == PAIRS
    assert {name: time for name, time in after.items() if name in before} == before
    assert done.counted("painted") == PAIRS - len(before), done.stdout
    assert statuses(out) == dict.fromkeys(ALL, "ok")
    check_whole(out)


def kill_at(forks: Forks, manifest: Path, point: str, flag: Path) -> int:
    """A run that dies at a point; returns how many rows readers find afterwards."""
    died = forks(manifest, "--in-process", *FAST, STYLIZE_CRASH_AT=f"{point}:{flag}")
    assert died.returncode == -signal.SIGKILL, (point, died.stderr)
    counts = set(count_by_readers(manifest.with_suffix("")))
    assert len(counts) == 1
    return counts.pop()


def test_runs_killed_at_each_point_in_turn_lose_nothing_and_paint_nothing_twice(
    forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    """One run after the other on one folder, each with all points ahead of it: each dies at the
    first that it comes to and that no run before it died at."""
    out = manifest.with_suffix("")
    orders = ";".join(f"{point}:{tmp_path / point}" for point in POINTS)
    kills, finished = 0, images(out)
    while True:
        done = forks(manifest, "--in-process", *FAST, STYLIZE_CRASH_AT=orders)
        now = images(out)
        assert {name: time for name, time in now.items() if name in finished} == finished
        if done.returncode != -signal.SIGKILL:
            break
        kills, finished = kills + 1, now
        assert len(set(count_by_readers(out))) == 1
    assert {point for point in POINTS if (tmp_path / point).exists()} == set(POINTS)
    assert kills == len(POINTS)
    check_restart(done, out, finished)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_kill_at_each_point_loses_nothing_and_paints_nothing_twice(
    forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    for point in POINTS:
        copy = tmp_path / point / "m.csv"
        shutil.copytree(manifest.parent, copy.parent)
        out = copy.with_suffix("")
        assert kill_at(forks, copy, point, tmp_path / f"{point}-flag") >= 2
        finished = images(out)
        check_restart(forks(copy, "--in-process", *FAST), out, finished)
        shutil.rmtree(copy.parent)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_new_output_killed_at_each_point_in_turn_is_readable_as_soon_as_it_is_there(
    forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    orders = ";".join(f"{point}:{tmp_path / point}" for point in POINTS)
    run = (manifest, "--in-process", *FAST, "-o", out)
    while (done := forks(*run, STYLIZE_CRASH_AT=orders)).returncode == -signal.SIGKILL:
        if (out / "index").exists():
            assert len(set(count_by_readers(out))) == 1
    assert done.returncode == 0, done.stderr
    assert statuses(out) == dict.fromkeys(ALL, "ok")
    check_whole(out)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_each_point_and_another_during_the_restart(
    forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    chance = random.Random(20150826)
    for first, second in [(first, p) for first in POINTS for p in chance.sample([*POINTS], 4)]:
        copy = tmp_path / "copy" / "m.csv"
        shutil.copytree(manifest.parent, copy.parent)
        out = copy.with_suffix("")
        with Reader(out):
            kill_at(forks, copy, first, tmp_path / f"1-{first}-{second}")
            before = images(out)
            order = f"{second}:{tmp_path / f'2-{first}-{second}'}"
            done = forks(copy, "--in-process", *FAST, STYLIZE_CRASH_AT=order)
            if done.returncode == -signal.SIGKILL:
                again = images(out)
                assert {n: t for n, t in again.items() if n in before} == before
                before = again
                done = forks(copy, "--in-process", *FAST)
            else:
                before = images(out)
            assert done.returncode == 0, (first, second, done.stderr)
            assert {n: t for n, t in images(out).items() if n in before} == before
        assert statuses(out) == dict.fromkeys(ALL, "ok")
        check_whole(out)
        shutil.rmtree(copy.parent)


# On Ray


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("point", POINTS)
def test_on_ray_a_kill_at_each_point_costs_no_more_than_the_pairs_in_hand(
    point: str, manifest: Path, tmp_path: Path
) -> None:
    out = manifest.with_suffix("")
    order = f"{point}:{tmp_path / 'flag'}"
    done = cli(manifest, *FAST, "--workers", 2, STYLIZE_CRASH_AT=order)
    assert (tmp_path / "flag").exists()
    assert len(set(count_by_readers(out))) == 1
    if POINTS[point] == "worker":  # the driver lives, and has the pair painted by another worker
        assert done.returncode == 0, done.stderr
        assert "its worker died; trying again" in done.stderr
    else:
        assert done.returncode == -signal.SIGKILL
        finished = images(out)
        done = cli(manifest, *FAST, "--workers", 2)
        assert done.returncode == 0, done.stderr
        assert {n: t for n, t in images(out).items() if n in finished} == finished
    assert statuses(out) == dict.fromkeys(ALL, "ok")
    check_whole(out)


def test_pairs_that_kill_hang_or_raise_fail_by_their_kind_and_all_others_are_done(
    forks: Forks, tmp_path: Path
) -> None:
    kinds = {"segfault": "poison", "hang": "timeout", "raise": "failed", "memory": "failed"}
    pictures(tmp_path, 1)
    names = [*kinds, "good1", "good2", "good3"]
    rows = [{"id": n, "content": "c0.jpg", "seed": i} for i, n in enumerate(names)]
    manifest, out = write_csv(tmp_path / "m.csv", rows), tmp_path / "m"
    orders = ";".join(f"pair-begun@{kind}!{kind}" for kind in kinds)
    done = cli(manifest, *FAST, "--workers", 2, "--timeout", 8, STYLIZE_CRASH_AT=orders)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    good = dict.fromkeys(names[-3:], "ok")
    assert statuses(out) == {**kinds, **good}
    found = index_rows(out)
    assert found["segfault"]["error_message"].startswith("its worker died 2 times")
    assert found["hang"]["error_message"] == "hung: no answer 15 s after the limit of 8 s"
    assert found["raise"]["error_type"] == "RuntimeError"
    assert found["memory"]["error_type"] == "MemoryError"
    check_whole(out)

    # Cured, each kind is painted when it is asked for, and nothing else is.
    expected = statuses(out)
    for kind in ("timeout", "poison", "failed"):
        cured = [name for name, status in expected.items() if status == kind]
        expected |= dict.fromkeys(cured, "ok")
        again = forks(manifest, "--in-process", *FAST, f"--retry-failed={kind}")
        assert again.returncode == (0 if kind == "failed" else 3), again.stderr
        assert again.counted("painted") == len(cured)
        assert statuses(out) == expected
    check_whole(out)
