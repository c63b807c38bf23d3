"""Repairs of OUT: `rebuild_index` goes by the pictures, `prune` by the manifest.

Both rely on the metadata of pictures. A file without it is not ours: it is never read into the
index, moved or removed. Never imports torch or ray.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.records import Pair, Result, preview_of
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from pipeline.store.lock import Lock
from pipeline.store.reading import read_results

__all__ = ["holds_anything", "prune", "rebuild_index"]


@dataclass
class Rebuilt:
    """The outcome of `rebuild_index`. Names are relative to OUT."""

    kept: int = 0  # rows that were in the index; a row knows more than its picture carries
    made: int = 0  # rows made again from a picture
    damaged: list[str] = field(default_factory=list)  # our pictures that are damaged or cut short
    elsewhere: list[str] = field(default_factory=list)  # our pictures that were moved or copied
    problems: list[str] = field(default_factory=list)  # damaged files of the old index, in words


def rebuild_index(out: OutFolder, pairs: Iterable[Pair] = ()) -> Rebuilt:
    """Give every picture of OUT its row again, and keep all rows that can still be read.

    A picture carries neither its loss curve nor its times nor the folders of its inputs. With
    `pairs`, paths, row numbers and meta columns are those of the manifest. Raises `LockedError`
    and `StorageError`.
    """
    by_output = {pair.output: pair for pair in pairs}
    rebuilt = Rebuilt()
    with Lock(out, "rebuild-index"), Index(out, _run_id("rebuild")) as index:
        rows = read_results(out)
        rebuilt.problems = index.problems
        # A pair whose output was renamed has two pictures: prefer that of the manifest's output,
        # then the newer one.
        best: dict[str, tuple[tuple[bool, float], Result]] = {}
        for name in out.pictures():
            found = out.medium.found(name, by_output.get(name))
            result = found.row
            if result is None:
                continue
            row = rows.get(result.pair_id)
            if result.output != name:
                rebuilt.elsewhere.append(name)
            elif not found.is_whole:
                rebuilt.damaged.append(name)
            elif row is None or not _has_picture(out, row):
                look = out.medium.look(name)
                rank = (name in by_output, look.modified if look else 0.0)
                if result.pair_id not in best or rank > best[result.pair_id][0]:
                    best[result.pair_id] = (rank, result)
        for _, result in best.values():
            index.append(result)
        rebuilt.made = len(best)
        rebuilt.kept = len(rows.keys() - best.keys())
    return rebuilt


def holds_anything(out: OutFolder) -> bool:
    """Return whether a folder is an output folder, or at least holds a picture of ours."""
    return out.has_state or any(_row(out, name) is not None for name in out.pictures())


@dataclass
class Pruned:
    """Pictures and rows that no pair of the manifest asks for. Names are relative to OUT."""

    pictures: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)  # pair ids
    edited: list[str] = field(default_factory=list)  # pictures that were edited by hand and stay
    size: int = 0  # of `pictures`, bytes


def prune(out: OutFolder, pairs: Sequence[Pair], *, remove: bool) -> Pruned:
    """Find the pictures and rows of OUT that no pair asks for; with `remove`, remove them.

    Rows are removed first, and previews together with their pictures. A picture that was edited,
    moved or copied by hand stays. So does the picture of a pair whose output was renamed, until the
    pair has been painted under its new name. Raises `LockedError` and `StorageError`.
    """
    if not remove:
        return _superfluous(out, pairs)
    with Lock(out, "prune"), Index(out, _run_id("prune")) as index:
        pruned = _superfluous(out, pairs)
        if pruned.rows:
            index.compact(without=pruned.rows)
        storage.remove_all(
            [out.path(o) for name in pruned.pictures for o in (name, preview_of(name))]
        )
    return pruned


def _superfluous(out: OutFolder, pairs: Sequence[Pair]) -> Pruned:
    ids = {pair.pair_id for pair in pairs}
    rows = read_results(out)
    wanted = {pair.output for pair in pairs} | {r.output for i, r in rows.items() if i in ids}
    pruned = Pruned(rows=sorted(rows.keys() - ids))
    for name in out.pictures(skip=wanted):
        result = _row(out, name)
        if result is None or result.output != name:
            continue  # not ours, or moved or copied by hand
        row = rows.get(result.pair_id)
        recorded = row.output_sha256 if row is not None and row.output == name else ""
        if recorded not in ("", result.output_sha256):
            pruned.edited.append(name)
        else:
            pruned.pictures.append(name)
            pruned.size += result.output_bytes or 0
    return pruned


def _row(out: OutFolder, name: str) -> Result | None:
    return out.medium.found(name, None).row


def _run_id(purpose: str) -> str:
    return f"{purpose}-{secrets.token_hex(3)}"


def _has_picture(out: OutFolder, row: Result) -> bool:
    """Return whether the picture that a row describes is still there."""
    return bool(row.output_sha256) and out.medium.has_picture(row.output)
