"""What OUT lies on: a disk or object storage. The interface of both; `disk` and `bucket` fill it.

Never imports torch, ray or pyarrow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import BinaryIO, NamedTuple, Protocol

from pipeline.records import Pair, Result

__all__ = [
    "OWN",
    "Found",
    "Journal",
    "Locks",
    "LogFile",
    "Look",
    "Medium",
    "Seen",
    "Times",
    "free_name",
]


OWN = ("index", "_state")
"""Folders of OUT that never hold pictures."""


def free_name(name: str, taken: Collection[str]) -> str:
    """Return a name, with a number behind it if it is taken."""
    numbered = (f"{name}.{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)


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


@dataclass(frozen=True)
class Times:
    """When a lock is written again and when its holder is given up, seconds."""

    renew: float  # the holder writes it again so often
    dead: float  # unchanged for so long, by the observer's clock
    look: float  # how often an observer looks
    unsure: float  # so long after it last wrote it, a holder no longer writes to OUT


@dataclass(frozen=True)
class Seen:
    """What a look at a lock shows."""

    state: object = None  # it differs each time its holder has written it
    holder: Mapping[str, object] = field(default_factory=dict)
    lives: bool | None = False  # whether somebody holds it; None: only time can tell
    age: float = 0.0  # seconds since its holder wrote it, by two clocks


class Locks(Protocol):
    """The locks of one OUT, by name. Each is a record that its holder writes again and again."""

    times: Times

    def names(self) -> list[str]:
        """Return the names of all that may be held. Raises `OSError`."""

    def look(self, name: str) -> Seen:
        """Return who holds a lock. Raises `OSError`."""

    def take(self, name: str, record: bytes, seen: Seen) -> object:
        """Write a lock that still is as it was seen, and return what `renew` and `drop` ask for.

        Raises `ChangedError` if somebody was faster, `OSError`, and `StorageError`.
        """

    def renew(self, held: object, record: bytes) -> object:
        """Write a lock again; return what is held now. Raises what `take` raises."""

    def drop(self, held: object) -> None:
        """Give a lock back. Raises `OSError` and `StorageError`."""


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
        """Add a line. On object storage others see it within half a minute."""

    def flush(self) -> None:
        """Let others see all lines now."""

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
        """Return whether a file is surely as its row says. Its size is not compared."""

    def found(
        self, output: str, pair: Pair | None, wanted: Callable[[Result], bool] = lambda _: True
    ) -> Found:
        """Return what the picture at an output carries now. Only what is wanted is decoded."""

    def has_copy(self, output: str, look: Look, row: Result) -> str | None:
        """Return the ETag of a picture that `put_copy` has written before, None without one."""

    def put_copy(self, output: str, data: bytes, look: Look, row: Result) -> str:
        """Write a copy of another OUT's picture, which looks like `look` there; return its ETag, ""
        where it has none. The copy shows as well as the original whether it is as its row says.

        Raises `StorageError` and `OutsideError`.
        """

    def free_bytes(self) -> float:
        """Return the free space in bytes; object storage has no end."""

    def read_part(self, name: str) -> bytes | mmap | str:
        """Return a part's bytes, or the local path that opens it. Raises `OSError` and
        `StorageError`."""

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

    def locks(self) -> Locks:
        """Return the locks of OUT."""

    def update(
        self, path: str, change: Callable[[bytes | None], bytes | None], point: str = ""
    ) -> None:
        """Write what `change` makes of a file's bytes.

        `change` gets None where there is no file; where it returns None, nothing is written. Nobody
        else changes the file in between. `change` is called again where that was tried.
        `point` is that of `storage.put`. Raises `OSError`, `StorageError` and what `change` raises.
        """

    def journal(self) -> Journal:
        """Return where rows are kept until their part is there."""

    def log_file(self, path: str) -> LogFile:
        """Return a log to which lines are added."""
