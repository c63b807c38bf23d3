"""Commands on an output folder: status, montage, report, merge, compact, rebuild-index, prune.

Imports pyarrow only inside command bodies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline.cli_options import Json, OutArgument
from pipeline.console import Refused, flush, say, say_problems, tell
from pipeline.records import Pair
from pipeline.text import count, visible

if TYPE_CHECKING:
    from pipeline.store.folder import OutFolder

__all__ = [
    "compact_command",
    "merge_command",
    "montage_command",
    "prune_command",
    "rebuild_index_command",
    "report_command",
    "status_command",
]


def status_command(
    out: OutArgument,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="a line every few seconds on how it goes, until Ctrl-C")
    ] = False,
    every: Annotated[float, typer.Option(min=0.5, help="seconds between lines with --watch")] = 10,
) -> None:
    """Count the pairs of an output folder and their failures by cause, also during a run."""
    from collections import Counter

    folder = _existing(out)
    if watch:
        _watch(folder, every)
    from pipeline.store.lock import at_work
    from pipeline.store.log import latest_log
    from pipeline.store.reading import read_failures, read_statuses

    counts = Counter(read_statuses(folder).values())
    failures = read_failures(folder) if counts.keys() - {"ok"} else []
    log, workers = latest_log(folder), at_work(folder)
    if as_json:
        names = ("pair_id", "row", "status", "error_type", "error_message", "attempt")
        rows = [{name: getattr(failure, name) for name in names} for failure in failures]
        facts = {"counts": counts, "failures": rows, "log": log, "at_work": workers}
        tell(json.dumps(facts, indent=1))
        return
    tell(", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "no rows yet")
    for line in workers:
        tell(f"at work: {visible(line)}")
    causes = Counter((failure.status, failure.error_type) for failure in failures)
    for (status, kind), number in causes.most_common():
        tell(f"{status}: {number} x {kind}")
        alike = [f for f in failures if (f.status, f.error_type) == (status, kind)]
        for failure in alike[:20]:
            name, message = visible(failure.pair_id), visible(failure.error_message)
            tell(f"  row {failure.row} ({name}): {message}")
        if number > 20:
            tell(f"  … and {number - 20} more")
    if failures and log:
        tell(f"log of the last run: {log}")


def _watch(folder: OutFolder, every: float) -> NoReturn:
    import datetime
    import time

    from pipeline.signals import repeat
    from pipeline.store.watch import look

    plans: dict[str, Mapping[str, object]] = {}

    def tell_now() -> None:
        now = look(folder, datetime.datetime.now(datetime.UTC), plans)
        tell(f"{time.strftime('%H:%M:%S')}  {now}")
        flush()

    repeat(tell_now, every)
    raise KeyboardInterrupt


def montage_command(
    out: OutArgument,
    target: Annotated[
        str, typer.Option("--out", "-o", help="file to write: .png, .jpg, .webp, .pdf")
    ],
    rows: Annotated[
        str, typer.Option(help="column of the index, setting or meta.NAME whose values are rows")
    ] = "",
    cols: Annotated[str, typer.Option(help="the same for the columns")] = "",
    wrap: Annotated[
        int, typer.Option(min=0, help="without rows and columns: N pictures in each line, in order")
    ] = 0,
    caption: Annotated[
        str, typer.Option(help="what stands below each picture: a column, setting or meta.NAME")
    ] = "",
    inputs: Annotated[
        str,
        typer.Option(help="originals: none, beside (the grid), or inset (the style in each cell)"),
    ] = "none",
    cell: Annotated[int, typer.Option(min=16, max=4096, help="pixels of a cell's side")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=95, help="quality of a JPEG or WebP")] = 92,
) -> None:
    """Lay a run out as a labelled grid; without --rows and --cols: photograph, style, result."""
    from pipeline.views.montage import montage

    remarks = montage(
        _existing(out),
        target,
        rows=rows,
        cols=cols,
        wrap=wrap,
        caption=caption,
        inputs=inputs,
        cell=cell,
        quality=quality,
    )
    for remark in remarks:
        say(remark)
    tell(target)


def report_command(
    out: OutArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="keep it current during a run, until Ctrl-C")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.5, help="seconds between updates with --watch")
    ] = 5.0,
) -> None:
    """Write OUT/report.html: all pictures, losses and failures, to look at in a browser."""
    from pipeline.views import report

    folder = _existing(out)
    if watch:
        tell(f"{folder.report_page}: kept current until Ctrl-C")
        report.watch(folder, every, say)
    tell(report.write_report(folder, say))


def merge_command(
    outs: Annotated[list[str], typer.Argument(help="output folders of runs")],
    new: Annotated[str, typer.Option("--out", "-o", help="output folder to write")],
) -> None:
    """Copy the pictures and the index of several output folders into one."""
    from pipeline.store.folder import OutFolder
    from pipeline.store.merge import ClashError, merge

    sources, target = [_existing(out) for out in outs], OutFolder(new)
    try:
        merged = merge(sources, target)
    except ClashError as error:
        say_problems([visible(problem) for problem in error.problems])
        raise Refused(f"{count(len(error.problems), 'problem')}; nothing was merged") from error
    for line in merged.notes:
        say(visible(line))
    for name in merged.missing:
        say(f"{visible(name)}: the picture is missing; the next run paints it")
    tell(f"{new}: {count(merged.rows, 'row')}, {count(merged.copied, 'picture')} copied")


def compact_command(out: OutArgument) -> None:
    """Merge the index into one file that holds each pair once."""
    from pipeline.store.index import Index
    from pipeline.store.lock import Lock

    folder = _existing(out)
    with Lock(folder, "compact", say=say), Index(folder, "compact") as index:
        index.compact()
    for problem in index.problems:
        say(problem)
    tell(f"{folder.index}: compacted")


_Manifests = Annotated[
    list[str] | None,
    typer.Option("--manifest", "-m", help="manifest of the pictures; may be repeated"),
]


def rebuild_index_command(out: OutArgument, manifest: _Manifests = None) -> None:
    """Make the index again from what the pictures carry; rows that can be read are kept."""
    from pipeline.store.folder import OutFolder
    from pipeline.store.repair import holds_anything, rebuild_index

    folder = OutFolder(out)
    if not holds_anything(folder):
        raise Refused(f"{out} is no output folder: it has no index/ and no picture of ours")
    rebuilt = rebuild_index(folder, _pairs(manifest or []))
    for problem in rebuilt.problems:
        say(visible(problem))
    for name in rebuilt.damaged:
        say(f"{visible(name)}: is damaged or cut short; it gets no row, and the next run paints it")
    for name in rebuilt.elsewhere:
        say(f"{visible(name)}: was moved or copied by hand; it gets no row")
    made = count(rebuilt.made, "row")
    tell(f"{folder.index}: {made} made from pictures, {rebuilt.kept} kept")


def prune_command(
    out: OutArgument,
    manifest: _Manifests = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove them, not only list them")] = False,
) -> None:
    """List pictures and rows that are no longer in the manifest; --yes removes them."""
    from pipeline.store.repair import prune

    if not manifest:
        raise Refused("name the manifest whose pictures stay: --manifest FILE")
    pruned = prune(_existing(out), _pairs(manifest), remove=yes)
    for name in pruned.pictures:
        tell(visible(name))
    for name in pruned.edited:
        say(f"{visible(name)}: was edited by hand; it stays")
    pictures, rows = count(len(pruned.pictures), "picture"), count(len(pruned.rows), "row")
    size = f"{pruned.size / 1e6:.1f} MB"
    if yes:
        say(f"removed {pictures} ({size}) and {rows} of the index")
    elif pruned.pictures or pruned.rows:
        say(f"{pictures} ({size}) and {rows} of the index would go; remove them with --yes")
    else:
        say("nothing to remove")


def _existing(out: str) -> OutFolder:
    """Return OUT as an `OutFolder`. Raises `Refused` without an index."""
    from pipeline.store.folder import OutFolder

    folder = OutFolder(out)
    if not folder.has_index:
        raise Refused(f"{out} is no output folder: it has no index/")
    return folder


def _pairs(manifests: Sequence[str]) -> list[Pair]:
    from pipeline.manifest.reader import read_manifest

    return [pair for manifest in manifests for pair in read_manifest(manifest)]
