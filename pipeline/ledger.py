"""The books of a run: what became of each row, and what that means for the exit code. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.records import Pair, Result
from pipeline.text import count, duration

__all__ = ["Exit", "FailureStreak", "Ledger", "describe", "verdict"]

_OF_A_FILE = ("ImageReadError", "ImageSizeError")
"""Failures of a single file, which the message names."""


class Exit(enum.IntEnum):
    """What the process returns."""

    DONE = 0
    BUG = 1
    USAGE = 2
    FAILED = 3
    STOPPED_BY_FAILURES = 4
    UNABLE = 5
    INTERRUPTED = 130


@dataclass
class FailureStreak:
    """Failures in a row with the same cause.

    A file that cannot be read counts once, however many pairs name it.
    """

    most: int  # 0: no limit
    cause: str = ""  # the error's type
    messages: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count a result. A picture ends the streak."""
        if result.status == "ok":
            self.cause, self.messages = "", []
            return
        if result.error_type != self.cause:
            self.cause, self.messages = result.error_type, []
        if self.cause not in _OF_A_FILE or result.error_message not in self.messages:
            self.messages.append(result.error_message)

    @property
    def reason_to_stop(self) -> str:
        """Why the run must stop, "" while it need not."""
        if not self.most or len(self.messages) < self.most:
            return ""
        return (
            f"{len(self.messages)} failures in a row with the same cause, the last: "
            f"{self.messages[-1]} (--max-failures)"
        )


@dataclass(frozen=True)
class Ledger:
    """What became of a run's rows: rows = done + painted + failed + skipped + left."""

    rows: int
    done: int  # before this run, or adopted
    painted: int
    failed: int
    skipped: Sequence[tuple[Pair, str]]  # with the reason
    left: int  # not tried, because the run was stopped or limited
    unrecorded: int = 0  # tried or done, and yet not in the index
    bugs: int = 0  # failures that are errors of this program
    skipped_without_picture: bool = False
    index_damaged: bool = False  # and the damage was found only at the end
    limited: bool = False  # by --limit
    stopped: bool = False  # by a signal or by failures
    too_many_failures: str = ""  # why it stopped, if that is why
    seconds: float = 0.0


def verdict(ledger: Ledger, out: str, log: str) -> tuple[Exit, str]:
    """Return how the run ended, and why where that is not plain. `log` is the run's log."""
    if ledger.index_damaged and ledger.unrecorded > 0:
        return Exit.FAILED, (
            f"{count(ledger.unrecorded, 'row')} stood in a damaged file of the index; run again: "
            "it is filled from the pictures"
        )
    explained = ledger.stopped or ledger.limited
    if ledger.left < 0 or ledger.unrecorded or (ledger.left and not explained):
        return Exit.BUG, (
            f"the books do not balance: {ledger.rows} rows, {ledger.done} done before, "
            f"{ledger.painted} painted, {ledger.failed} failed, {len(ledger.skipped)} skipped, "
            f"{ledger.left} left, {ledger.unrecorded} without a row; {_report(log)}"
        )
    if ledger.too_many_failures:
        return Exit.STOPPED_BY_FAILURES, ledger.too_many_failures
    if ledger.stopped:
        return Exit.INTERRUPTED, "stopped; run again to go on"
    if ledger.bugs:
        return Exit.FAILED, (
            f"{count(ledger.bugs, 'failure')} by a bug of this program; {_report(log)}"
        )
    if ledger.failed:
        return Exit.FAILED, f"some pairs failed; see why with: stylize-batch status {out}"
    if ledger.skipped_without_picture:
        return Exit.FAILED, "some pairs were skipped and have no picture; see why above"
    return Exit.DONE, ""


def _report(log: str) -> str:
    return f"please report it with the command, {log} and what `stylize-batch doctor --json` says"


def describe(ledger: Ledger) -> str:
    """Return the counts in one line."""
    parts = [f"{ledger.painted} painted"]
    for number, what in (
        (ledger.done, "done before"),
        (ledger.failed, "failed"),
        (len(ledger.skipped), "skipped"),
        (ledger.left, "left"),
    ):
        if number:
            parts.append(f"{number} {what}")
    took = duration(ledger.seconds)
    return f"{count(ledger.rows, 'pair')}: {', '.join(parts)} in {took}."
