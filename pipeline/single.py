"""One pair from the command line: no Ray, no index. Imports torch inside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.cost import share_done
from pipeline.display.progress import Progress, shown
from pipeline.options import Options
from pipeline.paint.backbones import GivenWeights, locate
from pipeline.text import duration
from stylize.config import StyleConfig, parse_setting, side_problem
from stylize.errors import ConfigError, ImageReadError, StylizeError
from stylize.image import Limits, decode

if TYPE_CHECKING:
    from PIL import Image

    from stylize.transfer import Stylizer

__all__ = ["SinglePair", "check_targets", "make_stylizer", "paint", "read"]


@dataclass(frozen=True)
class SinglePair:
    """One pair, its pictures decoded."""

    content: str  # as given on the command line
    styles: Sequence[str]
    config: StyleConfig
    photo: Image.Image
    paintings: list[Image.Image]
    init: Image.Image | None
    mask: Image.Image | None


def read(
    content: str, styles: Sequence[str], settings: Mapping[str, str], limits: Limits
) -> SinglePair:
    """Check the settings and read the pictures. Raises `StylizeError`."""
    values: dict[str, Any] = {name: parse_setting(name, text) for name, text in settings.items()}
    config = StyleConfig.of(values.pop("preset", "default"), **values)
    config.shares(len(styles))
    return SinglePair(
        content,
        styles,
        config,
        photo=_read("content", content, limits),
        paintings=[_read("style", style, limits) for style in styles],
        init=_read("init", config.init_path, limits) if config.init_path else None,
        mask=_read("mask", config.mask, limits) if config.mask else None,
    )


def check_targets(pair: SinglePair, targets: Iterable[str]) -> None:
    """Raise `ConfigError` where a file to be written is one that the pair is made from."""
    config = pair.config
    sources = [("photograph", pair.content), *(("style", path) for path in pair.styles)]
    sources += [("init picture", config.init_path), ("mask", config.mask)]
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
    return Stylizer(weights.load(Path(file.path)), device=options.device, dtype=options.dtype)


def paint(pair: SinglePair, out: str, stylizer: Stylizer) -> str:
    """Paint a pair into the file `out`; return the line to print.

    Raises `StylizeError`, and `storage.StorageError`.
    """
    from stylize.image import encode

    check_targets(pair, [out])
    suffix = os.path.splitext(out)[1]
    if problem := side_problem(suffix, pair.config.size):
        raise ConfigError(f"-o {out}: {problem}")
    storage.check_writable(out)
    share_of = share_done(pair.photo.size, pair.config)
    with shown(pair.content, pair.styles, pair.config.steps, share_of) as on_step:
        result = stylizer.transfer(
            pair.photo,
            pair.paintings,
            pair.config,
            init=pair.init,
            mask=pair.mask,
            on_step=on_step,
        )
    data = encode(result.image, suffix, pair.config.without_folders().to_json())
    storage.put(out, data)
    took = f"loss {result.loss:.4g} after {result.evaluations} evaluations, "
    notes = f" ({result.notes})" if result.notes else ""
    return f"{out}: {took}{duration(result.seconds)}{notes}"


def _read(role: str, path: str, limits: Limits) -> Image.Image:
    try:
        return decode(storage.read_bytes(path), limits, "black" if role == "mask" else "white")
    except OSError as error:
        raise ImageReadError(f"{role} {path}: {error.strerror or error}") from error
    except StylizeError as error:
        raise type(error)(f"{role} {path}: {error}") from error
