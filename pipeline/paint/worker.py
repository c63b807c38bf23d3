"""The worker: tasks in, rows out. The only place that catches broadly. Never imports ray."""

from __future__ import annotations

import functools
import hashlib
import math
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pipeline import __version__, storage
from pipeline.cost import share_done
from pipeline.crash import crash_point
from pipeline.options import PaintOptions
from pipeline.paint.resources import peak_memory
from pipeline.records import (
    Input,
    InputRef,
    Pair,
    Result,
    Task,
    objective,
    pair_key,
    preview_of,
    settings_digest,
)
from pipeline.store.metadata import metadata, utc_now
from stylize.config import ALGORITHM, AT_ONCE, StyleConfig
from stylize.errors import (
    BlackError,
    ImageReadError,
    Interrupted,
    StylizeError,
    TimeLimitError,
    WeightsError,
)
from stylize.image import decode, encode, fit, scaled

__all__ = [
    "BUG",
    "DeviceLostError",
    "Job",
    "NotReadyError",
    "Status",
    "Worker",
    "failed_row",
    "new_row",
]

_KEPT = 4 * AT_ONCE
"""Pixels of decoded style pictures that a worker keeps."""

_PaintingKey = tuple[str, int, str]
"""SHA-256 of a style picture's file, its longer side in use, and the setting `margins`."""

_THREADS = 8
"""How many pictures are decoded at once: one may be of hundreds of megabytes."""

_BLACK = 8  # of 255: no channel of a black picture is brighter on average


BUG = "bug: "
"""How the `error_type` of an error begins that this program never raises on purpose."""


@dataclass(frozen=True, kw_only=True)
class Job(PaintOptions):
    """What every pair of a run has in common. Paths are absolute, or URIs."""

    out: str
    folder: str  # where relative paths of pairs start
    weights: Mapping[str, str]  # backbone -> path of its file
    probe: str = ""  # a file under OUT that each worker must be able to read
    expect_gpu: bool = False  # Ray granted one


@dataclass(frozen=True)
class Status:
    """What a worker is doing, for the progress display."""

    pair_id: str = ""
    step: int = 0
    steps: int = 0
    loss: float = float("nan")
    seconds: float = 0.0
    share: float = 0.0  # of the pair's work that is done; early steps are small and cheap
    batch: int = 1  # pairs that are optimised together, of which this is the first


@dataclass(frozen=True)
class _Opened:
    """A pair whose inputs are read and decoded, and its row so far."""

    pair: Pair
    row: Result
    pictures: Mapping[str, Any]  # role -> PIL image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the result, pixels."""
        return fit(self.pictures["content"].size, self.pair.config.size)

    @property
    def group(self) -> tuple[object, ...]:
        """What pairs that are painted together have in common."""
        return objective(self.pair), self.size


class NotReadyError(Exception):
    """This worker cannot work at all: no weights, no GPU, or OUT out of reach. No pair's fault."""


class DeviceLostError(Exception):
    """The GPU failed in a way that this process cannot recover from. Not a pair's fault."""


