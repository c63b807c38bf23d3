"""Kills at every point between two writes, at random, and by the pairs themselves; nothing is lost.

The walk is without Ray, where driver and worker are one process; what Ray adds is walked on Ray.
"""

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from forks import Done, Forks
from helpers import (
    Reader,
    begun,
    begun_again,
    check_whole,
    cli,
    count_by_readers,
    index_rows,
    pictures,
    statuses,
    tiny,
    write_csv,
)

from pipeline.crash import POINTS

FAST = tiny(steps=1)
PAIRS = 4
ALL = [f"g{i}" for i in range(PAIRS)]
IN_HAND = {"pair-begun", "picture-temp-written"}
"""The points at which a pair is begun and its picture not there yet: those alone cost work."""


@pytest.fixture(scope="module")
def _started(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A manifest of four pairs; the first and last are done, each in a run of its own."""
    folder = tmp_path_factory.mktemp("crash")
    pictures(folder, PAIRS)
    write_csv(folder / "m.csv", [{"id": name, "content": f"c{name[1]}.jpg"} for name in ALL])
    done = forks(folder / "m.csv", "--in-process", *FAST, "--only", "g0", "--only", "g3")
    assert done.returncode == 0, done.stderr
    (folder / "m" / "images" / "c3.s.g3.png").unlink()  # to be painted again: an older row
    (folder / "m" / "_state" / "run.json").unlink()  # so that a run has it to write
    return folder


@pytest.fixture
def manifest(_started: Path, tmp_path: Path) -> Path:
    shutil.copytree(_started, tmp_path / "crash")
    return tmp_path / "crash" / "m.csv"


def images(out: Path) -> dict[str, int]:
    """Finished pictures, each with the time at which it was written."""
    return {p.name: p.stat().st_mtime_ns for p in (out / "images").glob("[!.]*")}


def bytes_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "images").iterdir()}


def check_restart(done: Done, out: Path, before: dict[str, int]) -> None:
    """Everything is done, and what was finished before the restart was not painted again."""
    assert done.returncode == 0, done.stderr
    after = images(out)
    assert len(after) == PAIRS
    assert {name: time for name, time in after.items() if name in before} == before
    assert done.counted("painted") == PAIRS - len(before), done.stdout
    assert statuses(out) == dict.fromkeys(ALL, "ok")
    check_whole(out)


def kill_at(forks: Forks, manifest: Path, point: str, **env: str) -> int:
    """A run that dies at a point; returns how many rows readers find afterwards."""
    died = forks(manifest, "--in-process", *FAST, **env, STYLIZE_CRASH_AT=point)
    assert died.returncode == -signal.SIGKILL, (point, died.stderr)
    counts = set(count_by_readers(manifest.with_suffix("")))
    assert len(counts) == 1
    return counts.pop()


def test_runs_killed_at_each_point_in_turn_lose_nothing_and_paint_nothing_twice(
    forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    """One run after the other on one folder, each with all points ahead of it: each dies at the
    first that it comes to and that no run before it died at."""
    out, log = manifest.with_suffix(""), tmp_path / "log"
    orders = ";".join(f"{point}:{tmp_path / point}" for point in POINTS)
    env = {"STYLIZE_CRASH_AT": orders, "STYLIZE_CRASH_LOG": str(log)}
    kills, finished = 0, images(out)
    with Reader(out):
        while True:
            done = forks(manifest, "--in-process", *FAST, **env)
            now = images(out)
            assert {name: time for name, time in now.items() if name in finished} == finished
            if done.returncode != -signal.SIGKILL:
                break
            kills, finished = kills + 1, now
            assert len(set(count_by_readers(out))) == 1
    assert {point for point in POINTS if (tmp_path / point).exists()} == set(POINTS)
    assert kills == len(POINTS)
    assert set(begun(log)) == {"g1", "g2", "g3"}
    assert begun_again(log) == len(IN_HAND)
    check_restart(done, out, finished)
    undisturbed = tmp_path / "undisturbed"
    assert forks(manifest, "--in-process", *FAST, "-o", undisturbed).returncode == 0
    assert bytes_of(out) == bytes_of(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_kill_at_each_point_loses_nothing_and_paints_nothing_twice(
    forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    for point in POINTS:
        copy, log = tmp_path / point / "m.csv", tmp_path / f"log-{point}"
        env = {"STYLIZE_CRASH_LOG": str(log)}
        shutil.copytree(manifest.parent, copy.parent)
        out = copy.with_suffix("")
        assert kill_at(forks, copy, point, **env) >= 2
        finished = images(out)
        check_restart(forks(copy, "--in-process", *FAST, **env), out, finished)
        assert begun_again(log) == (point in IN_HAND)
        shutil.rmtree(copy.parent)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_new_output_killed_at_each_point_in_turn_is_readable_as_soon_as_it_is_there(
    forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    orders = ";".join(f"{point}:{tmp_path / point}" for point in POINTS)
    run = (manifest, "--in-process", *FAST, "-o", out)
    with Reader(out):
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
    for first, second in [(first, p) for first in POINTS for p in chance.sample([*POINTS], 3)]:
        copy, log = tmp_path / "copy" / "m.csv", tmp_path / f"log-{first}-{second}"
        shutil.copytree(manifest.parent, copy.parent)
        out, env = copy.with_suffix(""), {"STYLIZE_CRASH_LOG": str(log)}
        with Reader(out):
            kill_at(forks, copy, first, **env)
            before, costs = images(out), int(first in IN_HAND)
            done = forks(copy, "--in-process", *FAST, **env, STYLIZE_CRASH_AT=second)
            if done.returncode == -signal.SIGKILL:
                again = images(out)
                assert {n: t for n, t in again.items() if n in before} == before
                before, costs = again, costs + (second in IN_HAND)
                done = forks(copy, "--in-process", *FAST, **env)
            assert done.returncode == 0, (first, second, done.stderr)
            assert {n: t for n, t in images(out).items() if n in before} == before
        assert begun_again(log) == costs
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
    out, log = manifest.with_suffix(""), tmp_path / "log"
    env: dict[str, Any] = {"STYLIZE_CRASH_LOG": str(log)}
    env["STYLIZE_CRASH_AT"] = f"{point}:{tmp_path / 'flag'}"
    done = cli(manifest, *FAST, "--workers", 2, **env)
    assert (tmp_path / "flag").exists()
    assert len(set(count_by_readers(out))) == 1
    if POINTS[point] == "worker":  # the driver lives, and has the pair painted by another worker
        assert done.returncode == 0, done.stderr
        assert ("its worker died; trying again" in done.stderr) == (point in IN_HAND)
        assert begun_again(log) == (point in IN_HAND)
    else:
        assert done.returncode == -signal.SIGKILL
        finished = images(out)
        done = cli(manifest, *FAST, "--workers", 2, **env)
        assert done.returncode == 0, done.stderr
        assert {n: t for n, t in images(out).items() if n in finished} == finished
        assert begun_again(log) <= 2
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
    grace = "import pipeline.paint.ray_driver as d; d._GRACE = 2.0"  # after the time limit
    run = (manifest, *FAST, "--workers", 2, "--timeout", 8)
    done = cli(*run, before=grace, STYLIZE_CRASH_AT=orders)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    good = dict.fromkeys(names[-3:], "ok")
    assert statuses(out) == {**kinds, **good}
    found = index_rows(out)
    assert found["segfault"]["error_message"].startswith("its worker died 2 times")
    assert found["hang"]["error_message"] == "hung: no answer 2 s after the limit of 8 s"
    assert found["raise"]["error_type"] == "bug: RuntimeError"
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
