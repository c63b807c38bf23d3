"""What is told of memory: how much was in use, and whether the kernel has killed for want of it.

Imports torch for a GPU only.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["kernel_kills", "peak_memory"]


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
    for path in _counters(root):
        try:
            with open(path) as file:
                counts = dict(line.split() for line in file)
            return int(counts["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return 0


def _counters(root: str) -> Iterator[str]:
    """Files that may have a line `oom_kill N`, the nearest to this process first."""
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        groups = []
    mount = os.path.join(root, "sys/fs/cgroup")
    for _, controllers, group in groups:
        if not controllers:  # version 2
            yield f"{mount}{group}/memory.events"
        elif "memory" in controllers.split(","):
            yield f"{mount}/memory{group}/memory.oom_control"
    yield os.path.join(root, "proc/vmstat")
