"""The real command many times over, in a moment each: a process that has imported everything forks
for each call. What is forked is a process of its own, to be killed like any other.

For what needs no Ray. `helpers.cli` begins a new Python each time, which costs one to two seconds.
"""

import atexit
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Only imports: no thread may be running when it forks.
_SERVER = """
import json, os, sys, traceback
import pipeline.run, pipeline.paint.worker, pipeline.store.repair, pipeline.cli, stylize.transfer
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
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
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
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
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, *arguments: object, before: str = "", **env: str) -> Done:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        order = {
            "arguments": [str(argument) for argument in arguments],
            "before": before,
            "env": {**os.environ, **env},
            "folder": os.getcwd(),
            "stdout": str(self._out),
            "stderr": str(self._err),
        }
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return Done(code, self._out.read_text(), self._err.read_text())

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()


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
