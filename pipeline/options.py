"""The options that are not settings of a picture, each written once. Never imports torch or ray.

The command line makes its options from the fields' metadata. Workers get `PaintOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from pipeline.records import FAILURES
from stylize.image import Limits

__all__ = ["Option", "Options", "PaintOptions", "option_of"]


class Option(NamedTuple):
    """What the command line says and checks of an option."""

    help: str
    words: tuple[str, ...] = ()  # the values that it may have
    least: float | None = None
    most: float | None = None
    variable: str = ""  # an environment variable that sets it
    short: str = ""  # its short form


def _option(default: Any, help: str, *words: str, **more: Any) -> Any:
    """Return a field with an `Option`."""
    return field(default=default, metadata={"option": Option(help, words, **more)})


def option_of(name: str) -> tuple[Option, type, Any]:
    """Return what is known of an option: its text, its type and its default."""
    (found,) = [f for f in fields(Options) if f.name == name]
    return found.metadata["option"], type(found.default), found.default


@dataclass(frozen=True, kw_only=True)
class PaintOptions:
    """What each worker must know."""

    device: str = _option("auto", "auto, cuda, mps or cpu", "auto", "cuda", "mps", "cpu")
    dtype: str = _option(
        "auto",
        "auto, float32, bfloat16 or float16",
        *("auto", "float32", "bfloat16", "float16"),
    )
    threads: int = _option(
        0, "CPU threads of each worker; 0: chosen automatically", least=0, most=1024
    )
    timeout: float = _option(0.0, "seconds that a pair may take; 0: no limit", least=0)
    batch: int = _option(0, "pairs of one size painted together; 0: as many as fill a GPU", least=0)
    tile: int = _option(0, "side of tiles, pixels; 0: tiles only beyond 2048x2048", least=0)
    compile: bool = _option(False, "run the network through torch.compile")
    preview_every: int = _option(
        0, "write a preview beside the output every N steps; 0: never", least=0
    )
    checkpoint_every: int = _option(
        0,
        "keep a picture in the making every N evaluations, to go on from after a kill; 0: never",
        least=0,
    )
    max_side: int = _option(20_000, "longest side that is decoded, pixels", least=16)
    max_megapixels: float = _option(200.0, "largest picture that is decoded", least=0.001)

    @property
    def limits(self) -> Limits:
        """The largest picture that is decoded."""
        return Limits(self.max_side, self.max_megapixels)

    def paint_options(self) -> dict[str, Any]:
        """Return the values of `PaintOptions` alone, by name."""
        return {f.name: getattr(self, f.name) for f in fields(PaintOptions)}


@dataclass(frozen=True, kw_only=True)
class Options(PaintOptions):
    """Everything that a run is told, except the settings of the pictures."""

    out: str = _option(
        "", "output folder or s3://bucket/prefix; by default beside the manifest", short="-o"
    )
    name: str = _option(
        "", "name of the outputs, by columns of the manifest, like '{content}-{style}'"
    )
    weights: str = _option("", "a VGG file, .pth or .safetensors, instead of the project's own")
    weights_convention: Literal["torchvision", "caffe"] = _option(
        "torchvision",
        "input of that file: torchvision, or caffe (BGR, 0-255)",
        *("torchvision", "caffe"),
    )
    workers: int = _option(
        0, "workers; 0: one or two for each GPU, otherwise as many as cores allow", least=0
    )
    address: str = _option("", "a Ray cluster to join", variable="RAY_ADDRESS")
    wait_nodes: float = _option(
        600.0, "seconds that a cluster has to offer a node that can work", least=0
    )
    max_failures: int = _option(
        20, "stop after N failures in a row with the same cause; 0: never", least=0
    )
    shard: str = _option(
        "", "paint part i of n, like 1/3, beside other drivers; slurm: by the array's task"
    )
    limit: int = _option(0, "paint at most N pairs; 0: all", least=0)
    only: tuple[str, ...] = _option((), "paint only the pair with this id; may be repeated")
    force: bool = _option(False, "paint again what is done")
    retry_failed: str = _option(
        "all",
        "which pairs that failed before are tried again: all (except poison), none, or one of "
        + ", ".join(FAILURES),
        *("all", "none", *FAILURES),
    )
    no_retry_failed: bool = _option(False, "leave what failed before")
    redo_changed: bool = _option(
        False, "paint again what was edited by hand, also over files that this program did not make"
    )
    redo_older: bool = _option(False, "paint again what an older version made")
    verify_inputs: bool = _option(False, "hash inputs even if they look unchanged")
    wait: bool = _option(False, "wait while another run writes to OUT")
    progress: str = _option(
        "auto",
        "auto, live, plain, json or none",
        *("auto", "live", "plain", "json", "none"),
    )
    log_json: bool = _option(
        False, "--progress json, with every event of the run's log: for a log collector"
    )
    in_process: bool = _option(False, "without Ray, one pair after another")

    @property
    def retries(self) -> str:
        """Which failed pairs are tried again: all, none, or one of `FAILURES`."""
        return "none" if self.no_retry_failed else self.retry_failed
