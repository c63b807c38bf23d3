"""The plan of a run: which pairs are to be painted, and why, in words.

This module is pure: facts about files come through `Facts`, which the caller provides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

from pipeline.records import Pair, Result
from stylize.config import OF_THE_FILE, SETTINGS, StyleConfig, as_text

__all__ = ["Facts", "Picture", "Plan", "pending", "settings_changed", "taken_outputs"]

Picture = Literal["ok", "missing", "changed", "rowless"]
"""The state of the file at a pair's output: see `Facts.picture`."""


class Facts(Protocol):
    """Facts about the files as they are today.

    Each is asked for only if the plan depends on it, so that little is read.
    """

    @property
    def algorithm(self) -> int:
        """Today's version of the algorithm."""

    def key(self, pair: Pair, result: Result) -> str:
        """Return the key that the pair would get today by the algorithm of `result`.

        Hashes only inputs whose path or stat differs from `result.inputs`. Return "" if one cannot
        be read.
        """

    def changed(self, pair: Pair, result: Result) -> Sequence[str]:
        """Return the roles of the inputs, and "weights", whose bytes differ from `result`'s.

        Asked only if `key` differs, to give the reason.
        """

    def picture(self, pair: Pair, result: Result | None) -> Picture:
        """Return the state of the file at the pair's output.

        "missing": there is none. "ok": it is as `result` recorded it. "rowless": it is from a run
        that ended before it wrote the row. "changed": somebody else changed it. Without a result,
        "changed" means that this program did not make the file.
        """

    def adoptable(self, pair: Pair) -> Result | None:
        """Return the row that the pair's picture carries if its key is today's, else None."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run. Every pair is in exactly one of todo, adopt, done and skipped."""

    todo: list[tuple[Pair, str]] = field(default_factory=list)  # with the reason
    adopt: list[Result] = field(default_factory=list)  # rows of pictures that are not in the index
    done: Sequence[Pair] = ()
    skipped: list[tuple[Pair, str]] = field(default_factory=list)  # with the reason
    older: Sequence[Pair] = ()  # those of `done` by an older algorithm
    stale: Sequence[Pair] = ()  # those of `done` whose rows may have to be written again


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
    """Return the plan for the pairs, by their newest results and the facts about files.

    A pair is done if its newest result is ok, its key is today's and its picture is there.
    `force` paints done pairs again. `retry_failed` is "all" to try failed and timed out pairs
    again, "none", or one of `FAILURES` for that kind only. A pair that is poison is tried only if
    that kind is named or its settings changed. A picture that was edited by hand is kept even with
    `force`, unless `redo_changed`. `redo_older` paints the pictures of older algorithms again.
    """
    options = _Options(force, retry_failed, redo_changed, redo_older)
    plan = Plan()
    done, older = [], []
    for pair in pairs:
        result = results.get(pair.pair_id)
        verdict = _judge(pair, result, facts, options)
        if isinstance(verdict, Result):
            plan.adopt.append(verdict)
        elif verdict.action == "todo":
            plan.todo.append((pair, verdict.reason))
        elif verdict.action == "skip":
            plan.skipped.append((pair, verdict.reason))
        else:
            done.append(pair)
            if result is not None and result.algorithm < facts.algorithm:
                older.append(pair)
    return replace(plan, done=done, older=older, stale=done)


def taken_outputs(pairs: Iterable[Pair], strangers: Iterable[Result]) -> list[tuple[Pair, Result]]:
    """Return the pairs whose output is the picture of a stranger, with the stranger's row.

    `strangers` are pairs that the whole manifest does not have. A row without an id gets another id
    when its settings are edited. It is known by its content and style, and may paint over its
    picture.
    """
    owners = {row.output: row for row in strangers if row.output_sha256}
    return [
        (pair, owner)
        for pair in pairs
        if (owner := owners.get(pair.output)) is not None
        and not (pair.generated_id and (owner.content, owner.style) == (pair.content, pair.style))
    ]


class _Options(NamedTuple):
    """The options of `pending`."""

    force: bool
    retry_failed: str
    redo_changed: bool
    redo_older: bool


class _Verdict(NamedTuple):
    """The action for a pair, and the reason for it."""

    action: Literal["todo", "done", "skip"]
    reason: str


