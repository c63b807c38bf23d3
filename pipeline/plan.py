"""Which pairs are to be done, and why, in words. Pure: no file is touched.

What must be read from files comes through `Facts`, which the caller provides.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pipeline.records import Pair, Result
from stylize.config import SETTINGS, as_text

__all__ = ["Facts", "Picture", "Plan", "pending", "taken_outputs"]

Picture = Literal["ok", "missing", "changed", "rowless"]


class Facts(Protocol):
    """What the files say today. Asked only where the answer decides, so that little is read."""

    @property
    def algorithm(self) -> int:
        """Today's version of the algorithm."""

    def key(self, pair: Pair, result: Result) -> str:
        """The key the pair would get today by the algorithm and weights of `result`'s version.

        Hashes only inputs whose path or stat differs from `result.inputs`; "" if one cannot be
        read.
        """

    def changed(self, pair: Pair, result: Result) -> Sequence[str]:
        """Roles of the inputs (and "weights") whose bytes differ from `result`'s, for the reason.

        Asked only after `key` answered with another key.
        """

    def picture(self, pair: Pair, result: Result | None) -> Picture:
        """The file at the pair's output: missing, as `result` recorded it (ok), of a run that
        ended before it wrote its row (rowless), or changed by somebody else.

        Without a result: "changed" for a file there that this program did not make.
        """

    def adoptable(self, pair: Pair) -> Result | None:
        """Return the row of the picture at the pair's output if that carries today's key."""


@dataclass(frozen=True)
class Plan:
    """Every pair in exactly one of todo, adopt, done and skipped."""

    todo: list[tuple[Pair, str]] = field(default_factory=list)  # with the reason
    adopt: list[Result] = field(default_factory=list)  # rows of pictures that have none yet
    done: list[Pair] = field(default_factory=list)
    skipped: list[tuple[Pair, str]] = field(default_factory=list)  # with the reason
    older: list[Pair] = field(default_factory=list)  # those of done by an older algorithm


def pending(
    pairs: Iterable[Pair],
    results: Mapping[str, Result],
    *,
    facts: Facts,
    force: bool = False,
    retry_failed: str = "all",
    redo_changed: bool = False,
    redo_older: bool = False,
) -> Plan:
    """Sort the pairs by what their newest result and the files say.

    Done is a pair whose newest result is ok, whose key is today's and whose picture is there.
    `retry_failed`: "all" tries failed and timed out pairs again, "none" none, one of `FAILURES`
    only that kind; `poison` is tried only when named, or when the row's settings changed. A
    picture edited by hand is kept unless `redo_changed`, even with `force`.
    """
    plan = Plan()
    for pair in pairs:
        result = results.get(pair.pair_id)
        verdict = _judge(pair, result, facts, force, retry_failed, redo_changed, redo_older)
        if isinstance(verdict, Result):
            plan.adopt.append(verdict)
        elif verdict[0] == "todo":
            plan.todo.append((pair, verdict[1]))
        elif verdict[0] == "skip":
            plan.skipped.append((pair, verdict[1]))
        else:
            plan.done.append(pair)
            if result is not None and result.algorithm < facts.algorithm:
                plan.older.append(pair)
    return plan


def taken_outputs(
    pairs: Iterable[Pair], results: Mapping[str, Result], manifest_ids: Collection[str]
) -> list[tuple[Pair, Result]]:
    """Return the pairs whose output is the picture of a pair that the manifest does not have.

    `manifest_ids` are those of the whole manifest. A row without an id gets another id when its
    settings are edited. It is known by its content and style, and may paint over its picture.
    """
    owners = {
        row.output: row
        for row in results.values()
        if row.output_sha256 and row.pair_id not in manifest_ids
    }
    return [
        (pair, owner)
        for pair in pairs
        if (owner := owners.get(pair.output)) is not None
        and not (pair.generated_id and (owner.content, owner.style) == (pair.content, pair.style))
    ]


_Verdict = tuple[Literal["todo", "done", "skip"], str]  # and the reason


