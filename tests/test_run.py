"""Whole runs of the real command: real weights, real Ray, real kills, pictures of 32 pixels.

What Ray has no part in is run with --in-process, which costs a second or two and not ten.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from forks import Done, Forks
from forks import cli as forked
from helpers import (
    COMMAND,
    QUICK_TO_MISS,
    TINY,
    Gate,
    alive,
    begun,
    check_whole,
    cli,
    count_by_readers,
    descendants,
    index_rows,
    journal_lines,
    loaded_by,
    painters,
    picture,
    pictures,
    ray_folders,
    seconds_of_children,
    soon,
    start,
    statuses,
    tiny,
    wait_for,
    write_csv,
)
from PIL import ExifTags, Image
from test_weights import narrow

from pipeline.paint.ray_folder import sweep

GOOD = [f"g{i}" for i in range(5)]
BAD = ["missing", "cut", "text"]
SLOW = (
    *("--size", "48", "--steps", "40", "--scales", "1", "--plateau", "0"),
    *("--backbone", "vgg16", "--threads", "1"),
)


def bytes_of(out: Path) -> dict[str, bytes]:
    return {row["pair_id"]: (out / row["output"]).read_bytes() for row in ok_rows(out)}


def ok_rows(out: Path) -> list[dict[str, Any]]:
    return [row for row in index_rows(out).values() if row["status"] == "ok"]


def plan(manifest: Path, *options: object) -> dict[str, str]:
    """pair_id -> why it would be painted or skipped."""
    done = forked("plan", manifest, "--json", *tiny(threads=None), *options)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    return {entry["pair_id"]: entry["reason"] for entry in facts["todo"] + facts["skipped"]}


Paint = Callable[..., Done]


@pytest.fixture(scope="module")
def paint(forks: Forks) -> Paint:
    """A run without Ray."""

    def run(manifest: Path, *options: object) -> Done:
        done = forks(manifest, "--in-process", *TINY, *options)
        assert "Traceback" not in done.stderr
        return done

    return run


@contextlib.contextmanager
def running(*arguments: object, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A driver that is surely gone at the end, however the test went."""
    driver = start(*arguments, **env)
    try:
        yield driver
    finally:
        if driver.poll() is None:
            driver.kill()
        driver.communicate()


# A batch with bad rows among good ones, on Ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of five good rows and three bad ones; settings and meta as columns; absolute
    paths, and a place in the first photograph."""
    folder = tmp_path_factory.mktemp("batch")
    pictures(folder, 5)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Secret Name"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (52.0, 31.0, 12.0), 29: "2031:12:24"})
    with Image.open(folder / "c0.jpg") as image:
        image.save(folder / "c0.jpg", exif=exif)
    whole = picture(folder / "whole.jpg", 7).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("This is no picture.\n" * 9)
    rows: list[dict[str, object]] = [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in range(5)]
    rows[0] |= {"content": folder / "c0.jpg", "style": folder / "s.png", "meta.shot": "12 ü"}
    rows[1] |= {"steps": 6, "output": "sub/one.jpg"}
    rows[2] |= {"preset": "paper", "size": 40, "steps": 8}
    rows += [{"id": name, "content": f"{name}.jpg"} for name in BAD]
    write_csv(folder / "m.csv", rows)
    return folder


@dataclass
class Batch:
    """A finished run: where, how it ended, and what of Ray's was seen meanwhile."""

    out: Path
    returncode: int
    stdout: str
    stderr: str
    processes: set[psutil.Process]
    folders: set[str]


@pytest.fixture(scope="module")
def batch(folder: Path) -> Batch:
    """That manifest painted by two workers of one thread each."""
    processes: set[psutil.Process] = set()
    folders: set[str] = set()
    with running(folder / "m.csv", *TINY, "--workers", 2, "--style-weight", "2") as driver:
        while driver.poll() is None:
            processes.update(descendants(driver.pid))
            folders.update(ray_folders(driver.pid))
            time.sleep(0.2)
        stdout, stderr = driver.communicate()
    return Batch(folder / "m", driver.returncode, stdout, stderr, processes, folders)


@pytest.fixture
def copy(batch: Batch, tmp_path: Path) -> Path:
    """The same, painted, to be spoilt: the path of its manifest."""
    shutil.copytree(batch.out.parent, tmp_path / "copy")
    return tmp_path / "copy" / "m.csv"