def _judge(pair: Pair, result: Result | None, facts: Facts, options: _Options) -> _Verdict | Result:
    """Return the verdict on a pair, or the row with which its picture is to be adopted."""
    verdict = _judge_row(pair, result, facts, options)
    if verdict.action == "skip":
        return verdict
    # From here on the picture may be replaced or count as done, so it must be the one we know.
    recorded = _result_at_output(pair, result)
    picture = facts.picture(pair, recorded)
    if picture == "missing":
        return verdict if verdict.action == "todo" else _Verdict("todo", "picture is missing")
    # A crash after the picture and before its row leaves a picture that is newer than the row. One
    # that is as the row says is not today's, or the row would be. It need not be read.
    is_the_rows = picture == "ok" and recorded is not None and recorded.status == "ok"
    may_be_adopted = verdict.action == "todo" and not options.force and not is_the_rows
    if may_be_adopted and (row := facts.adoptable(pair)):
        return row
    if picture == "changed":
        return _judge_foreign(verdict, recorded, options.redo_changed)
    if picture == "rowless" and verdict.action == "done":
        return _Verdict("todo", "picture has other settings, from a run that was interrupted")
    return verdict


def _judge_row(pair: Pair, result: Result | None, facts: Facts, options: _Options) -> _Verdict:
    """Return the verdict by the newest row and the inputs, whatever the picture is."""
    if result is None:
        return _Verdict("todo", "forced" if options.force else "new")
    if result.status != "ok":
        return _judge_failure(pair, result, options.force, options.retry_failed)
    if options.force:
        return _Verdict("todo", "forced")
    if result.output != pair.output:
        return _Verdict("todo", f"output changed: {result.output} -> {pair.output}")
    key = facts.key(pair, result)
    if not key:
        return _Verdict("todo", "an input cannot be read now")
    if key != result.key:
        return _Verdict("todo", _difference(pair, result, facts))
    if options.redo_older and result.algorithm < facts.algorithm:
        words = f"made by algorithm {result.algorithm}; today's is {facts.algorithm}"
        return _Verdict("todo", words)
    return _Verdict("done", "")


def _judge_failure(pair: Pair, result: Result, force: bool, retry_failed: str) -> _Verdict:
    message = (result.error_message.strip().splitlines() or [result.error_type or "unknown"])[0]
    before = f"{result.status} before: {message}"
    if retry_failed == "none":
        return _Verdict("skip", f"{before} (not tried again: --no-retry-failed)")
    changed = _settings_changed(pair, result)
    if changed:
        return _Verdict("todo", f"settings changed: {changed} ({before})")
    if retry_failed == result.status or (force and result.status != "poison"):
        return _Verdict("todo", before)
    if retry_failed != "all" or result.status == "poison":
        return _Verdict("skip", f"{before} (--retry-failed={result.status} tries it again)")
    return _Verdict("todo", before)


def _judge_foreign(verdict: _Verdict, recorded: Result | None, redo_changed: bool) -> _Verdict:
    """Return the verdict for a file at the output that no row describes."""
    if redo_changed:
        return _Verdict("todo", verdict.reason or "picture was edited by hand")
    if recorded is None:
        return _Verdict(
            "skip",
            "a file that this program did not make is at its output; "
            "move it, or replace it with --redo-changed",
        )
    return _Verdict(
        "skip", "picture was edited by hand; it is kept (--redo-changed paints it again)"
    )


def _result_at_output(pair: Pair, result: Result | None) -> Result | None:
    """Return the result if it describes a picture at the pair's current output."""
    describes = result is not None and result.output == pair.output and result.output_sha256
    return result if describes else None


def _difference(pair: Pair, result: Result, facts: Facts) -> str:
    settings = _settings_changed(pair, result)
    if settings:
        return f"settings changed: {settings}"
    roles = facts.changed(pair, result)
    weights = [role for role in roles if role == "weights"]
    files = [f"{role} file" for role in roles if role != "weights"]
    return f"{' and '.join(files + weights)} changed" if roles else "an input or setting changed"


def _settings_changed(pair: Pair, result: Result) -> str:
    """Return the first settings that differ from the row's, as "steps 100 -> 200, …", or ""."""
    changes = settings_changed(pair, result)
    words = [f"{name} {old or 'none'} -> {new or 'none'}" for name, (old, new) in changes.items()]
    more = [f"{len(words) - 3} more"] if len(words) > 3 else []
    return ", ".join(words[:3] + more)


def settings_changed(pair: Pair, result: Result) -> dict[str, tuple[str, str]]:
    """Return (the row's value, today's value) of each setting that differs, as text, by name."""
    try:
        before = json.loads(result.settings)
    except ValueError:
        return {}
    changes = {}
    for name in (*OF_THE_FILE, "style_mask"):  # which rows of older versions lack
        before.setdefault(name, getattr(StyleConfig, name))
    for name in SETTINGS:
        value = getattr(pair.config, name)
        # A preset matters only through its values, and auto stands for the row's backbone.
        # The format shows in the output.
        if (
            name in ("preset", "format")
            or (name, value) == ("backbone", "auto")
            or name not in before
        ):
            continue
        old, new = as_text(name, before[name]), as_text(name, value)
        if old != new:
            changes[name] = old, new
    return changes
