"""What a run shows as it goes: on real terminals (a pty, tmux) of several sizes, and in a log."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyte
import pytest
from forks import cli
from helpers import COMMAND, TINY, pictures, wait_for, write_csv

import pipeline.display.progress
import pipeline.display.terminal
from pipeline.cost import estimate
from pipeline.display.progress import Estimate, Pace, Progress
from pipeline.records import InputRef, Pair, Result, Status
from stylize.config import StyleConfig

WHY = "content boat.jpg: the picture is damaged or cut short: image file is truncated"

# Feeds a display as a run does; told what to do on standard input.
FEED = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_progress import Progress, Status, failed, made, pairs_of

number, step, done = int(sys.argv[1]), 1, 0
pairs = pairs_of(2 * number)
with Progress(pairs, style="live") as progress:
    for line in sys.stdin:
        word = line.strip()
        if word == "fail":
            progress.result(failed(pairs[done]))
            done += 1
        elif word == "paint":
            progress.result(made(pairs[done]))
            done += 1
        elif word.isdigit():
            step = int(word)
        busy = pairs[done : done + number]
        progress.status([Status(p.pair_id, step, 140, 12.5, step * 2.0, step / 140) for p in busy])
print("after the end")
"""


def pairs_of(number: int) -> list[Pair]:
    inputs = InputRef("content", "a.jpg", "a.jpg"), InputRef("style", "s.jpg", "s.jpg")
    return [
        Pair(n + 1, f"frame-{n:03}", f"images/{n}.png", inputs, StyleConfig())
        for n in range(number)
    ]


def made(pair: Pair, **changes: Any) -> Result:
    values = {"status": "ok", "loss": 1.5, "seconds": 4.0, **changes}
    return Result(pair.pair_id, pair.row, pair.content, pair.style, pair.output, **values)


def failed(pair: Pair) -> Result:
    return made(pair, status="failed", loss=None, error_type="ImageReadError", error_message=WHY)


# --- on a terminal -----------------------------------------------------------------------------


class Terminal:
    """A command in a terminal of its own; what is on the screen is read from its output."""

    def __init__(self, columns: int, lines: int, *command: object) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._lock = threading.Lock()
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        attributes = termios.tcgetattr(slave)
        attributes[1] |= termios.OPOST | termios.ONLCR
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self._tell_size(columns, lines)
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Sizes of the start, as readline leaves them: the display must look for itself.
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "70", "LINES": "20"},
            text=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self.master, 65536):
                with self._lock:
                    self._stream.feed(data)

    def _tell_size(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)  # the kernel sends SIGWINCH

    def resize(self, columns: int, lines: int) -> None:
        with self._lock:
            self.screen.resize(lines, columns)
            self._tell_size(columns, lines)

    def tell(self, word: object) -> None:
        assert self.process.stdin
        print(word, file=self.process.stdin, flush=True)

    def lines(self) -> list[str]:
        """What can be read, without the empty lines below."""
        with self._lock:
            shown = [line.rstrip() for line in self.screen.display]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    def until(self, pattern: str, seconds: float = 60) -> list[str]:
        """The screen when a line matches, whole: two looks at it a drawing apart are the same."""

        def still() -> list[str] | None:
            before = self.lines()
            if not any(re.search(pattern, line) for line in before):
                return None
            time.sleep(0.3)
            after = self.lines()
            return after if _without_times(before) == _without_times(after) else None

        screen: list[str] = wait_for(still, seconds)
        return screen

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait(120)
        self._reader.join(5)
        os.close(self.master)


def _without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"[\d,.:]+ (pairs/h|left)|until .*", "", line) for line in lines]


@pytest.fixture
def feed() -> Iterator[Any]:
    """Starts a terminal in which so many workers are shown."""
    opened: list[Terminal] = []

    def begin(columns: int, lines: int, workers: int) -> Terminal:
        opened.append(Terminal(columns, lines, sys.executable, "-c", FEED, workers))
        opened[-1].tell(1)
        return opened[-1]

    yield begin
    for terminal in opened:
        if terminal.process.poll() is None:
            terminal.close()


def test_each_worker_has_a_line_below_the_bar_of_the_whole(feed: Any) -> None:
    terminal = feed(100, 24, 3)
    terminal.tell("paint")
    terminal.tell(35)
    head, *workers = terminal.until("pairs/h.*until")
    assert re.fullmatch(
        r"[━╸╺]{30} 1/6  [\d,]+ pairs/h  \d+:\d\d(:\d\d)? left, until [\w ]*\d\d:\d\d", head
    )
    assert [line.split()[0] for line in workers] == ["frame-001", "frame-002", "frame-003"]
    # A quarter of the work took 70 s: three times that is left.
    for line in workers:
        assert re.fullmatch(r"frame-00\d [━╸╺]{16}  35/140 loss 12.5 +3:30 left", line)


