"""Ids and outputs of pairs: how they are made, and which are refused. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence

from pipeline import storage
from pipeline.records import PREVIEW
from pipeline.text import quoted
from stylize.config import FORMATS

__all__ = ["default_id", "default_output", "folded", "id_problem", "output_problem"]

_STEM_BYTES, _ID_BYTES, _NAME_BYTES = 80, 120, 255


def default_id(content: str, style: str, cells: Mapping[str, str]) -> str:
    """12 hex digits of SHA-256 over content, style and the row's own settings, as written."""
    text = json.dumps([content, style, sorted(cells.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def default_output(content: str, styles: Sequence[str], pair_id: str) -> str:
    """``images/<content stem>.<style stem>.<pair_id>.png``, a name of at most 255 bytes."""
    room = (_NAME_BYTES - len(f"..{_safe(pair_id)}.png".encode())) // 2
    stems = (_stem(content), "+".join(_stem(style) for style in styles))
    cut = [_cut(_safe(stem), min(_STEM_BYTES, room)) for stem in stems]
    return f"images/{cut[0]}.{cut[1]}.{_safe(pair_id)}.png"


def _stem(path: str) -> str:
    name = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return os.path.splitext(name)[0]


def _safe(name: str) -> str:
    """A name that every file system takes: no control or reserved characters, no leading dot."""
    safe = "".join("_" if _is_control(c) or c in '/\\:*?"<>|' else c for c in name)
    return re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), safe) or "_"


def _cut(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def folded(output: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", output).casefold())


def id_problem(pair_id: str) -> str | None:
    """What is wrong with an id, or None."""
    if pair_id in (".", "..") or any(_is_control(c) or c in "/\\" for c in pair_id):
        return f"{quoted(pair_id)} has a /, a \\ or a control character, or is . or .."
    size = len(pair_id.encode(errors="replace"))
    if not 0 < size <= _ID_BYTES:
        return f"{quoted(pair_id)} is {size} bytes long; an id has 1 to {_ID_BYTES}"
    return None


def output_problem(output: str) -> str | None:
    """What is wrong with an output as a path below OUT, or None. Links are not looked at."""
    shown = quoted(output)
    parts = output.split("/")
    first = unicodedata.normalize("NFC", parts[0]).casefold()
    if any(_is_control(c) or c == "\\" for c in output):
        return f"{shown} has a backslash or a control character; folders are separated by /"
    if storage.is_uri(output) or output.startswith("/") or re.match(r"[A-Za-z]:", output):
        return f"{shown} is no path below the output folder; write it like images/a.png"
    if any(part.strip() in ("", ".", "..") for part in parts):
        return f"{shown} has an empty name, . or .. in it; write it like images/a.png"
    if first in ("index", "_state"):
        return f"{shown} lies in {first}/, which the index keeps for itself; use another folder"
    if first in ("report", "report.html"):
        return f"{shown} lies in {first}, which `stylize-batch report` writes; use another folder"
    if output.lower().endswith(PREVIEW):
        return f"{shown} is a name that `--preview-every` writes; use another"
    if os.path.splitext(output)[1].lower() not in FORMATS:
        return f"{shown} must end in {', '.join(FORMATS)}"
    longest = max(len(part.encode(errors="replace")) for part in parts)
    if longest > _NAME_BYTES:
        return f"{shown} has a name of {longest} bytes; at most {_NAME_BYTES} fit"
    return None
