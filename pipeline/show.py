"""How a picture was made, by what it carries, and the command that makes it again.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.records import Result, column_of, join_styles, numbered
from pipeline.store.folder import OutFolder
from pipeline.store.reading import read_results
from pipeline.views.originals import Inputs
from stylize.config import ALGORITHM, INIT_WORDS, SETTINGS, StyleConfig, as_text
from stylize.errors import ConfigError, StylizeError
from stylize.image import Limits, read_metadata, upright_size

__all__ = ["Shown", "limits_for", "show"]

_LEFT_OUT = ("preset", "format", "backbone", "init", "mask", "style_mask")
"""Settings that the command gives in another way."""

_OF_THE_PAIR = ("pair_id", "evaluations", "stop_reason", "loss", "notes")
_OF_THE_MACHINE = (
    *("backbone", "weights_sha256", "algorithm", "device", "dtype", "threads", "tile", "compile"),
)


@dataclass
class Shown:
    """What there is to say of a picture."""

    facts: dict[str, str] = field(default_factory=dict)
    command: str = ""
    notes: list[str] = field(default_factory=list)


def show(picture: str, folder: str = "", out: str = "") -> Shown:
    """Read how a picture was made. Raises `ConfigError` for a picture that does not tell.

    Its inputs are looked for by name and hash: where the run that made it had them, in `folder` and
    below, here, and beside the picture. The command writes `out`.
    """
    try:
        text = read_metadata(storage.read_bytes(picture))
        carried: dict[str, Any] = json.loads(text) if text else {}
    except OSError as error:
        raise ConfigError(f"{picture} cannot be read: {error.strerror or error}") from error
    except ValueError:
        carried = {}
    settings = carried.get("settings") or {n: v for n, v in carried.items() if n in SETTINGS}
    if not settings:
        raise ConfigError(
            f"{picture} does not tell how it was made: it is not from this program, or another one "
            "has saved it since"
        )
    made: Mapping[str, Any] = carried.get("made", carried)
    shown = Shown()
    paths = _find_inputs(made.get("inputs", []), picture, folder, shown.notes)
    shown.facts = _facts(carried, made, settings, paths)
    target = out or f"again{Path(picture).suffix.lower()}"
    shown.command = shlex.join(_command(made, settings, paths, target))
    shown.notes += _warnings(carried, made)
    return shown


def _facts(
    carried: Mapping[str, Any],
    made: Mapping[str, Any],
    settings: Mapping[str, Any],
    paths: Mapping[str, str],
) -> dict[str, str]:
    facts = dict(paths)
    for source, names in ((carried, _OF_THE_PAIR), (made, _OF_THE_MACHINE)):
        facts |= {name: as_text("", source[name]) for name in names if source.get(name)}
    facts["preset"] = str(settings.get("preset", "default"))
    return facts | dict(_changed(settings))


def _changed(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the settings that differ from their preset's, as text."""
    preset = StyleConfig.of(settings.get("preset", "default"))
    for name in SETTINGS:
        if name in settings and name not in _LEFT_OUT:
            text = as_text(name, settings[name])
            if text != as_text(name, getattr(preset, name)):
                yield name, text
    init = str(settings.get("init", preset.init))
    if init in INIT_WORDS and init != preset.init:
        yield "init", init


