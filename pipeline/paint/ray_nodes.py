"""The nodes of a cluster, as a thread of its own sees them."""

from __future__ import annotations

import contextlib
import threading
import time

from pipeline.paint.fleet import Nodes
from pipeline.paint.ray_session import Ray, alive_nodes, draining_nodes

__all__ = ["NodeWatch"]

_COUNT = 5.0  # seconds between looks at the nodes of a cluster


class NodeWatch:
    """The nodes of a cluster, looked at by a thread of its own: a cluster may take long to answer,
    and one whose head is gone never does."""

    def __init__(self, ray: Ray) -> None:
        self._ray = ray
        self._latest = time.monotonic(), alive_nodes(ray)  # replaced as a whole, never changed
        self.draining: frozenset[str] = frozenset()  # nodes that will soon be taken away
        self._over = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._keep_looking, daemon=True).start()

    def end(self) -> None:
        self._over.set()

    @property
    def nodes(self) -> Nodes:
        return self._latest[1]

    @property
    def silence(self) -> float:
        """Seconds since the cluster last answered."""
        return time.monotonic() - self._latest[0]

    def _keep_looking(self) -> None:
        while not self._over.wait(_COUNT):
            with contextlib.suppress(Exception):  # no answer is what `silence` shows
                self._latest = time.monotonic(), alive_nodes(self._ray)
                self.draining = draining_nodes(self._ray)
