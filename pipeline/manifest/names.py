"""Ids and outputs of pairs: their defaults, and the checks of given ones. Standard library only."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import string
import unicodedata
from collections.abc import Collection, Mapping, Sequence

from pipeline import storage
from pipeline.records import PREVIEW, split_styles
from pipeline.store.medium import OWN
from pipeline.text import folded, quoted
from stylize.config import FORMATS

__all__ = [
    "check_pattern",
    "default_id",
    "default_output",
    "id_problem",
    "named_output",
    "output_problem",
    "plain_id",
    "plain_stem",
    "plain_stems",
    "plain_suffix",
]

_PLAIN = re.compile(r"[A-Za-z0-9_ +-][A-Za-z0-9_ .+-]*")  # nearly all names, and quickly told
_PLAIN_PATH = re.compile(r"(?:[A-Za-z0-9_ .+-]*/)*([A-Za-z0-9_+-][A-Za-z0-9_ .+-]*)")
_PLAIN_OUTPUT = re.compile(rf"(?:{_PLAIN.pattern}/)*{_PLAIN.pattern}(\.[A-Za-z]+)")
_PLAIN_STEM = 60  # bytes, so that two of them, the longest id and an ending fit a name
_RESERVED = (*OWN, "report", "report.html")
_PATHS = ("content", "style", "init", "mask", "style_mask")
_STEM_BYTES, _ID_BYTES, _NAME_BYTES = 80, 120, 255


def default_id(content: str, style: str, cells: Mapping[str, str]) -> str:
    """Return 12 hex digits of the SHA-256 of content, style and the row's settings, as written."""
    text = json.dumps([content, style, sorted(cells.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def default_output(content: str, styles: Sequence[str], pair_id: str, format: str = "png") -> str:
    """Return ``images/<content stem>.<style stem>.<pair_id>.<format>``, a name of at most 255
    bytes."""
    room = (_NAME_BYTES - len(f"..{_safe(pair_id)}.{format}".encode())) // 2
    stems = (_stem(content), _stems(styles))
    photo, style = [_cut(_safe(stem), min(_STEM_BYTES, room)) for stem in stems]
    return f"images/{photo}.{style}.{_safe(pair_id)}.{format}"


def plain_stem(path: str) -> str:
    """Return what `default_output` makes of the stem of a path, "" for one that needs care.

    With all others nothing is wrong as they are written.
    """
    match = _PLAIN_PATH.fullmatch(path)
    if match is None:
        return ""
    stem = match[1].rpartition(".")[0] or match[1]
    return stem if len(stem) <= _PLAIN_STEM else ""


def plain_stems(styles: str) -> str:
    """Return the same of the paths in a cell ``a.jpg|b.jpg``."""
    stems = [plain_stem(path) for path in split_styles(styles)]
    joined = "+".join(stems)
    return joined if all(stems) and len(joined) <= _PLAIN_STEM else ""


def plain_suffix(output: str) -> str:
    """Return the ending of an output that surely has no problem by itself, else ""."""
    match = _PLAIN_OUTPUT.fullmatch(output)
    if match is None or len(output) > _NAME_BYTES or _may_be_preview(output):
        return ""
    first = output.lower().partition("/")[0]
    return "" if first in _RESERVED or match[1].lower() not in FORMATS else match[1]


def _may_be_preview(name: str) -> bool:
    return ".preview" in name.lower()


def plain_id(pair_id: str) -> bool:
    """Return whether an id surely has no problem, also as a part of an output."""
    is_plain = _PLAIN.fullmatch(pair_id) is not None and len(pair_id) <= _ID_BYTES
    return is_plain and not _may_be_preview(pair_id)


def check_pattern(pattern: str, columns: Collection[str]) -> str:
    """Return what is wrong with a pattern of names, or "".

    It has names of columns in braces, like ``{content}-{style}``, and may have folders.
    """
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        return f"{quoted(pattern)}: {error}; write it like '{{content}}-{{style}}'"
    names = [name for _, name, *_ in parts if name is not None]
    if any(spec or conversion for _, _, spec, conversion in parts):
        return f"{quoted(pattern)} has a : or ! in braces; write names of columns alone"
    for name in names:
        if name not in columns:
            near = difflib.get_close_matches(name[:64], list(columns), 1, cutoff=0.0)
            return f"{quoted(pattern)}: there is no column {quoted(name)}; the nearest is {near[0]}"
    return "" if names else f"{quoted(pattern)} names no column, so that all names would be one"


def named_output(pattern: str, cells: Mapping[str, str], format: str) -> str:
    """Return ``images/<pattern filled in>``, with an ending if the pattern has none of a format.

    `cells` has the text of every column that the pattern names. Paths are shortened to the stems
    of their names.
    """
    filled = {
        name: _stems(split_styles(text)) if name in _PATHS else text for name, text in cells.items()
    }
    parts = [
        literal + ("" if name is None else _safe(filled[name]))
        for literal, name, _, _ in string.Formatter().parse(pattern)
    ]
    output = "images/" + "".join(parts)
    has_ending = os.path.splitext(pattern)[1].lower() in FORMATS
    return output if has_ending else f"{output}.{format}"


def _stems(paths: Sequence[str]) -> str:
    return "+".join(_stem(path) for path in paths)


def _stem(path: str) -> str:
    name = re.split(r"[/\\]", storage.without_options(path).rstrip("/\\"))[-1]
    return os.path.splitext(name)[0]


def _safe(name: str) -> str:
    """Return a name that every file system accepts, without reserved characters or leading dots."""
    if _PLAIN.fullmatch(name):
        return name
    safe = "".join("_" if _is_control(c) or c in '/\\:*?"<>|' else c for c in name)
    return re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), safe) or "_"


def _cut(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")


def _has_control(text: str) -> bool:
    if text.isascii() and text.isprintable():
        return False
    return any(_is_control(letter) for letter in text)


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def id_problem(pair_id: str) -> str | None:
    """Return what is wrong with an id, or None."""
    if pair_id in (".", "..") or "/" in pair_id or "\\" in pair_id or _has_control(pair_id):
        return f"{quoted(pair_id)} contains a /, a \\ or a control character, or is . or .."
    size = len(pair_id.encode(errors="replace"))
    if not 0 < size <= _ID_BYTES:
        return f"{quoted(pair_id)} is {size} bytes long; an id has 1 to {_ID_BYTES} bytes"
    return None


def output_problem(output: str) -> str | None:
    """Return what is wrong with an output as a path below OUT, or None. Links are not checked."""
    problem = _problem_of_output(output)
    return f"{quoted(output)} {problem}" if problem else None


def _problem_of_output(output: str) -> str:
    parts = output.split("/")
    first = folded(parts[0])
    if "\\" in output or _has_control(output):
        return "contains a backslash or a control character; separate folders by /"
    if storage.is_uri(output) or output.startswith("/") or re.match(r"[A-Za-z]:", output):
        return "is not a path below the output folder; write it like images/a.png"
    if any(part.strip() in ("", ".", "..") for part in parts):
        return "contains an empty name, . or ..; write it like images/a.png"
    if first in OWN:
        return f"lies in {first}/, which is reserved for the index; use another folder"
    if first in ("report", "report.html"):
        return f"lies in {first}, which `stylize-batch report` writes; use another folder"
    if output.lower().endswith(PREVIEW):
        return "is a name that `--preview-every` writes to; use another name"
    if os.path.splitext(output)[1].lower() not in FORMATS:
        return f"must end in {', '.join(FORMATS)}"
    longest = max(len(part.encode(errors="replace")) for part in parts)
    if longest > _NAME_BYTES:
        return f"contains a name of {longest} bytes; the limit is {_NAME_BYTES} bytes"
    return ""