def test_bad_rows_among_good_ones_end_with_3_and_each_has_a_row_that_says_why(
    batch: Batch,
) -> None:
    out, done = batch.out, batch
    assert done.returncode == 3
    assert done.stdout.startswith("8 pairs: 5 painted, 3 failed in ")
    assert f"Pictures: {out}/images/  Index: {out}/index/" in done.stdout
    assert done.stderr.endswith(
        f"stylize-batch: some pairs failed; see why with: stylize-batch status {out}\n"
    )
    rows = index_rows(out)
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(GOOD, "ok"),
        **dict.fromkeys(BAD, "failed"),
    }
    says = {
        "missing": "content missing.jpg: there is no such file",
        "cut": "content cut.jpg: the picture is damaged or cut short",
        "text": "content text.jpg: not a picture that can be read (it begins with b'This is ')",
    }
    for name, message in says.items():
        assert rows[name]["error_type"] == "ImageReadError"
        assert rows[name]["error_message"].startswith(message)
        assert message in done.stderr
        assert rows[name]["attempt"] == 1
    check_whole(out)


def test_settings_come_from_defaults_options_preset_and_cells_in_that_order(
    batch: Batch,
) -> None:
    rows = index_rows(batch.out)
    settings = {name: json.loads(row["settings"]) for name, row in rows.items()}

    def of(name: str, *names: str) -> list[object]:
        return [settings[name][setting] for setting in names]

    assert of("g0", "size", "steps", "style_weight", "seed") == [32, 3, 2, 0]
    assert of("g1", "size", "steps", "style_weight") == [32, 6, 2]
    # A row's preset stands above the options, its cells above the preset.
    assert of("g2", "size", "steps", "style_weight", "init") == [40, 8, 1, "noise"]
    assert [rows[name]["preset"] for name in ("g0", "g2")] == ["default", "paper"]
    assert rows["g1"]["output"] == "sub/one.jpg"
    assert (rows["g0"]["width"], rows["g0"]["height"]) == (32, 24)
    assert rows["g2"]["width"] == 40
    assert dict(rows["g0"]["meta"]) == {"shot": "12 ü"}


def test_losses_fall_along_the_curve_and_end_at_the_recorded_loss(
    batch: Batch,
) -> None:
    for row in ok_rows(batch.out):
        curve = row["loss_curve"]
        assert isinstance(curve, list)
        assert curve[-1]["loss"] < curve[0]["loss"]
        assert [point["step"] for point in curve] == sorted(point["step"] for point in curve)
        settings = json.loads(str(row["settings"]))  # strength 0.5 leaves the weights as they are
        weighted = sum(
            settings[f"{name}_weight"] * row[f"{name}_loss"] for name in ("content", "style", "tv")
        )
        assert weighted == pytest.approx(row["loss"], rel=1e-4)
        assert row["loss"] == pytest.approx(min(point["loss"] for point in curve), rel=1e-4)


def test_every_reader_sees_each_pair_once(batch: Batch) -> None:
    assert count_by_readers(batch.out) == [8, 8, 8, 8]


def test_pictures_carry_neither_places_nor_folders(batch: Batch) -> None:
    out = batch.out
    for data in bytes_of(out).values():
        assert str(out.parent).encode() not in data
        for secret in (b"Secret Name", b"2031:12:24", b"GPS"):
            assert secret not in data
    with Image.open(out / "images" / "c0.s.g0.png") as image:
        assert json.loads(image.info["stylize-batch"])["content"] == "c0.jpg"
        assert not image.getexif().get_ifd(ExifTags.IFD.GPSInfo)


def test_status_counts_and_names_causes(batch: Batch) -> None:
    lines = forked("status", batch.out).stdout.splitlines()
    assert lines[:2] == ["3 failed, 5 ok", "failed: 3 x ImageReadError"]
    assert lines[2] == "  row 6 (missing): content missing.jpg: there is no such file"
    facts = json.loads(forked("status", f"file://{batch.out}", "--json").stdout)
    assert facts["counts"] == {"ok": 5, "failed": 3}
    assert [failure["pair_id"] for failure in facts["failures"]] == BAD


def test_the_same_bytes_whatever_the_workers_the_order_and_ray(
    batch: Batch, tmp_path: Path, paint: Paint
) -> None:
    folder = batch.out.parent
    first, *others = (folder / "m.csv").read_text().splitlines()
    (folder / "back.csv").write_text("\n".join([first, *others[::-1]]) + "\n")
    out = tmp_path / "back"
    done = paint(folder / "back.csv", "--style-weight", "2", "-o", out)
    assert done.returncode == 3
    assert bytes_of(out) == bytes_of(batch.out)

    # With other threads sums differ in their last digits, and the final loss by 1 % at most.
    two, some = tmp_path / "two", ("--only", "g0", "--only", "g2")
    done = paint(folder / "m.csv", "--style-weight", "2", "--threads", 2, *some, "-o", two)
    assert done.returncode == 0, done.stderr
    losses, wanted = ({row["pair_id"]: row["loss"] for row in ok_rows(o)} for o in (two, batch.out))
    assert losses == pytest.approx({name: wanted[name] for name in ("g0", "g2")}, rel=0.01)


