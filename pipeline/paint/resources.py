"""What this process may use of the machine, what it has used, and what the kernel killed.

Imports torch only for a GPU.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = [
    "Kills",
    "address_space",
    "confined",
    "cores",
    "crowded",
    "device_memory",
    "kernel_kills",
    "memory_limit",
    "peak_memory",
]


def address_space() -> float:
    """Return how many bytes of addresses this process may have, see `ulimit -v`; or infinity."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return math.inf if most == resource.RLIM_INFINITY else most


def confined() -> str:
    """Return in words how `ulimit -v` limits this process, to add to an error, or ""."""
    if (most := address_space()) == math.inf:
        return ""
    return f"; the address space is limited to {most / 1e9:.1f} GB: raise that with ulimit -v"


def peak_memory(device: torch.device) -> int:
    """Return the most memory that this process has had, bytes: the GPU's if `device` is one."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_memory(device: torch.device) -> int:
    """Return all the memory of a device, bytes: a GPU's own, or what this process may use."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[1])
    return memory_limit()


def crowded(device: torch.device) -> str:
    """Return in words how much of a GPU other processes hold, "" if it is less than half."""
    if device.type != "cuda":
        return ""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    if others < total / 2:
        return ""
    name = torch.cuda.get_device_name(device)
    return f"other programs hold {others / 1e9:.1f} of the {total / 1e9:.1f} GB of {name}"


def kernel_kills(root: str = "/") -> int:
    """Return how many processes the kernel has killed for memory; 0 where it does not say.

    The count is that of this process's control group, which its children share, or else that of
    the whole machine.
    """
    files = _of_groups(root, "memory", "memory.events", "memory.oom_control")
    for path in [*files, os.path.join(root, "proc/vmstat")]:
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(path) as file:
                counts = dict(line.split() for line in file)
            return int(counts["oom_kill"])
    return 0


class Kills:
    """Watches the count of `kernel_kills`: a look takes 0.2 ms, as much as the sync of a row."""

    def __init__(self) -> None:
        self._count, self._looked = 0, -math.inf

    def now(self) -> int:
        """Return the count."""
        self._count, self._looked = kernel_kills(), time.monotonic()
        return self._count

    def lately(self) -> int:
        """Return what the count was within the last second."""
        return self.now() if time.monotonic() - self._looked > 1 else self._count


def memory_limit(root: str = "/") -> int:
    """Return the bytes that this process may use: the machine's, or fewer where a control group
    says so."""
    import psutil

    limits: list[int] = [psutil.virtual_memory().total]
    for path in _of_groups(root, "memory", "memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            limits.append(int(file.read()))  # "max" means no limit, and is no number
    return min(limits)


def cores(root: str = "/") -> int:
    """Return the CPU cores that this process may use, by affinity and control groups' quotas."""
    affinity = hasattr(os, "sched_getaffinity")
    limits: list[float] = [len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1]
    for path in _of_groups(root, "cpu", "cpu.max", "cpu.cfs_quota_us"):
        with contextlib.suppress(OSError, ValueError):
            with open(path) as file:
                # "max" and -1 mean no limit.
                quota, *period = map(float, file.read().split())
            if not period:
                with open(path.replace("quota", "period")) as file:
                    period = [float(file.read())]
            if quota > 0:
                limits.append(quota / period[0])
    return max(1, int(min(limits)))


def _of_groups(root: str, controller: str, name: str, old_name: str) -> Iterator[str]:
    """Yield the path of a file in each control group of this process, the innermost first.

    The file is `name` in version 2 and `old_name` in version 1. Some need not exist.
    """
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
        while group:  # in a container only the outer groups may be visible
            yield f"{top}{group.rstrip('/')}/{old_name if controllers else name}"
            group = group.rpartition("/")[0] or ("/" if group.strip("/") else "")
