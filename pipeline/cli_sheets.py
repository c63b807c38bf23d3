"""Commands for lists: of pairs, of presets, and of how a picture was made. Imports no torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.cli_options import Json, with_options
from pipeline.console import Refused, say, tell
from pipeline.options import Options
from pipeline.text import count, duration

__all__ = ["make_manifest_command", "presets_command", "show_command"]

_STANDARD_INPUT = "-"


def make_manifest_command(
    content: Annotated[
        list[str],
        typer.Option(help="photographs, like 'photos/*.jpg', quoted; -: a list on standard input"),
    ],
    style: Annotated[list[str], typer.Option(help="paintings, in the same ways")],
    out: Annotated[str, typer.Option("--out", "-o", help="manifest to write: csv, tsv, jsonl")],
    zip_: Annotated[
        bool,
        typer.Option("--zip/--cross", help="pair first with first and so on, or each with each"),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="settings to cross, like style_weight=10,70; may be repeated"),
    ] = None,
    blend_steps: Annotated[
        int, typer.Option(min=0, help="mixtures from the first of two styles to the second")
    ] = 0,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="also folders, whose structure outputs keep")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite")] = False,
) -> None:
    """Write a manifest that pairs photographs with styles."""
    from pipeline.manifest import writer

    if _STANDARD_INPUT in content and _STANDARD_INPUT in style:
        raise Refused(2, "--content - and --style -: only one list can be on standard input")
    contents = _pictures(content, "content", recursive)
    styles = list(_pictures(style, "style", recursive))
    if os.path.exists(out) and not force:
        raise Refused(2, f"{out} exists; overwrite it with --force")
    try:
        if blend_steps:
            rows = writer.blends(contents, styles, blend_steps)
        elif zip_:
            rows = writer.zip_(list(contents), styles)
        else:
            rows = writer.cross(contents, styles)
        rows = writer.with_settings(rows, set_ or [])
        if recursive:
            rows = writer.in_folders(rows, contents, out)
        writer.write_manifest(out, rows)
    except ValueError as error:
        raise Refused(2, str(error)) from error
    tell(f"{out}: {count(len(rows), 'pair')}")


def _pictures(patterns: Sequence[str], option: str, recursive: bool) -> dict[str, str]:
    """Return the files that are meant, each once, with the folder that its output keeps."""
    from pipeline.manifest.patterns import below, matches, why_nothing_matches

    listed = _from_standard_input(option) if _STANDARD_INPUT in patterns else {}
    patterns = [pattern for pattern in patterns if pattern != _STANDARD_INPUT]
    found: dict[str, str] = {}
    for pattern in patterns:
        found |= below(pattern) if recursive else dict.fromkeys(matches(pattern), "")
    files = {**listed, **dict(sorted(found.items()))}
    if not files:
        why = why_nothing_matches(patterns)
        raise Refused(2, f"--{option} {' '.join(patterns)}: no file matches{why}")
    return files


def _from_standard_input(option: str) -> dict[str, str]:
    """Return the files that standard input lists: one in each line, or ended by NUL."""
    text = os.fsdecode(sys.stdin.buffer.read())
    paths = [path for path in text.split("\0" if "\0" in text else "\n") if path.strip()]
    paths = [path.removesuffix("\r") for path in paths]
    for path in paths:
        if not os.path.isfile(path):
            raise Refused(2, f"--{option} -: there is no file {path!r}, which the list names")
    if not paths:
        raise Refused(2, f"--{option} -: standard input lists no file")
    base = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    folders = {p: os.path.relpath(os.path.dirname(os.path.abspath(p)), base) for p in paths}
    return {p: "" if f == "." else f.replace(os.sep, "/") for p, f in folders.items()}


@with_options("device", "dtype", "threads")
def presets_command(options: Options, as_json: Json = False) -> None:
    """List the presets, and what a square picture costs with each on this machine."""
    from pipeline.cost import work
    from pipeline.paint.bench import seconds_per_pixel
    from stylize.config import StyleConfig
    from stylize.presets import DESCRIPTIONS, PRESETS

    if not as_json:
        say("measuring …")
    device, rate = seconds_per_pixel(options.device, options.dtype, options.threads)
    listed = []
    for name in PRESETS:
        config = StyleConfig.of(name, backbone="vgg16")
        seconds = work(config) * rate
        listed.append((name, config.side, config.steps, seconds))
    if as_json:
        keys = ("preset", "size", "steps", "seconds")
        tell(json.dumps([dict(zip(keys, row, strict=True)) for row in listed], indent=1))
        return
    tell(f"{'preset':20}{'size':>6}{'steps':>7}{'time':>9}  what for")
    for name, size, steps, seconds in listed:
        time = f"{seconds:.2g} s" if seconds < 10 else duration(seconds)
        tell(f"{name:20}{size:>6}{steps:>7}{time:>9}  {DESCRIPTIONS[name]}")
    tell(f"for one picture with VGG-16 on {device}; `bench` measures more")


def show_command(
    picture: Annotated[str, typer.Argument(help="a picture that this program made")],
    inputs: Annotated[
        str, typer.Option(help="folder to look for photograph and style in, if they have moved")
    ] = "",
    out: Annotated[
        str, typer.Option("--out", "-o", help="file that the printed command shall write")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show how a picture was made, and the command that makes it again."""
    from pipeline.show import show

    shown = show(picture, inputs, out)
    if as_json:
        tell(json.dumps({**shown.facts, "command": shown.command, "notes": shown.notes}, indent=1))
        return
    for name, text in shown.facts.items():
        tell(f"{name:15}{text}")
    for remark in shown.notes:
        say(remark)
    tell("")
    tell(shown.command)