def test_nothing_of_ray_is_left_after_a_run(batch: Batch) -> None:
    names = [name for name in batch.folders if os.path.basename(name).startswith("stylize-")]
    assert len(names) == 1
    assert len(batch.processes) > 2
    assert alive(batch.processes) == []
    assert not os.path.exists(names[0])


# Run again


def test_failed_pairs_and_only_those_are_tried_again_unless_told_otherwise(
    copy: Path, paint: Paint
) -> None:
    out = copy.with_suffix("")
    before = bytes_of(out)
    left = forked(copy, *TINY, "--style-weight", 2, "--no-retry-failed")
    assert left.returncode == 3
    assert "8 pairs: 5 done before, 3 skipped" in left.stdout.replace("0 painted, ", "")
    assert "skipped row 6 (missing): failed before: content missing.jpg" in left.stderr
    assert set(plan(copy, "--style-weight", 2)) == set(BAD)
    picture(copy.parent / "missing.jpg", 77)
    done = paint(copy, "--style-weight", "2")
    assert done.returncode == 3
    assert "8 pairs: 1 painted, 5 done before, 2 failed" in done.stdout
    rows = index_rows(out)
    assert {name: rows[name]["attempt"] for name in rows} == {
        **dict.fromkeys(GOOD, 1),
        **dict.fromkeys(BAD, 2),
    }
    assert rows["missing"]["status"] == "ok"
    assert {name: data for name, data in bytes_of(out).items() if name in GOOD} == before
    check_whole(out)


@pytest.fixture(scope="module")
def _painted(tmp_path_factory: pytest.TempPathFactory, paint: Paint) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    pictures(folder, 5)
    write_csv(folder / "m.csv", [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in range(4)])
    done = paint(folder / "m.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 pairs: 4 painted in ")
    return folder


@pytest.fixture
def painted(_painted: Path, tmp_path: Path) -> Path:
    """A manifest of four rows that are all done."""
    shutil.copytree(_painted, tmp_path / "painted")
    return tmp_path / "painted" / "m.csv"


def test_a_finished_manifest_is_not_painted_again_and_starts_no_ray(painted: Path) -> None:
    out = painted.with_suffix("")
    before = {p: p.stat().st_mtime_ns for p in (out / "images").iterdir()}
    assert plan(painted) == {}
    began = seconds_of_children()
    code, loaded = loaded_by(painted.parent, painted, *TINY)
    # 5 s is the promise. Seconds of the processor are the same beside other programs.
    assert seconds_of_children() - began < 10
    assert code == 0
    assert not loaded & {"ray", "torch"}
    assert {p: p.stat().st_mtime_ns for p in (out / "images").iterdir()} == before


def test_what_changed_is_named_by_the_plan_and_painted_by_the_run_and_nothing_else(
    painted: Path, paint: Paint
) -> None:
    out = painted.with_suffix("")
    before = {row["pair_id"]: row for row in ok_rows(out)}
    (out / "images" / "c0.s.g0.png").unlink()  # g0: picture removed
    os.utime(painted.parent / "c2.jpg")  # g2: touched, the same bytes
    picture(painted.parent / "c3.jpg", 333)  # g3: another photograph
    rows = [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in range(5)]  # g4: appended
    rows[1]["steps"] = "5"  # g1: a setting changed
    write_csv(painted, rows)
    expected = {
        "g0": "picture is missing",
        "g1": "settings changed: steps 3 -> 5",
        "g3": "content file changed",
        "g4": "new",
    }
    assert plan(painted) == expected
    told = forked("plan", painted, *tiny(threads=None)).stdout.splitlines()
    assert told[0] == "paint  row 1  images/c0.s.g0.png  (picture is missing)"
    assert told[-2] == "5 pairs: 4 to paint, 1 done, 0 to adopt, 0 to skip"
    assert re.fullmatch(r"about \d+:\d\d of one worker on cpu", told[-1])
    done = paint(painted)
    assert done.returncode == 0
    assert "5 pairs: 4 painted, 1 done before" in done.stdout
    after = {row["pair_id"]: row for row in ok_rows(out)}
    ended = {name: row["finished_at"] for name, row in before.items()}
    assert {n for n, row in after.items() if row["finished_at"] != ended.get(n)} == set(expected)
    assert after["g0"]["output_sha256"] == before["g0"]["output_sha256"]
    assert plan(painted) == {}
    check_whole(out)


