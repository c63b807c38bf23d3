"""The log of a run: what it holds, how much of it is kept, and who names it."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from forks import cli as forked
from forks import start
from helpers import TINY, cli, index_rows, picture, pictures, tiny, wait_for, write_csv

from pipeline.store.folder import OutFolder
from pipeline.store.log import RunLog, latest_log


def events(out: Path) -> list[dict[str, Any]]:
    lines = Path(latest_log(OutFolder(out))).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_an_error_that_nobody_foresaw_is_called_a_bug_and_its_traceback_is_kept(
    tmp_path: Path,
) -> None:
    pictures(tmp_path, 2)
    rows = [{"id": name, "content": f"c{n}.jpg"} for n, name in enumerate("ab")]
    manifest, out = write_csv(tmp_path / "m.csv", rows), tmp_path / "m"
    broken: dict[str, Any] = {"STYLIZE_CRASH_AT": "pair-begun@a!raise"}
    for run, where in ((cli, ()), (forked, ("--in-process",))):
        done = run(manifest, *TINY, *where, **broken)
        assert done.returncode == 3
        assert index_rows(out)["a"]["error_type"] == "bug: RuntimeError"
        log = latest_log(OutFolder(out))
        assert "by a bug of this program; please report it" in done.stderr
        assert log in done.stderr
        (failed,) = [event for event in events(out) if event["event"] == "pair failed"]
        assert failed["pair_id"] == "a"
        assert "Traceback (most recent call last)" in failed["traceback"]
        assert "crash_point" in failed["traceback"]
        assert f"log of the last run: {log}" in forked("status", out).stdout
        assert json.loads(forked("status", out, "--json").stdout)["log"] == log


def test_log_json_is_the_log_and_the_display_as_lines_of_json(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    rows = [{"id": "a", "content": "gone.jpg"}, {"id": "b", "content": "c0.jpg"}]
    manifest = write_csv(tmp_path / "m.csv", rows)
    done = forked(manifest, *TINY, "--in-process", "--log-json", "--no-retry-failed")
    assert done.returncode == 3
    shown = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(event["time"] for event in shown)
    logged = events(tmp_path / "m")
    assert [event for event in shown if event in logged] == logged
    assert {e["pair_id"]: e["status"] for e in shown if e["event"] == "result"} == {
        "a": "failed",
        "b": "ok",
    }
    # What the display shows as lines is in both, once.
    again = forked(manifest, *TINY, "--in-process", "--log-json", "--no-retry-failed")
    notes = [json.loads(line) for line in again.stderr.splitlines() if '"note"' in line]
    assert sum("skipped row 1" in note["text"] for note in notes) == 1


def test_a_failure_that_was_foreseen_is_no_bug(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    manifest = write_csv(tmp_path / "m.csv", [{"id": "a", "content": "gone.jpg"}])
    done = forked(manifest, *TINY, "--in-process")
    assert done.returncode == 3
    assert "bug" not in done.stderr
    assert index_rows(tmp_path / "m")["a"]["error_type"] == "ImageReadError"
    (failed,) = [e for e in events(tmp_path / "m") if e["event"] == "pair failed"]
    assert failed["traceback"] == ""


def test_a_death_is_in_the_log_with_what_the_worker_said_and_what_was_decided(
    tmp_path: Path,
) -> None:
    pictures(tmp_path, 1)
    manifest = write_csv(tmp_path / "m.csv", [{"id": "a", "content": "c0.jpg"}])
    once: dict[str, Any] = {"STYLIZE_CRASH_AT": f"pair-begun@a!segfault:{tmp_path / 'once'}"}
    done = cli(manifest, *TINY, **once)
    assert done.returncode == 0, done.stderr
    found = {event["event"]: event for event in events(tmp_path / "m")}
    assert found["worker died"]["pairs"] == ["a"]
    assert found["death judged"]["decision"].startswith("put back last, to be tried once more")
    said = [e["said"] for e in events(tmp_path / "m") if e["event"] == "worker ended"]
    assert any("Segmentation fault" in text or "SIGSEGV" in text for text in said), said
    assert found["run ended"]["painted"] == 1
    notes = [e["text"] for e in events(tmp_path / "m") if e["event"] == "note"]
    assert "a: its worker died; trying again" in notes


def test_a_run_that_is_refused_midway_says_so_in_its_log(tmp_path: Path) -> None:
    picture(tmp_path / "c.jpg", 1)
    manifest = write_csv(tmp_path / "m.csv", [{"content": "c.jpg", "style": "c.jpg"}])
    done = forked(manifest, *TINY, "--in-process", "--weights", tmp_path / "c.jpg")
    assert done.returncode == 5
    (last,) = [e for e in events(tmp_path / "m") if e["event"] == "run broken off"]
    assert last["error"].startswith("UnableError: ")


def test_the_newest_logs_stay_and_a_log_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.log.MOST_BYTES", 1000)
    out = OutFolder(tmp_path)
    for number in range(25):
        log = RunLog(out, f"20260101T0000{number:02}-x")
        for _ in range(50):
            log.write("note", text="x" * 50)
    names = sorted(os.listdir(out.log))
    assert len(names) == 20
    assert names[-1] == "20260101T000024-x.jsonl"
    lines = Path(log.path).read_text().splitlines()
    assert os.path.getsize(log.path) < 1200
    assert json.loads(lines[-1])["event"] == "log full"


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    log = RunLog(OutFolder(tmp_path), "r1")
    os.rmdir(OutFolder(tmp_path).log)
    log.write("note", text="lost")


def test_a_stop_is_in_the_log(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    manifest = write_csv(tmp_path / "m.csv", [{"content": "c0.jpg", "steps": 20_000, "plateau": 0}])
    begun = tmp_path / "begun"
    options = (*tiny(steps=None), "--in-process", "--progress", "plain")
    run = start(manifest, *options, STYLIZE_CRASH_LOG=str(begun))
    # Only now does the run have the signals.
    wait_for(lambda: begun.exists() and "pair-begun" in begun.read_text())
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    assert any("stopping" in e.get("text", "") for e in events(tmp_path / "m"))
