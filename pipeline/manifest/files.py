"""What is wrong with the files that a manifest names. Never imports torch or ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from pipeline import storage
from pipeline.manifest.reader import Manifest
from pipeline.manifest.table import Problem
from pipeline.records import Pair
from pipeline.store.folder import OutFolder
from pipeline.text import count, quoted

__all__ = ["find_problems", "mask_problems", "overwritten"]


def overwritten(pairs: Sequence[Pair], out: OutFolder) -> list[Problem]:
    """Find the outputs that are the file of an input of any row: the original would be lost."""
    lines = pairs.lines if isinstance(pairs, Manifest) else {}
    folders: dict[str, str] = {}  # resolved once: thousands of files lie in a few

    def real(path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    inputs: dict[str, tuple[str, int]] = {}
    for pair in pairs:
        for ref in pair.inputs:
            if (local := storage.local_path(ref.path)) is not None:
                inputs.setdefault(real(local), (ref.role, pair.row))
    problems = []
    for pair in pairs:
        original = inputs.get(real(out.path(pair.output)))
        if original:
            role, row = original
            message = (
                f"{quoted(pair.output)} in {quoted(str(out))} is the {role} of row {row}, and "
                "would be lost; name another output, or another --out"
            )
            problems.append(Problem(pair.row, lines.get(pair.row), "output", message))
    return problems


def find_problems(
    pairs: Sequence[Pair],
    check: Callable[[str], str | None],
    *,
    lines: Mapping[int, int] | None = None,
) -> list[Problem]:
    """Find what is wrong with the files that the pairs name. Each file is looked at once.

    `check` gets a path that exists and returns None or what is wrong with it. The problem is that
    of the first row that names the file. `lines` (row -> line) is taken from a `Manifest` itself.
    """
    lines = pairs.lines if lines is None and isinstance(pairs, Manifest) else lines or {}
    first: dict[str, tuple[Pair, str, str]] = {}
    rows: dict[str, set[int]] = {}
    for pair in pairs:
        for ref in pair.inputs:
            column = "style" if ref.is_style else ref.role
            first.setdefault(ref.path, (pair, column, ref.written))
            rows.setdefault(ref.path, set()).add(pair.row)
    problems = []
    for path, (pair, column, name) in first.items():
        message = _file_problem(path, name, check)
        if message:
            others = len(rows[path]) - 1
            message += f" (and in {count(others, 'more row')})" if others else ""
            problems.append(Problem(pair.row, lines.get(pair.row), column, message))
    return problems


def mask_problems(pairs: Sequence[Pair], check: Callable[[str, str], str | None]) -> list[Problem]:
    """Find what is wrong with the pairs' masks.

    `check` gets the paths of a photograph and its mask, once for each two of them, and returns
    None or what is wrong.
    """
    lines = pairs.lines if isinstance(pairs, Manifest) else {}
    first: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        paths = {ref.role: ref.path for ref in pair.inputs}
        if "mask" in paths:
            first.setdefault((paths["content"], paths["mask"]), pair)
    return [
        Problem(pair.row, lines.get(pair.row), "mask", message)
        for both, pair in first.items()
        if (message := check(*both))
    ]


_HINTS = {
    "\\": "; folders are separated by /",
    "~": "; ~ is not your home here, write the path in full",
    "*": "; a manifest has names, and `make-manifest` makes them of a pattern",
    "?": "; a manifest has names, and `make-manifest` makes them of a pattern",
    "\N{LEFT DOUBLE QUOTATION MARK}": "; leave the quotation marks out",
}
"""What a name that does not exist may hold that would explain it."""


def _file_problem(path: str, name: str, check: Callable[[str], str | None]) -> str | None:
    try:
        if storage.exists(path):
            return check(path)
    except OSError as error:
        return f"{quoted(name)} cannot be read: {error.strerror or error}"
    local = storage.local_path(path)
    if local is not None and os.path.isdir(local):
        return f"{quoted(name)} is a folder; name a picture"
    if local is not None and os.path.exists(local):
        return f"{quoted(name)} is a pipe or a device; name a file"
    hint = next((hint for sign, hint in _HINTS.items() if sign in name), "")
    return f"{quoted(name)} does not exist{storage.space_at_end(name)}{hint}"
