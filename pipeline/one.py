"""One pair from the command line: no Ray, no index. Imports torch inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.progress import shown
from pipeline.timing import share_done
from pipeline.words import duration
from stylize.config import StyleConfig, parse_setting, side_problem
from stylize.errors import ConfigError, ImageReadError, StylizeError
from stylize.image import Limits, decode

if TYPE_CHECKING:
    from PIL import Image

    from stylize.transfer import Stylizer

__all__ = ["One", "check_targets", "paint_one", "read_one"]


@dataclass(frozen=True)
class One:
    """One pair, its pictures decoded."""

    content: str  # as given on the command line
    styles: Sequence[str]
    config: StyleConfig
    photo: Image.Image
    paintings: list[Image.Image]
    init: Image.Image | None
    mask: Image.Image | None


def read_one(
    content: str, styles: Sequence[str], settings: Mapping[str, str], limits: Limits
) -> One:
    """Settings checked and pictures read. Raises `StylizeError` in its forms."""
    values: dict[str, Any] = {name: parse_setting(name, text) for name, text in settings.items()}
    config = StyleConfig.of(values.pop("preset", "default"), **values)
    config.shares(len(styles))
    return One(
        content,
        styles,
        config,
        photo=_read("content", content, limits),
        paintings=[_read("style", style, limits) for style in styles],
        init=_read("init", config.init_path, limits) if config.init_path else None,
        mask=_read("mask", config.mask, limits) if config.mask else None,
    )


def check_targets(one: One, targets: Iterable[str]) -> None:
    """Raise `ConfigError` where a file to be written is one that the pair is made from."""
    config = one.config
    given = [("photograph", one.content), *(("style", path) for path in one.styles)]
    given += [("init picture", config.init_path), ("mask", config.mask)]
    for target in targets:
        for role, path in given:
            if path and storage.same_file(target, path):
                raise ConfigError(f"-o: {target} is the {role}, and would be lost; choose another")


def make_stylizer(
    backbone: str,
    *,
    weights_file: str,
    convention: str,
    device: str,
    dtype: str,
    threads: int,
    say: Callable[[str], None],
) -> Stylizer:
    """The backbone of a config, or that of a file, ready. Raises `StylizeError` in its forms."""
    import torch

    from stylize import weights
    from stylize.device import choose_device
    from stylize.transfer import Stylizer

    choose_device(device)  # before anything is downloaded
    if convention not in ("torchvision", "caffe"):
        raise ConfigError(
            f"--weights-convention is {convention!r}; it must be torchvision or caffe"
        )
    if threads:
        torch.set_num_threads(threads)
    path = (
        weights.import_file(weights_file, convention)  # type: ignore[arg-type]
        if weights_file
        else weights.find(backbone, say)
    )
    return Stylizer(weights.load(path), device=device, dtype=dtype)


def paint_one(one: One, out: str, stylizer: Stylizer) -> str:
    """Paint a pair into the file `out`; the line to print at the end.

    Raises `StylizeError` in its forms, and `storage.StorageError`.
    """
    from stylize.image import encode

    check_targets(one, [out])
    suffix = os.path.splitext(out)[1]
    if problem := side_problem(suffix, one.config.size):
        raise ConfigError(f"-o {out}: {problem}")
    storage.check_writable(out)
    share_of = share_done(one.photo.size, one.config)
    with shown(one.content, one.styles, one.config.steps, share_of) as on_step:
        result = stylizer.transfer(
            one.photo,
            one.paintings,
            one.config,
            init=one.init,
            mask=one.mask,
            on_step=on_step,
        )
    data = encode(result.image, suffix, one.config.without_folders().to_json())
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
