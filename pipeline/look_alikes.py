"""Names that look the same and are not: in another case, or with accents in another form. Standard
library only."""

from __future__ import annotations

import os
import unicodedata

from pipeline.text import folded

__all__ = ["as_stored", "why_missing"]


def why_missing(local: str | None, written: str) -> str:
    """Return a likely reason why a file is missing, to append to a message.

    `local` is its path on this machine, None for a URI, and `written` its name as the user wrote
    it. "" where nothing is known.
    """
    if written != written.strip():
        return "; its name begins or ends with a space"
    if local is not None and os.path.islink(local):
        return f"; it is a link to {os.readlink(local)!r}, which leads nowhere"
    look_alike = _look_alike(local) if local is not None else ""
    if not look_alike:
        return ""
    return f"; {look_alike!r} is there, which differs in case"


def _look_alike(path: str) -> str:
    """Return the first name on the way to a path that is there in another case, or ""."""
    folder, name = os.path.split(path)
    folder = as_stored(folder) or ""
    if name and folder and not os.path.isdir(folder):
        return _look_alike(folder)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return ""
    return next((other for other in sorted(names) if folded(other) == folded(name)), "")


def as_stored(path: str | None) -> str | None:
    """Return a path with its names as the file system has them; None for None.

    A name with accents has several forms that look the same: one system stores an é as one
    character, another as an e and an accent.
    """
    if path is None or path.isascii() or os.path.lexists(path):
        return path
    folder, name = os.path.split(path)
    if not name or folder == path:
        return path
    folder = as_stored(folder) or ""
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return path
    composed = unicodedata.normalize("NFC", name)
    alike = (other for other in names if unicodedata.normalize("NFC", other) == composed)
    return os.path.join(folder, next(alike, name))
