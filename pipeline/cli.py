"""The command line: stylize-batch. Imports torch, ray and pyarrow only inside command bodies."""

from __future__ import annotations

import atexit
import difflib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline import cli_sheets
from pipeline.cli_options import (
    Json,
    Manifest,
    OutArgument,
    default_out,
    from_manifest,
    with_options,
)
from pipeline.console import (
    Refused,
    as_refusal,
    flush,
    note,
    open_standard_streams,
    say,
    say_problems,
    tell,
)
from pipeline.options import Options, PaintOptions
from pipeline.records import Pair, split_styles
from pipeline.text import count, duration, visible
from stylize import __version__

if TYPE_CHECKING:
    from pipeline.store.folder import OutFolder
    from stylize.image import Limits

app = typer.Typer(
    name="stylize-batch",
    help="Paint whole collections of photographs in the style of pictures (Gatys et al. 2015).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(help="The networks' weights: list, fetch, verify.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")

_PAINTING = [field.name for field in fields(PaintOptions)]
_ALL = [f.name for f in fields(Options) if f.name not in _PAINTING] + _PAINTING
_ALL_BUT_OUT = [name for name in _ALL if name != "out"]
_WEIGHTS = ["weights", "weights_convention"]
_LIMITS = ["max_side", "max_megapixels"]
_SINGLE = [*_WEIGHTS, "device", "dtype", "threads", "tile", "compile", *_LIMITS]
_WHICH = ["only", "force", "retry_failed", "no_retry_failed", "redo_changed", "redo_older"]


# --- a manifest ---


@app.command("run")
@with_options(*_ALL)
def run_command(
    manifest: Manifest,
    options: Options,
    settings: Mapping[str, str],
) -> None:
    """Paint every pair of a manifest that is not done yet."""
    _run(manifest, from_manifest(settings, manifest), options)


@app.command("demo")
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
    from pipeline.ledger import Exit, describe, verdict
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
        raise Refused(code, "" if options.progress == "json" else message)


@app.command("plan")
@with_options("out", "name", *_WEIGHTS, "shard", *_WHICH, "verify_inputs")
def plan_command(
    manifest: Manifest,
    options: Options,
    settings: Mapping[str, str],
    as_json: Json = False,
) -> None:
    """Say what would be painted and why, and how long it may take; write nothing."""
    from pipeline.cost import estimate
    from pipeline.run import make_plan

    options = replace(options, out=options.out or default_out(manifest))
    plan, pairs, results = make_plan(manifest, from_manifest(settings, manifest), options, say)
    times = estimate([pair for pair, _ in plan.todo], results.values())
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


@app.command("validate")
@with_options("name", *_LIMITS)
def validate_command(
    manifest: Manifest,
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
        raise Refused(2, f"{count(len(problems), 'problem')} in {manifest}")
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


# --- one pair, and the machine ---


@app.command("pair")
@with_options(*_SINGLE)
def pair_command(
    content: Annotated[str, typer.Argument(help="the photograph")],
    style: Annotated[str, typer.Argument(help="the painting, or several: a.jpg|b.jpg")],
    out: Annotated[str, typer.Option("--out", "-o", help="file to write, like painted.png")],
    options: Options,
    settings: Mapping[str, str],
) -> None:
    """Paint one pair; no Ray, no index."""
    from pipeline import single
    from stylize.config import FORMATS

    if Path(out).suffix.lower() not in FORMATS:
        raise Refused(2, f"-o {out}: the ending must be one of {', '.join(FORMATS)}")
    if os.path.isdir(out):
        raise Refused(2, f"-o {out}: it is a folder; give the file to write, like painted.png")
    styles, suffix = split_styles(style), Path(out).suffix
    pair = single.read(content, styles, settings, options.limits, suffix=suffix)
    stylizer = single.make_stylizer(pair.config.backbone, options)
    tell(single.paint(pair, out, stylizer))


@app.command("explain")
@with_options(*_SINGLE, size="256")
def explain_command(
    content: Annotated[str, typer.Argument(help="the photograph")],
    style: Annotated[str, typer.Argument(help="the painting")],
    out: Annotated[str, typer.Option("--out", "-o", help="folder to write")],
    options: Options,
    settings: Mapping[str, str],
    layers: Annotated[
        str, typer.Option(help="layers of the feature maps; by default those of the losses")
    ] = "",
) -> None:
    """Paint one pair and show how: Gram matrices, feature maps, losses by layer, a film."""
    from pipeline import single
    from pipeline.explain import explain, parse_layers

    wanted = parse_layers(layers)
    pair = single.read(content, [style], settings, options.limits)
    stylizer = single.make_stylizer(pair.config.backbone, options)
    tell(explain(pair, out, stylizer, wanted))


@app.command("bench")
@with_options("device", "dtype", "threads")
def bench_command(options: Options, as_json: Json = False) -> None:
    """Measure this machine: seconds per evaluation, share of its peak, pairs per hour, memory."""
    from pipeline.paint.bench import bench

    measured = bench(device=options.device, dtype=options.dtype, threads=options.threads, say=say)
    if as_json:
        tell(measured.to_json())
        return
    from rich.console import Console
    from rich.table import Table

    columns = ("size", "pictures at once", "seconds an evaluation", "GFLOP", "share of peak")
    table = Table(*columns, box=None)
    for e in measured.evaluations:
        work, share = e.batch * e.gflops, f"{e.share_of_peak:.0%}"
        table.add_row(f"{e.size}", f"{e.batch}", f"{e.seconds:.3g}", f"{work:.0f}", share)
    console = Console(highlight=False)
    console.print(
        f"{measured.name}, {measured.device}, {measured.dtype}, {measured.threads} threads"
    )
    console.print(table)
    if any(e.share_of_peak > 1 for e in measured.evaluations):
        console.print("more than 100%: Winograd's convolutions multiply less than is counted")
    console.print(
        f"peak {measured.product_gflops:.0f} GFLOP/s in products, "
        f"{measured.convolution_gflops:.0f} in convolutions; start {measured.startup:.1f} s, "
        f"memory {measured.peak_memory / 1e9:.2f} GB"
    )
    pair = measured.seconds_per_pair
    console.print(
        f"default preset, 512 px: {pair:.{0 if pair >= 10 else 2}f} s a pair, "
        f"{measured.pairs_per_hour:.0f} pairs an hour for each worker"
    )


@app.command("doctor")
@with_options("out", "address")
def doctor_command(options: Options, as_json: Json = False) -> None:
    """Say what of this machine works for a run, what does not, and what to do; exit 0 or 5."""
    from pipeline.doctor import examine, facts

    checks = []
    for check in examine(options.out, options.address):
        checks.append(check)
        if not as_json:
            tell(f"{check.state:<5}  {check.name:<16}  {visible(check.found)}")
            if check.remedy:
                tell(f"{'':<25}{visible(check.remedy)}")
    if as_json:
        tell(json.dumps(facts(checks), indent=1))
    failed = [check.name for check in checks if check.state == "fails"]
    if failed:
        raise Refused(5, f"a run would fail here: see {', '.join(failed)} above")


# --- an output folder ---


@app.command("status")
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
    from pipeline.store.index import read_failures, read_statuses
    from pipeline.store.lock import at_work
    from pipeline.store.log import latest_log

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


@app.command("montage")
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


@app.command("report")
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


@app.command("merge")
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
        raise Refused(2, f"{count(len(error.problems), 'problem')}; nothing was merged") from error
    for line in merged.notes:
        say(visible(line))
    for name in merged.missing:
        say(f"{visible(name)}: the picture is missing; the next run paints it")
    tell(f"{new}: {count(merged.rows, 'row')}, {count(merged.copied, 'picture')} copied")


@app.command("compact")
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


@app.command("rebuild-index")
def rebuild_index_command(out: OutArgument, manifest: _Manifests = None) -> None:
    """Make the index again from what the pictures carry; rows that can be read are kept."""
    from pipeline.store.folder import OutFolder
    from pipeline.store.repair import holds_anything, rebuild_index

    folder = OutFolder(out)
    if not holds_anything(folder):
        raise Refused(2, f"{out} is no output folder: it has no index/ and no picture of ours")
    rebuilt = rebuild_index(folder, _pairs(manifest or []))
    for problem in rebuilt.problems:
        say(visible(problem))
    for name in rebuilt.damaged:
        say(f"{visible(name)}: is damaged or cut short; it gets no row, and the next run paints it")
    for name in rebuilt.elsewhere:
        say(f"{visible(name)}: was moved or copied by hand; it gets no row")
    made = count(rebuilt.made, "row")
    tell(f"{folder.index}: {made} made from pictures, {rebuilt.kept} kept")


@app.command("prune")
def prune_command(
    out: OutArgument,
    manifest: _Manifests = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove them, not only list them")] = False,
) -> None:
    """List pictures and rows that are no longer in the manifest; --yes removes them."""
    from pipeline.store.repair import prune

    if not manifest:
        raise Refused(2, "name the manifest whose pictures stay: --manifest FILE")
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
        raise Refused(2, f"{out} is no output folder: it has no index/")
    return folder


def _pairs(manifests: Sequence[str]) -> list[Pair]:
    from pipeline.manifest.reader import read_manifest

    return [pair for manifest in manifests for pair in read_manifest(manifest)]


# --- sheets: lists, and how things were made ---

app.command("make-manifest")(cli_sheets.make_manifest_command)
app.command("presets")(cli_sheets.presets_command)
app.command("show")(cli_sheets.show_command)


# --- weights ---


@weights_app.command("list")
def weights_list_command() -> None:
    """List the backbones, and where their weights are on this machine."""
    from stylize import weights
    from stylize.errors import WeightsError

    tell(f"vgg16  bundled  {weights.identity(weights.BUNDLED)[1][:16]}…")
    cached = sorted(weights.cache_folder().glob("vgg*.safetensors"))
    for path in cached:
        try:
            name, sha256 = weights.identity(path)
        except WeightsError:
            tell(f"damaged  {path}  remove it; weights fetch or --weights makes it again")
        else:
            tell(f"{name}  {path}  {sha256[:16]}…")
    if not any(path.name.startswith("vgg19") for path in cached):
        tell("vgg19  not here; get it with: stylize-batch weights fetch")


@weights_app.command("fetch")
def weights_fetch_command() -> None:
    """Download VGG-19 (548 MB), check it, and keep what is needed."""
    from pipeline.display.progress import Progress
    from stylize import weights

    with Progress([]) as progress:
        path = weights.fetch_vgg19(progress.note, on_bytes=progress.download)
    tell(str(path))


@weights_app.command("verify")
def weights_verify_command() -> None:
    """Recompute the hashes of all weights on this machine."""
    from stylize import weights

    for path in [weights.BUNDLED, *sorted(weights.cache_folder().glob("vgg*.safetensors"))]:
        tell(f"{path}: {weights.verify(path)[:16]}… is right")


# --- the console script ---


def _version(wanted: bool) -> None:
    if wanted:
        tell(f"stylize-batch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script. `stylize-batch MANIFEST` is `stylize-batch run MANIFEST`."""
    open_standard_streams()
    arguments = sys.argv[1:]
    commands = {command.name for command in app.registered_commands} | {"weights"}
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        _check_command(arguments[0], commands)
        arguments = ["run", *arguments]
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
        signal.signal(signal.SIGHUP, _terminated)
    atexit.register(flush)  # before the interpreter's own, whose failure would be exit code 120
    try:
        app(arguments, prog_name="stylize-batch", standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        refusal = as_refusal(error)
        if refusal is not None:
            if str(refusal):
                _complain(str(refusal))
            sys.exit(refusal.code)
        _complain(
            f"this is a bug (version {__version__}, Python {sys.version.split()[0]}, "
            f"{sys.platform}); please report it with the command, what `stylize-batch doctor "
            "--json` says, and what follows:"
        )
        traceback.print_exc()
        sys.exit(1)


def _check_command(word: str, commands: Collection[str | None]) -> None:
    """A word that is neither command nor manifest is most likely a mistyped command."""
    if not Path(word).suffix and not os.path.exists(word):
        names = sorted(name for name in commands if name)
        near = difflib.get_close_matches(word, names, 1) or ["--help"]
        _complain(f"there is no command and no manifest {word!r}; did you mean {near[0]}?")
        sys.exit(2)


def _complain(message: str) -> None:
    say(f"stylize-batch: {message}")


def _terminated(number: int, frame: object) -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: what is open is closed on the way."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
