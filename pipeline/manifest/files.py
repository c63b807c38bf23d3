"""Checks of the files that a manifest names. Never imports torch or ray."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline import storage
from pipeline.look_alikes import why_missing
from pipeline.manifest.pairs import Manifest, Outline
from pipeline.manifest.table import Problem
from pipeline.records import InputRef, Pair
from pipeline.side_by_side import side_by_side
from pipeline.store.folder import OutFolder
from pipeline.text import count, quoted

__all__ = ["find_problems", "overwritten", "unstorable"]


def overwritten(pairs: Manifest, out: OutFolder) -> list[Problem]:
    """Find the outputs that are an input of any row, so that painting them would lose the input."""
    places = _Places()
    # Only a file in a folder that has both can be both.
    mine, theirs = pairs.folders()
    both = {places.folder(out.path(folder + "a")) for folder in mine}
    both &= {places.folder(folder + "a") for folder in theirs}
    if not both:
        return []
    inputs: dict[str, tuple[str, int]] = {}
    for line in pairs.outlines():
        for ref in line.inputs:
            if places.folder(ref.path) in both:
                inputs.setdefault(places.real(ref.path), (ref.role, line.row))
    problems = []
    for line in pairs.outlines():
        original = inputs.get(places.real(out.path(line.output)))
        if original:
            role, row = original
            message = (
                f"{quoted(line.output)} in {quoted(str(out))} is the {role} of row {row}, and "
                "would be lost; choose another output or another --out"
            )
            problems.append(Problem(line.row, pairs.lines.get(line.row), "output", message))
    return problems


class _Places:
    """Where paths lead. Each folder is resolved once, since it may hold thousands of files."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def folder(self, path: str) -> str:
        """Return the folder of a file."""
        return os.path.split(self.real(path))[0]

    def real(self, path: str) -> str:
        """Return the path of a file by the folder to which links lead."""
        if storage.is_remote(path):
            return storage.without_options(path)
        folder, name = os.path.split(storage.local_path(path) or path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def unstorable(pairs: Manifest, out: OutFolder) -> list[Problem]:
    """Find the outputs that cannot be the name of an object, where OUT is on object storage."""
    if not out.medium.is_remote:
        return []
    message = "contains a ?, which begins the options of an address; choose another output"
    return [
        Problem(line.row, pairs.lines.get(line.row), "output", f"{quoted(line.output)} {message}")
        for line in pairs.outlines()
        if "?" in line.output
    ]


def find_problems(
    pairs: Sequence[Pair],
    check: Callable[[str], str | None],
    *,
    lines: Mapping[int, int] | None = None,
) -> list[Problem]:
    """Find the files of the pairs that are missing or that `check` objects to.

    `check` reads a file by its path, once for each file, and returns None or its objection. It
    raises `FileNotFoundError` if there is none. The problem names the first row with that file.
    `lines` maps rows to lines of the manifest; a `Manifest` brings its own.
    """
    lines = pairs.lines if lines is None and isinstance(pairs, Manifest) else lines or {}
    seen: set[str] = set()
    first: dict[str, tuple[int, InputRef]] = {}  # of the files with a problem, and of remote ones
    messages: dict[str, str | None] = {}
    for line in _lines_of(pairs):
        for ref in line.inputs:
            if ref.path in seen:
                continue
            seen.add(ref.path)
            is_remote = storage.is_remote(ref.path)
            message = None if is_remote else _file_problem(ref.path, ref.written, check)
            if message or is_remote:
                first[ref.path] = line.row, ref
                messages[ref.path] = message
    remote = [path for path in first if not messages[path]]
    answers = side_by_side(lambda path: _file_problem(path, first[path][1].written, check), remote)
    messages |= zip(remote, answers, strict=True)
    bad = {path for path, message in messages.items() if message}
    times = Counter(
        path
        for line in (_lines_of(pairs) if bad else ())
        for path in bad.intersection(ref.path for ref in line.inputs)
    )
    problems = []
    for path, (row, ref) in first.items():
        if path in bad:
            others = times[path] - 1
            more = f" (and in {count(others, 'more row')})" if others else ""
            problems.append(Problem(row, lines.get(row), ref.column, f"{messages[path]}{more}"))
    return problems


def _lines_of(pairs: Sequence[Pair]) -> Iterable[Pair | Outline]:
    return pairs.outlines() if isinstance(pairs, Manifest) else pairs


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
        message = check(path)
    except FileNotFoundError:
        message = ""
    except OSError as error:
        message = f"{quoted(name)} cannot be read: {error.strerror or error}"
    if message is None or (message and (storage.is_remote(path) or storage.exists(path))):
        return message
    local = storage.local_path(path)
    if local is not None and os.path.isdir(local):
        return f"{quoted(name)} is a folder; name a picture"
    if local is not None and os.path.exists(local):
        return f"{quoted(name)} is a pipe or a device; name a file"
    hint = next((hint for sign, hint in _HINTS.items() if sign in name), "")
    return f"{quoted(name)} does not exist{why_missing(storage.local_path(path), name)}{hint}"
