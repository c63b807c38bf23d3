"""The worker: tasks in, rows out. The only place that catches broadly. Never imports ray."""

from __future__ import annotations

import functools
import hashlib
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import storage
from pipeline.cost import share_done
from pipeline.crash import crash_point
from pipeline.options import PaintOptions
from pipeline.paint.attempts import failed_row, is_short_of_memory, new_row
from pipeline.paint.backbones import local_weights
from pipeline.paint.checkpoints import Kept
from pipeline.paint.inputs import InputReader
from pipeline.paint.resources import device_memory, peak_memory
from pipeline.paint.room import DeviceFullError, Room
from pipeline.records import (
    Input,
    Pair,
    Result,
    Status,
    Task,
    column_of,
    numbered,
    objective,
    pair_key,
    preview_of,
    settings_digest,
)
from pipeline.store.metadata import attributes, metadata
from pipeline.text import utc_now
from stylize.config import ALGORITHM, StyleConfig, has_alpha
from stylize.errors import (
    BlackError,
    DivergedError,
    Interrupted,
    StylizeError,
    TimeLimitError,
    WeightsError,
)
from stylize.image import encode

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from stylize.checkpoint import Checkpoint
    from stylize.request import OnStep, Request, Step, StyleResult
    from stylize.transfer import Stylizer

__all__ = ["DeviceLostError", "Job", "NotReadyError", "Worker"]

_THREADS = 8
"""How many pictures are decoded at once: each may have hundreds of megabytes."""

_BLACK = 8  # of 255: no channel of a black picture is brighter on average

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Job(PaintOptions):
    """What all pairs of a run have in common. Paths are absolute, or URIs."""

    out: str
    folder: str  # where relative paths of pairs start
    weights: Mapping[str, str]  # backbone -> path of its file
    probe: str = ""  # a file under OUT that each worker must be able to read
    expect_gpu: bool = False  # Ray granted one


class NotReadyError(Exception):
    """This worker cannot work at all: no weights, no GPU, or OUT out of reach. No pair's fault."""


class DeviceLostError(Exception):
    """The GPU failed in a way that this process cannot recover from. No pair's fault."""


