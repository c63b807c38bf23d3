"""What the files say today about a pair: its key, and the state of its picture. Reads, never
writes. Never imports torch or ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from pipeline import storage
from pipeline.carried import carried, written_path
from pipeline.records import Input, Pair, Result, pair_key
from pipeline.resume import Picture
from pipeline.rows import clean
from stylize.config import ALGORITHM, StyleConfig
from stylize.image import is_whole

__all__ = ["FileFacts"]


class FileFacts:
    """`resume.Facts` from the storage. `weights_sha256` answers for a backbone, when asked."""

    algorithm = ALGORITHM

    def __init__(
        self, out: str, weights_sha256: Callable[[str], str], *, verify_inputs: bool = False
    ) -> None:
        self.out = out
        self._weights_sha256 = weights_sha256
        self._verify_inputs = verify_inputs
        self._stats: dict[str, str] = {}
        self._hashes: dict[str, str] = {}

    def key(self, pair: Pair, result: Result) -> str:
        """The pair's key by today's files and settings and the result's algorithm; an input that
        is gone counts as it was: the picture made from it stands."""
        known = {given.role: given for given in result.inputs}
        hashes = {}
        for role, path in pair.inputs:
            before = known.get(role)
            try:
                now = (written_path(pair, role), self._stat(path))
                same = before is not None and (before.path, before.stat) == now
                if before is not None and same and not self._verify_inputs:
                    hashes[role] = before.sha256
                else:
                    hashes[role] = self._hash(path)
            except OSError:
                if before is None or before.path != written_path(pair, role):
                    return ""
                hashes[role] = before.sha256
        return self._key(pair, hashes, result.algorithm)

    def changed(self, pair: Pair, result: Result) -> Sequence[str]:
        known = {given.role: given.sha256 for given in result.inputs}
        roles = []
        for role, path in pair.inputs:
            try:
                if self._hash(path) != known.get(role):
                    roles.append(role)
            except OSError:
                continue
        if self._weights_sha256(pair.settings["backbone"]) != result.weights_sha256:
            roles.append("weights")
        return roles

    def picture(self, pair: Pair, result: Result | None) -> Picture:
        """By size, and by hash where the file is younger than its row."""
        path = storage.join(self.out, pair.output)
        try:
            size, _, mtime = storage.stat(path).partition(":")
        except OSError:
            return "missing"
        if result is None:
            return "changed" if carried(self._data(pair), pair) is None else "ok"
        if int(size) == result.output_bytes:
            finished = datetime.fromisoformat(result.finished_at).timestamp()
            if int(mtime) / 1e9 <= finished + 1:
                return "ok"
            if storage.sha256(path) == result.output_sha256:
                return "ok"
        # An editor leaves the row's key in a picture, or none.
        found = carried(self._data(pair), pair)
        return "changed" if found is None or found.key == result.key else "rowless"

    def adoptable(self, pair: Pair) -> bool:
        data = self._data(pair)
        result = carried(data, pair)
        if result is None:
            return False
        try:
            hashes = {role: self._hash(path) for role, path in pair.inputs}
        except OSError:
            return False
        return result.key == self._key(pair, hashes, ALGORITHM) and is_whole(data)

    def adopt(self, pair: Pair) -> Result:
        """The row of a picture that is finished but has none."""
        result = carried(self._data(pair), pair)
        assert result is not None
        with contextlib.suppress(OSError):  # gone meanwhile: then as the picture has them
            inputs = [
                Input(role, written_path(pair, role), self._stat(path), self._hash(path))
                for role, path in pair.inputs
            ]
            result = replace(result, inputs=tuple(inputs))
        return result

    def restate(self, pair: Pair, result: Result) -> Result:
        """A finished pair's row as manifest and inputs have it today: the same picture, perhaps in
        another line, with other `meta` columns, or from files that were copied since."""
        known = {given.role: given for given in result.inputs}
        inputs = []
        for role, path in pair.inputs:
            given = known[role]
            with contextlib.suppress(OSError):  # gone: as it was
                stat = self._stat(path)
                if stat != given.stat:
                    given = replace(given, stat=stat, sha256=self._hash(path))
            inputs.append(replace(given, path=written_path(pair, role)))
        today = replace(
            result,
            row=pair.row,
            content=pair.content,
            style=pair.style,
            inputs=tuple(inputs),
            meta=pair.meta,
        )
        return clean(today)

    def _data(self, pair: Pair) -> bytes:
        try:
            return storage.read_bytes(storage.join(self.out, pair.output))
        except OSError:
            return b""

    def _key(self, pair: Pair, hashes: dict[str, str], algorithm: int) -> str:
        config = StyleConfig(**pair.settings)
        weights = self._weights_sha256(config.backbone)
        return pair_key(hashes, config.digest(algorithm), weights, algorithm)

    def _stat(self, path: str) -> str:
        if path not in self._stats:
            self._stats[path] = storage.stat(path)
        return self._stats[path]

    def _hash(self, path: str) -> str:
        if path not in self._hashes:
            self._hashes[path] = storage.sha256(path)
        return self._hashes[path]
