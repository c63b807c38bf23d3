"""Which weights a run uses, and where they are. Never imports torch or ray."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import storage
from pipeline.manifest.pairs import Cells, Manifest, kept
from pipeline.manifest.table import ManifestError, Problem
from pipeline.store.folder import Fixed, OutFolder
from stylize import weights
from stylize.config import StyleConfig
from stylize.errors import ConfigError, WeightsError
from stylize.weights import Convention, OnBytes

__all__ = ["Backbones", "GivenWeights", "UnableError", "WeightsFile", "local_weights", "locate"]


class UnableError(Exception):
    """The run cannot go on, for a reason outside the pairs. The text has the remedy."""


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine."""

    path: str
    backbone: str
    sha256: str


@dataclass(frozen=True)
class GivenWeights:
    """What --weights and --weights-convention say. A path of "" means none."""

    path: str = ""
    convention: Convention = "torchvision"

    def read(self, *, keep: bool = True) -> WeightsFile | None:
        """Bring the file to the project's form and return it; None where none was given.

        With `keep` the converted file stays in the cache. Raises `WeightsError`.
        """
        if not self.path:
            return None
        if keep:
            path = weights.import_file(self.path, self.convention)
            return WeightsFile(str(path), *weights.identity(path))
        with tempfile.TemporaryDirectory(prefix="stylize-weights-") as folder:
            target = Path(folder, "weights.safetensors")
            path = weights.import_file(self.path, self.convention, target=target)
            return WeightsFile(str(path), *weights.identity(path))


class Backbones:
    """The weights of a run: those that the first run of OUT fixed, else those that can be had.

    They are looked for when they are first asked for. `auto` stays what the first run made of it.
    A `dry` one neither downloads nor keeps anything.
    Raises `UnableError` where weights cannot be had, or are not those that OUT was begun with.
    """

    def __init__(
        self,
        out: OutFolder,
        given: GivenWeights,
        say: Callable[[str], None],
        on_bytes: OnBytes | None = None,
        *,
        dry: bool = False,
    ) -> None:
        fixed = out.read_fixed()
        self._out = out
        self._given_weights = given
        self._say = say
        self._on_bytes = on_bytes
        self._dry = dry
        self._auto = fixed.backbone
        self._hashes = dict(fixed.weights)  # backbone -> SHA-256
        self._paths: dict[str, str] = {}

    def resolve(self, pairs: Manifest) -> Manifest:
        """Return the pairs with `auto` replaced by the backbone that it stands for.

        Raises `ManifestError` for pairs with layers that the backbone lacks, and `UnableError`,
        also if no pair uses the backbone of --weights.
        """
        settings, wanted, problems = pairs.settings, set(), []
        known: dict[Cells, tuple[str, str]] = {}

        def backbone_of(cells: Cells) -> tuple[str, str]:
            few = settings.narrow(cells, ("backbone", "content_layers", "style_layers"))
            return kept(known, few, lambda c: self._backbone(settings.config(c)))

        for row, cells in pairs.cells():
            backbone, reason = kept(known, cells, backbone_of)
            wanted.add(backbone)
            if reason:
                problems.append(Problem(row, None, "", reason))
        if problems:
            raise ManifestError(problems)
        if self._given is not None and self._given.backbone not in wanted:
            raise UnableError(
                f"--weights is a {self._given.backbone}, and the pairs want "
                f"{' and '.join(sorted(wanted))}; give such a file, or set --backbone "
                f"{self._given.backbone} and choose another --out"
            )
        return pairs.with_backbone(self._auto) if self._auto else pairs

    def _backbone(self, config: StyleConfig) -> tuple[str, str]:
        """Return the backbone that settings mean, and why they do not fit it, or ""."""
        if config.backbone != "auto":
            return config.backbone, ""
        if not self._auto:
            self._find("auto")
        try:
            config.changed(backbone=self._auto)
        except ConfigError as error:
            return self._auto, str(error)
        return self._auto, ""

    def sha256(self, backbone: str) -> str:
        """Return the identity of a backbone's weights."""
        if backbone == "auto" and self._auto:
            backbone = self._auto
        if backbone not in self._hashes:
            self._find(backbone)
        return self._hashes[self._auto if backbone == "auto" else backbone]

    def paths(self, backbones: Sequence[str]) -> dict[str, str]:
        """Return backbone -> file, checked to hold what OUT was begun with."""
        for backbone in backbones:
            if backbone not in self._paths:
                self._find(backbone)
        return {backbone: self._paths[backbone] for backbone in backbones}

    def fix(self) -> None:
        """Fix for later runs what this one uses.

        Raises `UnableError` where another shard has just fixed something else.
        """
        self._out.fix_by(self._with_ours)

    def _with_ours(self, fixed: Fixed) -> dict[str, object]:
        theirs = {name: fixed.weights.get(name, ours) for name, ours in self._hashes.items()}
        another = bool(fixed.backbone) and self._auto not in ("", fixed.backbone)
        if another or theirs != self._hashes:
            began = fixed.backbone or "other weights"
            raise UnableError(
                f"another shard has begun this output with {began}, and this machine has other "
                "weights; give all of them the same with --weights"
            )
        weights = {**fixed.weights, **self._hashes}
        return {"backbone": self._auto or fixed.backbone, "weights": weights}

    def _find(self, backbone: str) -> None:
        try:
            given, download = self._given, not self._dry
            file = locate(backbone, given, self._say, self._on_bytes, download=download)
        except WeightsError as error:
            raise UnableError(str(error)) from error
        name, sha256 = file.backbone, file.sha256
        if self._hashes.setdefault(name, sha256) != sha256:
            raise UnableError(
                f"this output was begun with other {name} weights ({self._hashes[name][:12]}…, "
                f"these are {sha256[:12]}…); give those with --weights, or choose another --out"
            )
        if backbone == "auto":
            self._auto = name
        self._paths[name] = file.path

    @functools.cached_property
    def _given(self) -> WeightsFile | None:
        """The file of --weights, read once. Raises `UnableError`."""
        try:
            return self._given_weights.read(keep=not self._dry)
        except WeightsError as error:
            raise UnableError(str(error)) from error


def locate(
    backbone: str,
    given: WeightsFile | None,
    say: Callable[[str], None],
    on_bytes: OnBytes | None = None,
    *,
    download: bool = True,
) -> WeightsFile:
    """Return the file for a backbone: the one that was given if it fits, else the project's own.

    `download` allows fetching VGG-19, of which `on_bytes` is told. Raises `WeightsError`.
    """
    if given is not None and backbone in ("auto", given.backbone):
        return given
    path = weights.find(backbone, say, download=download, on_bytes=on_bytes)
    return WeightsFile(str(path), *weights.identity(path))


def local_weights(path: str) -> Path:
    """Return a weights file of this machine; a copy on object storage is fetched to the cache once.

    Raises `OSError` and `StorageError`.
    """
    if not storage.is_remote(path):
        return Path(path)
    target = weights.cache_folder() / "from-out" / path.rpartition("/")[2]  # the name has the hash
    if not target.exists():
        storage.put(str(target), storage.read_bytes(path))
    return target
