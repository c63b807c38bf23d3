"""The demo: a manifest and pictures that ship with the program. Never imports torch or ray."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline import storage
from stylize.errors import ConfigError

__all__ = ["lay_out", "manifest_in"]

_INSTALLED = Path(__file__).parent / "assets" / "demo"  # where pyproject.toml has it put
_CHECKOUT = Path(__file__).parents[1] / "manifests"


def manifest_in(folder: str) -> str:
    """Return where the demo's manifest is in a folder."""
    return os.path.join(folder, "demo.csv")


def lay_out(folder: str, settings: Mapping[str, str]) -> None:
    """Write the demo's manifest and pictures into a folder.

    `settings` take the place of the manifest's own cells. Files of the demo that are there already
    stay, so that it can be run again. Raises `ConfigError` where another file is in the way, and
    `StorageError`.
    """
    source = _INSTALLED if _INSTALLED.exists() else _CHECKOUT
    with open(source / "demo.csv", encoding="utf-8", newline="") as file:
        rows = [{**row, **settings} for row in csv.DictReader(file)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    pictures = {row[role] for row in rows for role in ("content", "style")}
    files = {os.path.join(folder, name): (source / name).read_bytes() for name in sorted(pictures)}
    files[manifest_in(folder)] = text.getvalue().encode()
    there = {path for path in files if os.path.lexists(path)}
    for path in there:
        if not os.path.isfile(path) or storage.read_bytes(path) != files[path]:
            raise ConfigError(
                f"{path} is there and differs from the demo's; choose another folder"
                + (f", or run stylize-batch {path}" if path == manifest_in(folder) else "")
            )
    for path in files.keys() - there:
        storage.put(path, files[path])
