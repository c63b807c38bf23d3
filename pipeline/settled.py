"""Which pairs of a manifest are surely done: decided row by row, without making pairs or results.

A pair is surely done if its row, the stats of its files and its key say so. `plan.pending` would
find the same, and decides on all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.manifest.pairs import Cells, Manifest, Outline, kept
from pipeline.plan import Plan
from pipeline.records import Pair, pair_key
from pipeline.store.facts import FileFacts
from pipeline.store.newest import read_newest
from pipeline.store.rows import values

__all__ = ["Settled", "settle", "with_settled"]

_Flags = np.ndarray[Any, np.dtype[np.bool_]]


class _Row(NamedTuple):
    """The columns of the index that decide."""

    pair_id: str
    key: str
    row: int
    content: str
    style: str
    output: str
    inputs: list[tuple[str, str, str, str]]  # with the fields of `Input`
    output_sha256: str
    output_bytes: int | None
    output_etag: str
    algorithm: int
    status: str
    finished_at: str
    generated_id: bool | None
    meta: dict[str, str]


class Settled:
    """What is sure of the pairs of a manifest, a flag for each of them."""

    def __init__(self, pairs: int) -> None:
        self.recorded: _Flags = np.zeros(pairs, np.bool_)  # it has a row
        self.done: _Flags = np.zeros(pairs, np.bool_)
        self.older: _Flags = np.zeros(pairs, np.bool_)  # it is done, by an older algorithm
        self.stale: _Flags = np.zeros(pairs, np.bool_)  # done, but the manifest says more now
        self.strangers: list[pa.Table] = []
        """pair_id and output of the pictures whose pairs the whole manifest does not have."""


def settle(
    whole: Manifest, pairs: Manifest, facts: FileFacts, *, redo: bool, older: bool
) -> Settled:
    """Return what is sure of the pairs, which are `whole` or some of it.

    With `redo` no pair is done, with `older` none by an older algorithm.
    """
    everywhere = _Places(whole.ids)
    here = everywhere if pairs is whole or len(pairs) == len(whole) else _Places(pairs.ids)

    def look_at(pieces: Iterator[pa.Table]) -> Settled:
        settled = Settled(len(pairs))
        judge = _Judge(pairs, facts, settled, redo=redo, redo_older=older)
        for piece in pieces:
            ids = piece["pair_id"].to_pylist()
            strange = everywhere.find(ids) < 0
            if strange.any():
                settled.strangers.append(_pictures(piece.filter(pa.array(strange))))
            at = here.find(ids)
            judge.look_at(piece.filter(pa.array(at >= 0)), at[at >= 0])
        return settled

    return read_newest(facts.out, _Row._fields, look_at)


def with_settled(plan: Plan, pairs: Manifest, settled: Settled) -> Plan:
    """Return a plan of the pairs that were not settled with those that were."""

    def all_of(flags: _Flags, also: Sequence[Pair]) -> Manifest:
        rows = np.array([pair.row - 1 for pair in also], np.int64)
        chosen = flags.copy()
        chosen[np.searchsorted(pairs.rows, rows)] = True
        return pairs.picked(np.flatnonzero(chosen))

    return replace(
        plan,
        done=all_of(settled.done, plan.done),
        older=all_of(settled.older, plan.older),
        stale=all_of(settled.stale, plan.stale),
    )


def _pictures(piece: pa.Table) -> pa.Table:
    painted = pc.greater(pc.binary_length(piece["output_sha256"]), 0)
    return piece.filter(painted).select(["pair_id", "output"])


class _Judge:
    """Looks at rows, and notes in `settled` what is sure."""

    def __init__(
        self, pairs: Manifest, facts: FileFacts, settled: Settled, *, redo: bool, redo_older: bool
    ) -> None:
        self._pairs = pairs
        self._facts = facts
        self._medium = facts.out.medium
        self._settled = settled
        self._redo = redo or facts.verify_inputs
        self._redo_older = redo_older
        self._stats: dict[str, str] = {}
        self._beside: dict[tuple[Cells, int], tuple[str, str]] = {}

    def look_at(self, piece: pa.Table, places: np.ndarray[Any, Any]) -> None:
        """Look at the rows of the pairs at these places."""
        settled = self._settled
        settled.recorded[places] = True
        if self._redo:
            return
        rows = map(_Row._make, zip(*(values(piece, n) for n in _Row._fields), strict=True))
        lines = self._pairs.picked(places).outlines()
        for place, line, row in zip(places.tolist(), lines, rows, strict=True):
            if self._is_done(line, row):
                settled.done[place] = True
                settled.older[place] = row.algorithm < self._facts.algorithm
                settled.stale[place] = not self._is_stated(line, row)

    def _is_done(self, line: Outline, row: _Row) -> bool:
        if row.status != "ok" or row.output != line.output or not row.output_sha256:
            return False
        if self._redo_older and row.algorithm < self._facts.algorithm:
            return False
        if len(line.inputs) != len(row.inputs):
            return False
        hashes = {}
        for ref, (role, path, stat, sha256) in zip(line.inputs, row.inputs, strict=True):
            if role != ref.role or path != ref.written or "://" in ref.path:
                return False
            # An input that is gone counts as unchanged.
            if kept(self._stats, ref.path, _stat) not in ("", stat):
                return False
            hashes[role] = sha256
        beside = kept(self._beside, (line.cells, row.algorithm), self._beside_inputs)
        if pair_key(hashes, *beside, row.algorithm) != row.key:
            return False
        look = self._medium.look(line.output)
        if look is None or look.size != row.output_bytes or not row.finished_at:
            return False
        return self._medium.is_as_recorded(look, row.finished_at, row.output_etag)

    def _beside_inputs(self, key: tuple[Cells, int]) -> tuple[str, str]:
        cells, algorithm = key
        return self._facts.beside_inputs(self._pairs.settings.config(cells), algorithm)

    def _is_stated(self, line: Outline, row: _Row) -> bool:
        """Return whether the row of a pair that is done is up to date with the manifest."""
        return (
            row.row == line.row
            and row.content == line.inputs[0].written
            and row.style == line.style
            and row.generated_id == line.generated_id
            and row.meta == line.meta
        )


def _stat(path: str) -> str:
    try:
        return storage.stat(path)
    except OSError:
        return ""


class _Places:
    """Where each of many ids stands. Their hashes take a tenth of the memory of a dictionary."""

    def __init__(self, ids: pa.Array) -> None:
        texts = ids.to_pylist()
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts))
        order = np.argsort(hashes)
        self._ids, self._order, self._hashes = ids, order, hashes[order]
        collide = bool((np.diff(self._hashes) == 0).any())  # two ids of 10 million, once in 100,000
        self._exact = {text: at for at, text in enumerate(texts)} if collide else {}

    def find(self, ids: list[str]) -> np.ndarray[Any, Any]:
        """Return the place of each id, or -1."""
        if self._exact or not len(self._ids):
            return np.array([self._exact.get(text, -1) for text in ids], np.int64)
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        places = self._order[at]
        same = pc.equal(self._ids.take(pa.array(places)), pa.array(ids, self._ids.type))
        return np.where(same.to_numpy(zero_copy_only=False), places, -1)
