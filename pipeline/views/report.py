"""The report: OUT/report.html, a gallery of the run that opens from disk, and its thumbnails.

It needs no server and no network: the page contains its script, style sheet and data, and the
thumbnails are in ``OUT/report/thumbs``. The loss curves of a large run, which are most of its data,
are in ``OUT/report/curves``, and the page loads those of the rows in view. Never imports torch or
ray.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import html
import io
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.leftovers import sweep_temporaries
from pipeline.records import join_styles, split_styles
from pipeline.signals import repeat
from pipeline.store.folder import OutFolder
from pipeline.store.newest import read_newest
from pipeline.store.pieces import by_row
from pipeline.store.reading import read_columns
from pipeline.store.rows import SCHEMA
from pipeline.views.originals import Inputs, open_small
from pipeline.views.templates import asset, fill
from stylize import __version__
from stylize.config import as_text
from stylize.errors import StylizeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CURVES_A_FILE",
    "CURVES_INSIDE",
    "CURVE_POINTS",
    "MOST_ROWS",
    "THUMB_SIDE",
    "collect",
    "encode_column",
    "encode_curves",
    "page",
    "sample",
    "totals",
    "watch",
    "write_report",
]

THUMB_SIDE = 400  # pixels of a thumbnail's longer side
CURVE_POINTS = 40  # of a loss curve
MOST_ROWS = 100_000  # of a page; of a larger run it shows a part
CURVES_INSIDE = 2000  # rows of a page that contains their curves
CURVES_A_FILE = 500
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LEFT_OUT = ("key", "inputs", "settings", "output_sha256", "weights_sha256", "loss_curve", "meta")
_READ = [name for name in SCHEMA.names if name not in ("inputs", "loss_curve")]
_CURVE = ("pair_id", "loss_curve")
_TOTALLED = (
    *("status", "error_type", "device", "seconds", "batch"),
    *("run_id", "started_at", "finished_at"),
)
_TIMES = ("started_at", "finished_at")
_CURVES = ("loss", "content_loss", "style_loss")

Say = Callable[[str], None]
"""A function that shows the user a line of progress."""


def write_report(out: OutFolder, say: Say = lambda _: None, *, watched: bool = False) -> str:
    """Write OUT/report.html and the thumbnails that are new; return the path of the page.

    A `watched` page reloads itself when it has changed. Raises `StorageError`.
    """
    if not out.exists:
        error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise storage.unreadable(error, str(out))
    light = read_columns(out, _TOTALLED)
    whole = totals(light)
    shown, part = sample(light, whole["slowest"])
    whole["slowest"] = np.searchsorted(shown, whole["slowest"]).tolist()
    ids = light["pair_id"].take(pa.array(shown)).combine_chunks()
    del light
    table = by_row(read_newest(out, _READ, pa.concat_tables, lambda rows: _among(rows, ids)))
    data = {**collect(table, out), "totals": whole, "part": part}
    data["thumbs"] = _thumbnails(table, out, say)
    ids = table["pair_id"].combine_chunks()  # fewer, if a run has removed some meanwhile
    curves = read_newest(
        out, _CURVE, lambda pieces: encode_curves(pieces, ids), lambda rows: _among(rows, ids)
    )
    values = curves.pop("values")
    # The stamp is that of the data, so that a page with the same data is not reloaded.
    stamp = hashlib.sha256(_json([data, curves, watched]).encode()).hexdigest()[:16]
    data["curves"] = {**curves, **_kept_apart(values, out, stamp)}
    path = out.report_page
    storage.put(path, page(data, stamp if watched else "").encode("utf-8", "replace"))
    storage.put(os.path.join(out.report, "stamp.js"), f'stylizeStamp("{stamp}")\n'.encode())
    return path


def watch(out: OutFolder, every: float, say: Say = lambda _: None) -> None:
    """Write the report every `every` seconds until interrupted, and then once more, unwatched.

    It ends by raising `KeyboardInterrupt`; a second Ctrl-C ends it at once. Raises `StorageError`.
    """
    repeat(lambda: write_report(out, say, watched=True), every)
    write_report(out, say)
    raise KeyboardInterrupt


def _among(rows: pa.Table, ids: pa.Array) -> pa.Array:
    return pc.is_in(rows["pair_id"], value_set=ids)


def _kept_apart(values: Sequence[object], out: OutFolder, stamp: str) -> dict[str, object]:
    """Write the curves of a large run to files that belong to this page; return what it needs."""
    folder = os.path.join(out.report, "curves")
    names: list[str] = []
    if len(values) > CURVES_INSIDE:
        for number, first in enumerate(range(0, len(values), CURVES_A_FILE)):
            names.append(f"{stamp}-{number}.js")
            text = f"stylizeCurves({number},{_json(values[first : first + CURVES_A_FILE])})\n"
            storage.put(os.path.join(folder, names[-1]), text.encode(), sync=False)
    for old in set(os.listdir(folder) if os.path.isdir(folder) else ()) - set(names):
        storage.remove(os.path.join(folder, old))
    return {"files": stamp, "in_a_file": CURVES_A_FILE} if names else {"values": values}


# --- the page ----------------------------------------------------------------------------------


def page(data: Mapping[str, object], stamp: str = "") -> str:
    """Return the page, which contains everything except the pictures. `stamp`: "" if unwatched."""
    return fill(
        "report.html",
        title=html.escape(f"{data['name']}: stylize-batch"),
        watch=html.escape(stamp),
        style=asset("uPlot.min.css") + asset("report.css"),
        plot=asset("uPlot.iife.min.js"),
        script=asset("report.js"),
        data=_json(data).replace("<", "\\u003c"),
    )


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


# --- the index, compactly ----------------------------------------------------------------------


def collect(table: pa.Table, out: OutFolder) -> dict[str, object]:
    """Return the rows of the page: the index by columns, with repeated values stored once."""
    inputs = Inputs(out)
    columns: dict[str, object] = {}
    for name in table.column_names:
        if name in _LEFT_OUT:
            continue
        values = table[name].to_pylist()
        if name in _TIMES:
            values = [None if t is None else round(t.timestamp()) for t in values]
        columns[name] = encode_column(values)
    columns |= {f"meta.{n}": encode_column(v) for n, v in _meta(table).items()}
    for name, values in _settings(table).items():
        column = encode_column(values)
        # A setting may differ from the column of its name, like the steps asked for and made.
        if columns.get(name) != column:
            columns[f"setting.{name}" if name in columns else name] = column
    return {
        "name": os.path.basename(out.absolute) or "report",
        "version": __version__,
        "rows": len(table),
        "columns": columns,
        "content_paths": encode_column([inputs.from_out(c) for c in _texts(table, "content")]),
        "style_paths": encode_column(
            [join_styles(map(inputs.from_out, _styles(s))) for s in _texts(table, "style")]
        ),
    }


def encode_column(values: Sequence[object]) -> dict[str, object]:
    """Return {"one": value} if all are equal, {"words", "codes"} if many repeat, else {"all"}."""
    short = [_short(value) for value in values]
    words = list(dict.fromkeys(short))
    if len(words) == 1:
        return {"one": words[0]}
    if len(words) * 2 > len(short):
        return {"all": short}
    code = {word: number for number, word in enumerate(words)}
    return {"words": words, "codes": [code[value] for value in short]}


def _short(value: object) -> object:
    """Return a float as six digits, an integer or None (if not finite); other values unchanged."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _texts(table: pa.Table, name: str) -> list[str]:
    return [value or "" for value in table[name].to_pylist()]


