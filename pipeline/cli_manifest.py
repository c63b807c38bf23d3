"""Commands on a manifest: run, demo, plan, validate, make-manifest.

Imports torch, ray and pyarrow only inside command bodies, like all commands.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli_options import (
    LIMITS,
    WEIGHTS,
    Json,
    ManifestArgument,
    default_out,
    from_manifest,
    with_options,
)
from pipeline.console import Refused, note, say, say_problems, tell
from pipeline.ledger import Exit
from pipeline.options import Options, PaintOptions
from pipeline.text import count, duration, visible

if TYPE_CHECKING:
    from stylize.image import Limits

__all__ = [
    "demo_command",
    "make_manifest_command",
    "plan_command",
    "run_command",
    "validate_command",
]

_PAINTING = [field.name for field in fields(PaintOptions)]
_ALL = [f.name for f in fields(Options) if f.name not in _PAINTING] + _PAINTING
_ALL_BUT_OUT = [name for name in _ALL if name != "out"]
_WHICH = ["only", "force", "retry_failed", "no_retry_failed", "redo_changed", "redo_older"]
_STANDARD_INPUT = "-"


@with_options(*_ALL)
def run_command(
    manifest: ManifestArgument,
    options: Options,
    settings: Mapping[str, str],
) -> None:
    """Paint every pair of a manifest that is not done yet."""
    _run(manifest, from_manifest(settings, manifest), options)


@with_options(*_ALL_BUT_OUT)
def demo_command(
    options: Options,
    settings: Mapping[str, str],
    folder: Annotated[str, typer.Argument(help="folder to write")] = "stylize-demo",
) -> None:
    """Write a manifest and the pictures that ship with the program, and paint it."""
    from pipeline.demo import lay_out, manifest_in

    manifest = manifest_in(folder)
    lay_out(folder, from_manifest(settings, manifest))
    _run(manifest, {}, options)


def _run(manifest: str, settings: Mapping[str, str], options: Options) -> None:
    """Run a manifest and say how that ended. Raises `Refused` unless everything is done."""
    from pipeline import storage
    from pipeline.ledger import describe, verdict
    from pipeline.run import run

    options = replace(options, out=options.out or default_out(manifest))
    if options.log_json:
        options = replace(options, progress="json")
    finished = run(manifest, settings, options)
    ledger = finished.ledger
    for pair, reason in ledger.skipped[:20]:
        line = f"skipped row {pair.row} ({visible(pair.pair_id)}): {visible(reason)}"
        note(line, options.progress)
    pictures, index = (storage.join(options.out, name) for name in ("images", "index"))
    shard = f"shard {options.shard}, " if options.shard else ""
    tell(f"{shard}{describe(ledger)} Pictures: {pictures}/  Index: {index}/")
    code, message = verdict(ledger, options.out, finished.log)
    if code is not Exit.DONE:
        if options.progress == "json":
            note(message, options.progress)
        raise Refused("" if options.progress == "json" else message, code)


@with_options("out", "name", *WEIGHTS, "shard", *_WHICH, "verify_inputs")
def plan_command(
    manifest: ManifestArgument,
    options: Options,
    settings: Mapping[str, str],
    as_json: Json = False,
) -> None:
    """Say what would be painted and why, and how long it may take; write nothing."""
    from pipeline.cost import estimate
    from pipeline.run import make_plan

    options = replace(options, out=options.out or default_out(manifest))
    plan, pairs, rows = make_plan(manifest, from_manifest(settings, manifest), options, say)
    times = estimate([pair for pair, _ in plan.todo], rows)
    if as_json:
        facts = {
            "todo": [{"pair_id": p.pair_id, "row": p.row, "reason": r} for p, r in plan.todo],
            "skipped": [{"pair_id": p.pair_id, "row": p.row, "reason": r} for p, r in plan.skipped],
            "done": [pair.pair_id for pair in plan.done],
            "adopt": [row.pair_id for row in plan.adopt],
            "seconds": times,
        }
        tell(json.dumps(facts, indent=1))
        return
    for pair, reason in plan.todo:
        tell(f"paint  row {pair.row}  {visible(pair.output)}  ({visible(reason)})")
    for pair, reason in plan.skipped:
        tell(f"skip   row {pair.row}  {visible(pair.output)}  ({visible(reason)})")
    for row in plan.adopt:
        tell(f"adopt  row {row.row}  {visible(row.output)}  (finished, not in the index)")
    older = f" ({len(plan.older)} made by an older version)" if plan.older else ""
    tell(
        f"{count(len(pairs), 'pair')}: {len(plan.todo)} to paint, {len(plan.done)} done{older}, "
        f"{len(plan.adopt)} to adopt, {len(plan.skipped)} to skip"
    )
    for device, seconds in times.items():
        tell(f"about {duration(seconds)} of one worker on {device}")
    if plan.todo and not times:
        tell("time: unknown, nothing has been painted here yet")


@with_options("name", *LIMITS)
def validate_command(
    manifest: ManifestArgument,
    options: Options,
    settings: Mapping[str, str],
    images: Annotated[bool, typer.Option("--images", help="decode every picture")] = False,
    as_json: Json = False,
) -> None:
    """Find every problem of a manifest and its files, with line and column; exit 0 or 2."""
    from pipeline.manifest.files import find_problems
    from pipeline.manifest.masks import look_at_masks
    from pipeline.manifest.reader import read_manifest
    from pipeline.manifest.table import ManifestError

    check = _check_of_pictures(options.limits, images)
    try:
        defaults = from_manifest(settings, manifest)
        pairs = read_manifest(manifest, defaults=defaults, name=options.name)
        problems, rows = find_problems(pairs, check), len(pairs)
        for remark in [] if as_json else pairs.notes:
            say(remark)
        if images:
            more, remarks = look_at_masks(pairs, options.limits)
            problems += more
            for remark in [] if as_json else remarks:
                say(remark)
    except ManifestError as error:
        problems, rows = [*error.problems, *find_problems(error.pairs, check)], error.rows
        problems.sort(key=lambda problem: problem.place)
    if as_json:
        facts = [{**vars(problem), "text": str(problem)} for problem in problems]
        tell(json.dumps({"rows": rows, "problems": facts}, indent=1))
    else:
        say_problems([str(problem) for problem in problems])
    if problems:
        raise Refused(f"{count(len(problems), 'problem')} in {manifest}")
    if not as_json:
        tell(f"{count(rows, 'pair')}, no problem found")


def _check_of_pictures(limits: Limits, decoded: bool) -> Callable[[str], str | None]:
    """Return a function that says what is wrong with a picture, by its header or by all of it."""
    from pipeline import storage
    from stylize.errors import StylizeError
    from stylize.image import check_header, decode

    look: Callable[..., object] = decode if decoded else check_header

    def check(path: str) -> str | None:
        try:
            look(storage.read_bytes(path), limits)
        except FileNotFoundError:
            raise
        except (StylizeError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            return visible(f"{os.path.basename(path)}: {reason}")
        return None

    return check


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
        raise Refused("--content - and --style -: only one list can be on standard input")
    contents = _pictures(content, "content", recursive)
    styles = list(_pictures(style, "style", recursive))
    if os.path.exists(out) and not force:
        raise Refused(f"{out} exists; overwrite it with --force")
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
        raise Refused(str(error)) from error
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
        raise Refused(f"--{option} {' '.join(patterns)}: no file matches{why}")
    return files


def _from_standard_input(option: str) -> dict[str, str]:
    """Return the files that standard input lists: one in each line, or ended by NUL."""
    text = os.fsdecode(sys.stdin.buffer.read())
    paths = [path for path in text.split("\0" if "\0" in text else "\n") if path.strip()]
    paths = [path.removesuffix("\r") for path in paths]
    for path in paths:
        if not os.path.isfile(path):
            raise Refused(f"--{option} -: there is no file {path!r}, which the list names")
    if not paths:
        raise Refused(f"--{option} -: standard input lists no file")
    base = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    folders = {p: os.path.relpath(os.path.dirname(os.path.abspath(p)), base) for p in paths}
    return {p: "" if f == "." else f.replace(os.sep, "/") for p, f in folders.items()}
