"""What travels between the parts of the batch: pairs, tasks, statuses and results.

Imports the standard library and stylize's settings, nothing else.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring_ascii as _json
from pathlib import PurePosixPath
from typing import NamedTuple

from stylize.config import ALGORITHM, BETWEEN, StyleConfig

__all__ = [
    "FAILURES",
    "PREVIEW",
    "Input",
    "InputRef",
    "Pair",
    "Result",
    "Status",
    "Task",
    "column_of",
    "join_styles",
    "numbered",
    "objective",
    "pair_key",
    "preview_of",
    "settings_digest",
    "split_styles",
]

PREVIEW = ".preview.jpg"
"""The ending of the preview that `--preview-every` leaves beside an output. No output may have it.
"""

FAILURES = ("failed", "timeout", "poison")
"""The kinds of failure. `poison`: two workers died while they painted the pair."""


def numbered(role: str, paths: Iterable[str]) -> dict[str, str]:
    """Return the paths by role: the role itself, then with numbers from 2."""
    return {f"{role}{number}" if number > 1 else role: p for number, p in enumerate(paths, 1)}


def column_of(role: str) -> str:
    """Return the column that names the inputs of a role, like style for style2."""
    return role.rstrip("0123456789")


def split_styles(cell: str) -> tuple[str, ...]:
    """Return the styles that a cell ``a.jpg|b.jpg`` names, as written."""
    return tuple(cell.split(BETWEEN))


def join_styles(styles: Iterable[str]) -> str:
    """Return the cell that names these styles."""
    return BETWEEN.join(styles)


class InputRef(NamedTuple):
    """One file that a pair names."""

    role: str  # content, style, style2 …, init, mask, mask2 …, style_mask, style_mask2 …
    written: str  # as the manifest has it
    path: str  # the path or URI that opens it

    @property
    def is_style(self) -> bool:
        """Whether it is one of the pair's styles."""
        return self.column == "style"

    @property
    def is_mask(self) -> bool:
        """Whether it is a mask, of the photograph or of a style."""
        return self.column in ("mask", "style_mask")

    @property
    def column(self) -> str:
        """The column of the manifest that names it."""
        return column_of(self.role)


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of a manifest, understood: what to paint, how, and where the picture goes."""

    row: int  # number of the row in the manifest; the first row of data is 1
    pair_id: str
    output: str  # relative to OUT, with / between folders
    inputs: tuple[InputRef, ...]  # content, styles, then init and masks where they are files
    config: StyleConfig  # after all precedence
    generated_id: bool = False  # the manifest gives no id, so `pair_id` was made from the row
    meta: Mapping[str, str] = field(default_factory=dict)  # meta.* columns, without the prefix

    @property
    def content(self) -> str:
        """The photograph as the manifest has it."""
        return next((ref.written for ref in self.inputs if ref.role == "content"), "")

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles one by one, as the manifest has them."""
        return tuple(ref.written for ref in self.inputs if ref.is_style)

    @property
    def style(self) -> str:
        """The cell `style`: several styles are joined by ``|``."""
        return join_styles(self.styles)


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt at a pair."""

    pair: Pair
    attempt: int = 1

    @property
    def is_retry(self) -> bool:
        """Whether the pair failed before. Retries come last: what stopped one run must not stop
        the next one before it reaches the other pairs."""
        return self.attempt > 1


@dataclass(frozen=True)
class Status:
    """What a worker is doing."""

    pair_id: str = ""  # "": nothing
    step: int = 0
    steps: int = 0
    loss: float = float("nan")
    seconds: float = 0.0
    share: float = 0.0  # of the pair's work that is done; early steps are small and cheap
    batch: int = 1  # pairs that are painted together; this is the first of them


class Input(NamedTuple):
    """One file that went into a picture."""

    role: str  # content, style, style2 …, init, mask, mask2 …, style_mask, style_mask2 …
    path: str  # as written in the manifest
    stat: str  # "<size>:<mtime in ns>" or an ETag: unchanged stat means unchanged bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Result:
    """One attempt at one pair: a row of the index. `status` is ok or one of `FAILURES`.

    Losses and curve describe the picture that was kept. A curve is a tuple of
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
    generated_id: bool | None = None  # None in rows of versions that did not record it
    output_etag: str = ""  # of the picture on object storage
    tile: int | None = None  # the option, 0: chosen automatically; None where it was not recorded
    compile: bool | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    traceback: str = ""  # of an unforeseen error: for the log of the run, not for the index
    unopened: bool = False  # an input could not be opened here; for the driver, not for the index
    too_large: bool = False  # memory did not suffice here; for the driver, not for the index
    checkpoint: str = ""  # what became of its kept picture; for the log of the run

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles one by one, without the spaces around a ``|``."""
        return tuple(style.strip() for style in split_styles(self.style))


@functools.lru_cache(maxsize=1024)  # most pairs of a manifest share their settings
def settings_digest(config: StyleConfig, algorithm: int = ALGORITHM) -> str:
    """Return `StyleConfig.digest`, computed once for each distinct config."""
    return config.digest(algorithm)


def objective(pair: Pair) -> tuple[object, ...]:
    """Return what pairs must have in common to be painted together, as far as the manifest tells.

    The worker adds the size of the photograph, which only the file tells. Seeds may differ: each
    picture begins from its own.
    """
    return _seedless_digest(pair.config), len(pair.inputs)


@functools.lru_cache(maxsize=1024)
def _seedless_digest(config: StyleConfig) -> str:
    return replace(config, seed=0).digest()


def preview_of(output: str) -> str:
    """Return the name of an output's preview, which lies beside it."""
    path = PurePosixPath(output)
    stem = path.stem.encode()[: 255 - len(PREVIEW)].decode(errors="ignore")
    return str(path.with_name(stem + PREVIEW))


def pair_key(
    inputs: Mapping[str, str], settings_digest: str, weights_sha256: str, algorithm: int
) -> str:
    """Return the identity of a picture: the hex SHA-256 of everything that decides its pixels.

    `inputs` maps each role to the SHA-256 of its bytes. Device, type, threads, batch and tiles are
    left out: the row records them, but they do not make it another picture.
    """
    # It is what json.dumps makes of a list of these, in a third of the time.
    files = ", ".join([f"[{_json(role)}, {_json(sha)}]" for role, sha in sorted(inputs.items())])
    end = _end_of_key(settings_digest, weights_sha256, algorithm)
    return hashlib.sha256(f"[[{files}], {end}".encode()).hexdigest()


@functools.lru_cache(maxsize=1024)
def _end_of_key(settings_digest: str, weights_sha256: str, algorithm: int) -> str:
    return f"{_json(settings_digest)}, {_json(weights_sha256)}, {algorithm}]"
