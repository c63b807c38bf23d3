"""Paints pairs in this process, one after another, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.paint.caller import Caller, ClusterError
from pipeline.paint.fleet import Wanted, order
from pipeline.paint.room import DeviceFullError
from pipeline.paint.worker import DeviceLostError, Job, NotReadyError, Worker
from pipeline.records import Status, Task

__all__ = ["run_local"]


def run_local(tasks: Sequence[Task], job: Job, wanted: Wanted, caller: Caller) -> None:
    """Make all attempts here; the same contract as `ray_driver.run_ray`."""

    def on_status(status: Status) -> None:
        caller.on_status([status])
        if caller.stop_requested():
            worker.stop()

    worker = Worker(replace(job, threads=wanted.threads), on_status)
    try:
        worker.ready()
        caller.on_started()
        for task in order(tasks):
            if caller.stop_requested():
                return
            caller.on_status([Status(task.pair.pair_id, 0, task.pair.config.steps)])
            (result,) = worker.run([task])
            if result is not None:
                caller.on_results([result])
    except (NotReadyError, DeviceLostError, DeviceFullError) as error:
        raise ClusterError(str(error)) from error
