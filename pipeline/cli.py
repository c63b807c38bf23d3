"""The command line: stylize-batch. Imports torch, ray and pyarrow only inside command bodies."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import functools
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import __version__
from pipeline.records import FAILURES, split_styles
from pipeline.tables import as_text
from pipeline.words import count, duration, visible
from stylize.config import SETTINGS, StyleConfig

app = typer.Typer(
    name="stylize-batch",
    help="Paint whole collections of photographs in the style of pictures (Gatys et al. 2015).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(help="The networks' weights: list, fetch, verify.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")

_SHOWN = 100  # problems printed at most; --json has all


# --- settings as options -----------------------------------------------------------------------


def _with_settings(**own: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command an option for each setting; it gets those that were used as `settings`.

    `own`: defaults of this command instead of `StyleConfig`'s.
    """
    defaults = {name: as_text(name, value) for name, value in vars(StyleConfig()).items()} | own
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    help=f"{setting.help} ({setting.limit})",
                    metavar="VALUE",
                    rich_help_panel="Settings (also as columns of the manifest)",
                    show_default=defaults[name] or False,
                ),
            ],
        )
        for name, setting in SETTINGS.items()
    ]
    config = inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            Path | None, typer.Option(help="TOML file with settings, below all options")
        ],
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**arguments: Any) -> Any:
            config = arguments.pop("config", None)
            used = {name: arguments.pop(name) for name in SETTINGS}
            options = {name: text for name, text in used.items() if text is not None}
            return command(**arguments, settings=_merged(own, config, options))

        signature = inspect.signature(command, eval_str=True)
        kept = [p for p in signature.parameters.values() if p.name != "settings"]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept]
        parameters += [config, *added]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _merged(own: dict[str, str], config: Path | None, options: dict[str, str]) -> dict[str, str]:
    """A command's own defaults, config file, preset option, options, the last the strongest, as
    one mapping in text form."""
    from stylize.presets import PRESETS

    values = dict(own)
    if config is not None:
        import tomllib

        try:
            loaded = tomllib.loads(config.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise _Refused(2, f"--config {config}: {error}") from error
        for name, value in loaded.items():
            try:
                values[name] = as_text(name, value)
            except ValueError as error:
                unknown = "there is no such setting; write each as NAME = VALUE, in no table"
                reason = error if name in SETTINGS else unknown
                raise _Refused(2, f"--config {config}: {name}: {reason}") from error
    preset = PRESETS.get(options.get("preset", ""), {})
    return {**{n: t for n, t in values.items() if n not in preset}, **options}


def _beside(manifest: str, settings: dict[str, str] | None) -> dict[str, str]:
    """Paths that options name, relative to the manifest's folder, as those in the manifest are."""
    from pipeline.manifest import relative_path
    from stylize.config import INIT_WORDS

    values = dict(settings or {})
    for name in ("init", "mask"):
        path = values.get(name, "")
        if path and path not in INIT_WORDS and not os.path.isabs(path):
            values[name] = relative_path(path, os.path.dirname(manifest))
    return values


class _Refused(Exception):
    """An end with an exit code and a line; no traceback."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Every foreseen error as one line and the exit code that it has by contract."""
    from pipeline.lock import LockedError
    from pipeline.manifest import ManifestError
    from pipeline.run import UnableError
    from pipeline.scheduler import ClusterError
    from pipeline.storage import StorageError
    from stylize.errors import ConfigError, StylizeError, WeightsError

    try:
        yield
    except ManifestError as error:
        _print_problems([str(problem) for problem in error.problems])
        raise _Refused(2, f"{count(len(error.problems), 'problem')}; nothing was run") from error
    except (StorageError, ClusterError, UnableError, LockedError, WeightsError) as error:
        raise _Refused(5, str(error)) from error
    except ConfigError as error:
        raise _Refused(2, str(error)) from error
    except StylizeError as error:
        raise _Refused(3, str(error)) from error


def _print_problems(lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        _say(line)
    if len(lines) > _SHOWN:
        _say(f"… and {len(lines) - _SHOWN} more")


def _default_out(manifest: str) -> str:
    """The manifest's name without its ending, beside it."""
    from pipeline import storage

    return os.path.splitext(storage.local_path(manifest) or manifest)[0]


def _say(line: str) -> None:
    """To standard error."""
    _write(line, err=True)


def _note(line: str, progress: str) -> None:
    """To standard error, as an event where those are wanted."""
    from pipeline.progress import Progress

    if progress == "json":
        Progress([], style="json").note(line)
    else:
        _say(line)


def _tell(line: str) -> None:
    """To standard output."""
    _write(line, err=False)


def _write(line: str, err: bool) -> None:
    try:
        typer.echo(line, err=err)
    except OSError:
        # Nobody reads any more (`| head`); the command goes on, and its exit code stays right.
        stream = sys.stderr if err else sys.stdout
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _flush() -> None:
    """Write out what is buffered; into a closed pipe it goes nowhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _one_of(*words: str) -> Callable[[str], str]:
    """A check of an option whose values are few."""

    def check(value: str) -> str:
        if value not in words:
            raise typer.BadParameter(f"{value!r} is not {', '.join(words[:-1])} or {words[-1]}")
        return value

    return check


# --- options that several commands share -------------------------------------------------------

_Manifest = Annotated[
    str, typer.Argument(help="csv, tsv, jsonl or parquet with the columns content and style")
]
_Out = Annotated[
    str | None, typer.Option("--out", "-o", help="output folder; by default beside the manifest")
]
_Weights = Annotated[
    str, typer.Option("--weights", help="a VGG file, .pth or .safetensors, instead of our own")
]
_Convention = Annotated[
    str,
    typer.Option(
        "--weights-convention",
        help="input of that file: torchvision, or caffe (BGR, 0-255)",
        callback=_one_of("torchvision", "caffe"),
    ),
]
_Device = Annotated[
    str, typer.Option(help="auto, cuda, mps or cpu", callback=_one_of("auto", "cuda", "mps", "cpu"))
]
_Dtype = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16 or float16",
        callback=_one_of("auto", "float32", "bfloat16", "float16"),
    ),
]
_Threads = Annotated[
    int, typer.Option(min=0, max=1024, help="CPU threads of each worker; 0 chooses")
]
_Side = Annotated[int, typer.Option(min=16, help="widest or highest picture that is decoded")]
_Megapixels = Annotated[float, typer.Option(min=0.001, help="largest picture that is decoded")]
_Retry = Annotated[
    str,
    typer.Option(
        "--retry-failed",
        help="which pairs that failed before are tried again: all (but poison), none, or one of "
        "failed, timeout, poison",
        callback=_one_of("all", "none", *FAILURES),
    ),
]
_NoRetry = Annotated[bool, typer.Option("--no-retry-failed", help="leave what failed before")]
_Only = Annotated[list[str] | None, typer.Option(help="this id only; may be repeated")]
_Force = Annotated[bool, typer.Option("--force", help="paint again what is done")]
_RedoChanged = Annotated[
    bool,
    typer.Option(
        "--redo-changed",
        help="paint again what was edited by hand, also over files that this program did not make",
    ),
]
_RedoOlder = Annotated[
    bool, typer.Option("--redo-older", help="paint again what an older version made")
]
_VerifyInputs = Annotated[
    bool, typer.Option("--verify-inputs", help="hash inputs even if they look unchanged")
]
_Json = Annotated[bool, typer.Option("--json", help="machine-readable, on standard output")]


# --- commands ----------------------------------------------------------------------------------


@app.command("run")
@_with_settings()
def run_command(
    manifest: _Manifest,
    out: _Out = None,
    weights: _Weights = "",
    weights_convention: _Convention = "torchvision",
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="0: one or two a GPU, else as cores allow")
    ] = 0,
    threads: _Threads = 0,
    address: Annotated[str, typer.Option(envvar="RAY_ADDRESS", help="a Ray cluster to join")] = "",
    timeout: Annotated[float, typer.Option(min=0, help="seconds a pair may take; 0: any")] = 0,
    max_failures: Annotated[
        int, typer.Option(min=0, help="stop after so many in a row with one cause; 0: never")
    ] = 20,
    limit: Annotated[int, typer.Option(min=0, help="paint at most so many pairs; 0: all")] = 0,
    only: _Only = None,
    force: _Force = False,
    retry_failed: _Retry = "all",
    no_retry_failed: _NoRetry = False,
    redo_changed: _RedoChanged = False,
    redo_older: _RedoOlder = False,
    verify_inputs: _VerifyInputs = False,
    wait: Annotated[bool, typer.Option("--wait", help="wait while another run has OUT")] = False,
    preview_every: Annotated[
        int, typer.Option(min=0, help="leave a preview beside the output every so many steps")
    ] = 0,
    batch: Annotated[
        int, typer.Option(min=0, help="pairs of one size optimised together; 0: as a GPU needs")
    ] = 0,
    tile: Annotated[
        int, typer.Option(min=0, help="pixels: see large pictures in tiles; 0: beyond 2048x2048")
    ] = 0,
    compile: Annotated[
        bool, typer.Option("--compile", help="the network through torch.compile")
    ] = False,
    max_side: _Side = 20_000,
    max_megapixels: _Megapixels = 200.0,
    progress: Annotated[
        str,
        typer.Option(
            help="auto, live, plain, json or none",
            callback=_one_of("auto", "live", "plain", "json", "none"),
        ),
    ] = "auto",
    in_process: Annotated[
        bool, typer.Option("--in-process", help="without Ray, one pair after the other")
    ] = False,
    settings: dict[str, str] | None = None,
) -> None:
    """Paint every pair of a manifest that is not done yet."""
    from pipeline.run import Exit, Options, describe, run
    from stylize.image import Limits

    options = Options(
        out=out or _default_out(manifest),
        weights_file=weights,
        weights_convention=weights_convention,
        device=device,
        dtype=dtype,
        workers=workers,
        threads=threads,
        address=address,
        timeout=timeout,
        max_failures=max_failures,
        limit=limit,
        only=tuple(only or ()),
        force=force,
        retry_failed="none" if no_retry_failed else retry_failed,
        redo_changed=redo_changed,
        redo_older=redo_older,
        verify_inputs=verify_inputs,
        wait=wait,
        batch=batch,
        tile=tile,
        compile=compile,
        previews=preview_every,
        limits=Limits(max_side, max_megapixels),
        progress=progress,
        in_process=in_process,
    )
    with _clear_errors():
        summary = run(manifest, _beside(manifest, settings), options)
    for pair, reason in summary.skipped[:20]:
        _note(f"skipped row {pair.row} ({visible(pair.pair_id)}): {visible(reason)}", progress)
    _tell(describe(summary, options.out))
    if summary.exit is not Exit.DONE:
        if progress == "json":
            _note(summary.message, progress)
        raise _Refused(summary.exit, "" if progress == "json" else summary.message)


@app.command("plan")
@_with_settings()
def plan_command(
    manifest: _Manifest,
    out: _Out = None,
    weights: _Weights = "",
    weights_convention: _Convention = "torchvision",
    force: _Force = False,
    only: _Only = None,
    retry_failed: _Retry = "all",
    no_retry_failed: _NoRetry = False,
    redo_changed: _RedoChanged = False,
    redo_older: _RedoOlder = False,
    verify_inputs: _VerifyInputs = False,
    as_json: _Json = False,
    settings: dict[str, str] | None = None,
) -> None:
    """What would be painted and why, and how long it may take; writes nothing."""
    from pipeline.run import Options, make_plan
    from pipeline.timing import estimate

    options = Options(
        out=out or _default_out(manifest),
        weights_file=weights,
        weights_convention=weights_convention,
        force=force,
        only=tuple(only or ()),
        retry_failed="none" if no_retry_failed else retry_failed,
        redo_changed=redo_changed,
        redo_older=redo_older,
        verify_inputs=verify_inputs,
    )
    with _clear_errors():
        plan, pairs, results = make_plan(manifest, _beside(manifest, settings), options, _say)
    times = estimate([pair for pair, _ in plan.todo], results.values())
    if as_json:
        facts = {
            "todo": [{"pair_id": p.pair_id, "row": p.row, "reason": r} for p, r in plan.todo],
            "skipped": [{"pair_id": p.pair_id, "row": p.row, "reason": r} for p, r in plan.skipped],
            "done": [p.pair_id for p in plan.done],
            "adopt": [row.pair_id for row in plan.adopt],
            "seconds": times,
        }
        _tell(json.dumps(facts, indent=1))
        return
    for pair, reason in plan.todo:
        _tell(f"paint  row {pair.row}  {visible(pair.output)}  ({visible(reason)})")
    for pair, reason in plan.skipped:
        _tell(f"skip   row {pair.row}  {visible(pair.output)}  ({visible(reason)})")
    for row in plan.adopt:
        _tell(f"adopt  row {row.row}  {visible(row.output)}  (finished, not in the index)")
    done = len(plan.done)
    older = f" ({len(plan.older)} made by an older version)" if plan.older else ""
    _tell(
        f"{count(len(pairs), 'pair')}: {len(plan.todo)} to paint, {done} done{older}, "
        f"{len(plan.adopt)} to adopt, {len(plan.skipped)} to skip"
    )
    for device, seconds in times.items():
        _tell(f"about {duration(seconds)} of one worker on {device}")
    if plan.todo and not times:
        _tell("time: unknown, nothing has been painted here yet")


@app.command("validate")
@_with_settings()
def validate_command(
    manifest: _Manifest,
    images: Annotated[bool, typer.Option("--images", help="decode every picture")] = False,
    max_side: _Side = 20_000,
    max_megapixels: _Megapixels = 200.0,
    as_json: _Json = False,
    settings: dict[str, str] | None = None,
) -> None:
    """Every problem of a manifest and its files, with line and column; exit 0 or 2."""
    from pipeline import storage
    from pipeline.manifest import ManifestError, find_problems, mask_problems, read_manifest
    from stylize.errors import ConfigError, StylizeError
    from stylize.image import Limits, check_header, checked_mask, decode, upright_size

    limits = Limits(max_side, max_megapixels)
    look: Callable[..., object] = decode if images else check_header

    def check(path: str) -> str | None:
        try:
            look(storage.read_bytes(path), limits)
        except (StylizeError, OSError) as error:
            return visible(f"{os.path.basename(path)}: {error}")
        return None

    def check_mask(content: str, mask: str) -> str | None:
        try:
            size = upright_size(storage.read_bytes(content), limits)
            grey, note = checked_mask(decode(storage.read_bytes(mask), limits, "black"), size)
        except ConfigError as error:
            return visible(f"{os.path.basename(mask)}: {error}")
        except (StylizeError, OSError):  # told of the file itself
            return None
        return None if grey.getbbox() else visible(f"{os.path.basename(mask)}: {note}")

    try:
        pairs = read_manifest(manifest, defaults=_beside(manifest, settings))
        problems, rows = find_problems(pairs, check), len(pairs)
        if images:
            problems += mask_problems(pairs, check_mask)
    except ManifestError as error:
        problems, rows = [*error.problems, *find_problems(error.pairs, check)], error.rows
        problems.sort(key=lambda problem: problem.place)
    if as_json:
        found = [{**vars(problem), "text": str(problem)} for problem in problems]
        _tell(json.dumps({"rows": rows, "problems": found}, indent=1))
    else:
        _print_problems([str(problem) for problem in problems])
    if problems:
        raise _Refused(2, f"{count(len(problems), 'problem')} in {manifest}")
    if not as_json:
        _tell(f"{count(rows, 'pair')}, no problem found")


@app.command("status")
def status_command(
    out: Annotated[str, typer.Argument(help="output folder of a run")], as_json: _Json = False
) -> None:
    """Counts and failures by cause of an output folder, also during a run."""
    from collections import Counter

    with _clear_errors():
        _check_out(out)
        from pipeline.index import read_results

        results = read_results(out)
    counts = Counter(result.status for result in results.values())
    bad = [result for result in results.values() if result.status != "ok"]
    if as_json:
        rows = [
            {
                "pair_id": r.pair_id,
                "row": r.row,
                "status": r.status,
                "error_type": r.error_type,
                "error_message": r.error_message,
                "attempt": r.attempt,
            }
            for r in bad
        ]
        _tell(json.dumps({"counts": counts, "failures": rows}, indent=1))
        return
    _tell(", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "no rows yet")
    for (status, kind), number in Counter((r.status, r.error_type) for r in bad).most_common():
        _tell(f"{status}: {number} x {kind}")
        same = [r for r in bad if (r.status, r.error_type) == (status, kind)]
        for result in same[:20]:
            _tell(
                f"  row {result.row} ({visible(result.pair_id)}): {visible(result.error_message)}"
            )
        if number > 20:
            _tell(f"  … and {number - 20} more")


@app.command("pair")
@_with_settings()
def pair_command(
    content: Annotated[str, typer.Argument(help="the photograph")],
    style: Annotated[str, typer.Argument(help="the painting, or several: a.jpg|b.jpg")],
    out: Annotated[str, typer.Option("--out", "-o", help="file to write, like painted.png")],
    weights: _Weights = "",
    weights_convention: _Convention = "torchvision",
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    threads: _Threads = 0,
    max_side: _Side = 20_000,
    max_megapixels: _Megapixels = 200.0,
    settings: dict[str, str] | None = None,
) -> None:
    """Paint one pair; no Ray, no index."""
    from pipeline.one import make_stylizer, paint_one, read_one
    from stylize.config import FORMATS
    from stylize.image import Limits

    if Path(out).suffix.lower() not in FORMATS:
        raise _Refused(2, f"-o {out}: the ending must be one of {', '.join(FORMATS)}")
    if os.path.isdir(out):
        raise _Refused(2, f"-o {out}: it is a folder; give the file to write, like painted.png")
    with _clear_errors():
        limits = Limits(max_side, max_megapixels)
        one = read_one(content, split_styles(style), settings or {}, limits)
        stylizer = make_stylizer(
            one.config.backbone,
            weights_file=weights,
            convention=weights_convention,
            device=device,
            dtype=dtype,
            threads=threads,
            say=_say,
        )
        line = paint_one(one, out, stylizer)
    _tell(line)


@app.command("explain")
@_with_settings(size="256")
def explain_command(
    content: Annotated[str, typer.Argument(help="the photograph")],
    style: Annotated[str, typer.Argument(help="the painting")],
    out: Annotated[str, typer.Option("--out", "-o", help="folder to write")],
    layers: Annotated[
        str,
        typer.Option(help="layers of the feature maps; by default those of the losses"),
    ] = "",
    weights: _Weights = "",
    weights_convention: _Convention = "torchvision",
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    threads: _Threads = 0,
    max_side: _Side = 20_000,
    max_megapixels: _Megapixels = 200.0,
    settings: dict[str, str] | None = None,
) -> None:
    """Paint one pair and show how: Gram matrices, feature maps, losses by layer, a film."""
    from pipeline.explain import explain_one, parse_layers
    from pipeline.one import make_stylizer, read_one
    from stylize.image import Limits

    with _clear_errors():
        wanted = parse_layers(layers)
        one = read_one(content, [style], settings or {}, Limits(max_side, max_megapixels))
        stylizer = make_stylizer(
            one.config.backbone,
            weights_file=weights,
            convention=weights_convention,
            device=device,
            dtype=dtype,
            threads=threads,
            say=_say,
        )
        line = explain_one(one, out, stylizer, wanted)
    _tell(line)


@app.command("make-manifest")
def make_manifest_command(
    content: Annotated[list[str], typer.Option(help="photographs, like 'photos/*.jpg', quoted")],
    style: Annotated[list[str], typer.Option(help="paintings, like 'styles/*.jpg', quoted")],
    out: Annotated[str, typer.Option("--out", "-o", help="manifest to write: csv, tsv, jsonl")],
    zip_: Annotated[
        bool, typer.Option("--zip/--cross", help="first with first …, or each with each")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite")] = False,
) -> None:
    """Write a manifest of all photographs that match with all styles that match."""
    from glob import glob

    from pipeline import manifest, storage

    def matches(pattern: str) -> list[str]:
        # A file may be called photo[1].jpg, which as a pattern is photo1.jpg.
        return [pattern] if os.path.isfile(pattern) else glob(pattern, recursive=True)

    def found(patterns: list[str], what: str) -> list[str]:
        paths = sorted({path for pattern in patterns for path in matches(pattern)})
        files = [path for path in paths if os.path.isfile(path)]
        if not files:
            inside = f"; {paths[0]} is a folder: write '{paths[0]}/*'" if paths else ""
            raise _Refused(2, f"--{what} {' '.join(patterns)}: no file matches{inside}")
        return files

    contents, styles = found(content, "content"), found(style, "style")
    if os.path.exists(out) and not force:
        raise _Refused(2, f"{out} exists; overwrite it with --force")
    try:
        rows = manifest.zip_(contents, styles) if zip_ else manifest.cross(contents, styles)
        manifest.write_manifest(out, rows)
    except ValueError as error:
        raise _Refused(2, str(error)) from error
    except storage.StorageError as error:
        raise _Refused(5, str(error)) from error
    _tell(f"{out}: {count(len(rows), 'pair')}")


@app.command("bench")
def bench_command(
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    threads: _Threads = 0,
    as_json: _Json = False,
) -> None:
    """This machine: seconds per evaluation, share of its peak, pairs per hour, peak memory."""
    from pipeline.bench import bench

    with _clear_errors():
        found = bench(device=device, dtype=dtype, threads=threads, say=_say)
    if as_json:
        _tell(found.to_json())
        return
    from rich.console import Console
    from rich.table import Table

    columns = ("size", "pictures at once", "seconds an evaluation", "GFLOP", "share of peak")
    table = Table(*columns, box=None)
    for e in found.evaluations:
        work, share = e.batch * e.gflops, f"{e.share_of_peak:.0%}"
        table.add_row(f"{e.size}", f"{e.batch}", f"{e.seconds:.3g}", f"{work:.0f}", share)
    console = Console(highlight=False)
    console.print(f"{found.name}, {found.device}, {found.dtype}, {found.threads} threads")
    console.print(table)
    if any(e.share_of_peak > 1 for e in found.evaluations):
        console.print("more than 100%: Winograd's convolutions multiply less than is counted")
    console.print(
        f"peak {found.product_gflops:.0f} GFLOP/s in products, {found.convolution_gflops:.0f} in "
        f"convolutions; start {found.startup:.1f} s, memory {found.peak_memory / 1e9:.2f} GB"
    )
    pair = found.seconds_per_pair
    console.print(
        f"default preset, 512 px: {pair:.{0 if pair >= 10 else 2}f} s a pair, "
        f"{found.pairs_per_hour:.0f} pairs an hour for each worker"
    )


@app.command("montage")
def montage_command(
    out: Annotated[str, typer.Argument(help="output folder of a run")],
    target: Annotated[str, typer.Option("--out", "-o", help="file to write: .png, .pdf, .jpg")],
    rows: Annotated[
        str, typer.Option(help="column of the index, setting or meta.NAME whose values are rows")
    ] = "",
    cols: Annotated[str, typer.Option(help="the same for columns")] = "",
    wrap: Annotated[
        int, typer.Option(min=0, help="instead: so many pictures a line, as in the manifest")
    ] = 0,
    caption: Annotated[
        str, typer.Option(help="what stands below each picture: a column, setting or meta.NAME")
    ] = "",
    inputs: Annotated[
        str, typer.Option(help="originals: none, beside the grid, or the style inset in each cell")
    ] = "none",
    cell: Annotated[int, typer.Option(min=16, max=4096, help="pixels of a cell's side")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=95, help="of a .jpg or .webp")] = 92,
) -> None:
    """Lay a run out as a labelled grid; without --rows and --cols: photograph, style, result."""
    from pipeline.montage import montage

    with _clear_errors():
        _check_out(out)
        notes = montage(
            out,
            target,
            rows=rows,
            cols=cols,
            wrap=wrap,
            caption=caption,
            inputs=inputs,
            cell=cell,
            quality=quality,
        )
        for note in notes:
            _say(note)
    _tell(target)


@app.command("report")
def report_command(
    out: Annotated[str, typer.Argument(help="output folder of a run")],
    watch: Annotated[
        bool, typer.Option("--watch", help="keep it current during a run, until Ctrl-C")
    ] = False,
    every: Annotated[float, typer.Option(min=0.5, help="seconds between looks of --watch")] = 5.0,
) -> None:
    """Write OUT/report.html: all pictures, losses and failures, to look at in a browser."""
    from pipeline import report

    with _clear_errors():
        _check_out(out)
        path = os.path.join(out, "report.html")
        if watch:
            _tell(f"{path}: kept current until Ctrl-C")
            report.watch(out, every, _say)
        _tell(report.write_report(out, _say))


def _check_out(out: str) -> None:
    from pipeline import storage

    if not os.path.isdir(os.path.join(storage.local_path(out) or out, "index")):
        raise _Refused(2, f"{out} is no output folder: it has no index/")


@app.command("compact")
def compact_command(out: Annotated[str, typer.Argument(help="output folder of a run")]) -> None:
    """Merge the index into one file that holds each pair once."""
    from pipeline.index import Index
    from pipeline.lock import Lock

    with _clear_errors():
        _check_out(out)
        with Lock(out, "compact"), Index(out, "compact") as index:
            index.compact()
        for problem in index.problems:
            _say(problem)
    _tell(f"{os.path.join(out, 'index')}: compacted")


_Manifests = Annotated[
    list[str] | None,
    typer.Option("--manifest", "-m", help="manifest of the pictures; may be repeated"),
]


@app.command("rebuild-index")
def rebuild_index_command(
    out: Annotated[str, typer.Argument(help="output folder of a run")], manifest: _Manifests = None
) -> None:
    """Make the index again from what the pictures carry; rows that can be read are kept."""
    from pipeline.repair import holds_anything, rebuild_index

    with _clear_errors():
        if not holds_anything(out):
            raise _Refused(2, f"{out} is no output folder: it has no index/ and no picture of ours")
        found = rebuild_index(out, _pairs(manifest or []))
    for problem in found.problems:
        _say(visible(problem))
    for name in found.damaged:
        _say(f"{visible(name)}: does not open to its end; it gets no row, the next run paints it")
    for name in found.elsewhere:
        _say(f"{visible(name)}: was moved or copied by hand; it gets no row")
    made = count(found.made, "row")
    _tell(f"{os.path.join(out, 'index')}: {made} made from pictures, {found.kept} kept")


@app.command("prune")
def prune_command(
    out: Annotated[str, typer.Argument(help="output folder of a run")],
    manifest: _Manifests = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove them, not only list them")] = False,
) -> None:
    """List pictures and rows that are no longer in the manifest; --yes removes them."""
    from pipeline.repair import prune

    if not manifest:
        raise _Refused(2, "name the manifest whose pictures stay: --manifest FILE")
    with _clear_errors():
        _check_out(out)
        found = prune(out, _pairs(manifest), remove=yes)
    for name in found.pictures:
        _tell(visible(name))
    for name in found.edited:
        _say(f"{visible(name)}: was edited by hand; it stays")
    pictures, rows = count(len(found.pictures), "picture"), count(len(found.rows), "row")
    size = f"{found.size / 1e6:.1f} MB"
    if yes:
        _say(f"removed {pictures} ({size}) and {rows} of the index")
    elif found.pictures or found.rows:
        _say(f"{pictures} ({size}) and {rows} of the index would go; remove them with --yes")
    else:
        _say("nothing to remove")


def _pairs(manifests: list[str]) -> list[Any]:
    from pipeline.manifest import read_manifest

    return [pair for manifest in manifests for pair in read_manifest(manifest)]


@weights_app.command("list")
def weights_list_command() -> None:
    """The backbones, and where their weights are on this machine."""
    from stylize import weights
    from stylize.errors import WeightsError

    with _clear_errors():
        _tell(f"vgg16  bundled  {weights.identity(weights.BUNDLED)[1][:16]}…")
    cached = sorted(weights.cache_folder().glob("vgg*.safetensors"))
    for path in cached:
        try:
            name, sha256 = weights.identity(path)
        except WeightsError:
            _tell(f"damaged  {path}  remove it; weights fetch or --weights makes it again")
        else:
            _tell(f"{name}  {path}  {sha256[:16]}…")
    if not any(path.name.startswith("vgg19") for path in cached):
        _tell("vgg19  not here; get it with: stylize-batch weights fetch")


@weights_app.command("fetch")
def weights_fetch_command() -> None:
    """Download VGG-19 (548 MB), check it, and keep what is needed."""
    from stylize import weights

    with _clear_errors():
        _tell(str(weights.fetch_vgg19(_say)))


@weights_app.command("verify")
def weights_verify_command() -> None:
    """Recompute the hashes of all weights on this machine."""
    from stylize import weights

    with _clear_errors():
        for path in [weights.BUNDLED, *sorted(weights.cache_folder().glob("vgg*.safetensors"))]:
            _tell(f"{path}: {weights.verify(path)[:16]}… is right")


def _version(wanted: bool) -> None:
    if wanted:
        _tell(f"stylize-batch {__version__}")
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
    arguments = sys.argv[1:]
    commands = {command.name for command in app.registered_commands} | {"weights"}
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        _check_command(arguments[0], commands)
        arguments = ["run", *arguments]
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup has it ignored
        signal.signal(signal.SIGHUP, _terminated)
    atexit.register(_flush)  # before the interpreter's own, whose failure would be exit code 120
    try:
        app(arguments, prog_name="stylize-batch", standalone_mode=True)
    except _Refused as refused:
        if str(refused):
            _complain(str(refused))
        sys.exit(refused.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        _complain(
            f"an error nobody foresaw (version {__version__}, Python {sys.version.split()[0]}, "
            f"{sys.platform}); please report it with the command and what follows:"
        )
        traceback.print_exc()
        sys.exit(1)


def _check_command(word: str, commands: Collection[str | None]) -> None:
    """A word that is neither command nor manifest is most likely a command with a slip."""
    if not Path(word).suffix and not os.path.exists(word):
        names = sorted(name for name in commands if name)
        near = difflib.get_close_matches(word, names, 1) or ["--help"]
        _complain(f"there is no command and no manifest {word!r}; did you mean {near[0]}?")
        sys.exit(2)


def _complain(message: str) -> None:
    _say(f"stylize-batch: {message}")


def _terminated(number: int, frame: object) -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: what is open is closed on the way."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