def test_columns_keep_their_places_while_numbers_grow(feed: Any) -> None:
    terminal = feed(100, 24, 2)
    places = []
    for step in (20, 99, 139):
        terminal.tell(step)
        line = terminal.until(f" {step}/140")[1]
        places.append((line.index("/140"), line.index("loss"), line.index(" left")))
    assert len(set(places)) == 1


def test_failures_come_above_and_stay_and_the_display_goes(feed: Any) -> None:
    terminal = feed(100, 24, 2)
    terminal.until("1/140")
    terminal.tell("fail")
    lines = terminal.until("✗")
    assert lines[0].startswith("✗ 1/4 frame-000 (row 1): content boat.jpg")
    assert " 1/4  1 failed" in lines[1] or " 1/4  1 failed" in lines[2]
    terminal.close()
    shown = " ".join(terminal.lines())
    assert shown.replace(" ", "") == f"✗1/4frame-000(row1):{WHY}aftertheend".replace(" ", "")
    assert not terminal.screen.cursor.hidden


@pytest.mark.parametrize(
    ("columns", "lines", "rows"), [(80, 24, 19), (120, 50, 45), (40, 24, 19), (40, 10, 5)]
)
def test_two_hundred_workers_fit_any_screen(feed: Any, columns: int, lines: int, rows: int) -> None:
    terminal = feed(columns, lines, 200)
    terminal.tell(70)
    shown = terminal.until("more workers")
    workers = [line for line in shown if line.startswith("frame-")]
    assert len(workers) == rows
    assert all(" 70/140 " in line and "12.5" in line for line in workers)
    assert shown[-1] == f"… and {200 - rows} more workers"
    assert len(shown) < lines


def test_a_resize_leaves_nothing_behind(feed: Any) -> None:
    terminal = feed(100, 30, 4)
    terminal.tell("fail")
    terminal.tell(35)
    terminal.until("35/140")
    for columns, lines in [(60, 30), (40, 14), (120, 8), (50, 40), (100, 12)]:
        terminal.resize(columns, lines)
        terminal.tell("36")
        terminal.tell("35")
        expected = [f"frame-00{n}" for n in range(1, 1 + min(4, lines - 5))]

        def is_clean(expected: list[str] = expected) -> bool:
            shown = terminal.until("35/140")
            names = [line.split()[0] for line in shown if line.startswith("frame-")]
            heads = [line for line in shown if " 1/8" in line and "✗" not in line]
            failures = [line for line in shown if "✗" in line]  # said again where there is room
            return names == expected and len(heads) == len(failures) == 1

        with contextlib.suppress(AssertionError):
            wait_for(is_clean, 30)
            time.sleep(0.6)  # more than one drawing
        assert is_clean(), terminal.lines()
    terminal.close()
    assert terminal.lines()[-1] == "after the end"
    assert not any("frame-001" in line for line in terminal.lines())


