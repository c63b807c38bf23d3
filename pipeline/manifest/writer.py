"""Writing manifests, from two lists of files. Standard library only."""

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
    """Return each content with each style, as rows for `write_manifest`."""
    styles = list(styles)
    return [{"content": content, "style": style} for content in contents for style in styles]


def zip_(contents: Sequence[str], styles: Sequence[str]) -> list[dict[str, str]]:
    """Return the first content with the first style and so on, as rows for `write_manifest`.

    Raises `ValueError` if the lists differ in length.
    """
    if len(contents) != len(styles):
        raise ValueError(
            f"{len(contents)} contents and {len(styles)} styles; zip needs as many of each"
        )
    return [{"content": c, "style": s} for c, s in zip(contents, styles, strict=True)]


def write_manifest(path: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows as csv, tsv or jsonl, according to the ending of `path`.

    Local paths become relative to the manifest. Raises `ValueError` for another ending or a file
    name that a manifest cannot hold, and `StorageError` if the manifest cannot be written.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in ENDINGS[:3]:
        raise ValueError(f"{quoted(path)} must end in {', '.join(ENDINGS[:2])} or {ENDINGS[2]}")
    folder = folder_of(path)
    cells = [{k: _relative(k, v, folder) for k, v in row.items() if v} for row in rows]
    if ending == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in cells)
    else:
        buffer = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in cells for name in row)) or ["content", "style"]
        delimiter = "," if ending == ".csv" else "\t"
        writer = csv.DictWriter(buffer, names, delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)
        text = buffer.getvalue()
    storage.put(path, text.encode())


def _relative(column: str, text: str, folder: str) -> str:
    """Return a cell whose paths are relative to the manifest's folder."""
    if column not in ("content", "style", "mask"):
        return text
    if column == "style" and "|" in text and os.path.exists(text):
        raise ValueError(f"{quoted(text)} contains a |, which separates styles; rename the file")
    paths = split_styles(text) if column == "style" else (text,)
    relative = join_styles(relative_path(path, folder) for path in paths)
    if any("\ud800" <= letter <= "\udfff" for letter in relative):
        raise ValueError(
            f"{quoted(text, 200)} is not UTF-8, which a manifest must be; rename the file"
        )
    return relative


def relative_path(path: str, folder: str) -> str:
    """Return a path relative to a manifest's folder; absolute if only the folder is a URI."""
    if storage.is_uri(path):
        return path
    if storage.is_uri(folder):
        return os.path.abspath(path)
    try:
        relative = os.path.relpath(path, folder or ".")
        if relative.startswith(os.pardir):  # if the folder is a link, its parent is another one
            relative = os.path.relpath(os.path.abspath(path), os.path.realpath(folder or "."))
        relative = relative.replace(os.sep, "/")
    except ValueError:  # on another drive of Windows
        return os.path.abspath(path)
    # A spreadsheet takes a name that begins like this for a formula.
    return f"./{relative}" if relative.startswith(("=", "+", "-", "@")) else relative
