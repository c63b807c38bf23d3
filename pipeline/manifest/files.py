"""Checks of the files that a manifest names. Never imports torch or ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from pipeline import storage
from pipeline.manifest.reader import Manifest
from pipeline.manifest.table import Problem
from pipeline.records import Pair
from pipeline.side_by_side import side_by_side
from pipeline.store.folder import OutFolder
from pipeline.text import count, quoted

__all__ = ["find_problems", "overwritten", "unstorable"]


def overwritten(pairs: Sequence[Pair], out: OutFolder) -> list[Problem]:
    """Find the outputs that are an input of any row, so that painting them would lose the input."""
    lines = pairs.lines if isinstance(pairs, Manifest) else {}
    folders: dict[str, str] = {}  # each is resolved once, since it may hold thousands of files

    def real(path: str) -> str:
        if storage.is_remote(path):
            return storage.without_options(path)
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    inputs: dict[str, tuple[str, int]] = {}
    for pair in pairs:
        for ref in pair.inputs:
            path = storage.local_path(ref.path) or ref.path
            inputs.setdefault(real(path), (ref.role, pair.row))
    problems = []
    for pair in pairs:
        original = inputs.get(real(out.path(pair.output)))
        if original:
            role, row = original
            message = (
                f"{quoted(pair.output)} in {quoted(str(out))} is the {role} of row {row}, and "
                "would be lost; choose another output or another --out"
            )
            problems.append(Problem(pair.row, lines.get(pair.row), "output", message))
    return problems


def unstorable(pairs: Sequence[Pair], out: OutFolder) -> list[Problem]:
    """Find the outputs that cannot be the name of an object, where OUT is on object storage."""
    lines = pairs.lines if isinstance(pairs, Manifest) else {}
    message = "contains a ?, which begins the options of an address; choose another output"
    return [
        Problem(pair.row, lines.get(pair.row), "output", f"{quoted(pair.output)} {message}")
        for pair in pairs
        if out.medium.is_remote and "?" in pair.output
    ]


def find_problems(
    pairs: Sequence[Pair],
    check: Callable[[str], str | None],
    *,
    lines: Mapping[int, int] | None = None,
) -> list[Problem]:
    """Find the files of the pairs that are missing or that `check` objects to.

    `check` gets the path of a file, once for each file, and returns None or its objection. It
    raises `FileNotFoundError` if there is none. The problem names the first row with that file.
    `lines` maps rows to lines of the manifest; a `Manifest` brings its own.
    """
    lines = pairs.lines if lines is None and isinstance(pairs, Manifest) else lines or {}
    first: dict[str, tuple[Pair, str, str]] = {}
    rows: dict[str, set[int]] = {}
    for pair in pairs:
        for ref in pair.inputs:
            first.setdefault(ref.path, (pair, ref.column, ref.written))
            rows.setdefault(ref.path, set()).add(pair.row)
    remote = [path for path in first if storage.is_remote(path)]
    answers = side_by_side(lambda path: _file_problem(path, first[path][2], check), remote)
    messages = dict(zip(remote, answers, strict=True))
    problems = []
    for path, (pair, column, name) in first.items():
        message = messages[path] if path in messages else _file_problem(path, name, check)
        if message:
            others = len(rows[path]) - 1
            message += f" (and in {count(others, 'more row')})" if others else ""
            problems.append(Problem(pair.row, lines.get(pair.row), column, message))
    return problems


_HINTS = {
    "\\": "; folders are separated by /",
    "~": "; ~ does not stand for your home folder here; write the full path",
    "*": "; patterns are not expanded here; `make-manifest` makes a manifest from a pattern",
    "?": "; patterns are not expanded here; `make-manifest` makes a manifest from a pattern",
    "\N{LEFT DOUBLE QUOTATION MARK}": "; leave the quotation marks out",
}
"""Hints for a name that does not exist, by a character in it."""


def _file_problem(path: str, name: str, check: Callable[[str], str | None]) -> str | None:
    try:
        # Object storage says by one request whether a file is there and what it holds.
        if storage.is_remote(path) or storage.exists(path):
            return check(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"{quoted(name)} cannot be read: {error.strerror or error}"
    local = storage.local_path(path)
    if local is not None and os.path.isdir(local):
        return f"{quoted(name)} is a folder; name a picture"
    if local is not None and os.path.exists(local):
        return f"{quoted(name)} is a pipe or a device; name a file"
    hint = next((hint for sign, hint in _HINTS.items() if sign in name), "")
    return f"{quoted(name)} does not exist{storage.why_missing(path, name)}{hint}"