@pytest.mark.skipif(not shutil.which("tmux"), reason="no tmux here: apt-get install tmux")
def test_a_terminal_that_folds_lines_shows_no_remains(tmp_path: Path) -> None:
    """tmux folds lines when it is made narrower, and brings back what it pushed out."""
    socket = ["tmux", "-S", str(tmp_path / "tmux")]

    def tmux(*words: object) -> str:
        command = [*socket, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    feed, talk = tmp_path / "feed.py", tmp_path / "talk"
    feed.write_text(FEED)
    os.mkfifo(talk)
    run = f"PYTHONPATH={Path(__file__).parent.parent} {sys.executable} {feed} 4 < {talk}; sleep 99"
    tmux("-f", "/dev/null", "new-session", "-d", "-x", 100, "-y", 24, run)
    try:
        with talk.open("w") as tell:
            print("fail\n35", file=tell, flush=True)
            wait_for(lambda: "35/140" in tmux("capture-pane", "-p"))
            for columns, lines in [(60, 24), (40, 12), (110, 40), (100, 9), (100, 30)]:
                tmux("resize-window", "-x", columns, "-y", lines)
                expected = [f"frame-00{n}" for n in range(1, 1 + min(4, lines - 5))]

                def is_clean(expected: list[str] = expected) -> bool:
                    shown = tmux("capture-pane", "-p").splitlines()
                    names = [line.split()[0] for line in shown if line.startswith("frame-")]
                    heads = [line for line in shown if " 1/8" in line and "✗" not in line]
                    return names == expected and len(heads) == 1

                with contextlib.suppress(AssertionError):
                    wait_for(is_clean, 20)  # tmux tells of the new size a little later
                    time.sleep(0.5)
                assert is_clean(), tmux("capture-pane", "-p")
        wait_for(lambda: "after the end" in tmux("capture-pane", "-p"))
        assert "frame-001" not in tmux("capture-pane", "-p")
    finally:
        tmux("kill-server")


def test_a_run_in_a_terminal_ends_with_its_failures_and_the_sum(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    rows = [{"id": "one", "content": "c0.jpg"}, {"id": "gone", "content": "gone.jpg"}]
    manifest = write_csv(tmp_path / "m.csv", rows)
    terminal = Terminal(200, 24, COMMAND, manifest, *TINY, "--in-process", "--workers", "1")
    terminal.close()
    first, second, *_ = terminal.lines()
    assert re.fullmatch(r"✗ \d/2 gone \(row 2\): content gone.jpg: there is no such file", first)
    assert second.startswith("2 pairs: 1 painted, 1 failed in 0:")
    assert terminal.process.returncode == 3


def test_a_pair_in_a_terminal_is_shown_while_it_is_painted(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    out = tmp_path / "o.png"
    size = ("--size", "96", "--steps", "200000", "--plateau", "0")
    terminal = Terminal(
        200, 24, COMMAND, "pair", tmp_path / "c0.jpg", tmp_path / "s.png", "-o", out, *TINY, *size
    )
    seen: set[str] = set()

    def three_steps() -> bool:
        shown = "\n".join(terminal.lines())
        line = r"^c0 . s .* (\d+)/200000 +loss [\d.]+(?: +[\d:]+ left)?$"
        seen.update(re.findall(line, shown, re.M))
        return len(seen) > 2

    try:
        wait_for(three_steps)
        terminal.process.send_signal(signal.SIGINT)
    finally:
        terminal.close()
    assert not any("200000" in line for line in terminal.lines())
    assert not out.exists()


# --- elsewhere ---------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is set by hand: its one element."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_time_left_is_by_the_work_done_and_failures_are_none(clock: list[float]) -> None:
    pairs = pairs_of(5)
    estimate = Estimate(pairs)
    estimate.update([])
    assert (estimate.left(), estimate.elapsed()) == (None, 0.0)
    estimate.update([Status(pairs[0].pair_id)])
    clock[0] += 10
    estimate.update([Status(pairs[0].pair_id, 70, 140, share=0.5)])
    assert estimate.left() == 90  # half a pair in 10 s, four and a half are left
    estimate.finish(pairs[1].pair_id, painted=False)
    assert estimate.left() == 70
    estimate.finish(pairs[0].pair_id, painted=True)
    estimate.update([])
    assert estimate.left() == 30  # one in 10 s, three are left


def test_the_first_time_left_is_right_or_absent(clock: list[float]) -> None:
    """Times and shares of work as measured with a pair of the demo on one core."""
    measured = (
        *((0.33, 0.001), (1.62, 0.018), (2.54, 0.035), (3.41, 0.052), (3.87, 0.061)),
        *((4.34, 0.083), (5.22, 0.128), (6.59, 0.196), (7.9, 0.263), (10.57, 0.389)),
        *((13.58, 0.569), (17.4, 0.748), (21.77, 0.928), (23.2, 1.0)),
    )
    pairs = pairs_of(6)
    estimate, began, pace = Estimate(pairs), clock[0], Pace()
    told = []
    for seconds, share in measured:
        clock[0] = began + seconds
        estimate.update([Status(p.pair_id, 1, 140, share=share) for p in pairs[:2]])
        pace.add(seconds, share)
        if (left := estimate.left()) is not None:
            told.append(seconds)
            assert left == pytest.approx(3 * 23.2 - seconds, rel=0.25)  # two by two
            assert pace.seconds(1 - share) == pytest.approx(23.2 - seconds, rel=0.25, abs=0.1)
    assert told[0] == 5.22


def test_the_time_of_pairs_to_come_counts_the_pixels_of_all_scales() -> None:
    def pair(name: str) -> Pair:
        config = StyleConfig.of(name, size=512, steps=140)
        return dataclasses.replace(pairs_of(1)[0], config=config)

    settings = StyleConfig(size=512, steps=140).to_json()
    before = dataclasses.replace(
        made(pairs_of(1)[0]), settings=settings, evaluations=140, seconds=60.0, batch=1
    )
    assert estimate([pair("default")], [before]) == {before.device: pytest.approx(60)}
    # All 140 evaluations at full size, where default has 50 there, 45 at 1/4 and 45 at 1/16.
    at_full_size = 60 * 140 / (50 + 45 / 4 + 45 / 16)
    assert estimate([pair("paper")], [before]) == {before.device: pytest.approx(at_full_size)}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(60.0, r"\d\d:\d\d"), (2 * 86400.0, r"\w{3} \d\d:\d\d"), (9e5, r"\d\d \w{3} \d\d:\d\d")],
)
def test_the_end_has_its_day_where_it_is_not_today(seconds: float, shown: str) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 3, 2, 12)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.display.terminal, "datetime", Noon)
        assert re.fullmatch(shown, pipeline.display.terminal.clock(seconds))


