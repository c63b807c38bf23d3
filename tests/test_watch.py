"""How a run goes, as its output folder tells somebody on another machine."""

import datetime
import signal
import subprocess
from pathlib import Path

from forks import start
from helpers import COMMAND, TINY, Gate, index_rows, pictures, wait_for, write_csv

from pipeline.records import Result
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from pipeline.store.lock import Lock
from pipeline.store.log import RunLog
from pipeline.store.watch import PLANNED, look

NOW = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)


def row(name: str, minutes: float, host: str, status: str = "ok") -> Result:
    """A pair that ended some minutes ago."""
    ended = (NOW - datetime.timedelta(minutes=minutes)).isoformat()
    facts = {"row": 1, "content": "c", "style": "s", "output": f"images/{name}.png"}
    return Result(pair_id=name, status=status, host=host, finished_at=ended, **facts)  # type: ignore[arg-type]


def test_speed_and_time_left_come_from_the_last_ten_minutes(tmp_path: Path) -> None:
    out = OutFolder(tmp_path / "out")
    with Lock(out, "r1"), RunLog(out, "r1") as log, Index(out, "r1") as index:
        began = NOW - datetime.timedelta(hours=1)
        log.write("other", text=PLANNED)
        log.write(PLANNED, todo=100)
        path = Path(log.path)
        lines = path.read_text().splitlines()
        stamp = lines[1].split('"')[3]
        path.write_text("\n".join(lines).replace(stamp, began.isoformat()) + "\n")
        index.extend([row(f"old{n}", 30, "a") for n in range(18)])
        index.extend([row(f"a{n}", n, "a") for n in range(9)])
        index.extend([row("b", 1, "b"), row("f", 1, "b", status="failed")])
        seen = look(out, NOW)
    assert seen.statuses == {"ok": 28, "failed": 1}
    assert (seen.runs, seen.left) == (1, 71)
    assert seen.an_hour == 60  # ten in ten minutes
    assert seen.hosts == {"a": 9, "b": 1}
    assert str(seen) == (
        "1 failed, 28 ok, 71 left; 60 pairs an hour, 1:11:00 left; 1 run at work; "
        "in the last minutes: a 9, b 1"
    )
    assert str(look(out, NOW)).endswith("1 failed, 28 ok; no run is at work")


def test_a_run_is_watched_from_beside_it_until_ctrl_c(tmp_path: Path, gate: Gate) -> None:
    pictures(tmp_path, 6)
    path = write_csv(
        tmp_path / "m.csv", [{"id": f"g{n}", "content": f"c{n}.jpg"} for n in range(6)]
    )
    out = path.with_suffix("")
    run = start(path, "--in-process", *TINY, **gate.env("g5"))
    watch = None
    try:
        wait_for(lambda: list((out / "images").glob("*.png")))
        command = [COMMAND, "status", str(out), "--watch", "--every", "0.5"]
        watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert watch.stdout
        line = watch.stdout.readline()
        assert "left; " in line
        assert "1 run at work" in line
        gate.open()
        assert run.wait(120) == 0
        wait_for(lambda: watch and watch.stdout and "6 ok; no run" in watch.stdout.readline())
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 130
    finally:
        run.kill()
        if watch:
            watch.kill()
    assert len(index_rows(out)) == 6
