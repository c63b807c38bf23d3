"""The encoder: VGG-16 or VGG-19 up to a layer, giving feature maps by layer name.

Simonyan and Zisserman 2014, with the scaling to mean one of Gatys et al. 2016, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylize.errors import ConfigError, ImageSizeError
from stylize.layers import CONVS, block, cell, deepest, relu_of
from stylize.weights import Weights
from stylize.winograd import Winograd

__all__ = ["GRID", "Encoder"]

GRID = 16
"""Multiples of this many pixels are divided by all four poolings without a remainder."""


class _AveragePool(torch.autograd.Function):
    """`F.avg_pool2d(x, 2)`, faster than PyTorch's.

    On a CPU PyTorch's gradient takes seven times as long as repeating the values. On a GPU both of
    its directions run at a tenth of the memory's speed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, on_gpu: bool) -> Tensor:
        ctx.odd = (x.shape[-1] % 2, x.shape[-2] % 2)
        ctx.on_gpu = on_gpu
        return _pool_by_sum(x) if on_gpu else F.avg_pool2d(x, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        right, bottom = ctx.odd
        grad = grads[0] * 0.25
        grad = _repeat(grad) if ctx.on_gpu else F.interpolate(grad, scale_factor=2)
        return F.pad(grad, (0, right, 0, bottom)) if right or bottom else grad, None


def _pool_by_sum(x: Tensor) -> Tensor:
    """Average 2x2 squares of a channels-last tensor."""
    size, channels, height, width = x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2
    rows = x[..., : 2 * height, : 2 * width].permute(0, 2, 3, 1)
    squares = rows.view(size, height, 2, width, 2, channels)
    return squares.mean(dim=(2, 4)).permute(0, 3, 1, 2)


def _repeat(x: Tensor) -> Tensor:
    """Repeat each position four times: `F.interpolate(x, scale_factor=2)` for channels-last."""
    rows = x.permute(0, 2, 3, 1).contiguous()
    if rows.shape[3] * rows.element_size() % 8 == 0:
        rows = rows.view(torch.int64)  # copies several channels at once
    size, height, width, channels = rows.shape
    squares = rows[:, :, None, :, None].expand(size, height, 2, width, 2, channels)
    rows = squares.reshape(size, 2 * height, 2 * width, channels)
    return rows.view(x.dtype).permute(0, 3, 1, 2)


def average_pool(x: Tensor, on_gpu: bool = False) -> Tensor:
    """Average 2x2 squares: (B, N, h, w) -> (B, N, h // 2, w // 2).

    `on_gpu` selects the way that is fast on a GPU; it needs channels-last memory.
    """
    pooled: Tensor = _AveragePool.apply(x, on_gpu)
    return pooled


class _ConvolveReLU(torch.autograd.Function):
    """`F.relu(F.conv2d(x, weight, bias, padding=padding))` with cuDNN.

    The bias and the ReLU are applied while the sums are written, which saves two passes over them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.padding = [padding, padding]
        stride = dilation = [1, 1]
        out: Tensor = torch.cudnn_convolution_relu(
            x, weight, bias, stride, ctx.padding, dilation, 1
        )
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, out = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grads[0], out, 0)
        stride = dilation = [1, 1]
        to_input = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            None,
            stride,
            ctx.padding,
            dilation,
            False,
            [0, 0],
            1,
            [True, False, False],
        )[0]
        return to_input, None, None, None


_FUSED = (torch.float32, torch.bfloat16, torch.float16)
"""Types that `_ConvolveReLU` works in."""


class Encoder(nn.Module):
    """A network that gives feature maps by layer name, before (`conv4_2`) or after (`relu4_2`) the
    ReLU.

    `scales[conv]` (out,) divides the features of a convolution. The next one multiplies them back,
    so the network's function stays the same up to these factors, since ReLU and pooling commute
    with positive factors.

    `padding` is what conv1_1 sees beyond the edge: "zeros" (the mean colour) or "replicate" (the
    edge repeated). "circular" wraps around at every convolution, for tests.

    `winograd` allows Winograd's convolutions where they are faster. Without it all convolutions are
    direct, and a position's features are rounded alike whichever part of the picture is seen.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        pooling: str = "average",
        padding: str = "zeros",
        scales: Mapping[str, Tensor] | None = None,
        winograd: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.backbone = weights.backbone
        self.pooling = pooling
        self.padding = padding
        self.dtype = dtype
        self.winograd = winograd
        # AMD's cards are "cuda" to PyTorch, too, but have no cuDNN.
        self.fused = (
            torch.device(device).type == "cuda" and not torch.version.hip and dtype in _FUSED
        )
        self.convs = [conv for conv in CONVS[weights.backbone] if conv in weights.filters]
        self._winograds: dict[str, Winograd] = {}  # by convolution, created when first needed
        mean = torch.tensor(weights.mean, device=device, dtype=torch.float32)
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        previous: Tensor | None = None  # scale of the features that come in
        for conv in self.convs:
            weight, bias = weights.filters[conv].float(), weights.biases[conv].float()
            if scales is not None:
                scale = scales[conv].float()
                weight = weight / scale.view(-1, 1, 1, 1)
                if previous is not None:
                    weight = weight * previous.view(1, -1, 1, 1)
                bias = bias / scale
                previous = scale
            weight = weight.to(device, dtype).contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"{conv}_weight", weight)
            self.register_buffer(f"{conv}_bias", bias.to(device, dtype))

    def forward(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Return {layer: (B, N, h, w)} of pictures (B, 3, H, W), RGB in [0, 1].

        The features are in the encoder's type. Raises `ConfigError` for a layer that the backbone
        does not have, `ImageSizeError` for a picture that is too small for one.
        """
        return dict(self.walk(image, layers))

    def walk(self, image: Tensor, layers: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the layers and features of `forward` one by one, from the first to the deepest.

        If the loss of a layer is computed before the next layer is asked for, its gradient is
        computed after that of the next layer. So only one such gradient is in memory at a time.
        """
        wanted = set(layers)
        last = deepest(wanted, self.backbone)
        height, width = image.shape[-2:]
        if last not in self.convs:
            raise ConfigError(f"these weights of {self.backbone} end at {self.convs[-1]}")
        least = cell(last)
        if min(height, width) < least:
            raise ImageSizeError(
                f"image is {width}x{height}; {last} needs at least {least}x{least}"
            )
        x = (image - self.get_buffer("mean")).to(self.dtype)
        if self.padding == "replicate":
            x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        return self._features(x, tuple(sorted(wanted)), last)

    def compile_features(self, mode: str) -> None:
        """Compile the network with `torch.compile`, slow, so only for many pictures."""
        self.winograd = self.fused = False
        features = self._features
        compiled = torch.compile(lambda *arguments: list(features(*arguments)), mode=mode)
        self._features = lambda *arguments: iter(  # type: ignore[method-assign]
            compiled(*arguments)
        )

    def _features(
        self, x: Tensor, wanted: tuple[str, ...], last: str
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the wanted layers' features; x is the picture as conv1_1 sees it."""
        for conv in self.convs:
            if conv.endswith("_1") and block(conv) > 1:
                x = average_pool(x, self.fused) if self.pooling == "average" else F.max_pool2d(x, 2)
            if conv in wanted:
                x = self._convolve(x, conv)
                yield conv, x
                x = F.relu(x)  # not in place: the caller has the convolution's output
            elif self.fused and self.padding != "circular":
                weight, bias = self._filter(conv)
                x = _ConvolveReLU.apply(x, weight, bias, self._zeros_around(conv))
            else:
                x = F.relu_(self._convolve(x, conv))
            if relu_of(conv) in wanted:
                yield relu_of(conv), x
            if conv == last:
                return

    def _filter(self, conv: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"{conv}_weight"), self.get_buffer(f"{conv}_bias")

    def _zeros_around(self, conv: str) -> int:
        """Return how many zeros a convolution adds beyond each edge; conv1_1's input may already
        be extended."""
        return 0 if conv == "conv1_1" and self.padding != "zeros" else 1

    def _convolve(self, x: Tensor, conv: str) -> Tensor:
        weight, bias = self._filter(conv)
        if self.padding == "circular":
            return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)
        if self.winograd and Winograd.pays(weight, *x.shape[-2:]):
            if conv not in self._winograds:
                with torch.inference_mode(False):  # inference tensors could not be used later
                    self._winograds[conv] = Winograd(weight)
            return self._winograds[conv](x, bias)
        return F.conv2d(x, weight, bias, padding=self._zeros_around(conv))
