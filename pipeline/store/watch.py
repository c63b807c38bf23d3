"""How the runs of an output folder go, by what is in it: for a look from another machine.

Never imports torch or ray.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline import storage
from pipeline.store.folder import OutFolder
from pipeline.store.lock import runs_at_work
from pipeline.store.reading import read_columns
from pipeline.text import count, duration, visible

__all__ = ["PLANNED", "Standing", "look"]

PLANNED = "run planned"
"""The event of a log that says how many pairs its run has to paint."""

_WINDOW = 600.0  # seconds that the pairs per hour are counted over


@dataclass(frozen=True)
class Standing:
    """What is done, and how fast it goes on."""

    statuses: Mapping[str, int]  # of all pairs that have a row
    runs: int  # at work now
    left: int  # pairs that they have yet to paint
    an_hour: float  # pairs painted, by the last ten minutes
    hosts: Mapping[str, int]  # pairs of each in that time

    def __str__(self) -> str:
        parts = [f"{n} {status}" for status, n in sorted(self.statuses.items())] or ["no rows yet"]
        if not self.runs:
            return f"{', '.join(parts)}; no run is at work"
        parts.append(f"{self.left} left")
        speed = f"{self.an_hour:.0f} pairs an hour"
        if self.an_hour:
            speed += f", {duration(3600 * self.left / self.an_hour)} left"
        hosts = ", ".join(f"{visible(host)} {n}" for host, n in sorted(self.hosts.items()))
        by = f"; in the last minutes: {hosts}" if hosts else ""
        return f"{', '.join(parts)}; {speed}; {count(self.runs, 'run')} at work{by}"


def look(
    out: OutFolder, now: datetime.datetime, plans: dict[str, Mapping[str, object]] | None = None
) -> Standing:
    """Return how the runs of OUT go, at a time in UTC. Raises `StorageError`.

    `plans` are those of runs that were seen before, so that each log is read once.
    """
    plans = {} if plans is None else plans
    table = read_columns(out, ["status", "finished_at", "host", "run_id"])
    begun: dict[str, datetime.datetime] = {}
    left = 0
    runs = runs_at_work(out)
    for run_id in runs:
        plan = plans.get(run_id) or _plan(out, run_id)
        if plan:
            plans[run_id] = plan
            begun[run_id] = datetime.datetime.fromisoformat(str(plan["time"]))
            done = pc.sum(pc.equal(table["run_id"], run_id)).as_py() or 0
            left += max(0, int(str(plan["todo"])) - done)
    elapsed = max(((now - began).total_seconds() for began in begun.values()), default=_WINDOW)
    window = min(_WINDOW, max(1.0, elapsed))
    since = now - datetime.timedelta(seconds=window)
    recent = table.filter(
        pc.and_(pc.greater(table["finished_at"], since), pc.equal(table["status"], "ok"))
    )
    return Standing(
        statuses=Counter(table["status"].to_pylist()),
        runs=len(runs),
        left=left,
        an_hour=3600 * len(recent) / window,
        hosts=Counter(host or "?" for host in recent["host"].to_pylist()),
    )


def _plan(out: OutFolder, run_id: str) -> Mapping[str, object]:
    """Return the event of a run's log that says what it has to do; {} if it has not got so far."""
    try:
        lines = storage.read_bytes(storage.join(out.log, f"{run_id}.jsonl")).splitlines()
    except OSError:
        return {}
    for line in lines:
        if PLANNED.encode() in line:
            with contextlib.suppress(ValueError):
                event: dict[str, object] = json.loads(line)
                if event.get("event") == PLANNED:
                    return event
    return {}
