"""Writing manifests, from two lists of files and settings to cross."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence

from pipeline import storage
from pipeline.manifest.names import default_id, default_output
from pipeline.manifest.table import ENDINGS, folder_of
from pipeline.records import join_styles, split_styles
from pipeline.text import quoted
from stylize.config import INIT_WORDS, SETTINGS, as_text, parse_setting

__all__ = [
    "blends",
    "cross",
    "in_folders",
    "relative_path",
    "with_settings",
    "write_manifest",
    "zip_",
]

Rows = list[dict[str, str]]


def cross(contents: Iterable[str], styles: Iterable[str]) -> Rows:
    """Return each content with each style, as rows for `write_manifest`."""
    styles = list(styles)
    return [{"content": content, "style": style} for content in contents for style in styles]


def zip_(contents: Sequence[str], styles: Sequence[str]) -> Rows:
    """Return the first content with the first style and so on, as rows for `write_manifest`.

    Raises `ValueError` if the lists differ in length.
    """
    if len(contents) != len(styles):
        raise ValueError(
            f"{len(contents)} contents and {len(styles)} styles; zip needs as many of each"
        )
    return [{"content": c, "style": s} for c, s in zip(contents, styles, strict=True)]


def blends(contents: Iterable[str], styles: Sequence[str], steps: int) -> Rows:
    """Return each content in mixtures of two styles, from the first to the second in `steps` steps.

    Raises `ValueError` unless there are two styles and two steps or more.
    """
    if len(styles) != 2:
        raise ValueError(f"--blend-steps mixes two styles, and there are {len(styles)}")
    if steps < 2:
        raise ValueError(f"--blend-steps is {steps}; it must be 2 or more, the ends included")
    shares = [round(step / (steps - 1), 4) for step in range(steps)]
    texts = [f"{as_text('', 1 - share)}|{as_text('', share)}" for share in shares]
    style = join_styles(styles)
    return [{"content": c, "style": style, "style_blend": text} for c in contents for text in texts]


def with_settings(rows: Iterable[dict[str, str]], settings: Sequence[str]) -> Rows:
    """Return the rows with each combination of settings, given as ``NAME=VALUE,VALUE…``.

    Values that contain commas themselves are separated by semicolons. An empty value leaves the
    setting as it is. Raises `ValueError` for an unknown setting, a value that it cannot have, or
    one that is there twice.
    """
    options = [_values_of(text) for text in settings]
    names = [name for name, _ in options]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--set {name} is given twice; give all its values at once")
    combinations = list(itertools.product(*([(n, v) for v in values] for n, values in options)))
    return [{**row, **dict(chosen)} for row in rows for chosen in combinations]


def _values_of(text: str) -> tuple[str, list[str]]:
    name, equals, listed = text.partition("=")
    name = name.strip()
    if not equals:
        raise ValueError(f"--set {quoted(text)}: write it like style_weight=10,70,200")
    if name not in SETTINGS and not name.startswith("meta."):
        near = difflib.get_close_matches(name[:64], list(SETTINGS), 1, cutoff=0.0)[0]
        raise ValueError(f"--set {quoted(name)}: there is no such setting; the nearest is {near}")
    separator = ";" if ";" in listed or name.endswith("_layers") else ","
    values = [value.strip() for value in listed.split(separator)]
    for value in values:
        if value and name in SETTINGS:
            parse_setting(name, value)  # raises
        if values.count(value) > 1:
            raise ValueError(f"--set {name} has {quoted(value)} twice; leave one out")
    return name, values


def in_folders(rows: Rows, folders: Mapping[str, str], manifest: str) -> Rows:
    """Return the rows with outputs in the folders of their contents: content -> folder, or "".

    `manifest` is the path that they will be written to.
    """
    placed = []
    for row in rows:
        cells = _as_written(row, folder_of(manifest))
        content, style = cells.pop("content"), cells.pop("style")
        settings = {name: text for name, text in cells.items() if name in SETTINGS}
        pair_id = default_id(content, style, settings)
        ending = settings.get("format", "png")
        output = default_output(content, split_styles(style), pair_id, ending)
        folder, name = posixpath.split(output)
        placed.append({**row, "output": posixpath.join(folder, folders[row["content"]], name)})
    return placed


def _as_written(row: Mapping[str, str], folder: str) -> dict[str, str]:
    return {k: _relative(k, v, folder) for k, v in row.items() if v}


def write_manifest(path: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows as csv, tsv or jsonl, according to the ending of `path`.

    Local paths become relative to the manifest. Raises `ValueError` for another ending or a file
    name that a manifest cannot hold, and `StorageError` if the manifest cannot be written.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in ENDINGS[:3]:
        raise ValueError(f"{quoted(path)} must end in {', '.join(ENDINGS[:2])} or {ENDINGS[2]}")
    folder = folder_of(path)
    cells = [_as_written(row, folder) for row in rows]
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
    if column not in ("content", "style", "mask", "style_mask", "init") or text in INIT_WORDS:
        return text
    if column == "style" and "|" in text and os.path.exists(text):
        raise ValueError(f"{quoted(text)} contains a |, which separates styles; rename the file")
    paths = split_styles(text) if column in ("style", "mask", "style_mask") else (text,)
    relative = join_styles(path and relative_path(path, folder) for path in paths)
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
