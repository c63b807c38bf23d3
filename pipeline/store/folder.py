"""The output folder OUT as a value that knows its paths. Never imports torch, ray or pyarrow.

OUT/
  images/…                   the pictures, unless `output` puts them elsewhere
  index/part-….parquet       rows of the index
  report.html  report/       what `stylize-batch report` wrote
  _state/
    run.json                 values that the first run fixed: see `Fixed`
    lock                     held by the process that writes to OUT; lock-1-of-3 by that shard
    journal/                 rows that are in no part yet
    log/                     one file for each run: see `store.log`
    damaged/                 damaged files that were moved out of the way
    weights/                 copies of the weights, for the nodes of a cluster
    probe-…                  a file that each worker must be able to read
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline import storage
from stylize.config import FORMATS

__all__ = ["OWN", "Fixed", "OutFolder"]

OWN = ("index", "_state")
"""Folders that never hold pictures."""


@dataclass(frozen=True)
class Fixed:
    """Values that the first run of OUT fixes for later runs, in ``_state/run.json``."""

    backbone: str = ""  # what `auto` stands for; "" until a run needs it
    weights: Mapping[str, str] = field(default_factory=dict)  # backbone -> SHA-256
    inputs: str = os.pardir  # the folder of the manifest's relative paths, relative to OUT


class OutFolder:
    """An output folder, on this machine or mounted.

    `written` is the path as the user gave it, for messages. `root` is the path that opens it.
    Raises `StorageError` for object storage, where results cannot be written yet.
    """

    def __init__(self, written: str | os.PathLike[str]) -> None:
        self.written = os.fspath(written)
        local = storage.local_path(self.written)
        if local is None:
            raise storage.StorageError(
                f"--out {self.written}: results cannot be written to object storage yet; choose "
                "a local or mounted folder"
            )
        self.root = local

    def __str__(self) -> str:
        return self.written

    # --- places ---

    @property
    def absolute(self) -> str:
        """The absolute path of the root, for processes that run in another folder."""
        return os.path.abspath(self.root)

    @property
    def index(self) -> str:
        return self._below("index")

    @property
    def report_page(self) -> str:
        return self._below("report.html")

    @property
    def report(self) -> str:
        return self._below("report")

    @property
    def state(self) -> str:
        return self._below("_state")

    @property
    def journal(self) -> str:
        return self._below("_state", "journal")

    @property
    def damaged(self) -> str:
        return self._below("_state", "damaged")

    @property
    def lock(self) -> str:
        return self._below("_state", "lock")

    def shard_lock(self, name: str) -> str:
        """Return the path of the lock of one shard, or of another part of the state."""
        return self._below("_state", f"lock-{name}")

    @property
    def log(self) -> str:
        return self._below("_state", "log")

    @property
    def run_file(self) -> str:
        return self._below("_state", "run.json")

    def weights(self, backbone: str, sha256: str) -> str:
        """Return the path of the copy of a backbone's weights that a cluster's nodes read."""
        name = f"{backbone}-{sha256[:16]}.safetensors"
        return os.path.join(self.absolute, "_state", "weights", name)

    def probe(self, run_id: str) -> str:
        """Return the path of the file that each worker of a run must be able to read."""
        return os.path.join(self.absolute, "_state", f"probe-{run_id}")

    def path(self, output: str) -> str:
        """Return the path of a pair's `output`, for reading: links are not checked."""
        return self._below(*output.split("/"))

    def _below(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    # --- looking inside ---

    @property
    def has_index(self) -> bool:
        """Whether a run has made an index here."""
        return os.path.isdir(self.index)

    @property
    def exists(self) -> bool:
        return os.path.isdir(self.root)

    @property
    def has_state(self) -> bool:
        """Whether the index or the state of a run is here."""
        return any(os.path.isdir(self._below(name)) for name in OWN)

    def has_picture(self, output: str) -> bool:
        return os.path.isfile(self.path(output))

    def picture_bytes(self, output: str) -> int:
        """Return the size of a picture in bytes, 0 if there is none."""
        try:
            return os.path.getsize(self.path(output))
        except OSError:
            return 0

    def free_bytes(self) -> int:
        """Return the free space of the disk in bytes."""
        return shutil.disk_usage(self.root).free

    def pictures(self, skip: Collection[str] = ()) -> Iterator[tuple[str, bytes]]:
        """Yield (output, bytes) of each file that may be a picture of this program, except `skip`.

        Links are not followed, because their targets do not belong to OUT.
        """
        for folder, folders, names in os.walk(self.root):
            if folder == self.root:
                folders[:] = [name for name in folders if name not in OWN]
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                output = os.path.relpath(path, self.root).replace(os.sep, "/")
                is_picture = os.path.splitext(name)[1].lower() in FORMATS
                if is_picture and output not in skip and not os.path.islink(path):
                    yield output, storage.read_bytes(path)

    # --- tidying, under the lock ---

    def remove_leftovers(self, *, probes: bool = True) -> None:
        """Remove the temporary files and probes of runs that were killed."""
        storage.sweep_temporaries(self.root)
        if not probes:
            return
        for name in os.listdir(self.state):
            if name.startswith("probe-"):
                storage.remove(os.path.join(self.state, name))

    # --- values that the first run fixes ---

    def read_fixed(self) -> Fixed:
        """Return the values of ``run.json``. Raises `StorageError` if the file is damaged."""
        values = self._run_file_values()
        known = {name: values[name] for name in asdict(Fixed()) if name in values}
        return Fixed(**known)

    def fix(self, **changes: object) -> None:
        """Write some values of `Fixed` into ``run.json``. Raises `StorageError`."""
        before = self._run_file_values()
        after = {**before, **changes}  # values that a later version wrote stay
        if after != before:
            text = json.dumps(after, indent=1, sort_keys=True)
            storage.put(self.run_file, text.encode(), point="run-json")

    def _run_file_values(self) -> dict[str, Any]:
        try:
            values = json.loads(storage.read_bytes(self.run_file))
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
            for name, default in asdict(Fixed()).items():
                if not isinstance(values.get(name, default), type(default)):
                    raise ValueError(f"{name} is {values[name]!r}")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise storage.unreadable(error, self.run_file) from error
        except ValueError as error:
            raise storage.StorageError(
                f"{self.run_file!r} is damaged ({error}); remove it, and the next run will write "
                "it again"
            ) from error
        return values
