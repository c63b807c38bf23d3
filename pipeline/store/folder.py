"""The output folder OUT as a value that knows its paths, on a disk or on object storage.

Never imports torch, ray or pyarrow.

OUT/
  images/…                   the pictures, unless `output` puts them elsewhere
  index/part-….parquet       rows of the index
  report.html  report/       what `stylize-batch report` wrote
  _state/
    run.json                 values that the first run fixed: see `Fixed`
    lock                     held by the process that writes to OUT; lock-1-of-3 by that shard
    lock-changes             held for the moment in which run.json or index/ is made (on a disk)
    journal/                 rows that are in no part yet (on a disk)
    log/                     one file for each run: see `store.log`
    damaged/                 damaged files that were moved out of the way
    checkpoints/             pictures in the making, with --checkpoint-every
    weights/                 copies of the weights, for the nodes of a cluster
    probe-…                  a file that each worker must be able to read
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline import storage
from pipeline.store.bucket import Bucket
from pipeline.store.disk import Disk
from pipeline.store.medium import OWN, Medium
from stylize.config import FORMATS

__all__ = ["Fixed", "OutFolder"]


@dataclass(frozen=True)
class Fixed:
    """Values that the first run of OUT fixes for later runs, in ``_state/run.json``."""

    backbone: str = ""  # what `auto` stands for; "" until a run needs it
    weights: Mapping[str, str] = field(default_factory=dict)  # backbone -> SHA-256
    inputs: str = os.pardir  # the folder of the manifest's relative paths, relative to OUT


class OutFolder:
    """An output folder, on this machine, mounted, or on object storage.

    `written` is the path as the user gave it, for messages. `root` is the path that opens it.
    What differs between a disk and object storage is in `medium`. Raises `StorageError` for an
    address that cannot be written.
    """

    def __init__(self, written: str | os.PathLike[str]) -> None:
        self.written = os.fspath(written)
        local = storage.local_path(self.written)
        self.medium: Medium
        if local is None:
            if reason := storage.why_not_writable(self.written):
                raise storage.StorageError(f"--out: {reason}")
            self.root = self.written.rstrip("/")
            self.medium = Bucket(self.root)
        else:
            self.root = local
            self.medium = Disk(self.written, local)

    def __str__(self) -> str:
        return self.written

    # --- places ---

    @property
    def absolute(self) -> str:
        """The absolute path of the root, for processes that run in another folder."""
        return self.medium.absolute()

    @property
    def index(self) -> str:
        return self.medium.path("index")

    @property
    def report_page(self) -> str:
        return os.path.join(self.medium.local_page(), "report.html")

    @property
    def report(self) -> str:
        return os.path.join(self.medium.local_page(), "report")

    @property
    def state(self) -> str:
        return self.medium.path("_state")

    @property
    def journal(self) -> str:
        return self.medium.path("_state", "journal")

    @property
    def lock(self) -> str:
        return self.medium.path("_state", "lock")

    @property
    def log(self) -> str:
        return self.medium.path("_state", "log")

    @property
    def run_file(self) -> str:
        return self.medium.path("_state", "run.json")

    def weights(self, backbone: str, sha256: str) -> str:
        """Return the path of the copy of a backbone's weights that a cluster's nodes read."""
        name = f"{backbone}-{sha256[:16]}.safetensors"
        return storage.join(self.absolute, f"_state/weights/{name}")

    @property
    def checkpoints(self) -> str:
        return self.medium.path("_state", "checkpoints")

    def checkpoint(self, pair_id: str) -> str:
        """Return the path of what is kept of a pair. Its id may be longer than a name can be."""
        name = hashlib.sha256(pair_id.encode()).hexdigest()[:32]
        return storage.join(self.checkpoints, f"{name}.kept")

    def probe(self, run_id: str) -> str:
        """Return the path of the file that each worker of a run must be able to read."""
        return storage.join(self.absolute, f"_state/probe-{run_id}")

    def path(self, output: str) -> str:
        """Return the path of a pair's `output`, for reading: links are not checked."""
        return self.medium.path(*output.split("/"))

    # --- looking inside ---

    @property
    def has_index(self) -> bool:
        """Whether a run has made an index here."""
        return self.medium.has_folder(self.index)

    @property
    def exists(self) -> bool:
        return self.medium.has_folder(self.root)

    @property
    def has_state(self) -> bool:
        """Whether the index or the state of a run is here."""
        return any(self.medium.has_folder(self.medium.path(name)) for name in OWN)

    def picture_bytes(self, output: str) -> int:
        """Return the size of a picture in bytes, 0 if there is none."""
        look = self.medium.look(output)
        return look.size if look else 0

    def pictures(self, skip: Collection[str] = ()) -> Iterator[str]:
        """Yield the output of each file that may be a picture of this program, except `skip`."""
        for output in self.medium.outputs():
            if os.path.splitext(output)[1].lower() in FORMATS and output not in skip:
                yield output

    # --- tidying, under the lock ---

    def remove_leftovers(self, *, probes: bool = True) -> None:
        """Remove the temporary files and probes of runs that were killed."""
        self.medium.remove_leftovers(probes=probes)

    def remove_checkpoints(self) -> None:
        """Remove what is kept of pairs in the making: none is left to paint."""
        names = self.medium.names(self.checkpoints)
        storage.remove_all([storage.join(self.checkpoints, name) for name in names])

    # --- values that the first run fixes ---

    def read_fixed(self) -> Fixed:
        """Return the values of ``run.json``. Raises `StorageError` if the file is damaged."""
        try:
            return _fixed(self._values(storage.read_bytes(self.run_file)))
        except (FileNotFoundError, NotADirectoryError):
            return Fixed()
        except OSError as error:
            raise storage.unreadable(error, self.run_file) from error

    def fix(self, **changes: object) -> None:
        """Write some values of `Fixed` into ``run.json``. Raises `StorageError`."""
        self.fix_by(lambda _: changes)

    def fix_by(self, choose: Callable[[Fixed], Mapping[str, object]]) -> None:
        """Write what `choose` makes of the values of ``run.json`` into it.

        Nobody else writes it in between. Raises `StorageError`, and what `choose` raises.
        """

        def change(data: bytes | None) -> bytes | None:
            before = self._values(data) if data is not None else {}
            after = {**before, **choose(_fixed(before))}  # values that a later version wrote stay
            return None if after == before else json.dumps(after, indent=1, sort_keys=True).encode()

        try:
            self.medium.update(self.run_file, change, "run-json")
        except OSError as error:
            raise storage.storage_error(error, self.run_file) from error

    def _values(self, data: bytes) -> dict[str, Any]:
        try:
            values = json.loads(data)
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
            for name, default in asdict(Fixed()).items():
                if not isinstance(values.get(name, default), type(default)):
                    raise ValueError(f"{name} is {values[name]!r}")
        except ValueError as error:
            raise storage.StorageError(
                f"{self.run_file!r} is damaged ({error}); remove it, and the next run will write "
                "it again"
            ) from error
        return values


def _fixed(values: Mapping[str, Any]) -> Fixed:
    return Fixed(**{name: values[name] for name in asdict(Fixed()) if name in values})
