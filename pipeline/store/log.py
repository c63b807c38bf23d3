"""The log of a run: the details that the screen does not show. Standard library only.

One file for each run, ``_state/log/<run>.jsonl``: a JSON object on each line with the time, the
event and its facts. It holds full tracebacks, the standard error of the workers, notes, and deaths
of workers with the decision about each.
"""

from __future__ import annotations

import contextlib
import json
import sys

from pipeline import storage
from pipeline.store.folder import OutFolder
from pipeline.text import utc_now

__all__ = ["MOST_BYTES", "NOTE", "RunLog", "latest_log"]

NOTE = "note"
"""The event of a line that the display shows."""

_MOST_LOGS = 20  # of the newest runs of each driver; older ones are removed
MOST_BYTES = 10_000_000  # of one log


class RunLog:
    """Appends events to a run's log, until the log is `MOST_BYTES` long.

    With `show` they go to standard error, too, except notes, which the display shows.
    A log that cannot be written does not end the run: a disk that is really in trouble will also
    refuse the next picture or row, and that ends it.
    """

    def __init__(
        self, out: OutFolder, run_id: str, drivers: int = 1, *, show: bool = False
    ) -> None:
        storage.make_folder(out.log)
        for name in _logs(out)[: -_MOST_LOGS * drivers + 1]:
            with contextlib.suppress(storage.StorageError):
                storage.remove(storage.join(out.log, name))
        self.path = storage.join(out.log, f"{run_id}.jsonl")
        self._file = out.medium.log_file(self.path)
        self._size = 0
        self._show = show

    def write(self, event: str, **facts: object) -> None:
        """Append an event with its facts. Never raises `OSError`."""
        line = json.dumps({"time": utc_now(), "event": event, **facts}, default=str) + "\n"
        if self._show and event != NOTE:
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                print(line, end="", file=sys.stderr, flush=True)
        if self._size > MOST_BYTES:
            return
        self._size += len(line)
        if self._size > MOST_BYTES:
            line = json.dumps({"time": utc_now(), "event": "log full"}) + "\n"
        self._file.add(line)

    def flush(self) -> None:
        """Let others see what was written so far. Never raises `OSError`."""
        self._file.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.write("run broken off", error=f"{type(error).__name__}: {error}")
        self._file.close()


def latest_log(out: OutFolder) -> str:
    """Return the path of the newest log, "" if there is none."""
    names = _logs(out)
    return storage.join(out.log, names[-1]) if names else ""


def _logs(out: OutFolder) -> list[str]:
    """Return the names of the logs, oldest first: a run's id begins with its start time."""
    try:
        return [name for name in out.medium.names(out.log) if name.endswith(".jsonl")]
    except OSError:
        return []
