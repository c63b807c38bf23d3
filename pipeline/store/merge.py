"""Merging of several output folders into one. Never imports torch or ray.

Nothing is written to the folders that are merged. Pictures come first and rows last, so that a
merge that was killed is carried on by the same command.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.records import Result
from pipeline.side_by_side import side_by_side
from pipeline.store.folder import OutFolder
from pipeline.store.index import Index
from pipeline.store.lock import Lock, LockedError, at_work
from pipeline.store.reading import read_index, read_results
from pipeline.text import folded, quoted

__all__ = ["ClashError", "Merged", "merge"]


class ClashError(Exception):
    """Output folders that cannot become one. `problems` says why, each in one line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass
class Merged:
    """The outcome of `merge`. Names are relative to an output folder."""

    rows: int = 0  # in the new index
    copied: int = 0  # pictures
    missing: list[str] = field(default_factory=list)  # pictures that a row names and nobody has
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Owned:
    """The row of a pair, and the folder that has it."""

    out: OutFolder
    row: Result

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """A picture counts more than a failure, and of two failures the later one."""
        ok = self.row.status == "ok"
        return ok, bool(self.row.output_sha256), "" if ok else self.row.finished_at


def merge(sources: Sequence[OutFolder], new: OutFolder) -> Merged:
    """Copy the pictures and the newest rows of output folders into `new`.

    What `new` has already stays. Raises `ClashError` before anything is written if two folders have
    different pictures of a pair, one output for different pairs, or different weights;
    `LockedError` if a run writes to one of them; `StorageError`.
    """
    sources = [out for out in sources if not storage.same_file(out.root, new.root)]
    for out in sources:
        if workers := at_work(out):
            raise LockedError(f"{str(out)!r} is in use by {workers[0]}; wait until it is done")
    has_rows = new.has_index and bool(read_results(new))
    folders = [*([new] if has_rows else []), *sources]
    rows = {out.root: read_results(out) for out in folders}
    owned = _choose(folders, rows)
    merged = Merged(rows=len(owned), notes=_notes(folders, new))
    with Lock(new, "merge"), Index(new, f"merge-{secrets.token_hex(3)}") as index:
        new.remove_leftovers()
        new.fix(**_fixed(folders, new))
        etags = _copy_all([one for one in owned.values() if one.out is not new], new, merged)
        for out in sources:
            ids = [pair_id for pair_id, one in owned.items() if one.out is out]
            if ids:
                index.add(_rows_of(out, ids, etags))
    return merged


def _choose(
    folders: Sequence[OutFolder], rows: Mapping[str, Mapping[str, Result]]
) -> dict[str, _Owned]:
    """Return the row of each pair that counts. Raises `ClashError`."""
    problems = _different_weights(folders)
    owned: dict[str, _Owned] = {}
    for out in folders:
        for pair_id, row in rows[out.root].items():
            one, before = _Owned(out, row), owned.get(pair_id)
            if before is None or one.rank > before.rank:
                owned[pair_id] = one
            if before and before.row.status == row.status == "ok" and before.row.key != row.key:
                problems.append(
                    f"pair {quoted(pair_id)} has different pictures in {quoted(str(before.out))} "
                    f"and {quoted(str(out))}; give one of them another id, or remove one with prune"
                )
    owners: dict[str, _Owned] = {}
    for one in owned.values():
        other = owners.setdefault(folded(one.row.output), one)
        if other is not one:
            problems.append(
                f"{quoted(one.row.output)} is the output of {quoted(other.row.pair_id)} in "
                f"{quoted(str(other.out))} and of {quoted(one.row.pair_id)} in "
                f"{quoted(str(one.out))}; name another output in one of the manifests"
            )
    if problems:
        raise ClashError(problems)
    return owned


def _different_weights(folders: Iterable[OutFolder]) -> list[str]:
    problems = []
    seen: dict[str, tuple[str, OutFolder]] = {}  # what is fixed -> its value, and where
    for out in folders:
        fixed = out.read_fixed()
        values = {f"weights of {name}": sha256 for name, sha256 in fixed.weights.items()}
        values |= {"backbone for auto": fixed.backbone} if fixed.backbone else {}
        for what, value in values.items():
            before, where = seen.setdefault(what, (value, out))
            if before != value:
                problems.append(
                    f"the {what}: {before[:12]} in {quoted(str(where))}, {value[:12]} in "
                    f"{quoted(str(out))}; pictures of one output folder have the same"
                )
    return problems


