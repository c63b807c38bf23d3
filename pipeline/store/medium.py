"""What OUT lies on: a disk or object storage. The interface of both; `disk` and `bucket` fill it.

Never imports torch, ray or pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol

from pipeline.records import Pair, Result

__all__ = [
    "OWN",
    "Found",
    "Hold",
    "Journal",
    "LockedError",
    "LogFile",
    "Look",
    "Medium",
    "in_words",
    "refusal",
]


OWN = ("index", "_state")
"""Folders of OUT that never hold pictures."""


class LockedError(Exception):
    """Another process is writing to this OUT. The message names it and says what to do.

    It is `passing` where a shard only tidies up after all others.
    """

    passing = False


class Look(NamedTuple):
    """What a folder or a listing says of a file."""

    size: int  # bytes
    modified: float  # seconds since 1970
    etag: str = ""  # on object storage


@dataclass(frozen=True)
class Found:
    """What a picture carries."""

    row: Result | None  # None: the file is not ours, or is gone
    is_whole: bool  # whether it has a row that is wanted, and can be decoded


class Hold(Protocol):
    """The right to write to OUT."""

    def check(self) -> None:
        """Raise `StorageError` if the right is lost."""

    def release(self) -> None:
        """Give it back. A second call does nothing."""


class Journal(Protocol):
    """Where rows are kept until their part is there. One segment becomes one part."""

    @property
    def is_open(self) -> bool:
        """Whether a segment has been begun."""

    def begin(self, segment: str) -> None:
        """Begin a segment. Raises `OSError`."""

    def write(self, lines: bytes) -> None:
        """Keep lines of rows, to the end or not at all. Raises `OSError`."""

    def end(self) -> None:
        """Drop the segment, whose part is there. Raises `StorageError`."""


class LogFile(Protocol):
    """A log to which lines are added. It never raises: a log is no reason to end a run."""

    def add(self, line: str) -> None:
        """Add a line."""

    def close(self) -> None:
        """Write out what is there. Lines that come later are written at once."""


class Medium(Protocol):
    """The files of one OUT. Paths are as `path` gives them."""

    @property
    def is_remote(self) -> bool:
        """Whether each look at a file is a request."""

    def path(self, *names: str) -> str:
        """Return the path of something below OUT."""

    def absolute(self) -> str:
        """Return a path of OUT for processes that run in another folder."""

    def local_page(self) -> str:
        """Return the folder of this machine where a report of OUT is written."""

    def has_folder(self, path: str) -> bool:
        """Return whether there is a folder, or an object below it."""

    def names(self, folder: str) -> list[str]:
        """Return the names of everything right below a folder, sorted; [] where it is missing."""

    def outputs(self) -> Iterator[str]:
        """Yield all files of OUT that may be pictures, relative to it, in order."""

    def look(self, output: str) -> Look | None:
        """Return what is known of a file of OUT, None if it is missing."""

    def has_picture(self, output: str) -> bool:
        """Return whether there is a file, and not a folder, at an output."""

    def is_as_recorded(self, look: Look, finished_at: str, etag: str) -> bool:
        """Return whether the file is surely the one of the row with these values, size apart."""

    def found(
        self, output: str, pair: Pair | None, wanted: Callable[[Result], bool] = lambda _: True
    ) -> Found:
        """Return what the picture at an output carries now. Decoded is only what is wanted."""

    def free_bytes(self) -> float:
        """Return the free space in bytes."""

    def read_part(self, name: str) -> bytes | str:
        """Return a part's bytes, or the local path that opens it. Raises `OSError`."""

    def put_part(self, name: str, data: bytes | Callable[[BinaryIO], object]) -> None:
        """Write a part of the index; `data` may be a function that writes to a file.

        Raises `StorageError`.
        """

    def begin_index(self, name: str, data: bytes) -> None:
        """Make the index with its first part, unless there is one. Raises `StorageError`."""

    def set_aside(self, folder: str, name: str) -> None:
        """Move a damaged file of a folder to ``_state/damaged``. Raises `StorageError`."""

    def remove_leftovers(self, *, probes: bool) -> None:
        """Remove what killed runs left half-written, and if wanted their probes."""

    def lease(self, holder: Mapping[str, object], say: Callable[[str], None]) -> Hold | None:
        """Take the right to write to OUT for this process, or return None: a disk has `flock`.

        Raises `LockedError`, and `StorageError` if OUT cannot be written.
        """

    def journal(self) -> Journal:
        """Return where rows are kept until their part is there."""

    def log_file(self, path: str) -> LogFile:
        """Return a log to which lines are added."""


def in_words(holder: Mapping[str, object]) -> str:
    """Return in words which process holds a lock."""
    try:
        return "process {pid} on {host} (run {run_id}, since {started})".format(**holder)
    except KeyError:
        return "another process, which has just started"


def refusal(out: str, holder: Mapping[str, object]) -> LockedError:
    """Return what is said where another process holds OUT."""
    return LockedError(
        f"{out!r} is in use by {in_words(holder)}; wait until it is done, stop it, or choose "
        "another --out"
    )
