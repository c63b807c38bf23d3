"""The report: OUT/report.html, a gallery of the run that opens from disk, and its thumbnails.

Needs no server and no network: script, style sheet and the index are in the page, thumbnails in
``OUT/report/thumbs``. Never imports torch or ray.
"""

from __future__ import annotations

import hashlib
import html
import io
import itertools
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import __version__, storage
from pipeline.records import join_styles, split_styles
from pipeline.signals import Handlers
from pipeline.store.folder import OutFolder
from pipeline.store.index import read_index
from pipeline.views.originals import Inputs, open_small
from pipeline.views.templates import asset, fill
from stylize.config import as_text
from stylize.errors import StylizeError

__all__ = [
    "CURVE_POINTS",
    "THUMB_SIDE",
    "collect",
    "encode_column",
    "encode_curves",
    "page",
    "totals",
    "watch",
    "write_report",
]

THUMB_SIDE = 400  # pixels of a thumbnail's longer side
CURVE_POINTS = 40
_LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LEFT_OUT = ("key", "inputs", "settings", "output_sha256", "weights_sha256", "loss_curve", "meta")
_TIMES = ("started_at", "finished_at")
_CURVES = ("loss", "content_loss", "style_loss")

Say = Callable[[str], None]


def write_report(out: OutFolder, say: Say = lambda _: None, *, watched: bool = False) -> str:
    """Write OUT/report.html and the thumbnails that are new; returns its path.

    `watched`: the page loads itself again when it has changed. Raises `StorageError`.
    """
    try:
        table = read_index(out)
    except FileNotFoundError as error:
        raise storage.unreadable(error, str(out)) from error
    data = collect(table, out)
    data["thumbs"] = _thumbnails(table, out, say)
    # The same rows and pictures are the same page: it is not loaded again for nothing.
    stamp = hashlib.sha256(_json([data, watched]).encode()).hexdigest()[:16]
    path = out.report_page
    storage.put(path, page(data, stamp if watched else "").encode("utf-8", "replace"))
    storage.put(os.path.join(out.report, "stamp.js"), f'stylizeStamp("{stamp}")\n'.encode())
    return path


def watch(out: OutFolder, every: float, say: Say = lambda _: None) -> None:
    """Keep the report current until interrupted, and write it once more, to stay.

    Ends by raising `KeyboardInterrupt`; a second Ctrl-C ends it at once.
    """
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    with Handlers(stop):
        while not stopping.is_set():
            write_report(out, say, watched=True)
            stopping.wait(every)
        write_report(out, say)
    raise KeyboardInterrupt


# --- the page ----------------------------------------------------------------------------------


def page(data: Mapping[str, Any], stamp: str = "") -> str:
    """The page, with everything but the pictures in it. `stamp` is not empty while watched."""
    return fill(
        "report.html",
        title=html.escape(f"{data['name']}: stylize-batch"),
        watch=html.escape(stamp),
        style=asset("uPlot.min.css") + asset("report.css"),
        plot=asset("uPlot.iife.min.js"),
        script=asset("report.js"),
        data=_json(data).replace("<", "\\u003c"),
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


# --- the index, compactly ----------------------------------------------------------------------


def collect(table: pa.Table, out: OutFolder) -> dict[str, Any]:
    """What the page knows of a run: columns, not rows; each value once where values repeat."""
    inputs = Inputs(out)
    columns: dict[str, Any] = {}
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
        if columns.get(name) != column:  # `steps` that were asked for, and those that were made
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
        "curves": encode_curves(table),
        "totals": totals(table),
    }


def encode_column(values: Sequence[Any]) -> dict[str, Any]:
    """{"one": value} if all are equal, {"words", "codes"} where values repeat, else {"all"}."""
    short = [_short(value) for value in values]
    words = list(dict.fromkeys(short))
    if len(words) == 1:
        return {"one": words[0]}
    if len(words) * 2 > len(short):
        return {"all": short}
    code = {word: number for number, word in enumerate(words)}
    return {"words": words, "codes": [code[value] for value in short]}


def _short(value: Any) -> Any:
    """A float with six digits, a whole one without its point; no number that JSON cannot say."""
    if not isinstance(value, float):
        return value
    if value != value or value in (float("inf"), float("-inf")):
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


def _settings(table: pa.Table) -> dict[str, list[Any]]:
    """Settings as columns. Each distinct JSON is read once."""
    texts = _texts(table, "settings")
    parsed: dict[str, dict[str, Any]] = {}
    for text in dict.fromkeys(texts):
        values = json.loads(text or "{}")
        parsed[text] = {name: _setting(name, value) for name, value in values.items()}
    names = dict.fromkeys(name for values in parsed.values() for name in values)
    return {name: [parsed[text].get(name) for text in texts] for name in names}


def _setting(name: str, value: Any) -> Any:
    plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    return value if plain else as_text(name, value)


def encode_curves(table: pa.Table) -> dict[str, Any]:
    """Loss curves at `CURVE_POINTS` evaluations, as text: two letters a point, logarithmic.

    ``axes`` holds each distinct list of evaluations once, ``axis`` its number for each row (-1: no
    curve), ``values`` for each row per loss [lowest, highest, letters]; letters say where between
    the two a point lies, in 4095 steps of the logarithm, and ``__`` that there is none.
    """
    curves = table["loss_curve"].combine_chunks()
    starts = np.cumsum([0, *(length or 0 for length in pc.list_value_length(curves).to_pylist())])
    flat = curves.flatten()
    steps = flat.field("step").to_numpy(zero_copy_only=False)
    losses = [flat.field(name).to_numpy(zero_copy_only=False) for name in _CURVES]
    axes: dict[tuple[int, ...], int] = {}
    axis: list[int] = []
    rows: list[Any] = []
    for start, end in itertools.pairwise(starts.tolist()):
        if start == end:
            axis.append(-1)
            rows.append(0)
            continue
        points = np.unique(np.linspace(start, end - 1, CURVE_POINTS).round().astype(int))
        axis.append(axes.setdefault(tuple(steps[points].tolist()), len(axes)))
        rows.append([_letters(loss[points]) for loss in losses])
    return {"axes": list(axes), "axis": axis, "values": rows}


