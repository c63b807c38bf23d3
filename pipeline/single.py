"""One pair from the command line: no Ray, no index. Imports torch inside."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import storage
from pipeline.cost import share_done
from pipeline.display.progress import Progress, shown
from pipeline.options import Options
from pipeline.paint.backbones import GivenWeights, locate
from pipeline.records import column_of, numbered
from pipeline.text import duration
from stylize.config import (
    ALGORITHM,
    StyleConfig,
    depth_problem,
    format_of,
    has_alpha,
    parse_setting,
    side_problem,
)
from stylize.errors import ConfigError, ImageReadError, StylizeError
from stylize.image import Limits, decode, opened

if TYPE_CHECKING:
    from PIL import Image

    from stylize.inputs import Photograph
    from stylize.transfer import Stylizer

__all__ = ["SinglePair", "check_targets", "make_stylizer", "paint", "read"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class SinglePair:
    """One pair, its pictures decoded."""

    content: str  # as given on the command line
    styles: Sequence[str]
    config: StyleConfig  # with the size in pixels
    photo: Photograph
    paintings: list[Image.Image]
    init: Image.Image | None
    masks: Sequence[Image.Image]
    style_masks: Sequence[Image.Image | None]
    inputs: Sequence[Mapping[str, str]] = ()  # role, name and hash of each file

    def metadata(self, stylizer: Stylizer) -> str:
        """Return the JSON that the picture carries: its settings, and what it is made of."""
        import torch

        made = {
            "inputs": self.inputs,
            "backbone": stylizer.weights.backbone,
            "weights_sha256": stylizer.weights.sha256,
            "algorithm": ALGORITHM,
            "device": str(stylizer.device),
            "dtype": str(stylizer.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "tile": stylizer.tile,
            "compile": stylizer.compile,
        }
        settings = json.loads(self.config.without_folders().to_json())
        return json.dumps({**settings, "made": made}, sort_keys=True, separators=(",", ":"))


def read(
    content: str,
    styles: Sequence[str],
    settings: Mapping[str, str],
    limits: Limits,
    *,
    suffix: str = ".png",
) -> SinglePair:
    """Check the settings and read the pictures, for a result with this suffix.

    Raises `StylizeError`.
    """
    from stylize.inputs import Photograph

    config = _settings_for(settings, len(styles), suffix)
    inputs: list[Mapping[str, str]] = []

    def photograph(data: bytes) -> Photograph:
        return Photograph.of(opened(data, limits), config, transparent=has_alpha(suffix))

    def picture(role: str, path: str) -> Image.Image:
        ground = "black" if column_of(role) in ("mask", "style_mask") else "white"
        return _read(role, path, lambda data: decode(data, limits, ground), inputs)

    photo = _read("content", content, photograph, inputs)
    paintings = [picture(role, path) for role, path in numbered("style", styles).items()]
    return SinglePair(
        content,
        styles,
        config.sized(photo.size),
        photo=photo,
        paintings=paintings,
        init=picture("init", config.init_path) if config.init_path else None,
        masks=[picture(role, path) for role, path in numbered("mask", config.masks).items()],
        style_masks=[
            picture(role, path) if path else None
            for role, path in numbered("style_mask", config.style_masks).items()
        ],
        inputs=inputs,
    )


def _settings_for(settings: Mapping[str, str], styles: int, suffix: str) -> StyleConfig:
    """Return the settings of a result with this suffix. Raises `ConfigError`."""
    values: dict[str, Any] = {name: parse_setting(name, text) for name, text in settings.items()}
    actual = format_of(suffix)
    if values.setdefault("format", actual) != actual:
        raise ConfigError(
            f"--format {values['format']} differs from the ending of -o, {suffix}; leave one of "
            "them out"
        )
    config = StyleConfig.of(values.pop("preset", "default"), **values)
    config.shares(styles)
    if problem := depth_problem(suffix, config.bits):
        raise ConfigError(f"-o: {problem}")
    return config


def check_targets(pair: SinglePair, targets: Iterable[str]) -> None:
    """Raise `ConfigError` where a file to be written is one that the pair is made from."""
    config = pair.config
    sources = [("photograph", pair.content), *(("style", path) for path in pair.styles)]
    masks = (*config.masks, *config.style_masks)
    sources += [("init picture", config.init_path), *(("mask", path) for path in masks)]
    for target in targets:
        for role, path in sources:
            if path and storage.same_file(target, path):
                raise ConfigError(f"-o: {target} is the {role}, and would be lost; choose another")


def make_stylizer(backbone: str, options: Options) -> Stylizer:
    """Return the backbone of a config, or that of --weights, ready to paint.

    Raises `StylizeError`.
    """
    import torch

    from stylize import weights
    from stylize.device import choose_device
    from stylize.transfer import Stylizer

    choose_device(options.device)  # before anything is downloaded
    if options.threads:
        torch.set_num_threads(options.threads)
    given = GivenWeights(options.weights, options.weights_convention).read()
    if given is not None and backbone not in ("auto", given.backbone):
        raise ConfigError(
            f"--weights is a {given.backbone}, and --backbone is {backbone}; give a {backbone} "
            "file, or leave out --backbone"
        )
    with Progress([]) as progress:
        file = locate(backbone, given, progress.note, progress.download)
    return Stylizer(
        weights.load(Path(file.path)),
        device=options.device,
        dtype=options.dtype,
        tile=options.tile,
        compile=options.compile,
    )


def paint(pair: SinglePair, out: str, stylizer: Stylizer) -> str:
    """Paint a pair into the file `out`; return the line to print.

    Raises `StylizeError`, and `storage.StorageError`.
    """
    check_targets(pair, [out])
    suffix = os.path.splitext(out)[1]
    if problem := side_problem(suffix, pair.config.side):
        raise ConfigError(f"-o {out}: {problem}")
    storage.check_writable(out)
    share_of = share_done(pair.photo.picture.size, pair.config)
    with shown(pair.content, pair.styles, pair.config.steps, share_of) as on_step:
        result = stylizer.transfer(
            pair.photo,
            pair.paintings,
            pair.config,
            init=pair.init,
            mask=pair.masks,
            style_mask=pair.style_masks,
            on_step=on_step,
        )
    data = result.encode(suffix, pair.metadata(stylizer))
    storage.put(out, data)
    took = f"loss {result.loss:.4g} after {result.evaluations} evaluations, "
    notes = f" ({result.notes})" if result.notes else ""
    return f"{out}: {took}{duration(result.seconds)}{notes}"


def _read(
    role: str, path: str, convert: Callable[[bytes], _T], inputs: list[Mapping[str, str]]
) -> _T:
    """Return what `convert` makes of a file's bytes, and add the file to the inputs."""
    name = f"{column_of(role)} {path}"
    try:
        data = storage.read_bytes(path)
        sha256 = hashlib.sha256(data).hexdigest()
        inputs.append({"role": role, "path": os.path.basename(path), "sha256": sha256})
        return convert(data)
    except OSError as error:
        raise ImageReadError(f"{name}: {error.strerror or error}") from error
    except StylizeError as error:
        raise type(error)(f"{name}: {error}") from error