def test_a_log_gets_at_most_a_line_a_second_but_every_failure(clock: list[float]) -> None:
    log = io.StringIO()
    pairs = pairs_of(1001)
    with Progress(pairs, stream=log) as progress:  # a stream that is no terminal
        for number, pair in enumerate(pairs):
            clock[0] += 0.01
            progress.status([Status(pair.pair_id, 1, 140, 2.5, 0.1, 0.01)])
            progress.result(failed(pair) if number % 500 == 250 else made(pair))
    lines = log.getvalue().splitlines()
    assert sum(line.startswith("✗") for line in lines) == 2
    painted = [line for line in lines if line.startswith("✓")]
    assert len(painted) in (10, 11, 12)  # ten seconds
    more = [int(found[1]) for line in painted if (found := re.search(r"and (\d+) more", line))]
    assert len(painted) + sum(more) == 999  # none is forgotten
    assert painted[-1].startswith("✓ 1001/1001 images/1000.png and ")


def test_a_log_hears_every_ten_seconds_of_a_pair_that_takes_long(clock: list[float]) -> None:
    log = io.StringIO()
    pairs = pairs_of(2)
    with Progress(pairs, style="plain", stream=log) as progress:
        for second in range(100):
            clock[0] += 1
            share = second / 140
            busy = [Status(p.pair_id, second, 140, 2.5, second, share) for p in pairs]
            progress.status(busy)
    lines = log.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1] == "… frame-000 step 91/140 and 1 more, 0:49 left"


def test_json_is_a_line_an_event_without_nan(clock: list[float]) -> None:
    log = io.StringIO()
    pairs = pairs_of(3)
    with Progress(pairs, style="json", stream=log) as progress:
        progress.note("a line\nof two")
        progress.status([Status(pairs[0].pair_id, 1, 140, float("nan"), 1.0, 0.01), Status()])
        progress.result(made(pairs[0], loss=float("inf")))
        progress.result(failed(pairs[1]))
    events = [json.loads(line, parse_constant=pytest.fail) for line in log.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["note", "status", "result", "result"]
    assert all(datetime.fromisoformat(event["time"]).tzinfo for event in events)
    assert events[1]["workers"] == [
        {
            "pair_id": "frame-000",
            "step": 1,
            "steps": 140,
            "loss": None,
            "seconds": 1,
            "share": 0.01,
            "batch": 1,
        }
    ]
    assert (events[2]["loss"], events[2]["error"], events[2]["done"]) == (None, None, 1)
    assert (events[3]["status"], events[3]["error"], events[3]["total"]) == ("failed", WHY, 3)


def test_a_run_speaks_json_and_leaves_previews(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    manifest = write_csv(tmp_path / "m.csv", [{"id": "one", "content": "c0.jpg"}])
    options = ("--in-process", "--progress", "json", "--preview-every", 2)
    done = cli(manifest, *TINY, *options)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events] == ["status", "result"]
    # Three evaluations of one size: each is a third of the work.
    assert events[0]["workers"][0]["share"] == pytest.approx(1 / 3)
    assert events[1]["output"] == "images/c0.s.one.png"
    assert (tmp_path / "m" / "images" / "c0.s.one.preview.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_a_download_has_a_bar_on_a_terminal_and_lines_in_a_log(clock: list[float]) -> None:
    log = io.StringIO()
    with Progress([], style="plain", stream=log) as progress:
        for second in range(31):
            progress.download(second * 2**20, 60 * 2**20)
            clock[0] += 1
    assert log.getvalue().splitlines() == [
        "… VGG-19: 10 of 60 MB, 0:50 left",
        "… VGG-19: 20 of 60 MB, 0:40 left",
        "… VGG-19: 30 of 60 MB, 0:30 left",
    ]
    code = (
        "from pipeline.display.progress import Progress\n"
        "with Progress([], style='live') as progress:\n"
        "    progress.download(2**20, 3 * 2**20)\n"
        "    input()\n"
        "    progress.download(3 * 2**20, 3 * 2**20)\n"
    )
    terminal = Terminal(80, 24, sys.executable, "-c", code)
    try:
        assert re.search(r"━+.* VGG-19: 1 of 3 MB", "\n".join(terminal.until("VGG-19")))
        terminal.tell("go on")
    finally:
        terminal.close()
    assert terminal.lines() == []