def test_a_picture_edited_by_hand_is_kept_and_named_until_told_otherwise(
    painted: Path, paint: Paint
) -> None:
    out = painted.with_suffix("")
    target = out / "images" / "c0.s.g0.png"
    picture(target, 5)
    edited = target.read_bytes()
    reason = "picture was edited by hand; it is kept"
    told = forked("plan", painted, *tiny(threads=None)).stdout
    assert f"skip   row 1  images/c0.s.g0.png  ({reason}" in told
    done = paint(painted)
    assert done.returncode == 0
    assert f"skipped row 1 (g0): {reason}" in done.stderr
    assert target.read_bytes() == edited
    done = paint(painted, "--redo-changed")
    assert "4 pairs: 1 painted, 3 done before" in done.stdout
    assert target.read_bytes() != edited
    check_whole(out)


def test_force_only_and_limit_choose_pairs_and_compact_leaves_each_once(
    painted: Path, paint: Paint
) -> None:
    done = paint(painted, "--force", "--only", "g2")
    assert done.returncode == 0
    assert done.stdout.startswith("1 pair: 1 painted in ")
    out = painted.with_suffix("")
    rows = index_rows(out)
    assert [name for name in GOOD[:4] if rows[name]["epoch"] == 2] == ["g2"]
    done = paint(painted, "--force", "--limit", "3")
    assert done.returncode == 0
    assert done.stdout.startswith("4 pairs: 3 painted, 1 left in ")
    check_whole(out)
    assert forked("compact", out).returncode == 0
    assert len(list((out / "index").iterdir())) == 1
    assert count_by_readers(out) == [4, 4, 4, 4]


def test_max_failures_stops_with_4_and_the_rest_stays_pending(tmp_path: Path, paint: Paint) -> None:
    pictures(tmp_path, 1)
    rows = [{"id": f"m{i}", "content": f"none{i}.jpg"} for i in range(5)]
    manifest = write_csv(tmp_path / "m.csv", [*rows, {"id": "good", "content": "c0.jpg"}])
    done = paint(manifest, "--max-failures", "2")
    assert done.returncode == 4
    assert "6 pairs: 0 painted, 2 failed, 4 left" in done.stdout
    assert "2 failures in a row with the same cause" in done.stderr
    assert statuses(tmp_path / "m") == {"m0": "failed", "m1": "failed"}


def test_a_style_that_cannot_be_read_counts_once_and_does_not_stop_the_others(
    tmp_path: Path, paint: Paint
) -> None:
    pictures(tmp_path, 1)
    (tmp_path / "bad.jpg").write_text("no picture")
    rows = [{"id": f"b{i}", "content": "c0.jpg", "style": "bad.jpg", "seed": i} for i in range(4)]
    manifest = write_csv(tmp_path / "m.csv", [*rows, {"id": "good", "content": "c0.jpg"}])
    done = paint(manifest, "--max-failures", "2")
    assert done.returncode == 3
    assert "5 pairs: 1 painted, 4 failed" in done.stdout
    assert "some pairs failed; see why with: stylize-batch status" in done.stderr


def test_what_failed_before_comes_last_so_that_limits_get_to_the_others(
    tmp_path: Path, paint: Paint
) -> None:
    pictures(tmp_path, 1)
    rows = [{"id": f"m{i}", "content": f"none{i}.jpg", "size": 64} for i in range(2)]
    manifest = write_csv(tmp_path / "m.csv", [*rows, {"id": "good", "content": "c0.jpg"}])
    out = tmp_path / "m"
    assert paint(manifest, "--limit", "1").returncode == 3
    assert statuses(out) == {"m0": "failed"}
    assert paint(manifest, "--max-failures", "1").returncode == 4
    assert statuses(out) == {"m0": "failed", "m1": "failed"}
    assert paint(manifest, "--max-failures", "1").returncode == 4
    assert statuses(out) == {"m0": "failed", "m1": "failed", "good": "ok"}


def test_a_layer_that_the_backbone_of_auto_has_not_is_named_before_anything_is_painted(
    tmp_path: Path, paint: Paint
) -> None:
    pictures(tmp_path, 2)
    rows: list[dict[str, object]] = [
        {"id": "good", "content": "c0.jpg"},
        {"id": "bad", "content": "c1.jpg", "style_layers": "relu1_1,relu3_4"},
    ]
    manifest = write_csv(tmp_path / "m.csv", [{**row, "backbone": "auto"} for row in rows])
    done = paint(manifest)
    assert done.returncode == 2
    assert "row 2" in done.stderr
    assert "style_layers has relu3_4, which vgg16 does not have" in done.stderr
    assert not (tmp_path / "m" / "images").exists()
    assert statuses(tmp_path / "m") == {}


