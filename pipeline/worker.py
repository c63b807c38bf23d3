"""Worker: one pair in, one Result out. The only place that catches broadly. Never imports ray."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from pipeline import __version__, storage
from pipeline.crash import crash_point
from pipeline.records import Input, Pair, Result, pair_key
from stylize.config import ALGORITHM, StyleConfig
from stylize.errors import (
    BlackError,
    ImageReadError,
    Interrupted,
    StylizeError,
    TimeLimitError,
    WeightsError,
)
from stylize.image import Limits, decode, encode

__all__ = [
    "Job",
    "NotReadyError",
    "Status",
    "Worker",
    "failed_result",
    "metadata",
    "result_from_metadata",
]


@dataclass(frozen=True)
class Job:
    """What every pair of a run has in common. Paths are absolute, or URIs."""

    out: str
    folder: str  # what relative paths of pairs are relative to
    weights: Mapping[str, str]  # backbone -> path of its file
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0  # 0: as torch has it
    timeout: float = 0.0  # seconds a pair may take; 0: no limit
    limits: Limits = field(default_factory=Limits)
    probe: str = ""  # a file under OUT that each worker must be able to read
    expect_gpu: bool = False
    previews: int = 0  # every so many steps the picture so far is left beside its output; 0: never


@dataclass(frozen=True)
class Status:
    """What a worker is doing, for the progress display."""

    pair_id: str = ""
    step: int = 0
    steps: int = 0
    loss: float = float("nan")
    seconds: float = 0.0


class NotReadyError(Exception):
    """This worker cannot work at all: no weights, no GPU, OUT out of reach. The run's trouble."""


