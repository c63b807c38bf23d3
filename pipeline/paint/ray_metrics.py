"""What a run on a cluster tells Prometheus, through the metrics of Ray's nodes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipeline.paint.ray_session import meters
from pipeline.records import Result

__all__ = ["Metrics"]

_EVERY = 1.0  # seconds between two looks at the queue
_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0]


class Metrics:
    """The meters of one run, each with `out` as a label. Ray puts ``ray_`` before their names."""

    def __init__(self, out: str) -> None:
        ray = meters()
        self._pairs = ray.Counter(
            "stylize_pairs", "Attempts that ended, by status", ("out", "status")
        )
        self._failures = ray.Counter(
            "stylize_failures", "Attempts that failed, by the kind of error", ("out", "kind")
        )
        self._seconds = ray.Histogram(
            "stylize_pair_seconds", "Seconds of an attempt", _SECONDS, ("out", "device")
        )
        self._queue = ray.Gauge("stylize_queue", "Pairs that wait for a worker", ("out",))
        self._in_hand = ray.Gauge("stylize_in_hand", "Pairs that are being painted", ("out",))
        self._workers = ray.Gauge("stylize_workers", "Workers that are ready", ("out",))
        self._memory = ray.Gauge(
            "stylize_gpu_memory_bytes",
            "Peak of the GPU memory that the latest pair took, by host",
            ("out", "host", "device"),
        )
        for meter in vars(self).values():
            meter.set_default_tags({"out": out})
        self._looked = 0.0

    def ended(self, rows: Sequence[Result]) -> None:
        """Count attempts that ended."""
        for row in rows:
            self._pairs.inc(1, {"status": row.status})
            if row.status != "ok":
                self._failures.inc(1, {"kind": row.error_type})
            if row.seconds is not None:
                self._seconds.observe(row.seconds, {"device": row.device})
            if row.peak_memory and row.device.startswith("cuda"):
                self._memory.set(row.peak_memory, {"host": row.host, "device": row.device})

    def look(self, queue: int, in_hand: int, workers: int) -> None:
        """Tell how many pairs wait and are in hand, and how many workers are ready."""
        if time.monotonic() - self._looked >= _EVERY:
            self._looked = time.monotonic()
            self._queue.set(queue)
            self._in_hand.set(in_hand)
            self._workers.set(workers)
