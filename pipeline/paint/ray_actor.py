"""`Worker` as a Ray actor: what Ray grants it, and what runs in its process.

Never imports ray: the session hands it over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.paint.fleet import Fleet, Wanted
from pipeline.paint.ray_session import logical_gpus
from pipeline.paint.worker import DeviceLostError, Job, Worker
from pipeline.records import Result, Status, Task
from pipeline.signals import when_told_to_end

__all__ = ["actor_options", "actor_type", "elsewhere", "end_of", "fitted"]

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


def fitted(job: Job, fleet: Fleet, wanted: Wanted) -> Job:
    """Return the job as the workers of a fleet are to do it."""
    real_gpus = bool(fleet.gpus) and not logical_gpus()
    return replace(
        job,
        threads=wanted.threads or max(1, int(fleet.cpus)),
        device=job.device if real_gpus else _without_gpu(job.device),
        expect_gpu=real_gpus,
    )


def _without_gpu(device: str) -> str:
    """Return the device of workers that Ray granted no GPU: they must not take one that torch
    happens to see. Apple's is none of Ray's resources."""
    return device if device == "mps" or sys.platform == "darwin" else "cpu"


def elsewhere(nodes: Collection[str]) -> Mapping[str, Any]:
    """Return the options of an actor that may start on any node but these."""
    if not nodes:
        return {}
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(nodes))})"}}


def actor_type(ray: Any) -> type:
    """Return `Worker` as an actor. Questions have a thread of their own, beside the tasks."""

    class StyleWorker(Worker):
        def __init__(self, job: Job) -> None:
            super().__init__(job)
            when_told_to_end(self.stop)

        def ready(self) -> Any:
            device = super().ready()
            node = ray.get_runtime_context().get_node_id()
            return node, device, _path_of(2), super().memory()

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
