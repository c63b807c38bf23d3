"""rebuild-index and prune, and what becomes of an OUT that was damaged between or during runs."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from forks import Forks, start
from helpers import (
    TINY,
    Gate,
    check_whole,
    count_by_readers,
    index_rows,
    picture,
    pictures,
    statuses,
    tiny,
    wait_for,
    write_csv,
)

from pipeline.options import Options
from pipeline.records import preview_of
from pipeline.run import run
from pipeline.storage import StorageError

NAMES = ["g0", "g1", "g2"]
ROWS = [{"id": name, "content": f"c{name[1]}.jpg", "meta.shot": f"{name}!"} for name in NAMES]
NEVER = ("run_id", "epoch", "seq", "notes", "version", "started_at", "finished_at", "attempt")


@pytest.fixture(scope="module")
def _painted(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    pictures(folder, 3)
    write_csv(folder / "m.csv", ROWS)
    done = forks(folder / "m.csv", "--in-process", *TINY)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def manifest(_painted: Path, tmp_path: Path) -> Path:
    """A manifest of three rows that are all done, beside its OUT."""
    shutil.copytree(_painted, tmp_path / "painted")
    return tmp_path / "painted" / "m.csv"


def part(out: Path) -> Path:
    """The one with the rows; another, without any, keeps a new index readable."""
    path, *_ = (p for p in (out / "index").iterdir() if not p.name.endswith("-000000.parquet"))
    return path


def image(out: Path, name: str) -> Path:
    return out / "images" / f"c{name[1]}.s.{name}.png"


# rebuild-index


@pytest.mark.parametrize("with_manifest", [True, False])
def test_an_index_that_is_gone_is_made_again_and_nothing_is_painted_again(
    with_manifest: bool, forks: Forks, manifest: Path
) -> None:
    out = manifest.with_suffix("")
    before = index_rows(out)
    shutil.rmtree(out / "index")
    more = ("--manifest", manifest) if with_manifest else ()
    done = forks("rebuild-index", out, *more)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}/index: 3 rows made from pictures, 0 kept\n"
    after = index_rows(out)
    for name in NAMES:
        assert "row made again from the picture" in after[name]["notes"]
        for column in ("key", "output", "output_sha256", "loss", "settings", "weights_sha256"):
            assert after[name][column] == before[name][column]
        if with_manifest:
            assert (after[name]["row"], after[name]["meta"]) == (
                before[name]["row"],
                before[name]["meta"],
            )
    check_whole(out)
    assert count_by_readers(out) == [3] * 4
    run = forks(manifest, "--in-process", *TINY)
    assert (run.counted("painted"), run.counted("done before")) == (0, 3)


def test_rows_that_can_be_read_are_kept_and_only_lost_ones_are_made(
    forks: Forks, manifest: Path
) -> None:
    out = manifest.with_suffix("")
    before = index_rows(out)
    part(out).write_bytes(part(out).read_bytes()[:-20])
    write_csv(manifest, [{"id": "none", "content": "none.jpg"}])
    assert forks(manifest, "--in-process", *TINY).returncode == 3  # its row is to be kept
    done = forks("rebuild-index", out)
    assert done.stdout.endswith("3 rows made from pictures, 1 kept\n")
    assert statuses(out) == {"none": "failed", **dict.fromkeys(NAMES, "ok")}
    again = forks("rebuild-index", out)
    assert again.stdout.endswith("0 rows made from pictures, 4 kept\n")
    assert {n: r["loss"] for n, r in index_rows(out).items() if n in before} == {
        n: r["loss"] for n, r in before.items()
    }


def test_rebuild_takes_neither_strange_nor_damaged_nor_copied_pictures(
    forks: Forks, manifest: Path
) -> None:
    out = manifest.with_suffix("")
    shutil.rmtree(out / "index")
    cut = image(out, "g0").read_bytes()
    image(out, "g0").write_bytes(cut[: len(cut) - 200])
    shutil.copy(image(out, "g1"), out / "images" / "my favourite.png")
    picture(out / "images" / "mine.png", 4)
    done = forks("rebuild-index", out)
    assert statuses(out) == {"g1": "ok", "g2": "ok"}
    assert "c0.s.g0.png: is damaged or cut short" in done.stderr
    assert "my favourite.png: was moved or copied by hand" in done.stderr
    assert "mine.png" not in done.stderr
    run = forks(manifest, "--in-process", *TINY)
    assert (run.counted("painted"), run.counted("done before")) == (1, 2)
    assert statuses(out) == dict.fromkeys(NAMES, "ok")


# prune


def test_prune_lists_what_the_manifest_no_longer_has_and_removes_it_with_yes(
    forks: Forks, manifest: Path
) -> None:
    out = manifest.with_suffix("")
    write_csv(manifest, ROWS[:1])
    mine = picture(out / "images" / "mine.png", 4)
    copy = Path(shutil.copy(image(out, "g1"), out / "images" / "my favourite.png"))
    edited = image(out, "g2")
    edited.write_bytes(edited.read_bytes() + b"\0")
    preview = picture(out / preview_of("images/c1.s.g1.png"), 5)
    files = sorted(out.rglob("*"))
    unnamed = forks("prune", out)
    assert unnamed.returncode == 2
    assert "name the manifest whose pictures stay: --manifest FILE" in unnamed.stderr
    listed = forks("prune", out, "--manifest", manifest)
    assert listed.returncode == 0
    assert listed.stdout == "images/c1.s.g1.png\n"
    assert "images/c2.s.g2.png: was edited by hand; it stays" in listed.stderr
    assert "1 picture (0.0 MB) and 2 rows of the index would go" in listed.stderr
    assert sorted(out.rglob("*")) == files
    removed = forks("prune", out, "--manifest", manifest, "--yes")
    assert removed.returncode == 0
    assert removed.stdout == listed.stdout
    assert statuses(out) == {"g0": "ok"}
    assert not image(out, "g1").exists()
    assert not preview.exists()
    assert all(path.exists() for path in (mine, copy, edited, image(out, "g0")))
    assert forks(manifest, "--in-process", *TINY).counted("painted") == 0


def test_prune_keeps_what_another_manifest_has_and_an_old_name_until_the_new_is_painted(
    forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    out = manifest.with_suffix("")
    write_csv(manifest, [{**ROWS[0], "output": "new.png"}])
    other = write_csv(tmp_path / "painted" / "other.csv", ROWS[1:])
    both = ("--manifest", manifest, "--manifest", other)
    assert "nothing to remove" in forks("prune", out, *both).stderr
    assert forks(manifest, "--in-process", *TINY).returncode == 0
    assert forks("prune", out, *both, "--yes").stdout == "images/c0.s.g0.png\n"
    assert statuses(out) == dict.fromkeys(NAMES, "ok")
    check_whole(out)


def test_a_prune_that_is_killed_is_finished_by_the_next(forks: Forks, manifest: Path) -> None:
    out = manifest.with_suffix("")
    write_csv(manifest, ROWS[:1])
    prune = ("prune", out, "--manifest", manifest, "--yes")
    for point in ("compaction-merged", "compaction-inputs-deleted"):
        died = forks(*prune, STYLIZE_CRASH_AT=point)
        assert died.returncode == -signal.SIGKILL
        assert len(set(count_by_readers(out))) == 1
    assert forks(*prune).returncode == 0
    assert statuses(out) == {"g0": "ok"}
    check_whole(out)


@pytest.mark.parametrize("command", ["prune", "rebuild-index", "compact"])
def test_nothing_is_repaired_while_a_run_has_the_folder(
    command: str, forks: Forks, manifest: Path
) -> None:
    out = manifest.with_suffix("")
    more = ("--manifest", manifest, "--yes") if command == "prune" else ()
    with open(out / "_state" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = forks(command, out, *more)
    assert done.returncode == 5
    assert "is in use by process " in done.stderr


@pytest.mark.parametrize("command", ["prune", "rebuild-index"])
def test_a_folder_that_is_no_output_folder_is_refused_and_left_alone(
    command: str, forks: Forks, manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    picture(folder / "mine.png", 1)
    more = ("--manifest", manifest) if command == "prune" else ()
    done = forks(command, folder, *more)
    assert done.returncode == 2
    assert "is no output folder" in done.stderr
    assert os.listdir(folder) == ["mine.png"]


# An OUT that was damaged between two runs


def empty(out: Path) -> None:
    part(out).write_bytes(b"")


def cut_short(out: Path) -> None:
    part(out).write_bytes(part(out).read_bytes()[:-30])


def stray(out: Path) -> None:
    (out / "index" / "notes.txt").write_text("mine")


def tear_journal(out: Path) -> None:
    (out / "_state" / "journal" / "r-000001.jsonl").write_text('{"pair_id": "g0", "ro')


def remove_state(out: Path) -> None:
    shutil.rmtree(out / "_state")


def leave_lock(out: Path) -> None:
    (out / "_state" / "lock").write_text('{"pid": 1, "host": "gone", "run_id": "dead"}')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (empty, "is empty; it is now in _state/damaged"),
        (cut_short, "is damaged ("),
        (stray, "index/'notes.txt' is not part of the index and is not read"),
        (tear_journal, "was cut short; it is left out"),
        (remove_state, ""),
        (leave_lock, ""),
    ],
)
def test_a_damaged_output_folder_is_named_set_right_and_nothing_painted_again(
    damage: Callable[[Path], None], says: str, forks: Forks, manifest: Path
) -> None:
    out = manifest.with_suffix("")
    before = {name: image(out, name).stat().st_mtime_ns for name in NAMES}
    damage(out)
    done = forks(manifest, "--in-process", *TINY)
    assert done.returncode == 0, done.stderr
    assert (done.counted("painted"), done.counted("done before")) == (0, 3)
    assert says in done.stderr
    assert {name: image(out, name).stat().st_mtime_ns for name in NAMES} == before
    assert statuses(out) == dict.fromkeys(NAMES, "ok")
    (out / "index" / "notes.txt").unlink(missing_ok=True)
    shutil.rmtree(out / "_state" / "damaged", ignore_errors=True)
    check_whole(out)


def test_an_id_that_changes_takes_the_finished_picture_over(forks: Forks, manifest: Path) -> None:
    out = manifest.with_suffix("")
    output = index_rows(out)["g0"]["output"]
    write_csv(manifest, [{**ROWS[0], "id": "other", "output": output}])
    done = forks(manifest, "--in-process", *TINY)
    assert done.returncode == 0, done.stderr
    assert (done.counted("painted"), done.counted("done before")) == (0, 1)
    assert statuses(out)["other"] == "ok"
    assert forks("prune", out, "--manifest", manifest, "--yes").returncode == 0
    assert statuses(out) == {"other": "ok"}
    check_whole(out)


def test_of_two_pictures_of_a_pair_the_one_that_the_manifest_asks_for_gets_the_row(
    forks: Forks, manifest: Path
) -> None:
    out = manifest.with_suffix("")
    shutil.copy(manifest.parent / "c2.jpg", manifest.parent / "a.jpg")
    rows = [{"id": "g0", "content": "a.jpg"}, *ROWS[1:]]  # c0.s.g0.png stays behind
    assert forks(write_csv(manifest, rows), "--in-process", *TINY).counted("painted") == 1
    for more in (("--manifest", manifest), ()):
        shutil.rmtree(out / "index")
        done = forks("rebuild-index", out, *more)
        assert done.stdout.endswith("3 rows made from pictures, 0 kept\n"), done.stdout
        assert index_rows(out)["g0"]["output"] == "images/a.s.g0.png"


# What the index says of pairs that are done


def test_columns_and_order_of_the_manifest_reach_rows_that_are_done(
    forks: Forks, manifest: Path
) -> None:
    out = manifest.with_suffix("")
    before = index_rows(out)
    rows = [{**row, "meta.client": "Ada"} for row in reversed(ROWS)]
    copied = manifest.parent / "c1.jpg"
    os.utime(copied, ns=(5, 5))
    done = forks(write_csv(manifest, rows), "--in-process", *TINY)
    assert (done.returncode, done.counted("painted"), done.counted("done before")) == (0, 0, 3)
    after = index_rows(out)
    for number, name in enumerate(reversed(NAMES), 1):
        assert after[name]["row"] == number
        assert dict(after[name]["meta"]) == {"shot": f"{name}!", "client": "Ada"}
        assert [i["sha256"] for i in after[name]["inputs"]] == [
            i["sha256"] for i in before[name]["inputs"]
        ]
        for same in ("loss_curve", "loss", "output_sha256", "finished_at", "key", "attempt"):
            assert after[name][same] == before[name][same]
    assert after["g1"]["inputs"][0]["stat"] == f"{copied.stat().st_size}:5"
    parts = sorted((out / "index").iterdir())
    assert forks(manifest, "--in-process", *TINY).returncode == 0
    assert sorted((out / "index").iterdir()) == parts  # nothing new to say
    check_whole(out)


def test_a_picture_has_one_row_though_its_pair_has_another_id_since(
    forks: Forks, tmp_path: Path
) -> None:
    pictures(tmp_path, 1)
    row = {"content": "c0.jpg", "output": "images/a.png", "id": ""}
    out = tmp_path / "m"
    for steps in (1, 2):
        manifest = write_csv(tmp_path / "m.csv", [{**row, "steps": steps}])
        done = forks(manifest, "--in-process", *TINY)
        assert (done.returncode, done.counted("painted")) == (0, 1), done.stderr
    (only,) = index_rows(out).values()
    assert only["steps"] == 2
    assert count_by_readers(out) == [1, 1, 1, 1]
    check_whole(out)


def test_damage_that_shows_at_the_end_is_told_and_the_next_run_makes_the_rows_again(
    forks: Forks, manifest: Path
) -> None:
    out = manifest.with_suffix("")
    damaged = part(out)
    where = pq.ParquetFile(damaged).metadata.row_group(0)
    names = [where.column(i).path_in_schema for i in range(where.num_columns)]
    curve = where.column(names.index("loss_curve.list.element.tv_loss"))
    data = bytearray(damaged.read_bytes())
    start = curve.dictionary_page_offset or curve.data_page_offset
    for at in range(start, start + curve.total_compressed_size):
        data[at] ^= 0xFF
    damaged.write_bytes(data)  # only who reads all columns will see it
    rows: list[dict[str, Any]] = [*ROWS[:2], {**ROWS[2], "steps": 4}]
    done = forks(write_csv(manifest, rows), "--in-process", *TINY)
    assert done.returncode == 3, (done.stdout, done.stderr)
    assert f"index/{damaged.name} is damaged" in done.stderr
    assert "2 rows stood in a damaged file of the index; run again" in done.stderr
    done = forks(manifest, "--in-process", *TINY)
    assert (done.returncode, done.counted("painted"), done.counted("done before")) == (0, 0, 3)
    assert statuses(out) == dict.fromkeys(NAMES, "ok")
    shutil.rmtree(out / "_state" / "damaged")
    check_whole(out)


# Before and during a run


def test_a_run_that_the_disk_cannot_hold_does_not_begin(forks: Forks, tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    number = shutil.disk_usage(tmp_path).free // 268_435_456 + 20  # bytes of a picture
    rows = [{"id": f"p{i}", "content": "c0.jpg", "size": 16384} for i in range(number)]
    done = forks(write_csv(tmp_path / "m.csv", rows), "--in-process", "--backbone", "vgg16")
    assert done.returncode == 5
    assert f"{number} pictures: about {number * 268.435456:,.0f} MB are needed" in done.stderr
    assert "or paint fewer with --limit" in done.stderr
    assert not (tmp_path / "m" / "images").exists()


def test_pictures_that_are_painted_again_need_no_room(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"size": "32", "steps": "1", "scales": "1", "backbone": "vgg16"}
    options = Options(
        out=str(manifest.with_suffix("")), in_process=True, threads=1, progress="none"
    )
    usage = shutil.disk_usage(manifest)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    assert run(str(manifest), settings, replace(options, force=True)).ledger.painted == 3
    with pytest.raises(StorageError, match="1 picture: about 0 MB are needed, 0 MB are free"):
        run(str(manifest), settings, replace(options, out=str(manifest.parent / "new"), limit=1))


def test_a_folder_removed_during_the_run_ends_with_5_and_the_next_run_does_all(
    forks: Forks, manifest: Path, gate: Gate
) -> None:
    out = manifest.with_suffix("")
    shutil.rmtree(out)
    run = start(manifest, "--in-process", *TINY, **gate.env("g1"))
    try:
        wait_for(lambda: gate.begun()["g1"])
        assert image(out, "g0").exists()
        gone = out.rename(out.with_name("gone"))  # at once: rmtree alone would race with the run
        shutil.rmtree(gone)
        gate.open()
        _, stderr = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 5, stderr
    assert "its folder is gone; put it back, or start again with another --out" in stderr
    assert "Traceback" not in stderr
    done = forks(manifest, "--in-process", *TINY)
    assert done.returncode == 0, done.stderr
    assert statuses(out) == dict.fromkeys(NAMES, "ok")
    check_whole(out)


def test_rows_that_vanish_during_a_run_end_it_with_1_and_how_many(
    manifest: Path, gate: Gate
) -> None:
    out = manifest.with_suffix("")
    write_csv(manifest, [*ROWS, {"id": "new", "content": "c0.jpg", "seed": 7}])
    run = start(manifest, "--in-process", *TINY, **gate.env("new"))
    try:
        wait_for(lambda: gate.begun()["new"])
        part(out).unlink()  # the rows of what was done before
        gate.open()
        _, stderr = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 1
    assert "the books do not balance: 4 rows, 3 done before, 1 painted, 0 failed" in stderr
    assert "3 without a row" in stderr
    assert "Traceback" not in stderr


def test_a_clock_that_jumps_decides_nothing(manifest: Path) -> None:
    """An hour back, then a day forth, at each look at the clock: no time-out, nothing done twice,
    the newest row is the newest."""
    out = manifest.with_suffix("")
    code = """
