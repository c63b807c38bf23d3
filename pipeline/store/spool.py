"""Bytes that are too many for the memory, in a temporary file. Standard library only."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from typing import BinaryIO

__all__ = ["Spool"]


class Spool:
    """A temporary file without a name, so that it is gone when the process ends, however it ends.

    Several threads may write and read at once.
    """

    def __init__(self) -> None:
        """Make the file; in memory if no folder for temporary files can be used."""
        try:
            self._file: BinaryIO = tempfile.TemporaryFile(prefix="stylize-")  # noqa: SIM115
        except OSError:
            self._file = open(os.memfd_create("stylize"), "w+b")  # noqa: SIM115
        self._lock = threading.Lock()
        self.size = 0  # bytes that `place` has given away

    def place(self, size: int) -> int:
        """Return where so many bytes may be written."""
        with self._lock:
            at = self.size
            pages = -(-size // mmap.ALLOCATIONGRANULARITY)  # where a map may begin
            self.size += pages * mmap.ALLOCATIONGRANULARITY
        return at

    def write(self, at: int, data: bytes) -> None:
        """Write bytes to a place. Raises `OSError`."""
        while data:
            written = os.pwrite(self._file.fileno(), data, at)
            at, data = at + written, data[written:]

    def fill(self, make: Callable[[BinaryIO], object]) -> int:
        """Have a function write to the file, which is empty; return how many bytes there are."""
        make(self._file)
        self._file.flush()
        return self.place(size := self._file.tell()) + size

    def read(self, at: int, size: int) -> mmap.mmap | bytes:
        """Return bytes at a place. They come into the memory as they are looked at, and the system
        may take them out of it again."""
        if not size:
            return b""
        return mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ, offset=at)