def _judge(
    pair: Pair,
    result: Result | None,
    facts: Facts,
    force: bool,
    retry_failed: str,
    redo_changed: bool,
    redo_older: bool,
) -> _Verdict | Result:
    """Return what is to become of a pair; a row means that its picture is adopted with it."""
    verdict = _judge_row(pair, result, facts, force, retry_failed, redo_older)
    if verdict[0] == "skip":
        return verdict
    # From here on a picture may be replaced, or be taken as done: is it the one we know?
    known = _of_output(pair, result)
    picture = facts.picture(pair, known)
    if picture == "missing":
        return verdict if verdict[0] == "todo" else ("todo", "picture is missing")
    # A crash between picture and row leaves a picture that is newer than the row.
    if verdict[0] == "todo" and not force and (row := facts.adoptable(pair)):
        return row
    if picture == "changed":
        return _judge_stranger(verdict, known, redo_changed)
    if picture == "rowless" and verdict[0] == "done":
        return "todo", "picture is of other settings, by a run that was broken off"
    return verdict


def _judge_row(
    pair: Pair,
    result: Result | None,
    facts: Facts,
    force: bool,
    retry_failed: str,
    redo_older: bool,
) -> _Verdict:
    """By the newest row and the inputs alone."""
    if result is None:
        return "todo", "forced" if force else "new"
    if result.status != "ok":
        return _judge_failure(pair, result, force, retry_failed)
    if force:
        return "todo", "forced"
    if result.output != pair.output:
        return "todo", f"output changed: {result.output} -> {pair.output}"
    key = facts.key(pair, result)
    if not key:
        return "todo", "an input cannot be read now"
    if key != result.key:
        return "todo", _difference(pair, result, facts)
    if redo_older and result.algorithm < facts.algorithm:
        return "todo", f"made by algorithm {result.algorithm}; today's is {facts.algorithm}"
    return "done", ""


def _judge_failure(pair: Pair, result: Result, force: bool, retry_failed: str) -> _Verdict:
    message = (result.error_message.strip().splitlines() or [result.error_type or "unknown"])[0]
    before = f"{result.status} before: {message}"
    if retry_failed == "none":
        return "skip", f"{before} (not tried again: --no-retry-failed)"
    changed = _settings_changed(pair, result)
    if changed:
        return "todo", f"settings changed: {changed} ({before})"
    if retry_failed == result.status or (force and result.status != "poison"):
        return "todo", before
    if retry_failed != "all" or result.status == "poison":
        return "skip", f"{before} (--retry-failed={result.status} tries it again)"
    return "todo", before


def _judge_stranger(verdict: _Verdict, known: Result | None, redo_changed: bool) -> _Verdict:
    """The file at the output is not the picture that its row, if any, describes."""
    if redo_changed:
        return "todo", verdict[1] or "picture was edited by hand"
    if known is None:
        return "skip", (
            "a file that this program did not make stands at its output; "
            "move it, or replace it with --redo-changed"
        )
    return "skip", "picture was edited by hand; it is kept (--redo-changed does it again)"


def _of_output(pair: Pair, result: Result | None) -> Result | None:
    """The result, if it says anything about a picture at today's output."""
    known = result is not None and result.output == pair.output and result.output_sha256
    return result if known else None


def _difference(pair: Pair, result: Result, facts: Facts) -> str:
    settings = _settings_changed(pair, result)
    if settings:
        return f"settings changed: {settings}"
    roles = facts.changed(pair, result)
    weights = [role for role in roles if role == "weights"]
    files = [f"{role} file" for role in roles if role != "weights"]
    return f"{' and '.join(files + weights)} changed" if roles else "an input or setting changed"


def _settings_changed(pair: Pair, result: Result) -> str:
    """The first settings whose value differs from the row's, as "steps 100 -> 200, …"."""
    try:
        before = json.loads(result.settings)
    except ValueError:
        return ""
    changes = []
    for name in SETTINGS:
        value = getattr(pair.config, name)
        # A preset counts by its values; auto stands for whatever backbone the row names.
        if name == "preset" or (name, value) == ("backbone", "auto") or name not in before:
            continue
        old, new = as_text(name, before[name]), as_text(name, value)
        if old != new:
            changes.append(f"{name} {old or 'none'} -> {new or 'none'}")
    more = [f"{len(changes) - 3} more"] if len(changes) > 3 else []
    return ", ".join(changes[:3] + more)
