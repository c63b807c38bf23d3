"""The real command many times over, in a moment each: a process that has imported everything forks
for each call. What is forked is a process of its own, to be killed like any other.

For what needs no Ray. `helpers.cli` begins a new Python each time, which costs one to two seconds.
"""

import atexit
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Only imports: no thread may be running when it forks. A line with a pid asks how that one ended,
# and with `wait` waits for its end; any other line begins a command and is answered by its pid.
_SERVER = """
import json, os, sys, traceback
import pipeline.run, pipeline.paint.worker, pipeline.store.repair, pipeline.cli, stylize.transfer
for line in sys.stdin:
    order = json.loads(line)
    if "pid" in order:
        ended, status = os.waitpid(order["pid"], 0 if order["wait"] else os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if ended else "null", flush=True)
        continue
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            for number, path in ((1, order["stdout"]), (2, order["stderr"])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.environ.clear()
            os.environ.update(order["env"])
            os.chdir(order["folder"])
            sys.argv = ["stylize-batch", *order["arguments"]]
            exec(order["before"])
            pipeline.cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
"""


@dataclass
class Done:
    """How a call ended; a signal is a negative `returncode`."""

    returncode: int
    stdout: str
    stderr: str

    def counted(self, what: str) -> int:
        """The number before a word of the summary: painted, done before, failed, skipped."""
        found = re.search(rf"(\d+) {what}", self.stdout)
        return int(found[1]) if found else 0


class Forks:
    """`forks(*arguments, **env)` runs the command, after the code `before`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = 0
        self._lock = threading.Lock()
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, *arguments: object, before: str = "", **env: str) -> Done:
        started = self.start(*arguments, before=before, **env)
        code = self.ended(started.pid, wait=True)
        assert code is not None
        return Done(code, *started.texts())

    def start(self, *arguments: object, before: str = "", **env: str) -> "Started":
        """The command, left running in a session of its own."""
        self._calls += 1
        out, err = (self._folder / f"{self._calls}.{name}" for name in ("out", "err"))
        order = {
            "arguments": [str(argument) for argument in arguments],
            "before": before,
            "env": {**os.environ, **env},
            "folder": os.getcwd(),
            "stdout": str(out),
            "stderr": str(err),
        }
        return Started(self, self._ask(order), out, err)

    def ended(self, pid: int, *, wait: bool = False) -> int | None:
        """The exit code of a command that was started here, None while it runs."""
        code: int | None = self._ask({"pid": pid, "wait": wait})
        return code

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with self._lock:
            self._server.stdin.write(json.dumps(order) + "\n")
            self._server.stdin.flush()
            return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()


class Started:
    """A command that runs, with what tests use of `subprocess.Popen`."""

    def __init__(self, forks: Forks, pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks, self._out, self._err = forks, out, err

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.ended(self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("stylize-batch", timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait(60)

    def texts(self) -> tuple[str, str]:
        """Standard output and standard error, as far as they are there."""
        return self._out.read_text(), self._err.read_text()

    def communicate(self, timeout: float) -> tuple[str, str]:
        self.wait(timeout)
        return self.texts()


@functools.cache
def the_forks() -> Forks:
    """The one process of this Python from which commands are forked."""
    folder = tempfile.TemporaryDirectory(prefix="stylize-forks-")
    forks = Forks(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(forks.close)
    return forks


def cli(*arguments: object, before: str = "", **env: str) -> Done:
    """The command, run to its end, after the code `before`."""
    return the_forks()(*arguments, before=before, **env)


def start(*arguments: object, before: str = "", **env: str) -> Started:
    """The command, left running, after the code `before`."""
    return the_forks().start(*arguments, before=before, **env)