def _styles(cell: str) -> list[str]:
    return [style.strip() for style in split_styles(cell)]


def _meta(table: pa.Table) -> dict[str, list[str]]:
    rows = [dict(items or ()) for items in table["meta"].to_pylist()]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, "") for row in rows] for name in names}


def _settings(table: pa.Table) -> dict[str, list[object]]:
    """Return the settings as columns. Each distinct JSON text is read once."""
    texts = _texts(table, "settings")
    parsed: dict[str, dict[str, object]] = {}
    for text in dict.fromkeys(texts):
        values = json.loads(text or "{}")
        parsed[text] = {name: _setting(name, value) for name, value in values.items()}
    names = dict.fromkeys(name for values in parsed.values() for name in values)
    return {name: [parsed[text].get(name) for text in texts] for name in names}


def _setting(name: str, value: object) -> object:
    plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    return value if plain else as_text(name, value)


def encode_curves(pieces: Iterable[pa.Table], ids: pa.Array) -> dict[str, Any]:
    """Return the loss curves of pairs at `CURVE_POINTS` evaluations, with two letters a point.

    `pieces` have the columns `pair_id` and `loss_curve`; the curves are in the order of `ids`.
    ``axes`` has each distinct list of evaluations once, and ``axis`` the number of each row's list
    (-1: no curve). ``values`` has [lowest, highest, letters] for each row and loss. The first two
    are logarithms; the letters give the place of each point between them, in 4095 steps, and ``__``
    stands for a missing point.
    """
    axes: dict[tuple[int, ...], int] = {}
    axis, values = [-1] * len(ids), [0] * len(ids)
    for piece in pieces:
        places = pc.index_in(piece["pair_id"], value_set=ids).to_pylist()
        for place, (points, curve) in zip(places, _curves(piece), strict=True):
            if points and place is not None:
                axis[place] = axes.setdefault(points, len(axes))
                values[place] = curve
    return {"axes": list(axes), "axis": axis, "values": values}