def _command(
    made: Mapping[str, Any], settings: Mapping[str, Any], paths: Mapping[str, str], out: str
) -> list[str]:
    styles, masks = (
        [path for role, path in paths.items() if column_of(role) == column]
        for column in ("style", "mask")
    )
    content, style = paths.get("content", "CONTENT"), join_styles(styles or ["STYLE"])
    options = {"preset": str(settings.get("preset", "default")), **dict(_changed(settings))}
    if options["preset"] == "default":
        del options["preset"]
    # A style without a mask leaves its place between the bars empty.
    of_styles = [paths.get(role, "") for role in numbered("style_mask", styles)]
    given = {
        "init": paths.get("init", ""),
        "mask": join_styles(masks),
        "style_mask": join_styles(of_styles) if any(of_styles) else "",
    }
    options |= {name: path for name, path in given.items() if path}
    options["backbone"] = str(made.get("backbone") or settings.get("backbone", "auto"))
    options["device"] = str(made.get("device", "auto")).partition(":")[0]
    options["dtype"] = str(made.get("dtype", "auto"))
    if options["device"] == "cpu" and made.get("threads"):
        options["threads"] = str(made["threads"])
    if made.get("tile"):
        options["tile"] = str(made["tile"])
    options |= limits_for(paths.values())
    flags = [part for n, text in options.items() for part in (f"--{n.replace('_', '-')}", text)]
    flags += ["--compile"] if made.get("compile") else []
    return ["stylize-batch", "pair", content, style, "-o", out, *flags]


def limits_for(paths: Iterable[str]) -> dict[str, str]:
    """Return the options without which one of these pictures is too large to be read."""
    usual, none = Limits(), Limits(side=10**9, megapixels=1e9)
    sizes = []
    for path in paths:
        with contextlib.suppress(OSError, StylizeError):  # it is not there, or not as it was
            sizes.append(upright_size(storage.read_bytes(path), none))
    side = max((max(size) for size in sizes), default=0)
    megapixels = max((math.prod(size) for size in sizes), default=0) / 1e6
    options = {"max_side": str(side)} if side > usual.side else {}
    return options | (
        {"max_megapixels": str(math.ceil(megapixels))} if megapixels > usual.megapixels else {}
    )


def _warnings(carried: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """Yield why the command may give other pixels."""
    if not made.get("inputs"):
        yield "the picture does not name its inputs; put them in place of CONTENT and STYLE"
    if (algorithm := made.get("algorithm", ALGORITHM)) != ALGORITHM:
        yield f"made by version {algorithm} of the method; today's, {ALGORITHM}, paints differently"
    if "memory" in str(carried.get("notes", "")):
        yield "memory was short when it was painted; with more memory, single pixels differ"
    if str(made.get("device", "cpu")) != "cpu":
        yield "a GPU rounds differently from card to card and in batches; single pixels may differ"
    if made.get("backbone") == "vgg16":
        from stylize import weights

        if made.get("weights_sha256") != weights.identity(weights.BUNDLED)[1]:
            yield "painted with weights of your own; add --weights FILE to the command"


# --- inputs ---


def _find_inputs(
    inputs: list[dict[str, str]], picture: str, folder: str, notes: list[str]
) -> dict[str, str]:
    """Return a path for each role, and note those whose file is not found."""
    written = _as_in_the_run(picture)
    found = {}
    for source in inputs:
        role, name, sha256 = source["role"], source["path"], source["sha256"]
        places = [*([written[role]] if role in written else []), *_places(name, picture, folder)]
        match = next((path for path in places if _is(path, sha256)), "")
        if not match:
            notes.append(
                f"{role} {name} is not found as it was (SHA-256 {sha256[:12]}…); name the folder "
                "that it is in with --inputs"
            )
        found[role] = match or name
    return found


def _as_in_the_run(picture: str) -> dict[str, str]:
    """Return the inputs by role, as the index of the run that made the picture has them."""
    path = os.path.realpath(storage.local_path(picture) or picture)
    for parent in Path(path).parents:
        out = OutFolder(str(parent))
        if out.has_index and out.has_state:
            output = Path(path).relative_to(parent).as_posix()
            rows: list[Result] = [r for r in read_results(out).values() if r.output == output]
            originals = Inputs(out)
            return {i.role: originals.path(i.path) for row in rows for i in row.inputs}
    return {}


def _places(name: str, picture: str, folder: str) -> Iterator[str]:
    if folder:
        for place, _, names in os.walk(folder):
            if name in names:
                yield os.path.join(place, name)
    yield name
    yield os.path.join(os.path.dirname(picture), name)


def _is(path: str, sha256: str) -> bool:
    try:
        return storage.sha256(path) == sha256
    except OSError:
        return False
