"""The part of a row that its picture carries: `metadata` makes it, `carried` reads it back.

On object storage the object carries more of it beside its bytes, which a request for its head
gives: `attributes` makes that, `from_attributes` reads it back. Never imports torch, ray or
pyarrow.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
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
)
"""Columns that an object carries beside its bytes, and a file does not."""

_KEY, _ROW = "stylizekey", "stylizerow"  # letters only: Azure allows no more
_MOST_ATTRIBUTES = 1900  # bytes; S3 allows 2048, names included


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
    """Return what an object carries beside its bytes: the key, and the row where there is room."""
    facts = json.loads(metadata(result))
    facts |= {name: getattr(result, name) for name in _BESIDE}
    for source, known in zip(facts["inputs"], result.inputs, strict=True):
        source["stat"] = known.stat
    packed = base64.b64encode(zlib.compress(json.dumps(facts).encode(), 9)).decode()
    room = _MOST_ATTRIBUTES - len(_KEY) - len(result.key) - len(_ROW)
    return {_KEY: result.key, **({_ROW: packed} if len(packed) <= room else {})}


def from_attributes(known: Mapping[str, str], pair: Pair | None = None) -> Result | None:
    """Return the row that an object carries beside its bytes, or None where it carries none.

    Its inputs have their stats. With `pair`, see `carried`.
    """
    try:
        facts = json.loads(zlib.decompress(base64.b64decode(known[_ROW])))
        inputs = tuple(Input(i["role"], i["path"], i["stat"], i["sha256"]) for i in facts["inputs"])
        beside = {name: facts[name] for name in _BESIDE}
        return replace(_result(facts, pair, inputs), **beside)
    except (ValueError, KeyError, TypeError, zlib.error):
        return None


def _result(facts: Mapping[str, Any], pair: Pair | None, inputs: tuple[Input, ...]) -> Result:
    """Return the row of a picture. Raises `KeyError` and `TypeError` for facts of another kind."""
    note = "row made again from the picture"
    notes = facts["notes"]
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
        notes=f"{notes}; {note}" if notes else note,
    )