def _curves(table: pa.Table) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Yield the evaluations and the letters of each row's curve, ((), 0) where there is none."""
    curves = table["loss_curve"].combine_chunks()
    starts = np.cumsum([0, *(length or 0 for length in pc.list_value_length(curves).to_pylist())])
    flat = curves.flatten()
    steps = flat.field("step").to_numpy(zero_copy_only=False)
    losses = [flat.field(name).to_numpy(zero_copy_only=False) for name in _CURVES]
    for start, end in itertools.pairwise(starts.tolist()):
        if start == end:
            yield (), 0
            continue
        points = np.unique(np.linspace(start, end - 1, CURVE_POINTS).round().astype(int))
        yield tuple(steps[points].tolist()), [_letters(loss[points]) for loss in losses]


def _letters(losses: NDArray[np.floating]) -> list[float | str] | int:
    """Return [lowest, highest, letters] of a loss, or 0 if it has no positive value."""
    values = losses.astype(np.float64)
    good = np.isfinite(values) & (values > 0)
    if not good.any():
        return 0
    logs = np.log10(np.where(good, values, 1))
    low, high = float(logs[good].min()), float(logs[good].max())
    levels = np.rint((logs - low) / ((high - low) or 1) * 4094).astype(int)
    levels = np.where(good, levels, 4095)
    text = "".join(_DIGITS[level >> 6] + _DIGITS[level & 63] for level in levels.tolist())
    return [float(f"{low:.5g}"), float(f"{high:.5g}"), text]


