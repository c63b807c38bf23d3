"""The books of a run: what each outcome means for the exit code and its words."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.ledger import Exit, FailureStreak, Ledger, describe, verdict
from pipeline.records import InputRef, Pair, Result
from stylize.config import StyleConfig

PAIR = Pair(1, "a", "images/a.png", (InputRef("content", "c.jpg", "c.jpg"),), StyleConfig())
DONE = Ledger(rows=10, done=4, painted=6, failed=0, skipped=(), left=0)


def said(ledger: Ledger) -> tuple[Exit, str]:
    return verdict(ledger, "OUT", "OUT/_state/log/r.jsonl")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({}, Exit.DONE, ""),
        ({"painted": 5, "failed": 1}, Exit.FAILED, "stylize-batch status OUT"),
        ({"painted": 5, "failed": 1, "bugs": 1}, Exit.FAILED, "1 failure by a bug of this program"),
        ({"painted": 5, "left": 1, "stopped": True}, Exit.INTERRUPTED, "run again to go on"),
        ({"painted": 5, "left": 1, "limited": True}, Exit.DONE, ""),
        (
            {"painted": 2, "failed": 3, "left": 1, "stopped": True, "too_many_failures": "3 in"},
            Exit.STOPPED_BY_FAILURES,
            "3 in",
        ),
        ({"painted": 5, "left": 1}, Exit.BUG, "the books do not balance: 10 rows, 4 done before"),
        ({"left": -1}, Exit.BUG, "-1 left"),
        ({"unrecorded": 2}, Exit.BUG, "2 without a row"),
        ({"unrecorded": 2, "index_damaged": True}, Exit.FAILED, "2 rows stood in a damaged file"),
        ({"skipped": [(PAIR, "edited")], "painted": 5}, Exit.DONE, ""),
        (
            {"skipped": [(PAIR, "poison")], "painted": 5, "skipped_without_picture": True},
            Exit.FAILED,
            "some pairs were skipped and have no picture",
        ),
    ],
)
def test_each_outcome_has_its_exit_code_and_its_words(
    changes: dict[str, Any], code: Exit, words: str
) -> None:
    ledger = replace(DONE, **changes)
    got, message = said(ledger)
    assert got is code
    assert words in message
    assert bool(message) == (code is not Exit.DONE)


def test_a_bug_is_told_with_the_place_of_the_log() -> None:
    for ledger in (replace(DONE, failed=1, bugs=1), replace(DONE, unrecorded=1)):
        assert "OUT/_state/log/r.jsonl" in said(ledger)[1]


def test_the_line_names_only_what_there_is() -> None:
    assert describe(replace(DONE, seconds=65)) == "10 pairs: 6 painted, 4 done before in 1:05."
    ledger = Ledger(rows=1, done=0, painted=0, failed=1, skipped=(), left=0)
    assert describe(ledger) == "1 pair: 0 painted, 1 failed in 0:00."


def failure(kind: str, message: str) -> Result:
    return Result("a", 1, "c", "s", "o", "failed", error_type=kind, error_message=message)


def test_failures_in_a_row_with_one_cause_stop_a_run_and_a_picture_ends_the_row() -> None:
    streak = FailureStreak(3)
    for _ in range(2):
        streak.add(failure("BlackError", "black"))
    streak.add(Result("b", 2, "c", "s", "o", "ok"))
    for _ in range(2):
        streak.add(failure("BlackError", "black"))
    streak.add(failure("DivergedError", "diverged"))
    assert streak.reason_to_stop == ""
    for _ in range(2):
        streak.add(failure("DivergedError", "diverged"))
    assert streak.reason_to_stop.startswith("3 failures in a row with the same cause, the last: d")


def test_one_file_that_cannot_be_read_counts_once() -> None:
    streak = FailureStreak(2)
    for _ in range(9):
        streak.add(failure("ImageReadError", "style s.jpg: there is no such file"))
    assert streak.reason_to_stop == ""
    streak.add(failure("ImageReadError", "content c.jpg: there is no such file"))
    assert streak.reason_to_stop


def test_without_a_limit_nothing_stops_a_run() -> None:
    streak = FailureStreak(0)
    for _ in range(99):
        streak.add(failure("BlackError", "black"))
    assert streak.reason_to_stop == ""
