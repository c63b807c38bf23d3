"""Ctrl-C at a real terminal, a terminal that is closed, SIGHUP: the right exit code, no traceback,
and nothing left, by looking. Ctrl-C once and SIGTERM by `kill` are in test_run.py."""

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import (
    TINY,
    Gate,
    alive,
    check_whole,
    descendants,
    pictures,
    program,
    ray_folders,
    soon,
    start,
    statuses,
    wait_for,
    write_csv,
)

HANGS = "picture-temp-written!hang"  # a worker that answers nothing, with a file half way


class Terminal:
    """A command in the foreground of a terminal of its own; `text` is what it has shown."""

    def __init__(self, *arguments: object, before: str = "", **env: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*program(before), *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=self._take,
            env={**os.environ, "TERM": "xterm", **env},
        )
        os.close(slave)
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @staticmethod
    def _take() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may themselves run under nohup
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other side is gone
            while data := os.read(self.master, 65536):
                self.text += data.decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def close(self) -> None:
        """As when the window is closed, or the connection breaks."""
        os.close(self.master)


@contextlib.contextmanager
def terminal(*arguments: object, before: str = "", **env: str) -> Iterator[Terminal]:
    shown = Terminal(*arguments, before=before, **env)
    try:
        yield shown
    finally:
        shown.process.kill()
        shown.process.wait()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    pictures(tmp_path, 4)
    return write_csv(
        tmp_path / "m.csv", [{"id": f"g{i}", "content": f"c{i}.jpg"} for i in range(4)]
    )


def check_ended(process: "subprocess.Popen[bytes]", left: list[psutil.Process], out: Path) -> None:
    """130, no process and no folder of Ray's left, and OUT whole, without a temporary file."""
    assert process.returncode == 130
    assert alive(left) == []
    assert ray_folders(process.pid) == []
    check_whole(out)


def test_ctrl_c_twice_at_a_terminal_ends_at_once_though_no_worker_answers(
    manifest: Path, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", manifest.with_suffix("")
    env = {"STYLIZE_CRASH_LOG": str(log), "STYLIZE_CRASH_AT": HANGS}
    patience = "import pipeline.paint.ray_driver as d; d._STOP = 600.0"  # with pairs in hand
    with terminal(manifest, *TINY, "--workers", 2, before=patience, **env) as shown:
        wait_for(lambda: log.exists() and log.read_text().count("picture-temp-written") == 2)
        left = descendants(shown.process.pid)
        assert len(list(out.rglob(".stylize-*"))) == 2
        shown.press(b"\x03")
        wait_for(lambda: "stopping: pairs in hand end now" in shown.text)
        time.sleep(1)
        assert shown.process.poll() is None  # it waits for the pairs in hand
        shown.press(b"\x03")
        shown.process.wait(120)
        wait_for(lambda: "stopped; run again to go on" in shown.text)
    assert "Traceback" not in shown.text
    check_ended(shown.process, left, out)
    assert statuses(out) == {}


@pytest.mark.slow
def test_ctrl_c_once_ends_within_ten_seconds_though_no_worker_answers(
    manifest: Path, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", manifest.with_suffix("")
    env = {"STYLIZE_CRASH_LOG": str(log), "STYLIZE_CRASH_AT": HANGS}
    with terminal(manifest, *TINY, "--workers", 2, **env) as shown:
        wait_for(lambda: log.exists() and log.read_text().count("picture-temp-written") == 2)
        left = descendants(shown.process.pid)
        began = time.monotonic()
        shown.press(b"\x03")
        shown.process.wait(120)
        assert time.monotonic() - began < soon()
    assert "Traceback" not in shown.text
    check_ended(shown.process, left, out)


def test_a_closed_terminal_stops_the_run_and_what_is_finished_is_kept(
    manifest: Path, gate: Gate
) -> None:
    out = manifest.with_suffix("")
    with terminal(manifest, *TINY, "--workers", 1, **gate.env("g1")) as shown:
        wait_for(lambda: gate.begun()["g1"])
        left = descendants(shown.process.pid)
        began = time.monotonic()
        shown.close()
        shown.process.wait(120)
        assert time.monotonic() - began < soon()
    check_ended(shown.process, left, out)
    assert statuses(out) == {"g0": "ok"}


@pytest.mark.parametrize(("ignored", "code"), [(False, 130), (True, 0)])
def test_a_hangup_stops_the_run_unless_nohup_has_it_ignored(
    ignored: bool, code: int, manifest: Path, gate: Gate
) -> None:
    out = manifest.with_suffix("")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        run = start(manifest, "--in-process", *TINY, **gate.env("g1"))
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        wait_for(lambda: gate.begun()["g1"])
        run.send_signal(signal.SIGHUP)
        gate.open()
        stdout, stderr = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == code, stderr
    assert "Traceback" not in stdout + stderr
    assert (len(statuses(out)) == 4) == ignored
    check_whole(out)