def test_weights_of_a_backbone_that_no_pair_wants_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paint: Paint
) -> None:
    monkeypatch.setenv("STYLIZE_CACHE", str(tmp_path / "cache"))
    vgg19_file = tmp_path / "vgg19.pth"
    torch.save(narrow("vgg19"), vgg19_file)
    pictures(tmp_path, 1)
    manifest = write_csv(tmp_path / "m.csv", [{"id": "a", "content": "c0.jpg"}])
    done = paint(manifest, "--weights", vgg19_file)
    assert done.returncode == 5
    assert "--weights is a vgg19, and the pairs want vgg16" in done.stderr
    done = paint(manifest, "--weights", tmp_path / "none.pth")
    assert done.returncode == 5
    assert paint(manifest).returncode == 0
    assert paint(manifest, "--weights", tmp_path / "none.pth").returncode == 5


def test_a_preview_fits_beside_the_longest_name(tmp_path: Path, paint: Paint) -> None:
    pictures(tmp_path, 1)
    row = {"id": "a", "content": "c0.jpg", "output": f"images/{'a' * 251}.png"}
    done = paint(write_csv(tmp_path / "m.csv", [row]), "--preview-every", "1")
    assert done.returncode == 0, done.stderr
    assert {len(path.name) for path in (tmp_path / "m" / "images").iterdir()} == {255}


def test_all_of_standard_error_is_events_where_those_are_wanted(
    painted: Path, paint: Paint
) -> None:
    picture(painted.with_suffix("") / "images" / "c0.s.g0.png", 5)
    write_csv(painted, [{"id": "g0", "content": "c0.jpg"}, {"id": "x", "content": "none.jpg"}])
    done = paint(painted, "--progress", "json")
    assert done.returncode == 3
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events] == ["result", "note", "note"]
    assert events[1]["text"].startswith("skipped row 1 (g0): ")
    assert events[2]["text"].startswith("some pairs failed; see why with: ")