def _fixed(folders: Sequence[OutFolder], new: OutFolder) -> dict[str, object]:
    """Return what ``run.json`` of the new folder says."""
    all_fixed = [out.read_fixed() for out in folders]
    backbone = next((fixed.backbone for fixed in all_fixed if fixed.backbone), "")
    weights = {name: sha for fixed in all_fixed for name, sha in fixed.weights.items()}
    first = next(iter(_folders_of_inputs(folders)), "")
    if not storage.is_uri(first):
        if new.medium.is_remote:
            first = ""
        else:
            first = os.path.relpath(first, os.path.realpath(new.root)) if first else os.pardir
    return {"backbone": backbone, "weights": weights, "inputs": first}


def _folders_of_inputs(folders: Iterable[OutFolder]) -> list[str]:
    """Return where relative paths of inputs start, for each folder: a URI, or an absolute path.

    "" stands for a folder of some machine, which an OUT on object storage does not name.
    """
    found = []
    for out in folders:
        inputs = out.read_fixed().inputs
        if not storage.is_uri(inputs):
            is_known = not out.medium.is_remote
            inputs = os.path.realpath(os.path.join(out.root, inputs)) if is_known else ""
        found.append(inputs)
    return found


def _notes(folders: Sequence[OutFolder], new: OutFolder) -> list[str]:
    inputs = _folders_of_inputs(folders)
    others = [out for out, folder in zip(folders, inputs, strict=True) if folder != inputs[0]]
    notes = [
        f"the manifest of {str(out)!r} is in another folder than that of {str(folders[0])!r}; "
        "report and montage find no originals of its pairs"
        for out in others
    ]
    if inputs and not inputs[0] and not new.medium.is_remote:
        notes.append(
            f"the manifest of {str(folders[0])!r} was on some machine; report and montage look for "
            f"its originals in the folder of {str(new)!r}"
        )
    return notes


def _copy_all(pairs: Sequence[_Owned], new: OutFolder, merged: Merged) -> dict[str, str]:
    """Copy the pictures of some pairs; return their ETags by pair id."""
    painted = [one for one in pairs if one.row.output_sha256]
    if new.medium.is_remote or any(one.out.medium.is_remote for one in painted):
        copies = side_by_side(lambda one: _copy(one, new), painted)
    else:
        copies = [_copy(one, new) for one in painted]
    etags = {}
    for one, (etag, outcome) in zip(painted, copies, strict=True):
        etags[one.row.pair_id] = etag
        merged.copied += outcome == "copied"
        if outcome == "missing":
            merged.missing.append(one.row.output)
    return etags


def _copy(one: _Owned, new: OutFolder) -> tuple[str, str]:
    """Copy a picture; return its ETag, and "copied", "there" or "missing"."""
    output, row = one.row.output, one.row
    look = one.out.medium.look(output)
    if look is None:
        return "", "missing"
    is_edited = not one.out.medium.is_as_recorded(look, row.finished_at, row.output_etag)
    if one.out.medium.is_remote and not is_edited:
        look = look._replace(modified=datetime.fromisoformat(row.finished_at).timestamp())
    etag = new.medium.has_copy(output, look, row)
    if etag is not None:  # by a merge that was killed
        return etag, "there"
    try:
        data = storage.read_bytes(one.out.path(output))
    except OSError:
        return "", "missing"
    return new.medium.put_copy(output, data, look, row), "copied"


def _rows_of(out: OutFolder, pair_ids: Sequence[str], etags: Mapping[str, str]) -> pa.Table:
    table = read_index(out)
    table = table.filter(pc.is_in(table["pair_id"], pa.array(pair_ids, pa.string())))
    today = pa.array([etags.get(i, "") for i in table["pair_id"].to_pylist()], pa.string())
    at = table.schema.get_field_index("output_etag")
    return table.set_column(at, table.schema.field(at), today)