def _letters(values: np.ndarray[Any, Any]) -> Any:
    values = values.astype(np.float64)
    good = np.isfinite(values) & (values > 0)
    if not good.any():
        return 0
    logs = np.log10(np.where(good, values, 1))
    low, high = float(logs[good].min()), float(logs[good].max())
    levels = np.rint((logs - low) / ((high - low) or 1) * 4094).astype(int)
    levels = np.where(good, levels, 4095)
    text = "".join(_LEVELS[level >> 6] + _LEVELS[level & 63] for level in levels.tolist())
    return [float(f"{low:.5g}"), float(f"{high:.5g}"), text]


def totals(table: pa.Table) -> dict[str, Any]:
    """Pairs per hour of the runs' wall time, time by device, the slowest, failures by cause.

    A run lasts from the start of its first pair to the end of its last; what was only taken over
    from a picture has no start and counts in neither.
    """
    columns = [
        table[name].to_pylist()
        for name in ("status", "error_type", "device", "seconds", "batch", "run_id", *_TIMES)
    ]
    spans: dict[str, list[float]] = {}
    devices: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    causes: Counter[tuple[str, str]] = Counter()
    painted, slowest = 0, []
    for number, (status, kind, device, seconds, batch, run, began, ended) in enumerate(
        zip(*columns, strict=True)
    ):
        if status != "ok":
            causes[status, kind or ""] += 1
        if seconds is not None and began is not None and ended is not None:
            span = spans.setdefault(run, [began.timestamp(), ended.timestamp()])
            span[:] = [min(span[0], began.timestamp()), max(span[1], ended.timestamp())]
            painted += status == "ok"
        if seconds is not None and status == "ok":
            devices[device or "?"][0] += 1
            alone = seconds / (batch or 1)  # of pairs painted together each has the time of all
            devices[device or "?"][1] += alone
            slowest.append((alone, number))
    wall = sum(end - begin for begin, end in spans.values())
    return {
        "wall": round(wall, 1),
        "per_hour": round(painted / wall * 3600, 1) if wall > 0 else None,
        "devices": [[d, n, round(s, 1)] for d, (n, s) in sorted(devices.items())],
        "slowest": [n for _, n in sorted(slowest, key=lambda item: (-item[0], item[1]))[:5]],
        "causes": [[status, kind, n] for (status, kind), n in causes.most_common()],
    }


# --- thumbnails --------------------------------------------------------------------------------


def _thumbnails(table: pa.Table, out: OutFolder, say: Say) -> dict[str, Any]:
    """Names of the thumbnails, by column: content, styles (| between), result; "" for none."""
    inputs = Inputs(out)
    folder = os.path.join(out.report, "thumbs")
    storage.make_folder(folder)
    contents, styles = _texts(table, "content"), _texts(table, "style")
    shown = [
        output if digest else ""  # a failed attempt may have left an earlier picture standing
        for output, digest in zip(
            _texts(table, "output"), _texts(table, "output_sha256"), strict=True
        )
    ]
    paths = dict.fromkeys(map(inputs.path, contents))
    paths |= dict.fromkeys(inputs.path(part) for style in styles for part in _styles(style))
    paths |= dict.fromkeys(out.path(output) for output in shown if output)
    names = _make(list(paths), out, folder, say)
    _remove_old(folder, set(names.values()))
    return {
        "content": encode_column([names[inputs.path(c)] for c in contents]),
        "style": encode_column(
            [join_styles(names[inputs.path(part)] for part in _styles(style)) for style in styles]
        ),
        "result": encode_column([names[out.path(o)] if o else "" for o in shown]),
    }


def _make(paths: Sequence[str], out: OutFolder, folder: str, say: Say) -> dict[str, str]:
    """path -> name of its thumbnail, made unless there; "" for what cannot be read."""
    there = {one.name for one in os.scandir(folder) if one.stat().st_size}  # after a power cut
    made: dict[str, str] = {}
    told = time.monotonic()
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
        done = pool.map(lambda path: _thumbnail(path, out, folder, there), paths)
        for path, name in zip(paths, done, strict=True):
            made[path] = name
            if time.monotonic() - told > 5:
                told = time.monotonic()
                say(f"{len(made)} of {len(paths)} pictures looked at")
    return made


def _thumbnail(path: str, out: OutFolder, folder: str, there: set[str]) -> str:
    """Its name says which file it shows, and in which state: unchanged means made already."""
    try:
        shown = path if storage.is_uri(path) else os.path.relpath(path, os.path.realpath(out.root))
        text = f"{shown}\n{storage.stat(path)}\n{THUMB_SIDE}"
        name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20] + ".jpg"
        if name not in there:
            buffer = io.BytesIO()
            open_small(path, THUMB_SIDE).save(buffer, "JPEG", quality=82, optimize=True)
            storage.put(os.path.join(folder, name), buffer.getvalue(), sync=False)
    except (OSError, ValueError, StylizeError):
        return ""
    return name


def _remove_old(folder: str, names: set[str]) -> None:
    """Thumbnails of pictures that changed, and what an interrupted report left."""
    storage.sweep_temporaries(folder)
    for name in os.listdir(folder):
        if name.endswith(".jpg") and name not in names:
            storage.remove(os.path.join(folder, name))
