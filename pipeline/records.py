"""What travels between the parts of the batch: Pair, Input, Result. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

__all__ = ["FAILURES", "PREVIEW", "Input", "Pair", "Result", "pair_key", "preview_of"]

PREVIEW = ".preview.jpg"
"""How a name ends that no output may have, but what `--preview-every` leaves beside one."""

FAILURES = ("failed", "timeout", "poison")
"""The kinds of failure. `poison`: the pair took its worker down with it, twice."""


@dataclass(frozen=True)
class Pair:
    """One row of a manifest, understood: what is to be painted, how, and where it goes."""

    row: int  # line in the manifest, from 1 for the first row of data
    pair_id: str
    content: str  # as written in the manifest
    style: str  # as written; several are separated by |
    output: str  # relative to OUT, with / between folders
    inputs: tuple[tuple[str, str], ...]  # (role, path or URI that opens): content, style, …
    settings: Mapping[str, Any]  # values of StyleConfig, preset included, after all precedence
    meta: Mapping[str, str] = field(default_factory=dict)  # meta.* columns, without the prefix


@dataclass(frozen=True)
class Input:
    """One file that went into a picture."""

    role: str  # content, style, style2 …, init, mask
    path: str  # as written in the manifest
    stat: str  # "<size>:<mtime in ns>" or an ETag: unchanged stat means unchanged bytes
    sha256: str


@dataclass(frozen=True)
class Result:
    """One attempt at one pair: a row of the index. `status` is ok or one of `FAILURES`.

    Losses and curve are of the picture that was kept; a curve is a tuple of
    (step, seconds, loss, content_loss, style_loss, tv_loss). Times are UTC, ISO 8601.
    """

    pair_id: str
    row: int
    content: str
    style: str
    output: str
    status: str
    key: str = ""
    inputs: tuple[Input, ...] = ()
    output_sha256: str = ""
    output_bytes: int | None = None
    settings: str = "{}"  # canonical JSON of the StyleConfig
    preset: str = ""
    backbone: str = ""
    weights_sha256: str = ""
    algorithm: int = 0
    error_type: str = ""
    error_message: str = ""
    attempt: int = 1
    notes: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    evaluations: int | None = None
    stop_reason: str = ""
    loss: float | None = None
    content_loss: float | None = None
    style_loss: float | None = None
    tv_loss: float | None = None
    loss_curve: tuple[tuple[int, float, float, float, float, float], ...] = ()
    seconds: float | None = None
    device: str = ""
    dtype: str = ""
    threads: int | None = None
    batch: int | None = None
    host: str = ""
    peak_memory: int | None = None  # bytes
    run_id: str = ""
    epoch: int = 0
    seq: int = 0
    version: str = ""
    schema_version: int = 1
    started_at: str = ""
    finished_at: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)


def preview_of(output: str) -> str:
    """The name of an output's preview, beside it."""
    path = PurePosixPath(output)
    stem = path.stem.encode()[: 255 - len(PREVIEW)].decode(errors="ignore")
    return str(path.with_name(stem + PREVIEW))


def pair_key(
    inputs: Mapping[str, str], settings_digest: str, weights_sha256: str, algorithm: int
) -> str:
    """The identity of a picture: hex of SHA-256 over all that decides its pixels.

    `inputs` is role -> SHA-256 of the bytes. Device, type, threads, batch and tiles are left out:
    they are recorded beside the picture and never make it another one.
    """
    text = json.dumps([sorted(inputs.items()), settings_digest, weights_sha256, algorithm])
    return hashlib.sha256(text.encode()).hexdigest()
