"""Reads what a pair is made of. Imports torch inside; never ray."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.look_alikes import why_missing
from pipeline.records import Input, InputRef
from stylize.config import AT_ONCE, StyleConfig
from stylize.errors import ImageReadError, StylizeError
from stylize.image import Limits, decode, opened

if TYPE_CHECKING:
    from PIL import Image

    from stylize.inputs import Painting, Photograph

__all__ = ["InputReader"]

_KEPT_PIXELS = 4 * AT_ONCE
"""Pixels of decoded style pictures that are kept."""

_KEPT_BYTES = 256_000_000
"""Bytes of style files that are kept, so that object storage is asked once for each."""

_PaintingKey = tuple[str, int, str]
"""SHA-256 of a style picture's file, its longer side in use, and the setting `margins`."""


class InputReader:
    """Reads inputs, and keeps the latest style pictures. Several threads may read at once."""

    def __init__(self, folder: str, limits: Limits) -> None:
        self._folder = folder  # where relative paths start
        self._limits = limits
        self._paintings: dict[_PaintingKey, Painting] = {}
        self._fetched: dict[str, tuple[str, bytes]] = {}  # stat and bytes of styles, by path
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._decoding: defaultdict[_PaintingKey, threading.Lock] = defaultdict(threading.Lock)

    def read(
        self, ref: InputRef, config: StyleConfig, *, transparent: bool = True
    ) -> tuple[Input, Image.Image | Painting | Photograph]:
        """Hash and decode one input from the same bytes, and shrink it to the size that is needed.

        `transparent` tells whether the result's format has an alpha. Raises `StylizeError`, naming
        the role and the path as written. Its cause is an `OSError` where the input could not even
        be opened.
        """
        name = f"{ref.role} {ref.written}"
        path = storage.join(self._folder, ref.path)
        try:
            stat, data = self._bytes(ref, path)
        except FileNotFoundError as error:
            why = why_missing(storage.local_path(path), ref.written)
            where = f" at {storage.shown(path)}" if storage.is_remote(path) else ""
            raise ImageReadError(f"{name}: there is no such file{where}{why}") from error
        except OSError as error:
            raise ImageReadError(f"{name}: {error.strerror or error}") from error
        digest = hashlib.sha256(data).hexdigest()
        try:
            picture = self._decoded(ref, data, digest, config, transparent)
        except StylizeError as error:
            raise type(error)(f"{name}: {error}") from error
        return Input(ref.role, ref.written, stat, digest), picture

    def _bytes(self, ref: InputRef, path: str) -> tuple[str, bytes]:
        """Return a file's stat and bytes. A style on object storage is fetched once."""
        if not (ref.is_style and storage.is_remote(path)):
            return storage.read(path)
        with self._fetching[path]:
            fetched = self._fetched.pop(path, None) or storage.read(path)
            self._fetched[path] = fetched  # the latest is the last
        for oldest in list(self._fetched):
            if sum(len(data) for _, data in list(self._fetched.values())) > _KEPT_BYTES:
                self._fetched.pop(oldest, None)
        return fetched

    def _decoded(
        self, ref: InputRef, data: bytes, digest: str, config: StyleConfig, transparent: bool
    ) -> Image.Image | Painting | Photograph:
        from stylize.inputs import Photograph

        if ref.is_style:
            return self._painting(data, digest, config)
        if ref.role == "content":
            image = opened(data, self._limits)
            return Photograph.of(image, config, transparent=transparent)
        return decode(data, self._limits, "black" if ref.is_mask else "white")

    def _painting(self, data: bytes, digest: str, config: StyleConfig) -> Painting:
        """Return a style picture, decoded once while it is among the latest."""
        from stylize.inputs import Painting

        key = (digest, config.style_side(config.side), config.margins)
        with self._decoding[key]:
            painting = self._paintings.get(key)
            if painting is None:
                painting = Painting.of(decode(data, self._limits), config)
                self._paintings[key] = painting
        self._forget_oldest(key)
        return painting

    def _forget_oldest(self, latest: _PaintingKey) -> None:
        pixels = 0
        for key, painting in reversed(list(self._paintings.items())):
            pixels += math.prod(painting.picture.size)
            if pixels > _KEPT_PIXELS and key != latest:
                self._paintings.pop(key, None)