@dataclass(frozen=True)
class _Opened:
    """A pair whose inputs are read and decoded, and its row so far."""

    pair: Pair
    row: Result
    pictures: Mapping[str, Any]  # role -> PIL image; `Photograph`, or `Painting` for a style
    config: StyleConfig  # the pair's, with the size in pixels

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the result, pixels."""
        size: tuple[int, int] = self.pictures["content"].picture.size
        return size

    @property
    def group(self) -> tuple[object, ...]:
        """What pairs that are painted together have in common."""
        return objective(self.pair), self.size


class Worker:
    """Keeps networks and style pictures between pairs. `stop` may come from another thread."""

    def __init__(self, job: Job, on_status: Callable[[Status], None] = lambda _: None) -> None:
        self.job = job
        self.on_status = on_status
        self._reader = InputReader(job.folder, job.limits)
        self._stylizers: dict[str, Stylizer] = {}
        self._room = Room()
        self._kept: Kept | None = None  # of the pair in hand, if it is painted alone
        self._stopping = threading.Event()
        self._status = Status()

    def ready(self) -> str:
        """Load all that a pair needs, and return the device. Raises `NotReadyError`."""
        import torch

        from stylize.device import choose_device

        host = socket.gethostname()
        try:
            reaches_out = not self.job.probe or storage.exists(self.job.probe)
        except (OSError, storage.StorageError) as error:
            raise NotReadyError(f"{host} cannot read the output folder: {error}") from error
        if not reaches_out:
            raise NotReadyError(
                f"{host} cannot read the output folder; use a shared mount or object storage "
                "for --out"
            )
        if self.job.expect_gpu and not torch.cuda.is_available():
            raise NotReadyError(
                f"{host}: Ray granted a GPU that torch cannot see; install torch with CUDA there, "
                "or use --device cpu"
            )
        self._set_threads()
        try:
            device = choose_device(self.job.device)
            for backbone in self.job.weights:
                self._stylizer(backbone)
        except StylizeError as error:
            raise NotReadyError(f"{host}: {error}") from error
        return str(device)

    def memory(self) -> int:
        """Return all the memory of the device, bytes. Free or not: it tells devices apart."""
        from stylize.device import choose_device

        return device_memory(choose_device(self.job.device))

    def status(self) -> Status:
        """Return the progress of the pair in hand."""
        return self._status

    def stop(self) -> None:
        """End the pair in hand at its next evaluation, and take no other."""
        self._stopping.set()

    def run(self, tasks: Sequence[Task]) -> list[Result | None]:
        """Make each attempt and return its row; None for one that was stopped and stays pending.

        Pairs of one size and objective are painted together. Raises `storage.StorageError` where a
        picture cannot be written, `DeviceLostError` and `DeviceFullError`: none is a pair's fault.
        """
        self._set_threads()
        rows: dict[str, Result | None] = {}
        groups: dict[tuple[object, ...], list[_Opened]] = {}
        for task, opened in zip(tasks, _each(self._try_to_open, tasks), strict=True):
            if isinstance(opened, _Opened):
                groups.setdefault(opened.group, []).append(opened)
            else:
                (rows[task.pair.pair_id],) = opened
        for group in groups.values():
            painted = self._try_to_paint(group)
            if len(group) > 1 and any(row and row.status == "failed" for row in painted):
                # Whose fault it was shows when each is alone.
                for at, opened in enumerate(group):
                    if (row := painted[at]) and row.status == "failed":
                        (painted[at],) = self._try_to_paint([opened])
            rows |= {one.pair.pair_id: row for one, row in zip(group, painted, strict=True)}
        return [rows[task.pair.pair_id] for task in tasks]

    def _set_threads(self) -> None:
        """OpenMP keeps the number of threads for each thread, so it is set by whoever paints."""
        import torch

        if self.job.threads:
            torch.set_num_threads(self.job.threads)

    def _try_to_open(self, task: Task) -> _Opened | list[Result | None]:
        row = replace(new_row(task), host=socket.gethostname())
        return self._guarded([row], functools.partial(self._open, task.pair, row))

    def _try_to_paint(self, group: Sequence[_Opened]) -> list[Result | None]:
        rows = [opened.row for opened in group]
        return self._guarded(rows, functools.partial(self._paint, group))

    def _guarded(self, rows: Sequence[Result], work: Callable[[], _T]) -> _T | list[Result | None]:
        """Return what `work` returns, or the rows as its failure leaves them."""
        started = time.monotonic()  # the wall clock may be set meanwhile

        def failed(error: BaseException, status: str = "failed") -> list[Result | None]:
            seconds, now = time.monotonic() - started, utc_now()
            return [
                replace(failed_row(row, error, status), seconds=seconds, finished_at=now)
                for row in rows
            ]

        try:
            return work()
        except (storage.StorageError, DeviceFullError):
            raise
        except TimeLimitError as error:
            return failed(error, status="timeout")
        except Interrupted:
            return [None for _ in rows]
        except Exception as error:
            if "CUDA error" in str(error) and not is_short_of_memory(error):
                raise DeviceLostError(f"{socket.gethostname()}: {error}") from error
            return failed(error)
        finally:
            self._status = Status()

    # --- one pair, read ---

    def _open(self, pair: Pair, row: Result) -> _Opened:
        """Read what a pair is made of. The key is that of the very bytes that are decoded."""
        import torch

        crash_point("pair-begun", pair_id=pair.pair_id)
        stylizer = self._stylizer(pair.config.backbone)
        inputs: list[Input] = []
        pictures: dict[str, Any] = {}
        config = pair.config
        transparent = has_alpha(PurePosixPath(pair.output).suffix)
        for ref in pair.inputs:  # the content first
            read, pictures[ref.role] = self._reader.read(ref, config, transparent=transparent)
            inputs.append(read)
            if ref.role == "content":
                config = config.sized(pictures["content"].size)
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
            tile=self.job.tile,
            compile=self.job.compile,
        )
        return _Opened(pair, row, pictures, config)

    def _stylizer(self, backbone: str) -> Stylizer:
        from stylize import weights
        from stylize.transfer import Stylizer

        if backbone not in self._stylizers:
            path = self.job.weights.get(backbone)
            if path is None:
                raise WeightsError(f"this run has no weights for {backbone}")
            self._stylizers[backbone] = Stylizer(
                weights.load(local_weights(path)),
                device=self.job.device,
                dtype=self.job.dtype,
                tile=self.job.tile,
                compile=self.job.compile,
            )
        return self._stylizers[backbone]

    # --- pairs of one size and objective, painted ---

    def _paint(self, group: Sequence[_Opened]) -> list[Result | None]:
        """Paint pairs together, write their pictures, and return their rows."""
        started = time.monotonic()
        stylizer = self._stylizer(group[0].pair.config.backbone)
        self._kept = kept = None
        if self.job.checkpoint_every and len(group) == 1:
            every, out = self.job.checkpoint_every, self.job.out
            self._kept = kept = Kept(out, group[0].row, every, self._stopping.is_set)

        def finish(opened: _Opened, done: StyleResult | DivergedError) -> Result | None:
            row = timed(replace(opened.row, batch=len(group)))  # as the picture will carry it
            try:
                row = self._write(opened, row, done, stylizer)
            except StylizeError as error:
                row = failed_row(row, error)
            if kept:
                kept.forget()
                row = replace(row, checkpoint=kept.remark)
            return timed(row)

        def timed(row: Result) -> Result:
            return replace(row, seconds=time.monotonic() - started, finished_at=utc_now())

        return _each(finish, group, self._transfer(stylizer, group, started))

    def _transfer(
        self, stylizer: Stylizer, group: Sequence[_Opened], started: float
    ) -> list[StyleResult | DivergedError]:
        """Make the transfers, as many at once as the memory holds."""

        def requests_of(part: Sequence[_Opened]) -> list[Request]:
            return [self._request(one, len(group), one is part[0], started) for one in part]

        return self._room.transfer(stylizer, group, requests_of, math.prod(group[0].size))

    def _request(self, opened: _Opened, together: int, first: bool, started: float) -> Request:
        from stylize.request import Request

        pictures, config, kept = opened.pictures, opened.pair.config, self._kept

        def of(column: str) -> list[Any]:
            return [picture for role, picture in pictures.items() if column_of(role) == column]

        def look(evaluations: int, make: Callable[[], Checkpoint]) -> None:
            if kept:
                kept.look(evaluations, make)
            self._end_if_told(opened.pair, together, started, evaluations)

        return Request(
            pictures["content"],
            of("style"),
            config,
            pictures.get("init"),
            of("mask"),
            self._on_step(opened, together, first, started),
            [pictures.get(role) for role in numbered("style_mask", config.style_masks)],
            kept.load() if kept else None,
            look if kept else None,
        )

    def _on_step(self, opened: _Opened, together: int, first: bool, started: float) -> OnStep:
        """Return the callback of a pair's steps."""
        pair, steps = opened.pair, opened.pair.config.steps
        share_of = share_done(opened.size, opened.config)

        def on_step(step: Step, image: Tensor) -> None:
            if not self._kept:  # else it is kept first
                self._end_if_told(pair, together, started, step.step)
            if first:
                share, seconds = share_of(image), time.monotonic() - started
                self._status = Status(
                    pair.pair_id, step.step, steps, step.loss, seconds, share, together
                )
                self.on_status(self._status)
            if self.job.preview_every and step.step % self.job.preview_every == 0:
                self._preview(pair, image)

        return on_step

    def _end_if_told(self, pair: Pair, together: int, started: float, step: int) -> None:
        """Raise `Interrupted` where the pair must stop, `TimeLimitError` where it is too late."""
        if self._stopping.is_set():
            raise Interrupted("stopped")
        limit = self.job.timeout * together
        if limit and time.monotonic() - started > limit:
            raise TimeLimitError(
                f"took more than {limit:g} s, at step {step} of {pair.config.steps} "
                "(raise --timeout, or lower size or steps)"
            )

    def _preview(self, pair: Pair, image: Tensor) -> None:
        from stylize.image import to_image

        path = storage.output_path(self.job.out, preview_of(pair.output))
        storage.put(path, encode(to_image(image), ".jpg"))

    def _write(
        self,
        opened: _Opened,
        row: Result,
        done: StyleResult | DivergedError,
        stylizer: Stylizer,
    ) -> Result:
        """Write a finished picture and return its row. Raises what the transfer ended in."""
        if isinstance(done, StylizeError):
            raise done
        _check_not_black(done.image.convert("RGB"), opened.pictures["content"].picture)
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
        data = done.encode(PurePosixPath(output).suffix, metadata(row))
        digest = hashlib.sha256(data).hexdigest()
        row = replace(row, output_sha256=digest, output_bytes=len(data))
        path = storage.output_path(self.job.out, output)
        beside = attributes(row) if storage.is_remote(path) else None
        etag = storage.put(path, data, point="picture", attributes=beside)
        return replace(row, output_etag=etag)


def _each(work: Callable[..., _T], *lists: Sequence[Any]) -> list[_T]:
    """Return what `work` makes of each item. Several are worked on in threads: Pillow decodes,
    resizes and encodes outside the interpreter, and one after another would keep a GPU waiting."""
    if len(lists[0]) == 1:
        return [work(*(item for (item,) in lists))]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, *lists))


def _check_not_black(picture: Image.Image, photograph: Image.Image) -> None:
    """Raise `BlackError` for a picture of nothing, whatever its loss says."""
    from PIL import ImageStat

    light, before = (max(ImageStat.Stat(image).mean) for image in (picture, photograph))
    if light < _BLACK and before > 4 * _BLACK:
        raise BlackError(
            f"the picture came out black (brightness {light:.0f} of 255, the photograph has "
            f"{before:.0f}); look at the style, or lower style_weight"
        )
