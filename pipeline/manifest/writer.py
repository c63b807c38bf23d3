"""Writes manifests: rows of two lists, paths relative to the file. Standard library only."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence

from pipeline import storage
from pipeline.manifest.table import ENDINGS, folder_of
from pipeline.records import join_styles, split_styles
from pipeline.text import quoted

__all__ = ["cross", "relative_path", "write_manifest", "zip_"]


def cross(contents: Iterable[str], styles: Iterable[str]) -> list[dict[str, str]]:
    """Each content with each style, as rows for `write_manifest`."""
    styles = list(styles)
    return [{"content": content, "style": style} for content in contents for style in styles]


def zip_(contents: Sequence[str], styles: Sequence[str]) -> list[dict[str, str]]:
    """The first content with the first style and so on. Raises `ValueError` if one is shorter."""
    if len(contents) != len(styles):
        raise ValueError(f"{len(contents)} contents and {len(styles)} styles; zip needs as many")
    return [{"content": c, "style": s} for c, s in zip(contents, styles, strict=True)]


def write_manifest(path: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows as csv, tsv or jsonl, by the ending; local paths become relative to the manifest.

    Raises `ValueError` for another ending or a style whose name has a |, `StorageError` if it
    cannot be written.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in ENDINGS[:3]:
        raise ValueError(f"{quoted(path)} must end in {', '.join(ENDINGS[:2])} or {ENDINGS[2]}")
    folder = folder_of(path)
    found = [{k: _relative(k, v, folder) for k, v in row.items() if v} for row in rows]
    if ending == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    else:
        buffer = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in found for name in row)) or ["content", "style"]
        delimiter = "," if ending == ".csv" else "\t"
        writer = csv.DictWriter(buffer, names, delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        text = buffer.getvalue()
    storage.put(path, text.encode())


def _relative(column: str, text: str, folder: str) -> str:
    if column not in ("content", "style", "mask"):
        return text
    if column == "style" and "|" in text and os.path.exists(text):
        raise ValueError(f"{quoted(text)} has a |, which separates styles; rename the file")
    paths = split_styles(text) if column == "style" else (text,)
    relative = join_styles(relative_path(path, folder) for path in paths)
    if any("\ud800" <= letter <= "\udfff" for letter in relative):
        raise ValueError(f"{quoted(text, 200)} is no UTF-8, as a manifest is; rename the file")
    return relative


def relative_path(path: str, folder: str) -> str:
    """A path as a manifest in `folder` has it; below a URI a local path is absolute."""
    if storage.is_uri(path):
        return path
    if storage.is_uri(folder):
        return os.path.abspath(path)
    try:
        relative = os.path.relpath(path, folder or ".")
        if relative.startswith(os.pardir):  # a folder that is a link has another parent
            relative = os.path.relpath(os.path.abspath(path), os.path.realpath(folder or "."))
        relative = relative.replace(os.sep, "/")
    except ValueError:  # another drive
        return os.path.abspath(path)
    # A spreadsheet would take the name for a formula.
    return f"./{relative}" if relative.startswith(("=", "+", "-", "@")) else relative
