"""Facts about a pair as the files are today: its key, and the state of its picture.

Only reads. Never imports torch or ray.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline import storage
from pipeline.plan import Picture, settings_changed
from pipeline.records import Input, InputRef, Pair, Result, pair_key, settings_digest
from pipeline.side_by_side import side_by_side
from pipeline.store.folder import OutFolder
from pipeline.store.medium import Found
from pipeline.store.rows import clean
from stylize.config import ALGORITHM, StyleConfig

__all__ = ["FileFacts"]


class FileFacts:
    """The `plan.Facts` of an output folder, read from its files and from the inputs.

    `weights_sha256` returns the SHA-256 of a backbone's weights; it is called only when needed.
    With `verify_inputs` every input is hashed, even if its size and time are unchanged.
    """

    algorithm = ALGORITHM

    def __init__(
        self, out: OutFolder, weights_sha256: Callable[[str], str], *, verify_inputs: bool = False
    ) -> None:
        self.out = out
        self._weights_sha256 = weights_sha256
        self.verify_inputs = verify_inputs
        self._stats: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        self._found: dict[str, Found] = {}  # output -> what its picture carries

    def look_ahead(self, pairs: Sequence[Pair], results: Mapping[str, Result]) -> None:
        """Ask side by side for what a plan will ask for: each answer of object storage takes tens
        of milliseconds, and one after another that is minutes for a large manifest."""
        known = [pair for pair in pairs if pair.pair_id in results]
        medium = self.out.medium
        if medium.is_remote:
            unrecorded = [
                pair
                for pair in pairs
                if not _is_ok(results.get(pair.pair_id)) and medium.has_picture(pair.output)
            ]
            side_by_side(self._found_at, unrecorded)
            known += unrecorded
        remote = {r.path for p in known for r in p.inputs if storage.is_remote(r.path)}
        self._stats |= storage.stats(remote)

    def key(self, pair: Pair, result: Result) -> str:
        """Return the pair's key by today's files and settings and the result's algorithm.

        An input that is gone counts as unchanged, because the picture made from it is still good.
        Return "" if an input cannot be read and the result does not know it under this path.
        """
        recorded = {source.role: source for source in result.inputs}
        hashes = {}
        for ref in pair.inputs:
            before = recorded.get(ref.role)
            try:
                now = (ref.written, self._stat(ref.path))
                same = before is not None and (before.path, before.stat) == now
                if before is not None and same and not self.verify_inputs:
                    hashes[ref.role] = before.sha256
                else:
                    hashes[ref.role] = self._hash(ref.path)
            except OSError:
                if before is None or before.path != ref.written:
                    return ""
                hashes[ref.role] = before.sha256
        return self._key(pair, hashes, result.algorithm)

    def changed(self, pair: Pair, result: Result) -> Sequence[str]:
        """Return the roles of the inputs, and "weights", whose bytes differ from the result's."""
        recorded = {source.role: source.sha256 for source in result.inputs}
        roles = []
        for ref in pair.inputs:
            try:
                if self._hash(ref.path) != recorded.get(ref.role):
                    roles.append(ref.role)
            except OSError:
                continue
        if self._weights_sha256(pair.config.backbone) != result.weights_sha256:
            roles.append("weights")
        return roles

    def picture(self, pair: Pair, result: Result | None) -> Picture:
        """Return the state of the picture: see `plan.Facts.picture`.

        It is compared with the row by size, and by hash if the file is newer than the row.
        """
        look = self.out.medium.look(pair.output)
        if look is None:
            return "missing"
        if result is None:
            return "changed" if self._found_at(pair).row is None else "ok"
        if look.size == result.output_bytes:
            if self.out.medium.is_as_recorded(look, result.finished_at, result.output_etag):
                return "ok"
            if storage.sha256(self.out.path(pair.output)) == result.output_sha256:
                return "ok"
        # An image editor keeps the key in the metadata, or drops all metadata.
        carried_row = self._found_at(pair).row
        return "changed" if carried_row is None or carried_row.key == result.key else "rowless"

    def adoptable(self, pair: Pair) -> Result | None:
        """Return the row that the pair's picture carries, if its key is today's, else None.

        Inputs are hashed only if the picture has today's settings.
        """
        found = self._found_at(pair)
        row = found.row
        if row is None or not found.is_whole:
            return None
        try:
            inputs = tuple(self._today(ref, row) for ref in pair.inputs)
        except OSError:
            return None
        hashes = {source.role: source.sha256 for source in inputs}
        is_current = row.key == self._key(pair, hashes, ALGORITHM)
        return replace(row, inputs=inputs) if is_current else None

    def restate(self, pair: Pair, result: Result) -> Result:
        """Return a finished pair's row, brought up to date with the manifest and the inputs.

        The picture is the same, but its row of the manifest may have moved, its `meta` columns may
        have changed, or its inputs may have been copied.
        """
        recorded = {source.role: source for source in result.inputs}
        if self._is_stated(pair, result, recorded):
            return result
        inputs = []
        for ref in pair.inputs:
            source = recorded[ref.role]
            with contextlib.suppress(OSError):  # an input that is gone stays as recorded
                stat = self._stat(ref.path)
                if stat != source.stat:
                    source = source._replace(stat=stat, sha256=self._hash(ref.path))
            inputs.append(source._replace(path=ref.written))
        look = self.out.medium.look(pair.output) if self.out.medium.is_remote else None
        today = replace(
            result,
            row=pair.row,
            content=pair.content,
            style=pair.style,
            inputs=tuple(inputs),
            generated_id=pair.generated_id,
            output_etag=look.etag if look else result.output_etag,
            meta=pair.meta,
        )
        return clean(today)

    def _is_stated(self, pair: Pair, result: Result, recorded: Mapping[str, Input]) -> bool:
        """Return whether a finished pair's row is up to date, as nearly all are."""
        today = (pair.row, pair.content, pair.style, pair.generated_id, pair.meta)
        row = (result.row, result.content, result.style, result.generated_id, result.meta)
        return today == row and all(
            (recorded[ref.role].path, recorded[ref.role].stat)
            == (ref.written, self._stats.get(ref.path))
            for ref in pair.inputs
        )

    def _today(self, ref: InputRef, row: Result) -> Input:
        """Return an input as it is today. It is hashed unless the row has the hash for its stat."""
        stat = self._stat(ref.path)
        for source in row.inputs:
            if source.role == ref.role and source.stat == stat and not self.verify_inputs:
                return Input(ref.role, ref.written, stat, source.sha256)
        return Input(ref.role, ref.written, stat, self._hash(ref.path))

    def _found_at(self, pair: Pair) -> Found:
        """Return what the picture at the pair's output carries. Each file is read once."""
        if pair.output not in self._found:
            self._found[pair.output] = self.out.medium.found(
                pair.output, pair, functools.partial(self._has_todays_settings, pair)
            )
        return self._found[pair.output]

    def _has_todays_settings(self, pair: Pair, row: Result) -> bool:
        """Return False if what a picture carries shows that it is not today's."""
        # It carries no folders, so a path may differ and still be the same file.
        changes = settings_changed(pair, row).keys() - {"init", "mask", "style_mask"}
        return not changes and row.weights_sha256 == self._weights_sha256(pair.config.backbone)

    def _key(self, pair: Pair, hashes: dict[str, str], algorithm: int) -> str:
        return pair_key(hashes, *self.beside_inputs(pair.config, algorithm), algorithm)

    def beside_inputs(self, config: StyleConfig, algorithm: int) -> tuple[str, str]:
        """Return what else a key is made of: the settings' digest and the hash of the weights."""
        return settings_digest(config, algorithm), self._weights_sha256(config.backbone)

    def _stat(self, path: str) -> str:
        if path not in self._stats:
            self._stats[path] = storage.stat(path)
        return self._stats[path]

    def _hash(self, path: str) -> str:
        if path not in self._hashes:
            self._hashes[path] = storage.sha256(path)
        return self._hashes[path]


def _is_ok(result: Result | None) -> bool:
    return result is not None and result.status == "ok"
