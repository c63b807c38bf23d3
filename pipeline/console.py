"""What commands print, and how they end early. Never imports torch, ray or pyarrow."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import typer

from pipeline.ledger import Exit
from pipeline.text import count

__all__ = [
    "Refused",
    "as_refusal",
    "flush",
    "note",
    "open_standard_streams",
    "say",
    "say_problems",
    "tell",
]

_SHOWN = 100  # problems printed at most; --json has all


class Refused(Exception):
    """The end of a command with one line and no traceback."""

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code


def as_refusal(error: Exception) -> Refused | None:
    """Return a foreseen error as a `Refused`; None for a bug. Prints a manifest's problems."""
    from pipeline.manifest.table import ManifestError
    from pipeline.paint.backbones import UnableError
    from pipeline.paint.caller import ClusterError
    from pipeline.paint.resources import confined
    from pipeline.storage import StorageError
    from pipeline.store.lock import LockedError
    from stylize.errors import ConfigError, StylizeError, WeightsError

    if isinstance(error, Refused):
        return error
    if isinstance(error, ManifestError):
        say_problems([str(problem) for problem in error.problems])
        return Refused(f"{count(len(error.problems), 'problem')}; nothing was run")
    if isinstance(error, StorageError | ClusterError | UnableError | LockedError | WeightsError):
        return Refused(str(error), Exit.UNABLE)
    if isinstance(error, ImportError) and confined():
        return Refused(f"{error}{confined()}", Exit.UNABLE)
    if isinstance(error, ConfigError):
        return Refused(str(error))
    if isinstance(error, StylizeError):
        return Refused(str(error), Exit.FAILED)
    return None


def say(line: str) -> None:
    """Print a line to standard error."""
    _write(line, err=True)


def say_problems(lines: Sequence[str]) -> None:
    """Print the first problems to standard error, and how many more there are."""
    for line in lines[:_SHOWN]:
        say(line)
    if len(lines) > _SHOWN:
        say(f"… and {len(lines) - _SHOWN} more")


def note(line: str, progress: str) -> None:
    """Print a line to standard error, as an event with ``--progress json``."""
    from pipeline.display.progress import Progress

    if progress == "json":
        Progress([], style="json").note(line)
    else:
        say(line)


def tell(line: str) -> None:
    """Print a line to standard output."""
    _write(line, err=False)


def flush() -> None:
    """Write out what is buffered; into a closed pipe it goes nowhere."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            _silence(stream)


def open_standard_streams() -> None:
    """Open closed standard streams onto the null device.

    Files that are opened later would otherwise take their numbers, and be written to as if they
    were the terminal.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _write(line: str, err: bool) -> None:
    try:
        typer.echo(line, err=err)
    except OSError:
        # Nobody reads any more (`| head`). The command goes on, and its exit code stays right.
        _silence(sys.stderr if err else sys.stdout)


def _silence(stream: TextIO) -> None:
    """Let all that goes into a stream from now on go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
