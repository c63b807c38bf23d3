"""What sets OUT right by hand: `rebuild_index` from the pictures, `prune` by the manifest.

Both go by what pictures carry in their metadata: a file without it is none of ours, and is never
read into the index, moved or removed. Never imports torch or ray.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.records import Pair, Result, preview_of
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index, read_results
from pipeline.store.lock import Lock
from pipeline.store.metadata import carried
from stylize.image import is_whole

__all__ = ["holds_anything", "prune", "rebuild_index"]


@dataclass
class Rebuilt:
    """What `rebuild_index` found. Names are relative to OUT."""

    kept: int = 0  # rows that were there; those of a picture know more than the picture does
    made: int = 0  # rows made again from a picture
    damaged: list[str] = field(default_factory=list)  # pictures of ours that do not open
    elsewhere: list[str] = field(default_factory=list)  # ours, but not where they were painted
    problems: list[str] = field(default_factory=list)  # what of the old index was set aside


def rebuild_index(out: OutFolder, pairs: Iterable[Pair] = ()) -> Rebuilt:
    """Give every picture of OUT its row again, and keep all rows that can still be read.

    A picture knows neither its loss curve nor its times, nor the folders of its inputs; with
    `pairs` paths, row numbers and meta are the manifest's. Raises `LockedError`, `StorageError`.
    """
    given = {pair.output: pair for pair in pairs}
    found = Rebuilt()
    with Lock(out, "rebuild-index"), Index(out, _run_id("rebuild")) as index:
        rows = read_results(out)
        found.kept = len(rows)
        found.problems = index.problems
        # A pair that was given another output has left its earlier picture behind.
        best: dict[str, tuple[tuple[bool, float], Result]] = {}
        for name, data in out.pictures():
            result = carried(data, given.get(name)) or carried(data)
            if result is None:
                continue
            row = rows.get(result.pair_id)
            if result.output != name:
                found.elsewhere.append(name)
            elif not is_whole(data):
                found.damaged.append(name)
            elif row is None or not _stands(out, row):
                rank = (name in given, os.path.getmtime(out.path(name)))
                if result.pair_id not in best or rank > best[result.pair_id][0]:
                    best[result.pair_id] = (rank, result)
        for _, result in best.values():
            index.append(result)
        found.made = len(best)
        found.kept -= len(best.keys() & rows.keys())
    return found


def holds_anything(out: OutFolder) -> bool:
    """Return whether a folder is an OUT, or at least holds a picture of ours."""
    return out.has_state or any(carried(data) is not None for _, data in out.pictures())


@dataclass
class Pruned:
    """What `prune` found no longer in the manifest. Names are relative to OUT."""

    pictures: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)  # pair ids
    edited: list[str] = field(default_factory=list)  # pictures changed by hand, which stay
    size: int = 0  # bytes of the pictures


def prune(out: OutFolder, pairs: Sequence[Pair], *, remove: bool) -> Pruned:
    """Pictures and rows of OUT that no pair asks for; with `remove` they go, rows first, and
    previews with their pictures.

    A picture that was edited, moved or copied by hand stays. So does one whose pair is still there
    and has not been painted under its new name yet. Raises `LockedError`, `StorageError`.
    """
    if not remove:
        return _superfluous(out, pairs)
    with Lock(out, "prune"), Index(out, _run_id("prune")) as index:
        found = _superfluous(out, pairs)
        if found.rows:
            index.compact(without=found.rows)
        for name in found.pictures:
            for output in (name, preview_of(name)):
                storage.remove(out.path(output))
    return found


def _superfluous(out: OutFolder, pairs: Sequence[Pair]) -> Pruned:
    ids = {pair.pair_id for pair in pairs}
    rows = read_results(out)
    wanted = {pair.output for pair in pairs} | {r.output for i, r in rows.items() if i in ids}
    found = Pruned(rows=sorted(rows.keys() - ids))
    for name, data in out.pictures(skip=wanted):
        result = carried(data)
        if result is None or result.output != name:
            continue  # another's, or a copy that somebody made
        row = rows.get(result.pair_id)
        known = row.output_sha256 if row is not None and row.output == name else ""
        if known not in ("", result.output_sha256):
            found.edited.append(name)
        else:
            found.pictures.append(name)
            found.size += len(data)
    return found


def _run_id(purpose: str) -> str:
    return f"{purpose}-{secrets.token_hex(3)}"


def _stands(out: OutFolder, row: Result) -> bool:
    """Return whether the picture that a row describes is still there."""
    return bool(row.output_sha256) and out.has_picture(row.output)