class Worker:
    """Keeps encoder and style targets between pairs; `stop` may come from another thread."""

    def __init__(self, job: Job, on_status: Callable[[Status], None] = lambda _: None) -> None:
        self.job = job
        self.on_status = on_status
        self._stylizers: dict[str, Any] = {}
        self._paintings: dict[_PaintingKey, Any] = {}  # ready to be used
        self._decoding: defaultdict[_PaintingKey, threading.Lock] = defaultdict(threading.Lock)
        self._fits = math.inf  # pixels of pictures that are optimised together
        self._stopping = threading.Event()
        self._status = Status()

    def ready(self) -> str:
        """Device in use, when all that a pair needs is at hand. Raises `NotReadyError`."""
        import torch

        from stylize.device import choose_device

        host = socket.gethostname()
        if self.job.probe and not storage.exists(self.job.probe):
            raise NotReadyError(
                f"{host} cannot read the output folder; use s3:// or a shared mount for --out"
            )
        if self.job.expect_gpu and not torch.cuda.is_available():
            raise NotReadyError(
                f"{host}: Ray granted a GPU that torch cannot see; install torch with CUDA there, "
                "or use --device cpu"
            )
        if self.job.threads:
            torch.set_num_threads(self.job.threads)
        try:
            device = choose_device(self.job.device)
            for backbone in self.job.weights:
                self._stylizer(backbone)
        except StylizeError as error:
            raise NotReadyError(f"{host}: {error}") from error
        return str(device)

    def status(self) -> Status:
        """Where the pair in hand is."""
        return self._status

    def stop(self) -> None:
        """End the pair in hand at its next evaluation, and take no other."""
        self._stopping.set()

    def run(self, tasks: Sequence[Task]) -> list[Result | None]:
        """Make each attempt and return its row; None for one that was stopped and stays pending.

        Pairs of one size and objective are painted together. Raises `storage.StorageError`
        where a picture cannot be written: that is the run's trouble, not the pair's.
        """
        import torch

        if self.job.threads:
            torch.set_num_threads(self.job.threads)  # OpenMP keeps it per thread

        def open_one(task: Task) -> Any:
            row = replace(new_row(task), host=socket.gethostname())
            return self._guarded([row], functools.partial(self._open, task.pair, row))

        results: dict[str, Result | None] = {}
        groups: dict[tuple[object, ...], list[_Opened]] = {}
        for task, opened in zip(tasks, _each(open_one, tasks), strict=True):
            if isinstance(opened, _Opened):
                groups.setdefault(opened.group, []).append(opened)
            else:
                results[task.pair.pair_id] = opened[0]
        for group in groups.values():
            rows = [opened.row for opened in group]
            painted = self._guarded(rows, functools.partial(self._paint, group))
            if len(group) > 1 and any(r and r.status == "failed" for r in painted):
                # Whose fault was it? Each on its own.
                for at, one in enumerate(group):
                    if (result := painted[at]) and result.status == "failed":
                        alone = self._guarded([one.row], functools.partial(self._paint, [one]))
                        painted[at] = alone[0]
            results.update(zip((opened.pair.pair_id for opened in group), painted, strict=True))
        return [results[task.pair.pair_id] for task in tasks]

    def _guarded(self, rows: Sequence[Result], work: Callable[[], Any]) -> Any:
        """What `work` returns, or what its failure makes of the rows."""
        started = time.monotonic()  # a clock may be set back or forth meanwhile

        def failed(error: BaseException, status: str = "failed") -> list[Result]:
            seconds, now = time.monotonic() - started, utc_now()
            return [
                replace(failed_row(row, error, status), seconds=seconds, finished_at=now)
                for row in rows
            ]

        try:
            return work()
        except storage.StorageError:
            raise
        except TimeLimitError as error:
            return failed(error, status="timeout")
        except Interrupted:
            return [None for _ in rows]
        except Exception as error:
            if "CUDA error" in str(error) and not _is_short_of_memory(error):
                raise DeviceLostError(f"{socket.gethostname()}: {error}") from error
            return failed(error)
        finally:
            self._status = Status()

    def _open(self, pair: Pair, row: Result) -> _Opened:
        """Read what a pair is made of; the key is that of the very bytes that were decoded."""
        import torch

        crash_point("pair-begun", pair_id=pair.pair_id)
        stylizer = self._stylizer(pair.config.backbone)
        inputs: list[Input] = []
        pictures: dict[str, Any] = {}
        for ref in pair.inputs:
            read, pictures[ref.role] = self._read(ref, pair.config)
            inputs.append(read)
        key = pair_key(
            {read.role: read.sha256 for read in inputs},
            settings_digest(pair.config),
            stylizer.weights.sha256,
            ALGORITHM,
        )
        row = replace(
            row,
            key=key,
            inputs=tuple(inputs),
            backbone=stylizer.weights.backbone,
            weights_sha256=stylizer.weights.sha256,
            device=str(stylizer.device),
            dtype=str(stylizer.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        return _Opened(pair, row, pictures)

    def _paint(self, group: Sequence[_Opened]) -> list[Result | None]:
        """Paint pairs of one size and objective together, and write their pictures."""
        started = time.monotonic()
        stylizer = self._stylizer(group[0].pair.config.backbone)

        def finish(opened: _Opened, done: Any) -> Result | None:
            row = replace(opened.row, batch=len(group))
            try:
                row = self._write(opened, row, done, stylizer)
            except StylizeError as error:
                row = failed_row(row, error)
            seconds = time.monotonic() - started
            return replace(row, seconds=seconds, finished_at=utc_now())

        return _each(finish, group, self._transfer(stylizer, group, started))

    def _write(self, opened: _Opened, row: Result, done: Any, stylizer: Any) -> Result:
        """Put a finished picture where it belongs and return its row. Raises what it ended in."""
        if isinstance(done, StylizeError):
            raise done
        _check_not_black(done.image, opened.pictures["content"])
        width, height = done.image.size
        row = replace(
            row,
            status="ok",
            notes=done.notes,
            width=width,
            height=height,
            steps=len(done.curve),
            evaluations=done.evaluations,
            stop_reason=done.stop_reason,
            loss=done.loss,
            content_loss=done.content_loss,
            style_loss=done.style_loss,
            tv_loss=done.tv_loss,
            loss_curve=tuple(
                (s.step, s.seconds, s.loss, s.content_loss, s.style_loss, s.tv_loss)
                for s in done.curve
            ),
            peak_memory=peak_memory(stylizer.device),
        )
        output = opened.pair.output
        data = encode(done.image, PurePosixPath(output).suffix, metadata(row))
        storage.put(storage.output_path(self.job.out, output), data, point="picture")
        return replace(row, output_sha256=hashlib.sha256(data).hexdigest(), output_bytes=len(data))

    def _on_step(self, opened: _Opened, together: int, first: bool, started: float) -> Any:
        """The callback of a pair's steps, which ends the pair when it is to stop or out of time."""
        pair, steps = opened.pair, opened.pair.config.steps
        share_of = share_done(opened.pictures["content"].size, opened.pair.config)

        def on_step(step: Any, image: Any) -> None:
            if self._stopping.is_set():
                raise Interrupted("stopped")
            seconds = time.monotonic() - started
            limit = self.job.timeout * together
            if limit and seconds > limit:
                raise TimeLimitError(
                    f"took more than {limit:g} s, at step {step.step} of {steps} "
                    "(raise --timeout, or lower size or steps)"
                )
            if first:
                share = share_of(image)
                self._status = Status(
                    pair.pair_id, step.step, steps, step.loss, seconds, share, together
                )
                self.on_status(self._status)
            if self.job.preview_every and step.step % self.job.preview_every == 0:
                self._preview(pair, image)

        return on_step

    def _transfer(
        self, stylizer: Any, group: Sequence[_Opened], started: float, together: int = 0
    ) -> list[Any]:
        """The transfers. Where memory does not suffice, half of the pictures are tried at a time,
        and a single one once more in tiles and with a shorter history, which its notes say."""
        import torch

        from stylize.transfer import Request

        together = together or len(group)  # pairs that share the time from `started`
        requests = []
        for opened in group:
            pictures = opened.pictures
            requests.append(
                Request(
                    pictures["content"],
                    [picture for role, picture in pictures.items() if role.startswith("style")],
                    opened.pair.config,
                    pictures.get("init"),
                    pictures.get("mask"),
                    self._on_step(opened, together, opened is group[0], started),
                )
            )
        pixels = len(group) * math.prod(group[0].size)
        if pixels <= self._fits or len(group) == 1:
            try:
                return list(stylizer.transfer_batch(requests))
            except Exception as error:
                if not _is_short_of_memory(error):
                    raise
                self._fits = pixels // 2
            if stylizer.device.type == "cuda":
                torch.cuda.empty_cache()
        if len(group) > 1:
            half = len(group) // 2
            return [
                done
                for part in (group[:half], group[half:])
                for done in self._transfer(stylizer, part, started, together)
            ]
        (request,) = requests
        less = replace(request.config, history=min(request.config.history, 5))
        (result,) = stylizer.in_tiles().transfer_batch([replace(request, config=less)])
        if not isinstance(result, StylizeError):
            note = f"memory was short: history {request.config.history} -> {less.history}"
            result = replace(result, notes=f"{note}; {result.notes}" if result.notes else note)
        return [result]

    def _stylizer(self, backbone: str) -> Any:
        from stylize import weights
        from stylize.transfer import Stylizer

        if backbone not in self._stylizers:
            path = self.job.weights.get(backbone)
            if path is None:
                raise WeightsError(f"this run has no weights for {backbone}")
            self._stylizers[backbone] = Stylizer(
                weights.load(path),
                device=self.job.device,
                dtype=self.job.dtype,
                tile=self.job.tile,
                compile=self.job.compile,
            )
        return self._stylizers[backbone]

    def _read(self, ref: InputRef, config: StyleConfig) -> tuple[Input, Any]:
        """Hash and decode one input from the same bytes; it is made as small as it is needed."""
        where = storage.join(self.job.folder, ref.path)
        name = f"{ref.role} {ref.written}"
        try:
            stat = storage.stat(where)  # before the bytes: a change in between is then seen
            data = storage.read_bytes(where)
        except FileNotFoundError:
            why = storage.space_at_end(ref.written)
            raise ImageReadError(f"{name}: there is no such file{why}") from None
        except OSError as error:
            raise ImageReadError(f"{name}: {error.strerror or error}") from error
        digest = hashlib.sha256(data).hexdigest()
        try:
            if ref.is_style:
                picture = self._painting(data, digest, config)
            else:
                picture = decode(data, self.job.limits, "black" if ref.role == "mask" else "white")
        except StylizeError as error:
            raise type(error)(f"{name}: {error}") from error
        if ref.role == "content":
            picture = scaled(picture, config.size)
        return Input(ref.role, ref.written, stat, digest), picture

    def _painting(self, data: bytes, digest: str, config: StyleConfig) -> Any:
        """A style picture, decoded once while it is among the latest."""
        from stylize.inputs import Painting

        key = (digest, config.style_side(config.size), config.margins)
        with self._decoding[key]:
            picture = self._paintings.get(key)
            if picture is None:
                picture = Painting.of(decode(data, self.job.limits), config)
                self._paintings[key] = picture
        pixels = 0
        for latest, kept in reversed(list(self._paintings.items())):
            pixels += math.prod(kept.picture.size)
            if pixels > _KEPT and latest != key:
                self._paintings.pop(latest, None)
        return picture

    def _preview(self, pair: Pair, image: Any) -> None:
        from stylize.image import to_image

        path = storage.output_path(self.job.out, preview_of(pair.output))
        storage.put(path, encode(to_image(image), ".jpg"))


def _is_short_of_memory(error: BaseException) -> bool:
    """Return whether the same work with less at once may succeed. The allocators of CPU and GPU,
    cuBLAS and the driver each say it in their own words; the process can go on."""
    torch = sys.modules.get("torch")  # whoever painted has it
    texts = ("CUDA error: out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory")
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or any(text in str(error) for text in texts)
    )


def _each(work: Callable[..., Any], *lists: Sequence[Any]) -> list[Any]:
    """Return what `work` makes of each item. Several are worked on in threads: Pillow decodes,
    resizes and encodes outside the interpreter, and one after another would keep a GPU waiting."""
    if len(lists[0]) == 1:
        return [work(*(one for (one,) in lists))]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, *lists))