import itertools, sys, time
jumps, now = itertools.cycle([-3600.0, 86400.0, -90000.0, 7.0]), time.time
time.time = lambda: now() + next(jumps)
from pipeline.cli import main
main()
"""
    for options, says in (("--force", "3 painted"), ("--verify-inputs", "3 done before")):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                manifest,
                "--in-process",
                *TINY,
                "--timeout",
                "60",
                options,
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
        assert {row["epoch"] for row in index_rows(out).values()} == {2}
        assert all(0 <= row["seconds"] < 60 for row in index_rows(out).values())
    check_whole(out)


def test_the_pictures_of_another_manifest_are_never_painted_over_unasked(
    forks: Forks, tmp_path: Path
) -> None:
    pictures(tmp_path, 2)
    monday = write_csv(tmp_path / "monday.csv", [{"content": "c0.jpg", "output": "001.png"}])
    tuesday = write_csv(tmp_path / "tuesday.csv", [{"content": "c1.jpg", "output": "001.png"}])
    named = (*tiny(threads=None), "--out", tmp_path / "out")
    options = (*named, "--in-process", "--threads", 1)
    assert forks(monday, *options).returncode == 0
    before = (tmp_path / "out" / "001.png").read_bytes()
    for command in ((tuesday, *options), ("plan", tuesday, *named)):
        refused = forks(*command)
        assert refused.returncode == 2
        assert 'line 2, column output: "001.png" in ' in refused.stderr
        assert '"c0.jpg" in the style of "s.png"; name another output' in refused.stderr
    assert (tmp_path / "out" / "001.png").read_bytes() == before
    assert forks(monday, *options).returncode == 0  # it still finds its inputs
    assert forks(tuesday, *options, "--redo-changed").returncode == 0
    assert (tmp_path / "out" / "001.png").read_bytes() != before
