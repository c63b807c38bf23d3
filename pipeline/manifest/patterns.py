"""Patterns of files, like ``photos/*.jpg``, as shells know them. Standard library only."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence

__all__ = ["below", "matches", "why_nothing_matches"]

_ENDINGS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".jxl", ".png"),
    *(".ppm", ".psd", ".qoi", ".tga", ".tif", ".tiff", ".webp"),
)
"""Endings of pictures, in lower case."""

_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def matches(pattern: str) -> list[str]:
    """Return the files that match a pattern.

    ``~`` is the user's home, ``{a,b}`` means either, ``**`` any folders. A folder or file may have
    brackets in its name, like ``[2024] Trip``; it is then taken as it is.
    """
    if os.path.isfile(pattern):
        return [pattern]
    paths: list[str] = []
    for plain in _without_braces(os.path.expanduser(pattern)):
        paths += glob.glob(plain, recursive=True) or glob.glob(_escaped(plain), recursive=True)
    return [path for path in paths if os.path.isfile(path)]


def below(pattern: str) -> dict[str, str]:
    """Return the pictures in a folder and all folders in it, each with the folder that it is in.

    A pattern stands for the files that match it, and its folders begin at the first ``*``. Hidden
    files and folders are left out.
    """
    folder = os.path.expanduser(pattern)
    if not os.path.isdir(folder):
        base = os.path.dirname(folder)
        while glob.has_magic(base) and not os.path.isdir(base):
            base = os.path.dirname(base)
        return {path: _folder_from(base, path) for path in matches(pattern)}
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _ENDINGS:
                path = os.path.join(place, name)
                found[path] = _folder_from(folder, path)
    return found


def _folder_from(base: str, path: str) -> str:
    folder = os.path.relpath(os.path.dirname(path) or ".", base or ".").replace(os.sep, "/")
    return "" if folder == "." else folder


def why_nothing_matches(patterns: Sequence[str]) -> str:
    """Return a likely reason, to append to a message, or ""."""
    for pattern in patterns:
        path = os.path.expanduser(pattern)
        if os.path.isdir(path):
            return f"; {pattern} is a folder: write '{pattern}/*', or add --recursive"
        folder = os.path.dirname(path)
        while glob.has_magic(folder):
            folder = os.path.dirname(folder)
        if folder and not os.path.isdir(folder):
            return f"; there is no folder {folder}"
    return ""


def _without_braces(pattern: str) -> Iterator[str]:
    """Yield the patterns that ``{a,b}`` stands for."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for part in match[1].split(","):
        yield from _without_braces(pattern[: match.start()] + part + pattern[match.end() :])


def _escaped(pattern: str) -> str:
    """Return the pattern with the brackets of folders that exist taken as they are."""
    folder, name = os.path.split(pattern)
    if folder and os.path.isdir(folder):
        return os.path.join(glob.escape(folder), name)
    return pattern
