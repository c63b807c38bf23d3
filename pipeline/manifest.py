"""A manifest as pairs: every row understood, or every problem named with line, column and remedy.

Standard library, stylize's settings, storage for paths. Never torch or ray.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.records import PREVIEW, InputRef, Pair, join_styles, split_styles
from pipeline.tables import ENDINGS, ManifestError, Problem, Row, read_table
from pipeline.words import count, quoted, visible
from stylize.config import FORMATS, SETTINGS, StyleConfig, parse_setting, side_problem
from stylize.errors import ConfigError
from stylize.presets import PRESETS

__all__ = [
    "COLUMNS",
    "Manifest",
    "ManifestError",
    "Problem",
    "cross",
    "find_problems",
    "id_problem",
    "mask_problems",
    "output_problem",
    "overwritten",
    "read_manifest",
    "relative_path",
    "write_manifest",
    "zip_",
]

COLUMNS = ("content", "style", "id", "output", *SETTINGS)
"""Every column that a manifest may have, beside those that begin with ``meta.``."""

_STEM_BYTES, _ID_BYTES, _NAME_BYTES = 80, 120, 255


class Manifest(list[Pair]):
    """The pairs of a manifest, and in `lines` the line of the file where each row begins."""

    def __init__(self, pairs: Iterable[Pair] = (), lines: Mapping[int, int] | None = None) -> None:
        super().__init__(pairs)
        self.lines = dict(lines or {})  # Pair.row -> line


def read_manifest(path: str, *, defaults: Mapping[str, str] | None = None) -> Manifest:
    """Every row of a csv, tsv, jsonl or Parquet manifest as a `Pair`.

    `defaults` are settings in text form, as options give them. Precedence: StyleConfig's defaults
    < the preset of `defaults` < the rest of `defaults` < the row's preset < the row's cells; a
    row's preset takes the place of the one in `defaults`. An empty cell is unset.
    Raises `ManifestError` with all problems at once, and the pairs of the rows that have none.
    """
    try:
        data = storage.read_bytes(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManifestError(
            [Problem(None, None, "", f"the manifest {quoted(path)} cannot be read: {reason}")]
        ) from error
    table = read_table(path, data)
    reader = _Reader(_folder(path), defaults or {}, table.problems)
    if not table.is_hopeless and reader.check_columns(table.columns, bool(table.rows)):
        broken = {problem.row for problem in table.problems}
        for row in table.rows:
            if row.cells or row.number not in broken:
                reader.read(row)
        reader.check_folders()
    pairs = Manifest(reader.pairs, {row.number: row.line for row in table.rows if row.line})
    if reader.problems:
        problems = sorted(reader.problems, key=lambda problem: problem.place)
        raise ManifestError(problems, pairs, len(table.rows))
    return pairs


def _folder(path: str) -> str:
    return path.rpartition("/")[0] if storage.is_uri(path) else os.path.dirname(path)


class _Reader:
    """Turns rows into pairs; keeps what one row must not share with another."""

    def __init__(self, folder: str, options: Mapping[str, str], problems: list[Problem]) -> None:
        self.folder = folder
        self.problems = problems
        self.pairs: list[Pair] = []
        self.options: dict[str, Any] = {}
        self._settled: dict[tuple[tuple[str, str], ...], _Settled] = {}
        self._ids: dict[str, Row] = {}
        self._outputs: dict[str, tuple[Row, str]] = {}  # by folded name
        for name, text in options.items():
            value, message = _parse(name, text)
            if message:
                problems.append(Problem(None, None, "", f"option {visible(name, 60)}: {message}"))
            else:
                self.options[name] = value

    def check_columns(self, columns: Mapping[str, int | None], has_rows: bool) -> bool:
        """Name unknown and missing columns; whether the rows can be read at all."""
        missing = [name for name in ("content", "style") if name not in columns]
        if columns and missing:
            line = next(iter(columns.values()))
            message = f"there is no column {' and no column '.join(missing)}"
            message += "; a manifest has at least the columns content,style, in small letters"
            message += f", and this begins with {quoted(','.join(columns))}"
            self.problems.append(Problem(None, line, "", message))
        if len(missing) == 2:  # most likely there is no header: its names are data
            return False
        for name, line in columns.items():
            if name and name not in COLUMNS and not (name.startswith("meta.") and name[5:]):
                near = difflib.get_close_matches(name.lower()[:64], COLUMNS, 1, cutoff=0.0)[0]
                message = f"there is no such column; the nearest is {near}"
                if not name.startswith("meta"):
                    message += " (one that is only passed through is called meta.NAME)"
                self.problems.append(Problem(None, line, name, message))
        return has_rows and not missing

    def read(self, row: Row) -> None:
        """Append the row's pair, or its problems."""
        before = len(self.problems)
        cells = {name: text for name, text in row.cells.items() if name in SETTINGS}
        config = self._settings(row, cells)
        styles = split_styles(row.cells.get("style", ""))
        self._check_paths(row, styles)
        if config and config.style_blend and len(config.style_blend) != len(styles):
            message = f"{len(config.style_blend)} weights for {len(styles)} styles; give each one"
            self._complain(row, "style_blend", message)
        content, style = row.cells.get("content", ""), row.cells.get("style", "")
        given_id = row.cells.get("id", "")
        pair_id = given_id or _default_id(content, style, cells)
        self._check_id(row, pair_id)
        output = row.cells.get("output") or _default_output(content, styles, pair_id)
        if config and (problem := side_problem(os.path.splitext(output)[1], config.size)):
            self._complain(row, "output", f"{quoted(output)}: {problem}")
        if config is None or len(self.problems) > before or not self._claim(row, output):
            return
        self.pairs.append(
            Pair(
                row=row.number,
                pair_id=pair_id,
                output=output,
                inputs=tuple(self._inputs(content, styles, config)),
                config=config,
                generated_id=not given_id,
                meta={k[5:]: v for k, v in row.cells.items() if k.startswith("meta.")},
            )
        )

    def check_folders(self) -> None:
        """No output may be the folder of another one."""
        for folded, (row, output) in self._outputs.items():
            for end in [i for i, letter in enumerate(folded) if letter == "/"]:
                if folded[:end] in self._outputs:
                    other = self._outputs[folded[:end]][0].where
                    message = f"{quoted(output)} lies in a folder that is the output of {other}"
                    self._complain(row, "output", message)

    def _complain(self, row: Row, column: str, message: str) -> None:
        self.problems.append(Problem(row.number, row.line, column, message))

    def _settings(self, row: Row, cells: dict[str, str]) -> StyleConfig | None:
        # Most rows share their settings: 40,000 of them are checked once.
        cached = tuple(cells.items())
        if cached not in self._settled:
            self._settled[cached] = _settle(self.options, cells)
        settled = self._settled[cached]
        for column, message in settled.problems:
            self._complain(row, column, message)
        return settled.config

    def _check_paths(self, row: Row, styles: Sequence[str]) -> None:
        if not row.cells.get("content"):
            self._complain(row, "content", "empty; name the picture that is to be painted")
        if not row.cells.get("style"):
            self._complain(row, "style", "empty; name the picture whose style it gets")
        elif not all(style.strip() for style in styles):
            text = quoted(row.cells["style"])
            self._complain(row, "style", f"{text} has an empty name before or after a |")
        named = [("content", row.cells.get("content", "")), *(("style", s) for s in styles)]
        named += [(name, row.cells.get(name, "")) for name in ("init", "mask")]
        for column, path in named:
            scheme = path.partition("://")[0].lower() if storage.is_uri(path) else ""
            if "\0" in path:
                self._complain(row, column, f"{quoted(path)} has a NUL; no file's name can")
            elif scheme and scheme not in storage.SCHEMES:
                known = ", ".join(f"{name}://" for name in storage.SCHEMES)
                self._complain(row, column, f"{quoted(path)}: only {known} can be read; copy it")
            elif scheme == "file" and not path[len("file://") :].startswith(("/", "localhost/")):
                message = f"{quoted(path)} names a host; write file:///path, or the path alone"
                self._complain(row, column, message)

    def _check_id(self, row: Row, pair_id: str) -> None:
        message = id_problem(pair_id)
        if message:
            self._complain(row, "id", message)
        elif pair_id not in self._ids:
            self._ids[pair_id] = row
        elif "id" in row.cells or "id" in self._ids[pair_id].cells:
            message = f"{quoted(pair_id)} is also the id of {self._ids[pair_id].where}"
            self._complain(row, "id", f"{message}; give each row its own")
        elif row.cells.get("content") and row.cells.get("style"):
            same = f"the row has the content, style and settings of {self._ids[pair_id].where}"
            self._complain(row, "", f"{same}; remove one of them or give each an id")

    def _claim(self, row: Row, output: str) -> bool:
        """Whether no other row has the output; names differing only in case are the same file."""
        message = output_problem(output)
        folded = _folded(output)
        if not message and folded in self._outputs:
            other, name = self._outputs[folded]
            same = "is" if name == output else "differs only in case or accents' form from"
            message = f"{quoted(output)} {same} the output of {other.where}; name another"
        if message:
            self._complain(row, "output", message)
            return False
        self._outputs[folded] = (row, output)
        return True

    def _inputs(
        self, content: str, styles: Sequence[str], config: StyleConfig
    ) -> Iterator[InputRef]:
        by_role = {"content": content, "style": styles[0]}
        by_role |= {f"style{number}": style for number, style in enumerate(styles[1:], 2)}
        by_role |= {"init": config.init_path, "mask": config.mask}
        for role, written in by_role.items():
            if written:
                path = storage.join(self.folder, written) if self.folder else written
                yield InputRef(role, written, path)