class Worker:
    """Keeps encoder and style targets between pairs; `stop` may come from another thread."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stylizers: dict[str, Any] = {}
        self._stopping = threading.Event()
        self._status = Status()

    def ready(self) -> str:
        """Device in use, when all that a pair needs is at hand. Raises `NotReadyError`."""
        import torch

        from stylize.transfer import choose_device

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

    def run(self, pair: Pair, attempt: int = 1) -> Result | None:
        """One attempt at a pair; None if it was stopped and stays pending.

        Raises `storage.StorageError` where the picture cannot be written: that is the run's
        trouble, not the pair's.
        """
        started = time.monotonic()  # a clock may be set back or forth meanwhile
        result = replace(
            failed_result(pair, attempt), host=socket.gethostname(), started_at=utc(time.time())
        )
        try:
            crash_point("pair-begun", pair_id=pair.pair_id)
            result = self._paint(pair, result, started)
        except storage.StorageError:
            raise
        except TimeLimitError as error:
            result = _failed(result, error, status="timeout")
        except Interrupted:
            return None
        except Exception as error:
            if "CUDA error" in str(error):
                # The context is lost for good; a fresh process takes over.
                print(f"worker ends: {error}", file=sys.stderr)
                os._exit(70)
            result = _failed(result, error)
        finally:
            self._status = Status()
        return replace(result, seconds=time.monotonic() - started, finished_at=utc(time.time()))

    def _paint(self, pair: Pair, result: Result, started: float) -> Result:
        import torch

        if self.job.threads:
            torch.set_num_threads(self.job.threads)  # OpenMP keeps it per thread
        config = StyleConfig(**pair.settings)
        stylizer = self._stylizer(config.backbone)
        inputs: list[Input] = []
        pictures: dict[str, Any] = {}
        for role, path in pair.inputs:
            given, pictures[role] = self._read(pair, role, path)
            inputs.append(given)
        key = pair_key(
            {given.role: given.sha256 for given in inputs},
            config.digest(),
            stylizer.weights.sha256,
            ALGORITHM,
        )
        result = replace(
            result,
            key=key,
            inputs=tuple(inputs),
            backbone=stylizer.weights.backbone,
            weights_sha256=stylizer.weights.sha256,
            device=str(stylizer.device),
            dtype=str(stylizer.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            batch=1,
        )

        def on_step(step: Any, image: Any) -> None:
            if self._stopping.is_set():
                raise Interrupted("stopped")
            seconds = time.monotonic() - started
            if self.job.timeout and seconds > self.job.timeout:
                raise TimeLimitError(
                    f"took more than {self.job.timeout:g} s, at step {step.step} of "
                    f"{config.steps} (raise --timeout, or lower size or steps)"
                )
            self._status = Status(pair.pair_id, step.step, config.steps, step.loss, seconds)
            if self.job.previews and step.step % self.job.previews == 0:
                self._preview(pair, image)

        done, notes = self._transfer(stylizer, pictures, config, on_step)
        _check_not_black(done.image, pictures["content"])
        width, height = done.image.size
        result = replace(
            result,
            status="ok",
            notes=notes,
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
            peak_memory=_peak_memory(stylizer.device),
        )
        suffix = PurePosixPath(pair.output).suffix
        data = encode(done.image, suffix, metadata(result))
        storage.put(storage.output_path(self.job.out, pair.output), data, point="picture")
        return replace(
            result, output_sha256=hashlib.sha256(data).hexdigest(), output_bytes=len(data)
        )

    def _transfer(
        self, stylizer: Any, pictures: Mapping[str, Any], config: StyleConfig, on_step: Any
    ) -> tuple[Any, str]:
        """The transfer, and a note of what was changed if memory only sufficed for less."""
        import torch

        styles = [picture for role, picture in pictures.items() if role.startswith("style")]
        paint = functools.partial(
            stylizer.transfer,
            pictures["content"],
            styles,
            init=pictures.get("init"),
            mask=pictures.get("mask"),
            on_step=on_step,
        )
        try:
            return paint(config), ""
        except (MemoryError, torch.OutOfMemoryError):
            if stylizer.device.type == "cuda":
                torch.cuda.empty_cache()
        less = replace(config, history=min(config.history, 5))
        return paint(less), f"memory was short: history {config.history} -> {less.history}"

    def _stylizer(self, backbone: str) -> Any:
        from stylize import weights
        from stylize.transfer import Stylizer

        if backbone not in self._stylizers:
            path = self.job.weights.get(backbone)
            if path is None:
                raise WeightsError(f"this run has no weights for {backbone}")
            self._stylizers[backbone] = Stylizer(
                weights.load(path), device=self.job.device, dtype=self.job.dtype
            )
        return self._stylizers[backbone]

    def _read(self, pair: Pair, role: str, path: str) -> tuple[Input, Any]:
        """One input, hashed and decoded from the same bytes."""
        where = storage.join(self.job.folder, path)
        written = written_path(pair, role)
        try:
            stat = storage.stat(where)  # before the bytes: a change in between is then seen
            data = storage.read_bytes(where)
        except FileNotFoundError:
            raise ImageReadError(f"{role} {written}: there is no such file") from None
        except OSError as error:
            raise ImageReadError(f"{role} {written}: {error.strerror or error}") from error
        try:
            picture = decode(data, self.job.limits)
        except StylizeError as error:
            raise type(error)(f"{role} {written}: {error}") from error
        return Input(role, written, stat, hashlib.sha256(data).hexdigest()), picture

    def _preview(self, pair: Pair, image: Any) -> None:
        from stylize.image import to_image

        output = PurePosixPath(pair.output)
        preview = output.with_name(f"{output.stem}.preview.jpg")
        storage.put(
            storage.output_path(self.job.out, str(preview)), encode(to_image(image), ".jpg")
        )


def failed_result(pair: Pair, attempt: int) -> Result:
    """The row of an attempt that nothing has come of yet."""
    return Result(
        pair_id=pair.pair_id,
        row=pair.row,
        content=pair.content,
        style=pair.style,
        output=pair.output,
        status="failed",
        settings=StyleConfig(**pair.settings).to_json(),
        preset=pair.settings["preset"],
        algorithm=ALGORITHM,
        attempt=attempt,
        version=__version__,
        meta=pair.meta,
    )


def written_path(pair: Pair, role: str) -> str:
    """The path of an input as the manifest has it."""
    if role == "content":
        return pair.content
    if role.startswith("style"):
        return pair.style.split("|")[int(role[5:] or 1) - 1].strip()
    return str(pair.settings[role])


def metadata(result: Result) -> str:
    """What a picture carries: enough to make its index row again, and only what is the same each
    time the same pair is painted. File names without folders."""
    settings = json.loads(result.settings)
    for name in ("init", "mask"):
        settings[name] = PurePosixPath(settings[name]).name
    names = [PurePosixPath(style).name for style in result.style.split("|")]
    facts = {
        "pair_id": result.pair_id,
        "key": result.key,
        "content": PurePosixPath(result.content).name,
        "style": "|".join(names),
        "output": result.output,
        "inputs": [
            {"role": i.role, "path": PurePosixPath(i.path).name, "sha256": i.sha256}
            for i in result.inputs
        ],
        "settings": settings,
        **{name: getattr(result, name) for name in _CARRIED},
    }
    return json.dumps(facts, sort_keys=True, ensure_ascii=False)


_BLACK = 8  # of 255: no channel of a black picture is brighter on average

_CARRIED = (
    "preset",
    "backbone",
    "weights_sha256",
    "algorithm",
    "notes",
    "width",
    "height",
    "steps",
    "evaluations",
    "stop_reason",
    "loss",
    "content_loss",
    "style_loss",
    "tv_loss",
    "device",
    "dtype",
    "threads",
)


def result_from_metadata(text: str, data: bytes, pair: Pair | None = None) -> Result | None:
    """The index row of a picture, from what it carries; None if it is none of ours.

    With `pair`, id, paths and row number are the manifest's again.
    """
    try:
        facts = json.loads(text)
        inputs = tuple(Input(i["role"], i["path"], "", i["sha256"]) for i in facts["inputs"])
        result = Result(
            pair_id=pair.pair_id if pair else facts["pair_id"],
            row=pair.row if pair else 0,
            content=pair.content if pair else facts["content"],
            style=pair.style if pair else facts["style"],
            output=pair.output if pair else facts["output"],
            status="ok",
            key=facts["key"],
            inputs=inputs,
            output_sha256=hashlib.sha256(data).hexdigest(),
            output_bytes=len(data),
            settings=json.dumps(facts["settings"], sort_keys=True, separators=(",", ":")),
            meta=pair.meta if pair else {},
            version=__version__,
            finished_at=utc(time.time()),
            **{name: facts[name] for name in _CARRIED},
        )
    except (ValueError, KeyError, TypeError):
        return None
    note = "row made again from the picture"
    return replace(result, notes=f"{result.notes}; {note}" if result.notes else note)


def utc(seconds: float) -> str:
    """A time as the index has it: ISO 8601, UTC, microseconds."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="microseconds")


def _check_not_black(picture: Any, photograph: Any) -> None:
    """Raise `BlackError` for a picture of nothing, whatever its loss says."""
    from PIL import ImageStat

    light, before = (max(ImageStat.Stat(image).mean) for image in (picture, photograph))
    if light < _BLACK and before > 4 * _BLACK:
        raise BlackError(
            f"the picture came out black (brightness {light:.0f} of 255, the photograph has "
            f"{before:.0f}); look at the style, or lower style_weight"
        )


def _failed(result: Result, error: BaseException, status: str = "failed") -> Result:
    message = str(error) or type(error).__name__
    return replace(result, status=status, error_type=type(error).__name__, error_message=message)


def _peak_memory(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
