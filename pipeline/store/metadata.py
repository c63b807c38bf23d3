"""The part of a row that its picture carries: `metadata` makes it, `carried` reads it back.

On object storage the object carries more of it beside its bytes, which a request for its head
gives: `attributes` makes that, `from_attributes` reads it back. Never imports torch, ray or
pyarrow.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from pipeline.records import Input, Pair, Result, join_styles, split_styles
from pipeline.text import utc_now
from stylize import __version__
from stylize.image import read_metadata

__all__ = ["attributes", "carried", "from_attributes", "metadata"]

_CARRIED = (
    "preset",
    "backbone",
    "weights_sha256",
    "algorithm",
    "notes",
    "width",
    "height",
    "steps",
    "evaluations",
    "stop_reason",
    "loss",
    "content_loss",
    "style_loss",
    "tv_loss",
    "device",
    "dtype",
    "threads",
)
"""Columns that the picture carries unchanged."""

_CARRIED_LATER = ("tile", "compile")
"""The same, which pictures of older versions do not have."""

_BESIDE = (
    "output_sha256",
    "output_bytes",
    "attempt",
    "batch",
    "host",
    "peak_memory",
    "started_at",
    "finished_at",
    "seconds",
)
"""Columns that an object carries beside its bytes, and a file does not."""

# Letters only: Azure allows no more.
_KEY, _ROW, _CURVE = "stylizekey", "stylizerow", "stylizecurve"
_MOST_ATTRIBUTES = 1900  # bytes; S3 allows 2048, names included
_Curve = tuple[tuple[int, float, float, float, float, float], ...]
_STEP_BYTES = 4 + 5 * 2  # of a packed curve

# What most rows have, so that they are packed shorter. What is stored was packed with it: it stays.
_USUAL = (
    b'"host": "finished_at": "2026-11-30T01:12:25+00:00", "seconds": {"algorithm": 4, '
    b'"attempt": 1, "backbone": "vgg16", "batch": 1, "content": "content_loss": 0.8, "device": '
    b'"cuda", "dtype": "float32", "evaluations": 35, "height": 512, "inputs": [{"path": '
    b'".jpg", "role": "content", "sha256": "", "stat": "1333:\\"\\""}, {"path": ".jpg", '
    b'"role": "style", "sha256": "}], "loss": "notes": "", "output": "images/.png", '
    b'"output_bytes": "output_sha256": "", "pair_id": "", "peak_memory": null, "preset": '
    b'"default", "settings": {"backbone": "vgg19", "background": "", "bits": 8, "clamp": true, '
    b'"coarse_content": 4.0, "coarsest": 96, "content_layers": [["relu4_2", 1.0]], '
    b'"content_norm": 8.0, "content_weight": 1.0, "feature_scale": "caffe", "focus": 0.5, '
    b'"format": "png", "history": 20, "init": "matched", "keep_metadata": "false", '
    b'"learning_rate": 0.02, "margins": "crop", "mask": "", "motifs": 0.0, "noise": '
    b'0.00392156862745098, "optimizer": "lbfgs", "padding": "replicate", "plateau": 0.005, '
    b'"pooling": "average", "preserve_color": "none", "preset": "default", "quality": 95, '
    b'"relative": true, "scales": 8, "seed": 0, "size": 512, "spread": 0.4, "steps": 140, '
    b'"strength": 0.5, "style_blend": [], "style_layers": [["relu1_1", 4.0], ["relu2_1", '
    b'18.0], ["relu3_1", 25.0], ["relu4_1", 2.6], ["relu5_1", 1.5]], "style_loss": "gram", '
    b'"style_scale": 1.0, "style_weight": 70.0, "tv_reduction": "mean", "tv_weight": 0.0}, '
    b'"started_at": "2026-11-30T01:10:12.250179+00:00", "steps": 33, "stop_reason": "plateau", '
    b'"style": ".jpg", "style_loss": 0.06, "threads": 1, "tv_loss": 0.0, "weights_sha256": '
    b'"66664582e66b0998014c57fcf8418d489159c48119f8db8206dce38858f503ad", "width": 512}'
)


def metadata(result: Result) -> str:
    """Return the JSON text that a picture carries, from which its row can be made again.

    It has only what is the same each time the same pair is painted, and file names without folders.
    """
    settings = json.loads(result.settings)
    settings["init"] = PurePosixPath(settings["init"]).name
    for name in ("mask", "style_mask"):  # rows of older versions have no style_mask
        settings[name] = _names(settings.get(name, ""))
    facts = {
        "pair_id": result.pair_id,
        "key": result.key,
        "content": PurePosixPath(result.content).name,
        "style": _names(result.style),
        "output": result.output,
        "inputs": [
            {"role": i.role, "path": PurePosixPath(i.path).name, "sha256": i.sha256}
            for i in result.inputs
        ],
        "settings": settings,
        **{name: getattr(result, name) for name in (*_CARRIED, *_CARRIED_LATER)},
    }
    return json.dumps(facts, sort_keys=True)  # ASCII, as the metadata of JPEG and TIFF must be


def _names(cell: str) -> str:
    """Return a cell of several paths without their folders."""
    return join_styles(PurePosixPath(path).name for path in split_styles(cell))


def carried(data: bytes, pair: Pair | None = None) -> Result | None:
    """Return the row that a picture's bytes carry, or None for a file that is not ours.

    With `pair`, the id, paths, row number and meta columns are those of the manifest.
    """
    try:
        facts = json.loads(read_metadata(data))
        inputs = tuple(Input(i["role"], i["path"], "", i["sha256"]) for i in facts["inputs"])
        result = _result(facts, pair, inputs)
    except (ValueError, KeyError, TypeError):
        return None
    return replace(result, output_sha256=hashlib.sha256(data).hexdigest(), output_bytes=len(data))


def attributes(result: Result) -> dict[str, str]:
    """Return what an object carries beside its bytes: the key, and as far as there is room the row
    and its loss curve, with fewer steps and values of three digits."""
    facts = json.loads(metadata(result))
    del facts["key"]
    facts |= {name: getattr(result, name) for name in _BESIDE}
    for source, known in zip(facts["inputs"], result.inputs, strict=True):
        source["stat"] = known.stat
    found = {_KEY: result.key}
    packed = _packed(json.dumps(facts, sort_keys=True).encode())
    if len(_ROW) + len(packed) <= _room(found):
        found[_ROW] = packed
        if curve := _packed_curve(result.loss_curve, _room(found) - len(_CURVE)):
            found[_CURVE] = curve
    return found


def _room(found: Mapping[str, str]) -> int:
    return _MOST_ATTRIBUTES - sum(len(name) + len(text) for name, text in found.items())


def _packed(data: bytes) -> str:
    packer = zlib.compressobj(9, zdict=_USUAL)
    return base64.b64encode(packer.compress(data) + packer.flush()).decode()


def _unpacked(text: str) -> bytes:
    return zlib.decompressobj(zdict=_USUAL).decompress(base64.b64decode(text))


def _packed_curve(curve: _Curve, room: int) -> str:
    """Return every step of a curve, or every second, third …, so that it fits; "" for none.

    Column after column, numbers as the upper half of a float32, which has three digits.
    """
    for every in range(1, len(curve)):
        kept = curve[::-1][::every][::-1]  # the last is among them
        steps, *columns = zip(*kept, strict=True)
        data = struct.pack(f">{len(kept)}I", *steps)
        for column in columns:
            numbers = array("I", array("f", column).tobytes())
            data += struct.pack(
                f">{len(kept)}H", *(min(n + 0x8000, 2**32 - 1) >> 16 for n in numbers)
            )
        if len(text := _packed(data)) <= room:
            return text
    return ""


def _unpacked_curve(text: str) -> _Curve:
    data = _unpacked(text)
    number = len(data) // _STEP_BYTES
    steps = struct.unpack_from(f">{number}I", data)
    halves = struct.unpack_from(f">{5 * number}H", data, 4 * number)
    values = array("f", array("I", [half << 16 for half in halves]).tobytes())
    columns = [values[start : start + number] for start in range(0, 5 * number, number)]
    return tuple(zip(steps, *columns, strict=True))


def from_attributes(known: Mapping[str, str], pair: Pair | None = None) -> Result | None:
    """Return the row that an object carries beside its bytes, or None where it carries none.

    Its inputs have their stats. With `pair`, see `carried`.
    """
    try:
        facts = {"key": known[_KEY], **json.loads(_unpacked(known[_ROW]))}
        inputs = tuple(Input(i["role"], i["path"], i["stat"], i["sha256"]) for i in facts["inputs"])
        beside = {name: facts[name] for name in _BESIDE if name in facts}
        curve = _unpacked_curve(known[_CURVE]) if _CURVE in known else ()
        return replace(_result(facts, pair, inputs), **beside, loss_curve=curve)
    except (ValueError, KeyError, TypeError, zlib.error, struct.error):
        return None


def _result(facts: Mapping[str, Any], pair: Pair | None, inputs: tuple[Input, ...]) -> Result:
    """Return the row of a picture. Raises `KeyError` and `TypeError` for facts of another kind."""
    note = "row made again from the picture"
    before = facts["notes"]
    notes = before if note in before else f"{before}; {note}" if before else note
    return Result(
        pair_id=pair.pair_id if pair else facts["pair_id"],
        row=pair.row if pair else 0,
        content=pair.content if pair else facts["content"],
        style=pair.style if pair else facts["style"],
        output=pair.output if pair else facts["output"],
        status="ok",
        key=facts["key"],
        inputs=inputs,
        settings=json.dumps(facts["settings"], sort_keys=True, separators=(",", ":")),
        meta=pair.meta if pair else {},
        generated_id=pair.generated_id if pair else None,
        version=__version__,
        finished_at=utc_now(),
        **{name: facts[name] for name in _CARRIED if name != "notes"},
        tile=facts.get("tile"),
        compile=facts.get("compile"),
        notes=notes,
    )
