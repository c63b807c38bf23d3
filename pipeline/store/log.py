"""The log of a run: what the screen does not show. Standard library only.

One file for each run, ``_state/log/<run>.jsonl``: a JSON object on each line with the time, the
event and its facts. It holds tracebacks in full, what workers wrote to standard error, notes, and
deaths of workers with what was decided about them.
"""

from __future__ import annotations

import contextlib
import json
import os
from types import TracebackType

from pipeline import storage
from pipeline.store.folder import OutFolder
from pipeline.store.metadata import utc_now

__all__ = ["MOST_BYTES", "RunLog", "latest_log"]

_RUNS = 20  # whose logs are kept
MOST_BYTES = 10_000_000  # of one log


class RunLog:
    """Appends events to a run's log, until that is `MOST_BYTES` long.

    A log that cannot be written does not end a run: whatever is wrong with the disk will meet the
    next picture or row, which do.
    """

    def __init__(self, out: OutFolder, run_id: str) -> None:
        storage.make_folder(out.log)
        for name in _logs(out)[: -_RUNS + 1]:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(out.log, name))
        self.path = os.path.join(out.log, f"{run_id}.jsonl")
        self._size = 0

    def write(self, event: str, **facts: object) -> None:
        """Append an event."""
        line = json.dumps({"time": utc_now(), "event": event, **facts}, default=str) + "\n"
        if self._size > MOST_BYTES:
            return
        self._size += len(line)
        if self._size > MOST_BYTES:
            line = json.dumps({"time": utc_now(), "event": "log full"}) + "\n"
        with contextlib.suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
            file.write(line)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.write("run broken off", error=f"{type(error).__name__}: {error}")


def latest_log(out: OutFolder) -> str:
    """Return the path of the newest log, "" where there is none."""
    names = _logs(out)
    return os.path.join(out.log, names[-1]) if names else ""


def _logs(out: OutFolder) -> list[str]:
    """Return the names of the logs, the oldest first: a run's id begins with its time."""
    try:
        return sorted(name for name in os.listdir(out.log) if name.endswith(".jsonl"))
    except OSError:
        return []
