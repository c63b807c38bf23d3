"""OUT as a value: where everything in an output folder lies. Never imports torch, ray or pyarrow.

OUT/
  images/…                   the pictures, or wherever `output` puts them
  index/part-….parquet       the rows
  report.html  report/       what `stylize-batch report` wrote
  _state/
    run.json                 what the first run fixed: see `Fixed`
    lock                     held by the driver that writes
    journal/                 rows that are in no part yet
    log/                     one file for each run: see `store.log`
    damaged/                 what was set aside
    weights/                 copies of weights that the nodes of a cluster read
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

__all__ = ["Fixed", "OutFolder"]

_OWN = ("index", "_state")
"""Folders in which no picture lies."""


@dataclass(frozen=True)
class Fixed:
    """What the first run of OUT fixed for later ones, in ``_state/run.json``."""

    backbone: str = ""  # what `auto` stands for; "" before it was asked for
    weights: Mapping[str, str] = field(default_factory=dict)  # backbone -> SHA-256
    inputs: str = os.pardir  # where the manifest's relative paths start, seen from OUT


class OutFolder:
    """An output folder, on this machine or mounted.

    `written` is the path as the user gave it, for messages; `root` opens it. Raises
    `StorageError` for a place where no results can be written yet.
    """

    def __init__(self, written: str | os.PathLike[str]) -> None:
        self.written = os.fspath(written)
        local = storage.local_path(self.written)
        if local is None:
            raise storage.StorageError(
                f"--out {self.written}: results go to a local or mounted folder, not yet "
                "to object storage"
            )
        self.root = local

    def __str__(self) -> str:
        return self.written

    # --- places ---

    @property
    def absolute(self) -> str:
        """The root as other processes open it, from whichever folder."""
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

    @property
    def log(self) -> str:
        return self._below("_state", "log")

    @property
    def run_file(self) -> str:
        return self._below("_state", "run.json")

    def weights(self, backbone: str, sha256: str) -> str:
        """Return where a copy of a backbone's weights lies, for the nodes of a cluster."""
        name = f"{backbone}-{sha256[:16]}.safetensors"
        return os.path.join(self.absolute, "_state", "weights", name)

    def probe(self, run_id: str) -> str:
        """Return the file that the workers of a run must be able to read."""
        return os.path.join(self.absolute, "_state", f"probe-{run_id}")

    def path(self, output: str) -> str:
        """Return where a pair's `output` lies, to be read."""
        return self._below(*output.split("/"))

    def _below(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    # --- looking ---

    @property
    def has_index(self) -> bool:
        """Whether a run was here."""
        return os.path.isdir(self.index)

    @property
    def exists(self) -> bool:
        return os.path.isdir(self.root)

    @property
    def has_state(self) -> bool:
        """Whether at least something of a run is left."""
        return any(os.path.isdir(self._below(name)) for name in _OWN)

    def has_picture(self, output: str) -> bool:
        return os.path.isfile(self.path(output))

    def picture_bytes(self, output: str) -> int:
        """Return the size of a picture, 0 where there is none."""
        try:
            return os.path.getsize(self.path(output))
        except OSError:
            return 0

    def free_bytes(self) -> int:
        """Return how much can still be written."""
        return shutil.disk_usage(self.root).free

    def pictures(self, skip: Collection[str] = ()) -> Iterator[tuple[str, bytes]]:
        """Yield (output, bytes) of each file that may be a picture of ours.

        Links are not followed: what they lead to does not belong to OUT.
        """
        for folder, folders, names in os.walk(self.root):
            if folder == self.root:
                folders[:] = [name for name in folders if name not in _OWN]
            folders.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                output = os.path.relpath(path, self.root).replace(os.sep, "/")
                is_picture = os.path.splitext(name)[1].lower() in FORMATS
                if is_picture and output not in skip and not os.path.islink(path):
                    yield output, storage.read_bytes(path)

    # --- tidying; under the lock ---

    def remove_leftovers(self) -> None:
        """Remove what runs that were killed left: temporary files and probes."""
        storage.sweep_temporaries(self.root)
        for name in os.listdir(self.state):
            if name.startswith("probe-"):
                storage.remove(os.path.join(self.state, name))

    # --- what the first run fixed ---

    def read_fixed(self) -> Fixed:
        """Return what the first run fixed. Raises `StorageError` where the file is damaged."""
        values = self._run_file_values()
        known = {name: values[name] for name in asdict(Fixed()) if name in values}
        return Fixed(**known)

    def fix(self, **changes: Any) -> None:
        """Fix some values of `Fixed` for later runs. Raises `StorageError`."""
        before = self._run_file_values()
        after = {**before, **changes}  # what a later version wrote stays
        if after != before:
            text = json.dumps(after, indent=1, sort_keys=True)
            storage.put(self.run_file, text.encode(), point="run-json")

    def _run_file_values(self) -> dict[str, Any]:
        try:
            values = json.loads(storage.read_bytes(self.run_file))
            if not isinstance(values, dict):
                raise ValueError("no object")
            for name, default in asdict(Fixed()).items():
                if not isinstance(values.get(name, default), type(default)):
                    raise ValueError(f"{name} is {values[name]!r}")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise storage.unreadable(error, self.run_file) from error
        except ValueError as error:
            raise storage.StorageError(
                f"{self.run_file!r} is damaged ({error}); remove it, and the next run writes it "
                "again"
            ) from error
        return values
