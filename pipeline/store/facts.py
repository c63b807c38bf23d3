"""What the files say today about a pair: its key, and the state of its picture. Reads, never
writes. Never imports torch or ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from pipeline import storage
from pipeline.plan import Picture
from pipeline.records import Input, Pair, Result, pair_key, settings_digest
from pipeline.store.folder import OutFolder
from pipeline.store.metadata import carried
from pipeline.store.rows import clean
from stylize.config import ALGORITHM
from stylize.image import is_whole

__all__ = ["FileFacts"]


class FileFacts:
    """`resume.Facts` from the storage. `weights_sha256` answers for a backbone, when asked."""

    algorithm = ALGORITHM

    def __init__(
        self, out: OutFolder, weights_sha256: Callable[[str], str], *, verify_inputs: bool = False
    ) -> None:
        self.out = out
        self._weights_sha256 = weights_sha256
        self._verify_inputs = verify_inputs
        self._stats: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        self._rows: dict[str, Result | None] = {}  # output -> what the picture there carries
        self._is_whole: dict[str, bool] = {}  # output -> whether that picture can be decoded

    def key(self, pair: Pair, result: Result) -> str:
        """The pair's key by today's files and settings and the result's algorithm; an input that
        is gone counts as it was: the picture made from it stands."""
        known = {given.role: given for given in result.inputs}
        hashes = {}
        for ref in pair.inputs:
            before = known.get(ref.role)
            try:
                now = (ref.written, self._stat(ref.path))
                same = before is not None and (before.path, before.stat) == now
                if before is not None and same and not self._verify_inputs:
                    hashes[ref.role] = before.sha256
                else:
                    hashes[ref.role] = self._hash(ref.path)
            except OSError:
                if before is None or before.path != ref.written:
                    return ""
                hashes[ref.role] = before.sha256
        return self._key(pair, hashes, result.algorithm)

    def changed(self, pair: Pair, result: Result) -> Sequence[str]:
        known = {given.role: given.sha256 for given in result.inputs}
        roles = []
        for ref in pair.inputs:
            try:
                if self._hash(ref.path) != known.get(ref.role):
                    roles.append(ref.role)
            except OSError:
                continue
        if self._weights_sha256(pair.config.backbone) != result.weights_sha256:
            roles.append("weights")
        return roles

    def picture(self, pair: Pair, result: Result | None) -> Picture:
        """Compare the file with the row: by size, and by hash where it is younger than the row."""
        path = self.out.path(pair.output)
        try:
            size, _, mtime = storage.stat(path).partition(":")
        except OSError:
            return "missing"
        if result is None:
            return "changed" if self._row_of_picture(pair) is None else "ok"
        if int(size) == result.output_bytes:
            finished = datetime.fromisoformat(result.finished_at).timestamp()
            if int(mtime) / 1e9 <= finished + 1:
                return "ok"
            if storage.sha256(path) == result.output_sha256:
                return "ok"
        # An editor leaves the row's key in a picture, or none.
        carried_row = self._row_of_picture(pair)
        return "changed" if carried_row is None or carried_row.key == result.key else "rowless"

    def adoptable(self, pair: Pair) -> Result | None:
        row = self._row_of_picture(pair)
        if row is None or not self._is_whole[pair.output]:
            return None
        try:
            inputs = tuple(
                Input(ref.role, ref.written, self._stat(ref.path), self._hash(ref.path))
                for ref in pair.inputs
            )
        except OSError:
            return None
        hashes = {given.role: given.sha256 for given in inputs}
        return (
            replace(row, inputs=inputs) if row.key == self._key(pair, hashes, ALGORITHM) else None
        )

    def restate(self, pair: Pair, result: Result) -> Result:
        """A finished pair's row as manifest and inputs have it today: the same picture, perhaps in
        another line, with other `meta` columns, or from files that were copied since."""
        known = {given.role: given for given in result.inputs}
        inputs = []
        for ref in pair.inputs:
            recorded = known[ref.role]
            with contextlib.suppress(OSError):  # gone: as it was
                stat = self._stat(ref.path)
                if stat != recorded.stat:
                    recorded = replace(recorded, stat=stat, sha256=self._hash(ref.path))
            inputs.append(replace(recorded, path=ref.written))
        today = replace(
            result,
            row=pair.row,
            content=pair.content,
            style=pair.style,
            inputs=tuple(inputs),
            generated_id=pair.generated_id,
            meta=pair.meta,
        )
        return clean(today)

    def _row_of_picture(self, pair: Pair) -> Result | None:
        """Return the row that the picture at the pair's output carries. The file is read once."""
        if pair.output not in self._rows:
            try:
                data = storage.read_bytes(self.out.path(pair.output))
            except OSError:
                data = b""
            row = carried(data, pair)
            self._rows[pair.output] = row
            self._is_whole[pair.output] = row is not None and is_whole(data)
        return self._rows[pair.output]

    def _key(self, pair: Pair, hashes: dict[str, str], algorithm: int) -> str:
        weights = self._weights_sha256(pair.config.backbone)
        return pair_key(hashes, settings_digest(pair.config, algorithm), weights, algorithm)

    def _stat(self, path: str) -> str:
        if path not in self._stats:
            self._stats[path] = storage.stat(path)
        return self._stats[path]

    def _hash(self, path: str) -> str:
        if path not in self._hashes:
            self._hashes[path] = storage.sha256(path)
        return self._hashes[path]
