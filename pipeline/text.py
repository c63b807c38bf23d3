"""How texts, numbers and times read in messages. Standard library only."""

from __future__ import annotations

__all__ = ["count", "duration", "quoted", "visible"]


def visible(text: str, limit: int = 1000) -> str:
    """Text from files and manifests on one line: cut, and with control characters made visible."""
    cut = text if len(text) <= limit else f"{text[: limit - 12]}…{text[-8:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def quoted(text: str, limit: int = 60) -> str:
    """The same in quotation marks, with its length where it is cut."""
    shown = f'"{visible(text, limit)}"'
    return shown if len(text) <= limit else f"{shown} ({len(text)} characters)"


def count(number: int, noun: str) -> str:
    """1 pair, 2 pairs"""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """0:42, 12:05, 3:00:00"""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
