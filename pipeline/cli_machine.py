"""Commands on this machine: bench, doctor, presets, and weights. Imports no torch at its top."""

from __future__ import annotations

import json

from pipeline.cli_options import Json, with_options
from pipeline.console import Refused, say, tell
from pipeline.ledger import Exit
from pipeline.options import Options
from pipeline.text import duration, visible

__all__ = [
    "bench_command",
    "doctor_command",
    "presets_command",
    "weights_fetch_command",
    "weights_list_command",
    "weights_verify_command",
]


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


@with_options("out", "address")
def doctor_command(options: Options, as_json: Json = False) -> None:
    """Check whether this machine is fit for a run; say what to do if it is not; exit 0 or 5."""
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
        raise Refused(f"a run would fail here: see {', '.join(failed)} above", Exit.UNABLE)


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


def weights_fetch_command() -> None:
    """Download VGG-19 (548 MB), check it, and keep what is needed."""
    from pipeline.display.progress import Progress
    from stylize import weights

    with Progress([]) as progress:
        path = weights.fetch_vgg19(progress.note, on_bytes=progress.download)
    tell(str(path))


def weights_verify_command() -> None:
    """Recompute the hashes of all weights on this machine."""
    from stylize import weights

    for path in [weights.BUNDLED, *sorted(weights.cache_folder().glob("vgg*.safetensors"))]:
        tell(f"{path}: {weights.verify(path)[:16]}… is right")
