"""Pictures in the making that are kept below OUT, so that a long pair need not begin anew.

Each has one file, ``_state/checkpoints/…``, named by its pair. Never imports ray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.records import Result
from pipeline.store.folder import OutFolder
from stylize.errors import CheckpointError

if TYPE_CHECKING:
    from stylize.checkpoint import Checkpoint

__all__ = ["Kept"]


class Kept:
    """What is kept of one pair, by the row of its attempt.

    The picture is kept every `every` evaluations, and when `ends` says that its attempt ends now.
    """

    def __init__(self, out: str, row: Result, every: int, ends: Callable[[], bool]) -> None:
        self.row = row
        self.remark = ""  # for the run's log
        self._path = OutFolder(out).checkpoint(row.pair_id)
        self._every = every
        self._ends = ends
        self._last = 0  # evaluations when it was kept

    def load(self) -> Checkpoint | None:
        """Return what an earlier attempt kept of the same picture, None if there is nothing that
        can be used."""
        from stylize.checkpoint import Checkpoint

        try:
            found = Checkpoint.decode(storage.read_bytes(self._path), self.row.key)
        except FileNotFoundError:
            return None
        except (OSError, CheckpointError) as error:
            self.remark = f"its kept picture was not used: {error}"
            return None
        self._last = len(found.curve)
        self.remark = f"goes on from its kept picture at evaluation {self._last}"
        return found

    def look(self, evaluations: int, make: Callable[[], Checkpoint]) -> None:
        """Keep the picture if it is time to. Raises `StorageError`."""
        if self._ends() or evaluations - self._last >= self._every:
            self._last = evaluations
            storage.put(self._path, make().encode(self.row.key))

    def forget(self) -> None:
        """Remove what is kept: the picture is there. Raises `StorageError`."""
        storage.remove(self._path)
