"""Measures this machine: seconds per evaluation, share of its peak, pairs per hour, memory.

Runs in this process, without Ray, in under two minutes. Imports torch inside functions.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pipeline.paint.resources import peak_memory
from stylize.config import StyleConfig, together
from stylize.layers import cell, deepest, relu_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stylize.request import OnStep, Request, Step
    from stylize.transfer import Stylizer

__all__ = ["Bench", "Evaluation", "bench", "multiply_adds", "seconds_per_pixel"]

SIZES = (256, 512, 1024)
"""Sides of the square pictures that are timed, pixels."""

_BUDGET = 15.0  # seconds for each size at most, so that a slow machine ends in time
_PEAK_SIZES = (1024, 2048, 4096)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of loss and gradient of the default preset at one size."""

    size: int  # pixels, square
    batch: int  # pictures that are painted together
    seconds: float  # for all of them together, median
    gflops: float  # for one picture, if summed directly; 10^9 operations, two for a multiply-add
    share_of_peak: float  # of the better of the two peaks; above 1 with Winograd's convolutions

    def per_picture(self) -> float:
        """Return the seconds for one picture."""
        return self.seconds / self.batch


@dataclass(frozen=True)
class Bench:
    """The measurements of `bench`."""

    device: str
    name: str  # of the processor or card
    dtype: str
    threads: int
    startup: float  # seconds to load torch, the network and its weights
    product_gflops: float  # peak of matrix products in the type in use
    convolution_gflops: float  # and of convolutions
    evaluations: tuple[Evaluation, ...]
    seconds_per_pair: float  # default preset, 512 px
    pairs_per_hour: float  # of one worker
    peak_memory: int  # bytes

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def multiply_adds(
    width: int, height: int, config: StyleConfig, convs: Mapping[str, Tensor]
) -> float:
    """Return the multiply-adds of one evaluation.

    They are those of each convolution, forward and back to its input, and of each Gram matrix,
    forward and back. `convs` maps each convolution to its filter (out, in, 3, 3), in order.
    """
    layers = [name for name, weight in config.style_layers if weight]
    needed = [name for name, weight in config.content_layers if weight] + layers
    last = deepest(needed, config.backbone)
    total = 0.0
    for conv, weight in convs.items():
        positions = (width // cell(conv)) * (height // cell(conv))
        total += 2 * weight.numel() * positions
        if relu_of(conv) in layers or conv in layers:
            total += 2 * weight.shape[0] ** 2 * positions
        if conv == last:
            break
    return total


def bench(
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Bench:
    """Measure this machine with the bundled network. Raises `ConfigError` for a device it lacks."""
    began = time.perf_counter()
    import torch

    from stylize import weights
    from stylize.transfer import Stylizer

    if threads:
        torch.set_num_threads(threads)
    config = StyleConfig(backbone="vgg16")
    network = weights.load()
    stylizer = Stylizer(network, device=device, dtype=dtype)
    stylizer.encoder(config)
    startup = time.perf_counter() - began
    say("measuring the peak …")
    products, convolutions = _peaks(stylizer)
    evaluations = []
    gpu = stylizer.device.type == "cuda"
    for size in SIZES:
        for batch in (1, together(size)) if gpu else (1,):
            say(f"measuring {size} px …")
            seconds = _evaluation(stylizer, size, batch)
            work = 2 * multiply_adds(size, size, config, dict(network.filters)) / 1e9
            evaluations.append(Evaluation(size, batch, seconds, work, 0.0))
    per_pair = _pair(stylizer, config) if gpu else _pair_by_pixels(config, evaluations[1])
    # Before and after: clocks drift.
    products, convolutions = map(max, (products, convolutions), _peaks(stylizer))
    peak = max(products, convolutions)
    evaluations = [replace(e, share_of_peak=e.gflops / e.per_picture() / peak) for e in evaluations]
    return Bench(
        device=str(stylizer.device),
        name=_name(stylizer.device),
        dtype=str(stylizer.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        startup=startup,
        product_gflops=products,
        convolution_gflops=convolutions,
        evaluations=tuple(evaluations),
        seconds_per_pair=per_pair,
        pairs_per_hour=3600 / per_pair,
        peak_memory=peak_memory(stylizer.device),
    )


def seconds_per_pixel(device: str, dtype: str, threads: int) -> tuple[str, float]:
    """Measure briefly, and return the device and the seconds of one pixel in one evaluation.

    A GPU is measured with as many pictures together as a run would paint. Raises `ConfigError`.
    """
    import torch

    from stylize import weights
    from stylize.transfer import Stylizer

    if threads:
        torch.set_num_threads(threads)
    stylizer = Stylizer(weights.load(), device=device, dtype=dtype)
    size = SIZES[0]
    batch = together(size) if stylizer.device.type == "cuda" else 1
    seconds = _evaluation(stylizer, size, batch)
    return f"{stylizer.device} ({_name(stylizer.device)})", seconds / (batch * size**2)


def _evaluation(stylizer: Stylizer, size: int, batch: int) -> float:
    """Return the median seconds of a loss and its gradient at a square size, with L-BFGS's step."""
    from stylize.transfer import LOOK_EVERY

    # A GPU tells of several evaluations at a time, and the first ones record its graph.
    every = 1 if stylizer.device.type == "cpu" else LOOK_EVERY
    times: list[float] = []

    def on_step(step: Step, image: Tensor) -> None:
        if step.step % every == 0:
            times.append(time.perf_counter())
        if len(times) > 2 and times[-1] - times[0] > _BUDGET:
            raise TimeoutError

    once = StyleConfig.of("default", size=size, scales=1, steps=12 * every, backbone="vgg16")
    with contextlib.suppress(TimeoutError):
        stylizer.transfer_batch(_requests(size, batch, once, on_step))
    return statistics.median(b - a for a, b in itertools.pairwise(times[1:])) / every


def _requests(
    size: int, batch: int, config: StyleConfig, on_step: OnStep | None = None
) -> list[Request]:
    """Return square pictures of smooth noise, each in the style of its mirror image."""
    import torch

    from stylize.request import Request

    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((1, 3, size // 8, size // 8), generator=generator)
    picture = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic")
    rest = [Request(picture, picture.flip(3), config) for _ in range(batch - 1)]
    return [Request(picture, picture.flip(3), config, on_step=on_step), *rest]


def _pair(stylizer: Stylizer, config: StyleConfig) -> float:
    """Return the seconds for one pair at 512 px, together with as many as in a run."""
    requests = _requests(config.side, together(config.side), config)
    return _seconds(lambda: stylizer.transfer_batch(requests), stylizer.device, 1) / len(requests)


def _pair_by_pixels(config: StyleConfig, at_512: Evaluation) -> float:
    """Return the seconds for a square pair at 512 px. The cost of an evaluation is proportional to
    the pixels of its stage."""
    from stylize.stages import plan_stages

    stages = plan_stages((config.side, config.side), config)
    pixels = sum(math.prod(stage.size) * stage.evaluations for stage in stages)
    return pixels * at_512.seconds / at_512.size**2


def _peaks(stylizer: Stylizer) -> tuple[float, float]:
    """Return the peaks in the stylizer's type, 10^9 operations a second: for products of square
    matrices, and for a convolution."""
    from stylize.device import undisturbed

    with undisturbed(stylizer.device):  # in the modes that a transfer has
        return _peak_of_products(stylizer), _peak_of_convolutions(stylizer)


def _peak_of_products(stylizer: Stylizer) -> float:
    import torch

    device, dtype = stylizer.device, stylizer.dtype
    products = 0.0
    for size in _PEAK_SIZES:
        a = torch.randn(size, size).to(device, dtype)
        b = torch.randn(size, size).to(device, dtype)
        seconds = _seconds(functools.partial(torch.matmul, a, b), device)
        products = max(products, 2 * size**3 / seconds)
    return products / 1e9


def _peak_of_convolutions(stylizer: Stylizer) -> float:
    import torch

    device, dtype = stylizer.device, stylizer.dtype
    weight = torch.randn(256, 256, 3, 3).to(device, dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    image = torch.randn(1, 256, 128, 128).to(device, dtype)
    image = image.contiguous(memory_format=torch.channels_last)
    work = 2 * weight.numel() * 128**2
    seconds = _seconds(lambda: torch.nn.functional.conv2d(image, weight, padding=1), device)
    return work / seconds / 1e9


def _seconds(run: Callable[[], object], device: torch.device, times: int = 4) -> float:
    """Return the shortest of some runs, after one that is not counted."""
    import torch

    def timed() -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    timed()
    return min(timed() for _ in range(times))


def _name(device: torch.device) -> str:
    import torch

    from stylize.device import processor

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