@dataclass(frozen=True)
class _Settled:
    """The settings of a row after all precedence, or what is wrong with them."""

    config: StyleConfig | None
    problems: Sequence[tuple[str, str]]  # (column, message)


def _settle(options: Mapping[str, Any], cells: Mapping[str, str]) -> _Settled:
    values, problems = {}, []
    for name, text in cells.items():
        value, message = _parse(name, text)
        if message:
            problems.append((name, message))
        values[name] = value
    if problems:
        return _Settled(None, problems)
    chosen = {name: value for name, value in options.items() if name != "preset"}
    preset = options.get("preset") or "default"
    if "preset" in values:
        preset = values.pop("preset")
        chosen |= {name: parse_setting(name, text) for name, text in PRESETS[preset].items()}
    try:
        config = StyleConfig.of(preset, **{**chosen, **values})
    except ConfigError as error:
        return _Settled(None, [("", str(error))])
    return _Settled(config, [])


def _parse(name: str, text: str) -> tuple[Any, str]:
    """The value of a setting and "", or None and what is wrong with it."""
    if name not in SETTINGS:
        near = difflib.get_close_matches(name[:64], list(SETTINGS), 1, cutoff=0.0)[0]
        return None, f"there is no such setting; the nearest is {near}"
    try:
        return parse_setting(name, text), ""
    except ConfigError:
        limit = SETTINGS[name].limit
        what = "is not allowed"
        if "number" in limit and not re.fullmatch(r"\s*[+-]?[\d.]+([eE][+-]?\d+)?\s*", text):
            what = "is no number"
        return None, f"{quoted(text)} {what}; it must be {limit}"


def _default_id(content: str, style: str, cells: Mapping[str, str]) -> str:
    """12 hex digits of SHA-256 over content, style and the row's own settings, as written."""
    text = json.dumps([content, style, sorted(cells.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _default_output(content: str, styles: Sequence[str], pair_id: str) -> str:
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


def _folded(output: str) -> str:
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


def overwritten(pairs: Sequence[Pair], out: str) -> list[Problem]:
    """Outputs that are the file of an input, of whichever row: the original would be lost."""
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
        found = inputs.get(real(os.path.join(storage.local_path(out) or out, pair.output)))
        if found:
            message = (
                f"{quoted(pair.output)} in {quoted(out)} is the {found[0]} of row {found[1]}, and "
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
    """What is wrong with the files that the pairs name; each distinct file is looked at once.

    `check` gets a path that exists and returns None or what is wrong with it. The problem stands
    at the first row that names the file. `lines` (row -> line) is taken from a `Manifest` itself.
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
    """What is wrong with the pairs' masks. `check` gets the paths of a photograph and a mask, each
    two of them once, and returns None or what is wrong."""
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
    folder = _folder(path)
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
