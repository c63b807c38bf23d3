"""`Worker` as a Ray actor: what Ray grants it, and what of it runs in a process of its own.

Never imports ray: whoever has a session gives it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline.paint.fleet import Fleet
from pipeline.paint.worker import DeviceLostError, Worker
from pipeline.records import Result, Status, Task

__all__ = ["actor_options", "actor_type", "elsewhere", "end_of"]

_STDERR_BYTES = 20_000  # of each worker's standard error that go into the log


def actor_options(fleet: Fleet) -> Mapping[str, Any]:
    """Return what Ray grants each actor. It never restarts one by itself."""
    gpus = {"num_gpus": fleet.gpus} if fleet.gpus else {}
    return {
        "num_cpus": fleet.cpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "concurrency_groups": {"control": 1},
        **gpus,
    }


def elsewhere(nodes: Collection[str]) -> Mapping[str, Any]:
    """Return the options of an actor that may start on any node but these."""
    if not nodes:
        return {}
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"}}


def actor_type(ray: Any) -> type:
    """Return `Worker` as an actor. Questions have a thread of their own, beside the tasks."""

    class StyleWorker(Worker):
        def ready(self) -> Any:
            device = super().ready()
            return ray.get_runtime_context().get_node_id(), device, _path_of(2)

        def run(self, tasks: Sequence[Task]) -> list[Result | None]:
            try:
                return super().run(tasks)
            except DeviceLostError as error:  # this process is of no use any more
                print(f"worker ends: {error}", file=sys.stderr, flush=True)
                os._exit(70)

        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def status(self) -> Status:
            return super().status()

        @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
        def stop(self) -> None:
            super().stop()

    return StyleWorker


def _path_of(descriptor: int) -> str:
    """Return the path of an open file, "" where the system does not tell."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def end_of(path: str) -> str:
    """Return the last lines of a text file; "" where it is not on this machine."""
    try:
        with open(path, "rb") as file:
            file.seek(-min(_STDERR_BYTES, os.path.getsize(path)), os.SEEK_END)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
