"""What this process may use of the machine, what it has used, and what it was killed for.

Imports torch for a GPU only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["cores", "kernel_kills", "memory_limit", "peak_memory"]


def peak_memory(device: Any) -> int:
    """Bytes that this process has had at its highest, on a GPU of that one's memory."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def kernel_kills(root: str = "/") -> int:
    """How many processes the kernel has killed for memory: in the control group of this process,
    which its children share, or where that has no count, on the whole machine. 0: it does not say.
    """
    files = _of_groups(root, "memory", "memory.events", "memory.oom_control")
    for path in [*files, os.path.join(root, "proc/vmstat")]:
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(path) as file:
                counts = dict(line.split() for line in file)
            return int(counts["oom_kill"])
    return 0


def memory_limit(root: str = "/") -> int:
    """Bytes that this process may use: the machine's, or less where a control group says so."""
    import psutil

    limits: list[int] = [psutil.virtual_memory().total]
    for path in _of_groups(root, "memory", "memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            limits.append(int(file.read()))  # "max" is none
    return min(limits)


def cores(root: str = "/") -> int:
    """CPU cores that this process may use, by its affinity and its control groups' quotas."""
    affinity = hasattr(os, "sched_getaffinity")
    limits: list[float] = [len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1]
    for path in _of_groups(root, "cpu", "cpu.max", "cpu.cfs_quota_us"):
        with contextlib.suppress(OSError, ValueError):
            with open(path) as file:
                quota, *period = map(float, file.read().split())  # "max" is none, and so is -1
            if not period:
                with open(path.replace("quota", "period")) as file:
                    period = [float(file.read())]
            if quota > 0:
                limits.append(quota / period[0])
    return max(1, int(min(limits)))


def _of_groups(root: str, controller: str, name: str, old_name: str) -> Iterator[str]:
    """A file of each control group that this process is in, the innermost first: `name` with
    version 2, `old_name` with version 1. Some need not exist."""
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return
    mount = os.path.join(root, "sys/fs/cgroup")
    for _, controllers, group in groups:
        if controllers and controller not in controllers.split(","):
            continue
        top = f"{mount}/{controller}" if controllers else mount
        while group:  # in a container the outer ones may be all that is to be seen
            yield f"{top}{group.rstrip('/')}/{old_name if controllers else name}"
            group = group.rpartition("/")[0] or ("/" if group.strip("/") else "")
