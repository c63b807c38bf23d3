"""One pair from the command line: no Ray, no index. Imports torch inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline import storage
from pipeline.progress import duration
from stylize.config import StyleConfig, parse_setting
from stylize.errors import ConfigError, ImageReadError, StylizeError
from stylize.image import Limits, decode

__all__ = ["paint_one"]


def paint_one(
    content: str,
    styles: Sequence[str],
    out: str,
    settings: Mapping[str, str],
    *,
    weights_file: str,
    convention: str,
    device: str,
    dtype: str,
    threads: int,
    limits: Limits,
    say: Callable[[str], None],
) -> str:
    """Paint `content` in the style of `styles` into the file `out`; the line to print at the end.

    Raises `StylizeError` in its forms, and `storage.StorageError`.
    """
    for name in settings:
        parse_setting(name, settings[name])
    values: dict[str, Any] = {name: parse_setting(name, text) for name, text in settings.items()}
    config = StyleConfig.of(values.pop("preset", "default"), **values)
    if convention not in ("torchvision", "caffe"):
        raise ConfigError(
            f"--weights-convention is {convention!r}; it must be torchvision or caffe"
        )
    photo = _read("content", content, limits)
    paintings = [_read("style", style, limits) for style in styles]
    init = _read("init", config.init_path, limits) if config.init_path else None
    mask = _read("mask", config.mask, limits) if config.mask else None

    import torch

    from stylize import weights
    from stylize.transfer import Stylizer

    if threads:
        torch.set_num_threads(threads)
    path = (
        weights.import_file(weights_file, convention)  # type: ignore[arg-type]
        if weights_file
        else weights.find(config.backbone, say)
    )
    stylizer = Stylizer(weights.load(path), device=device, dtype=dtype)
    result = stylizer.transfer(photo, paintings, config, init=init, mask=mask)
    from stylize.image import encode

    data = encode(result.image, os.path.splitext(out)[1], config.to_json())
    storage.put(out, data)
    return f"{out}: loss {result.loss:.4g} after {result.evaluations} evaluations, " + duration(
        result.seconds
    )


def _read(role: str, path: str, limits: Limits) -> Any:
    try:
        return decode(storage.read_bytes(path), limits)
    except OSError as error:
        raise ImageReadError(f"{role} {path}: {error.strerror or error}") from error
    except StylizeError as error:
        raise type(error)(f"{role} {path}: {error}") from error