def _check_not_black(picture: Any, photograph: Any) -> None:
    """Raise `BlackError` for a picture of nothing, whatever its loss says."""
    from PIL import ImageStat

    light, before = (max(ImageStat.Stat(image).mean) for image in (picture, photograph))
    if light < _BLACK and before > 4 * _BLACK:
        raise BlackError(
            f"the picture came out black (brightness {light:.0f} of 255, the photograph has "
            f"{before:.0f}); look at the style, or lower style_weight"
        )


def new_row(task: Task) -> Result:
    """Return the row of an attempt that begins now. It says `failed` until the pair is painted."""
    pair = task.pair
    return Result(
        pair_id=pair.pair_id,
        row=pair.row,
        content=pair.content,
        style=pair.style,
        output=pair.output,
        status="failed",
        settings=pair.config.to_json(),
        preset=pair.config.preset,
        algorithm=ALGORITHM,
        attempt=task.attempt,
        version=__version__,
        started_at=utc_now(),
        generated_id=pair.generated_id,
        meta=pair.meta,
    )


def failed_row(row: Result, error: BaseException, status: str = "failed") -> Result:
    """Return the row of an attempt that ended in an error.

    An error that is neither one that the library raises on purpose nor the system's is a bug of
    ours: the row says so, and keeps the traceback for the run's log.
    """
    kind, trace = type(error).__name__, ""
    foreseen = StylizeError, OSError, MemoryError, storage.OutsideError
    if not isinstance(error, foreseen) and not _is_short_of_memory(error):
        kind = f"{BUG}{kind}"
        trace = "".join(traceback.format_exception(error))
    message = str(error) or type(error).__name__
    return replace(row, status=status, error_type=kind, error_message=message, traceback=trace)