# Kills


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A manifest of six rows that take a second or more each, with `SLOW`."""
    pictures(tmp_path, 6)
    rows = [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in range(6)]
    return write_csv(tmp_path / "m.csv", rows)


def test_a_driver_killed_in_the_middle_leaves_nothing_running_and_loses_nothing(
    slow: Path,
) -> None:
    out, half = slow.with_suffix(""), slow.parent / "half"
    # g0 is surely in hand when another one is done, and again when its worker is killed.
    hangs = "pair-begun@g0!hang"
    with running(slow, *TINY, "--workers", 2, STYLIZE_CRASH_AT=hangs) as driver:
        wait_for(lambda: journal_lines(out) >= 1)
        left = descendants(driver.pid)
        assert len(ray_folders(driver.pid)) == 1
        driver.kill()
    assert count_by_readers(out) == [0, 0, 0, 0]  # rows are in the journal; the index reads
    recorded = statuses(out)
    assert recorded
    assert set(recorded.values()) == {"ok"}
    wait_for(lambda: not alive(left))
    wait_for(lambda: not ray_folders(driver.pid))

    # Run again; the workers are killed on the way, and their pairs are tried once more.
    with running(slow, *TINY, "--workers", 2, STYLIZE_CRASH_AT=f"{hangs}:{half}") as driver:
        wait_for(half.exists)
        for worker in painters(driver.pid):
            worker.kill()
        stdout, stderr = driver.communicate(timeout=120)
        assert driver.returncode == 0, stderr
    assert "g0: its worker died; trying again" in stderr
    # The summary and nothing of Ray's.
    assert stdout.startswith(f"6 pairs: {6 - len(recorded)} painted, {len(recorded)} done before")
    assert statuses(out) == dict.fromkeys((f"g{i}" for i in range(6)), "ok")
    check_whole(out)


def test_a_run_whose_ray_was_killed_says_so_and_goes_on_when_run_again(slow: Path) -> None:
    out = slow.with_suffix("")
    rows: list[dict[str, object]] = [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in range(2)]
    rows[0]["steps"] = 100_000  # in hand when Ray's workers find that they are alone
    write_csv(slow, rows)
    patience = "import pipeline.paint.ray_driver as d; d._LOST = 3.0"
    with running(slow, *SLOW, "--workers", 1, before=patience, **QUICK_TO_MISS) as driver:
        wait_for(lambda: painters(driver.pid))
        (raylet,) = [one for one in descendants(driver.pid) if one.name() == "raylet"]
        raylet.kill()
        _, stderr = driver.communicate(timeout=110)
    assert driver.returncode == 5, stderr
    assert "Ray itself ended: it has no node left; run again to go on" in stderr
    write_csv(slow, [{**row, "steps": 2} for row in rows])
    done = forked(slow, "--in-process", *TINY)
    assert done.returncode == 0, done.stderr
    assert statuses(out) == {"g0": "ok", "g1": "ok"}
    check_whole(out)


def test_a_pair_that_kills_its_worker_twice_is_poison_until_asked_for(
    slow: Path, gate: Gate
) -> None:
    out = slow.with_suffix("")
    rows = [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in range(3)]
    write_csv(slow, rows)
    one = ("--workers", 1, "--only", "g0")
    done = cli(slow, *TINY, *one, STYLIZE_CRASH_AT="picture-temp-written")
    assert done.returncode == 3, done.stderr
    row = index_rows(out)["g0"]
    assert (row["status"], row["error_type"]) == ("poison", "WorkerDied")
    assert "its worker died 2 times" in row["error_message"]
    left = forked(slow, *TINY, "--only", "g0")
    assert left.returncode == 3
    assert "--retry-failed=poison tries it again" in left.stderr

    # Asked for, it is painted, here with two logical GPUs and a worker for each.
    options = (*TINY, "--threads", 2, "--retry-failed=poison")
    with running(slow, *options, STYLIZE_LOGICAL_GPUS="2", **gate.env()) as driver:
        # The first worker opens two pairs at the same time; the retry is the other one's.
        wait_for(lambda: gate.begun()["g0"] and gate.begun()["g1"])
        assert len(painters(driver.pid)) == 2
        gate.open()
        _, stderr = driver.communicate(timeout=120)
        assert driver.returncode == 0, stderr
    rows_now = index_rows(out)
    assert {name: row["status"] for name, row in rows_now.items()} == dict.fromkeys(
        ("g0", "g1", "g2"), "ok"
    )
    assert {row["device"] for row in rows_now.values()} == {"cpu"}
    assert rows_now["g0"]["attempt"] == 2
    check_whole(out)


def test_what_dead_drivers_left_is_swept_and_what_living_ones_use_stays(tmp_path: Path) -> None:
    names = ("dead", "living", "fresh", "foreign")
    folders = {name: tmp_path / f"stylize-1-{name}" for name in names}
    for name, folder in folders.items():
        folder.mkdir()
        if name != "foreign":
            (folder / "driver.lock").touch()
    for name in ("dead", "living"):
        os.utime(folders[name] / "driver.lock", (1e9, 1e9))
    # One process of Ray's by its command line, and a person who reads a log.
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    rays = subprocess.Popen([*sleep, "/ray/raylet", folders["dead"]])
    reader = subprocess.Popen([*sleep, folders["dead"] / "raylet.log"])
    try:
        with open(folders["living"] / "driver.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sweep(str(tmp_path))
        rays.wait(30)
        assert reader.poll() is None
    finally:
        for process in (rays, reader):
            process.kill()
            process.wait()
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {f"stylize-1-{name}" for name in names[1:]}


# Signals and locks


def test_signals_end_a_run_with_130_and_a_second_driver_is_refused_or_waits(slow: Path) -> None:
    out, log = slow.with_suffix(""), slow.parent / "log"
    rows: list[dict[str, object]] = [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in range(6)]
    rows[0]["steps"] = 100_000  # no run ends before it is stopped
    write_csv(slow, rows)
    with running(slow, *SLOW, "--workers", 2) as first:
        wait_for(lambda: journal_lines(out) >= 1)
        second = forked(slow, *SLOW)
        assert second.returncode == 5
        assert f"is in use by process {first.pid} on " in second.stderr
        assert second.stderr.count("\n") == 1
        options = (*SLOW, "--workers", 2, "--wait", "--force")
        with running(slow, *options, STYLIZE_CRASH_LOG=str(log)) as waiting:
            time.sleep(1)
            assert waiting.poll() is None
            assert not begun(log)
            check_stopped(first, signal.SIGINT)
            recorded = {name: row["epoch"] for name, row in index_rows(out).items()}
            assert set(recorded.values()) == {1}
            wait_for(lambda: 2 in {row["epoch"] for row in index_rows(out).values()})
            check_stopped(waiting, signal.SIGTERM)
    assert set(recorded) <= set(statuses(out))
    assert set(statuses(out).values()) == {"ok"}
    check_whole(out)


def check_stopped(driver: "subprocess.Popen[str]", number: int) -> None:
    """Soon, with 130, a summary, no traceback, no process and no folder left."""
    left = descendants(driver.pid)
    began = time.monotonic()
    driver.send_signal(number)
    stdout, stderr = driver.communicate(timeout=120)
    assert time.monotonic() - began < soon()
    assert driver.returncode == 130
    assert "Traceback" not in stdout + stderr
    assert " left in " in stdout
    assert stderr.endswith("stylize-batch: stopped; run again to go on\n")
    assert alive(left) == []
    assert ray_folders(driver.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_pair_ends_with_130_too(number: int, slow: Path) -> None:
    with running(slow, *SLOW, "--steps", 100_000) as driver:
        wait_for(lambda: ray_folders(driver.pid))
        time.sleep(0.5)  # in the middle of ray.init
        driver.send_signal(number)
        _, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 130
    assert "Traceback" not in stderr
    assert ray_folders(driver.pid) == []
    assert statuses(slow.with_suffix("")) == {}


def test_a_run_whose_output_nobody_reads_goes_on_to_its_end(slow: Path) -> None:
    done = subprocess.run(
        [
            "bash",
            "-c",
            'set -o pipefail; "$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}',
            "-",
            COMMAND,
            slow,
            "--in-process",
            *TINY,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    check_whole(slow.with_suffix(""))
    assert len(statuses(slow.with_suffix(""))) == 6


# Limits and devices


def test_a_pair_past_its_time_ends_as_timeout_and_the_others_are_done(
    slow: Path, paint: Paint
) -> None:
    # So large that it cannot end as stalled, nothing better to be found, within the limit.
    slowly = {"steps": 1_000_000, "size": 512}
    long = {"id": "long", "content": "c0.jpg", **slowly}
    write_csv(slow, [long, {"id": "short", "content": "c1.jpg"}])
    done = paint(slow, "--timeout", 4)
    assert done.returncode == 3
    assert statuses(slow.with_suffix("")) == {"long": "timeout", "short": "ok"}
    message = index_rows(slow.with_suffix(""))["long"]["error_message"]
    assert message.startswith("took more than 4 s, at step ")
    assert message.endswith("(raise --timeout, or lower size or steps)")
    left = paint(slow, "--retry-failed", "failed")
    assert left.returncode == 3
    assert "1 done before, 1 skipped" in left.stdout


def test_a_gpu_that_is_not_there_ends_with_5_and_one_line(slow: Path) -> None:
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has a GPU")
    for run, options in ((cli, ()), (forked, ("--in-process",))):
        done = run(slow, *TINY, "--device", "cuda", *options)
        assert done.returncode == 5
        assert "cuda" in done.stderr
        assert done.stderr.count("\n") == 1
    assert statuses(slow.with_suffix("")) == {}


# Storage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_full_disk_and_a_read_only_one_are_the_runs_trouble_and_no_pairs(
    slow: Path, small_disk: Path, paint: Paint
) -> None:
    rows = [{"id": f"g{i}", "content": f"c{i % 6}.jpg", "seed": i} for i in range(12)]
    write_csv(slow, rows)
    out = small_disk / "out"
    done = cli(slow, *TINY, "--workers", 2, "-o", out)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("stylize-batch: cannot write ")
    assert done.stderr.endswith(": no space left; free some or choose another --out\n")
    assert set(statuses(out).values()) <= {"ok"}
    remount(small_disk, "ro")
    refused = paint(slow, "-o", out)
    assert refused.returncode == 5
    assert refused.stderr == (
        "stylize-batch: cannot write 'lock': the file system is read-only; make it writable or "
        "choose another --out\n"
    )
    remount(small_disk, "rw,size=4m")
    assert paint(slow, "-o", out).returncode == 0
    assert len(statuses(out)) == 12
    check_whole(out)


def test_an_output_that_is_a_file_ends_with_5(slow: Path, paint: Paint) -> None:
    out = slow.parent / "file"
    out.write_text("mine")
    done = paint(slow, "-o", out)
    assert done.returncode == 5
    assert "a file stands where a folder is needed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert out.read_text() == "mine"


def test_a_link_that_leads_out_of_the_output_folder_is_refused(slow: Path, paint: Paint) -> None:
    out = slow.with_suffix("")
    outside = slow.parent / "outside"
    outside.mkdir()
    out.mkdir()
    (out / "images").symlink_to(outside)
    write_csv(
        slow,
        [
            {"id": "leaves", "content": "c0.jpg"},
            {"id": "stays", "content": "c1.jpg", "output": "here/c1.png"},
        ],
    )
    done = paint(slow)
    assert done.returncode == 3
    assert statuses(out) == {"leaves": "failed", "stays": "ok"}
    assert "leaves the output folder through a symbolic link" in done.stderr
    assert list(outside.iterdir()) == []


def test_pairs_of_one_size_and_objective_are_painted_together_and_die_apart(
    slow: Path, tmp_path: Path
) -> None:
    with Image.open(tmp_path / "c1.jpg") as image:
        image.rotate(90, expand=True).resize((30, 40)).save(tmp_path / "c1.jpg")  # another shape
    (tmp_path / "c2.jpg").write_bytes(b"no picture")
    run = (slow, *TINY, "--workers", 1, "--batch", 6)
    done = cli(*run)
    assert done.returncode == 3
    out = slow.with_suffix("")
    rows = index_rows(out)
    assert statuses(out) == {f"g{i}": "failed" if i == 2 else "ok" for i in range(6)}
    assert {name: row["batch"] for name, row in rows.items()} == {
        **dict.fromkeys(("g0", "g3", "g4", "g5"), 4),
        "g1": 1,
        "g2": None,
    }
    alone = forked(slow, "--in-process", *TINY, "-o", tmp_path / "alone")
    assert alone.returncode == 3
    for name, row in index_rows(tmp_path / "alone").items():
        if name != "g2":
            assert row["batch"] == 1
            assert row["key"] == rows[name]["key"]
            assert rows[name]["loss"] == pytest.approx(row["loss"], rel=0.01)
    check_whole(out)

    # A pair that kills its worker: the others of its group are not blamed, nor is their first
    # death counted against any.
    died = cli(*run, "--force", STYLIZE_CRASH_AT="pair-begun@g4")
    assert died.returncode == 3
    assert "5 more: their worker died; each is tried alone" in died.stderr
    assert {name: row["status"] for name, row in index_rows(out).items()} == {
        **dict.fromkeys(("g0", "g1", "g3", "g5"), "ok"),
        "g2": "failed",
        "g4": "poison",
    }
    assert "its worker died 2 times" in index_rows(out)["g4"]["error_message"]


def test_a_folder_with_a_pipeline_of_its_own_does_not_get_in_the_way(tmp_path: Path) -> None:
    """Ray's workers would import from the folder where it was started."""
    pictures(tmp_path, 1)
    write_csv(tmp_path / "m.csv", [{"content": "c0.jpg"}])
    for name in ("pipeline.py", "stylize.py"):
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    done = subprocess.run(
        [COMMAND, "m.csv", *TINY], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert list(statuses(tmp_path / "m").values()) == ["ok"]


def test_an_output_that_is_an_input_is_refused_before_anything_is_painted(tmp_path: Path) -> None:
    """OUT is by default named as the manifest, and so may the folder of the photographs be."""
    (tmp_path / "photos").mkdir()
    pictures(tmp_path / "photos", 2)
    rows = [
        {"content": "photos/c0.jpg", "style": "photos/s.png", "output": "new.png"},
        {"content": "photos/c1.jpg", "style": "photos/s.png", "output": "c0.jpg"},
    ]
    manifest = write_csv(tmp_path / "photos.csv", rows)
    before = (tmp_path / "photos" / "c0.jpg").read_bytes()
    for command in (["run", "--redo-changed"], ["plan"]):
        done = forked(command[0], manifest, *command[1:], "--size", 32)
        assert done.returncode == 2
        assert 'line 3, column output: "c0.jpg" in ' in done.stderr
        assert "is the content of row 1, and would be lost" in done.stderr
    assert (tmp_path / "photos" / "c0.jpg").read_bytes() == before
    assert forked(manifest, *TINY, "--in-process", "-o", tmp_path / "out").returncode == 0


def test_a_plan_keeps_nothing_of_weights_that_it_is_given(tmp_path: Path) -> None:
    given, cache = tmp_path / "vgg19.pth", tmp_path / "cache"
    torch.save(narrow("vgg19"), given)
    pictures(tmp_path, 1)
    row = {"content": "c0.jpg", "output": "a.jpg", "backbone": "vgg19"}
    manifest = write_csv(tmp_path / "m.csv", [row])
    (tmp_path / "m").mkdir()
    shutil.copy(tmp_path / "c0.jpg", tmp_path / "m" / "a.jpg")
    before = sorted(tmp_path.rglob("*"))
    planned = forked("plan", manifest, "--weights", given, STYLIZE_CACHE=str(cache))
    assert planned.returncode == 0, planned.stderr
    assert "1 to skip" in planned.stdout  # somebody else's picture stands there
    assert sorted(tmp_path.rglob("*")) == before