def sample(table: pa.Table, always: Sequence[int]) -> tuple[NDArray[np.int64], str]:
    """Return which rows a page shows, and in words which part of the run that is, "" if all.

    Of more than `MOST_ROWS` rows these are every second, third … one, all that failed unless they
    are many, and those of `always`.
    """
    if len(table) <= MOST_ROWS:
        return np.arange(len(table)), ""
    failed = np.flatnonzero(pc.not_equal(table["status"], "ok").to_numpy())
    few = failed if len(failed) <= MOST_ROWS // 2 else failed[:0]
    every = -(-len(table) // (MOST_ROWS - len(few) - len(always)))
    shown = np.unique(np.concatenate([np.arange(0, len(table), every), few, always]))
    words = f"{len(shown):,} of {len(table):,} pairs are shown: one in {every}"
    return shown.astype(np.int64), words + (" and all that failed" if len(few) else "")


def totals(table: pa.Table) -> dict[str, Any]:
    """Return pairs per hour, seconds by device, the slowest pairs and the causes of failures.

    The hours are the wall time of the runs, each from the start of its first pair to the end of its
    last. A row that was made again from its picture has no start, so it does not count there.
    """
    batch = pc.max_element_wise(pc.fill_null(table["batch"], 1), 1)
    # Each pair of a batch has the time of the whole batch.
    table = table.append_column("alone", pc.divide(table["seconds"], batch))
    table = table.append_column("place", pa.array(np.arange(len(table))))
    for name in ("device", "error_type"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pc.fill_null(table[name].cast(pa.string()), ""))
    is_ok = pc.equal(table["status"], "ok")
    timed = table.filter(pc.and_(is_ok, pc.is_valid(table["alone"])))
    devices = _grouped(timed, ["device"], [("alone", "count"), ("alone", "sum")])
    order = pc.sort_indices(timed, [("alone", "descending"), ("place", "ascending")])[:5]
    failed = table.filter(pc.invert(is_ok))
    causes = _grouped(failed, ["status", "error_type"], [("place", "count")])
    painted, wall = _painted_in(table)
    return {
        "rows": len(table),
        "wall": round(wall, 1),
        "per_hour": round(painted / wall * 3600, 1) if wall > 0 else None,
        "devices": sorted([device or "?", n, round(s, 1)] for device, n, s in devices),
        "slowest": timed["place"].take(order).to_pylist(),
        "causes": sorted((list(cause) for cause in causes), key=lambda cause: -cause[2]),
    }


def _grouped(
    table: pa.Table, keys: Sequence[str], figures: Sequence[tuple[str, str]]
) -> list[tuple[Any, ...]]:
    """Return (key …, figure …) of each group, in the order in which they come first."""
    groups = table.group_by(keys, use_threads=False).aggregate(figures)
    names = [*keys, *("_".join(figure) for figure in figures)]
    return list(zip(*(groups[name].to_pylist() for name in names), strict=True))


def _painted_in(table: pa.Table) -> tuple[int, float]:
    """Return the number of painted pairs and the wall time of their runs, seconds."""
    times = [pc.is_valid(table[name]) for name in ("seconds", "started_at", "finished_at")]
    timed = table.filter(functools.reduce(pc.and_, times))
    painted = pc.sum(pc.equal(timed["status"], "ok")).as_py() or 0
    runs = _grouped(timed, ["run_id"], [("started_at", "min"), ("finished_at", "max")])
    return painted, sum((end - start).total_seconds() for _, start, end in runs)


# --- thumbnails --------------------------------------------------------------------------------


def _thumbnails(table: pa.Table, out: OutFolder, say: Say) -> dict[str, object]:
    """Make the thumbnails; return their names as columns: content, style (joined by |), result.

    The name is "" if there is no thumbnail.
    """
    inputs = Inputs(out)
    folder = os.path.join(out.report, "thumbs")
    storage.make_folder(folder)
    contents, styles = _texts(table, "content"), _texts(table, "style")
    shown = [
        output if digest else ""  # a failed pair has one if an earlier attempt painted it
        for output, digest in zip(
            _texts(table, "output"), _texts(table, "output_sha256"), strict=True
        )
    ]
    paths = dict.fromkeys(map(inputs.path, contents))
    paths |= dict.fromkeys(inputs.path(part) for style in styles for part in _styles(style))
    paths |= dict.fromkeys(out.path(output) for output in shown if output)
    names = _make_all(list(paths), out, folder, say)
    _remove_old(folder, set(names.values()))
    return {
        "content": encode_column([names[inputs.path(c)] for c in contents]),
        "style": encode_column(
            [join_styles(names[inputs.path(part)] for part in _styles(style)) for style in styles]
        ),
        "result": encode_column([names[out.path(o)] if o else "" for o in shown]),
    }


def _make_all(paths: Sequence[str], out: OutFolder, folder: str, say: Say) -> dict[str, str]:
    """Make the thumbnails that are missing; return the name of each path's, "" if unreadable."""
    # A power cut may have left empty files.
    existing = {entry.name for entry in os.scandir(folder) if entry.stat().st_size}
    known = storage.stats([path for path in paths if storage.is_remote(path)])
    names: dict[str, str] = {}
    last_line = time.monotonic()
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
        results = pool.map(lambda path: _thumbnail(path, out, folder, existing, known), paths)
        for path, name in zip(paths, results, strict=True):
            names[path] = name
            if time.monotonic() - last_line > 5:
                last_line = time.monotonic()
                say(f"{len(names)} of {len(paths)} thumbnails done")
    return names


def _thumbnail(
    path: str, out: OutFolder, folder: str, existing: set[str], known: Mapping[str, str]
) -> str:
    """Make a picture's thumbnail unless it exists; return its name, "" if unreadable.

    `known` has the states of some pictures. The name is a hash of the path and state of the
    picture, so a changed picture gets a new one.
    """
    try:
        shown = path if storage.is_uri(path) else os.path.relpath(path, os.path.realpath(out.root))
        text = f"{shown}\n{known.get(path) or storage.stat(path)}\n{THUMB_SIDE}"
        name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20] + ".jpg"
        if name not in existing:
            buffer = io.BytesIO()
            open_small(path, THUMB_SIDE).save(buffer, "JPEG", quality=82, optimize=True)
            storage.put(os.path.join(folder, name), buffer.getvalue(), sync=False)
    except (OSError, ValueError, StylizeError):
        return ""
    return name


def _remove_old(folder: str, names: set[str]) -> None:
    """Remove the thumbnails of changed pictures, and the leftovers of interrupted reports."""
    sweep_temporaries(folder)
    for name in os.listdir(folder):
        if name.endswith(".jpg") and name not in names:
            storage.remove(os.path.join(folder, name))
