"""The part of a row that its picture carries: `metadata` makes it, `carried` reads it back.

Never imports torch, ray or pyarrow.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import replace
from pathlib import PurePosixPath

from pipeline.records import Input, Pair, Result, join_styles, split_styles
from stylize import __version__
from stylize.image import read_metadata

__all__ = ["carried", "metadata", "utc_now"]

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


def metadata(result: Result) -> str:
    """Return the JSON text that a picture carries, from which its row can be made again.

    It has only what is the same each time the same pair is painted, and file names without folders.
    """
    settings = json.loads(result.settings)
    settings["init"] = PurePosixPath(settings["init"]).name
    settings["mask"] = _names(settings["mask"])
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
        **{name: getattr(result, name) for name in _CARRIED},
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
        result = Result(
            pair_id=pair.pair_id if pair else facts["pair_id"],
            row=pair.row if pair else 0,
            content=pair.content if pair else facts["content"],
            style=pair.style if pair else facts["style"],
            output=pair.output if pair else facts["output"],
            status="ok",
            key=facts["key"],
            inputs=inputs,
            output_sha256=hashlib.sha256(data).hexdigest(),
            output_bytes=len(data),
            settings=json.dumps(facts["settings"], sort_keys=True, separators=(",", ":")),
            meta=pair.meta if pair else {},
            generated_id=pair.generated_id if pair else None,
            version=__version__,
            finished_at=utc_now(),
            **{name: facts[name] for name in _CARRIED},
        )
    except (ValueError, KeyError, TypeError):
        return None
    note = "row made again from the picture"
    return replace(result, notes=f"{result.notes}; {note}" if result.notes else note)


def utc_now() -> str:
    """Return the time as the index stores it: ISO 8601, UTC, microseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
