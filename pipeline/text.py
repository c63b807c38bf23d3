"""The form of texts, numbers and times in messages. Standard library only."""

from __future__ import annotations

import datetime
import unicodedata

__all__ = ["count", "duration", "folded", "quoted", "utc_now", "visible"]


def visible(text: str, limit: int = 1000) -> str:
    """Return text on one line, cut to `limit` characters, with control characters made visible."""
    cut = text if len(text) <= limit else f"{text[: limit - 12]}…{text[-8:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def quoted(text: str, limit: int = 60) -> str:
    """Return visible text in quotation marks, with its length if it is cut."""
    shown = f'"{visible(text, limit)}"'
    return shown if len(text) <= limit else f"{shown} ({len(text)} characters)"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 pair", "2 pairs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Return a time in seconds as "0:42", "12:05" or "3:00:00"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def folded(name: str) -> str:
    """Return a form of a name that is the same for names which some systems take for one file:
    those that differ in case, or in how their accents are stored."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def utc_now() -> str:
    """Return the time as the index stores it: ISO 8601, UTC, microseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
