"""The encoder: VGG-16 or VGG-19 up to a layer, giving named feature maps. Knows no losses.

Simonyan and Zisserman 2014, with the mean-one scaling of Gatys et al. 2016, section 2.
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
"""Pixels: at multiples of this all four poolings begin a cell, and cut nothing off."""


class _AveragePool(torch.autograd.Function):
    """F.avg_pool2d(x, 2), of which PyTorch has slow versions: its gradient takes seven times as
    long on a CPU as repeating it, and on a GPU both ways are a tenth as fast as memory is."""

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
    """Means of 2x2 squares, channels-last."""
    size, channels, height, width = x.shape[0], x.shape[1], x.shape[2] // 2, x.shape[3] // 2
    rows = x[..., : 2 * height, : 2 * width].permute(0, 2, 3, 1)
    squares = rows.view(size, height, 2, width, 2, channels)
    return squares.mean(dim=(2, 4)).permute(0, 3, 1, 2)


def _repeat(x: Tensor) -> Tensor:
    """Each position four times, channels-last: F.interpolate(x, scale_factor=2)."""
    rows = x.permute(0, 2, 3, 1).contiguous()
    if rows.shape[3] * rows.element_size() % 8 == 0:
        rows = rows.view(torch.int64)  # several channels at once: a copy need not know them apart
    size, height, width, channels = rows.shape
    squares = rows[:, :, None, :, None].expand(size, height, 2, width, 2, channels)
    rows = squares.reshape(size, 2 * height, 2 * width, channels)
    return rows.view(x.dtype).permute(0, 3, 1, 2)


def average_pool(x: Tensor, on_gpu: bool = False) -> Tensor:
    """Means of 2x2 squares, (B, N, h, w) -> (B, N, h // 2, w // 2); `on_gpu`: as is fast there."""
    pooled: Tensor = _AveragePool.apply(x, on_gpu)
    return pooled


class _ConvolveReLU(torch.autograd.Function):
    """F.relu(F.conv2d(x, weight, bias, padding=padding)) on a GPU: cuDNN adds the bias and
    rectifies where it writes the sums, and not in two more passes over them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.padding = [padding, padding]
        one = [1, 1]
        out: Tensor = torch.cudnn_convolution_relu(x, weight, bias, one, ctx.padding, one, 1)
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, out = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grads[0], out, 0)
        one = [1, 1]
        to_input = torch.ops.aten.convolution_backward(
            grad, x, weight, None, one, ctx.padding, one, False, [0, 0], 1, [True, False, False]
        )[0]
        return to_input, None, None, None


_FUSED = (torch.float32, torch.bfloat16, torch.float16)


class Encoder(nn.Module):
    """Feature maps of a picture by layer name, before (`conv4_2`) and after (`relu4_2`) the ReLU.

    `scales[conv]` (out,) divides a convolution's features: the next convolution takes it back,
    so the network stays the same function up to those factors (ReLU and pooling commute with
    positive factors). Without scales these are the weights as they came.
    `padding` is what conv1_1 sees beyond the edge: zeros (the mean colour) or the edge repeated;
    `circular` wraps at every convolution, for tests. `winograd`: where they pay, convolutions are
    Winograd's; without, all are direct, and round a position's features alike whatever part of a
    picture is seen.
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
        self._winograds: dict[str, Winograd] = {}  # by convolution, made when first needed
        mean = torch.tensor(weights.mean, device=device, dtype=torch.float32)
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        incoming: Tensor | None = None
        for conv in self.convs:
            weight, bias = weights.filters[conv].float(), weights.biases[conv].float()
            if scales is not None:
                out = scales[conv].float()
                weight = weight / out.view(-1, 1, 1, 1)
                if incoming is not None:
                    weight = weight * incoming.view(1, -1, 1, 1)
                bias = bias / out
                incoming = out
            weight = weight.to(device, dtype).contiguous(memory_format=torch.channels_last)
            self.register_buffer(f"{conv}_weight", weight)
            self.register_buffer(f"{conv}_bias", bias.to(device, dtype))

    def forward(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """`image` (B, 3, H, W), RGB in [0, 1] -> {layer: (B, N, h, w)} in the encoder's type.

        Raises `ConfigError` for a layer that the backbone has not, `ImageSizeError` for a picture
        that is too small for one.
        """
        return dict(self.walk(image, layers))

    def walk(self, image: Tensor, layers: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The same one by one, from the first layer to the deepest. What is computed of a layer
        before the next one is asked for has its gradient computed after the next one's: so there
        is one such gradient at a time, and not one of each layer."""
        wanted = set(layers)
        last = deepest(wanted, self.backbone)
        height, width = image.shape[-2:]
        if last not in self.convs:
            raise ConfigError(f"these weights of {self.backbone} end at {self.convs[-1]}")
        need = cell(last)
        if min(height, width) < need:
            raise ImageSizeError(f"image is {width}x{height}; {last} needs at least {need}x{need}")
        x = (image - self.get_buffer("mean")).to(self.dtype)
        if self.padding == "replicate":
            x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        x = x.contiguous(memory_format=torch.channels_last)
        return self._features(x, tuple(sorted(wanted)), last)

    def compile_features(self, mode: str) -> None:
        """Let `torch.compile` make the network's code: worth its time for many pictures."""
        self.winograd = self.fused = False
        features = self._features
        whole = torch.compile(lambda *arguments: list(features(*arguments)), mode=mode)
        self._features = lambda *arguments: iter(whole(*arguments))  # type: ignore[method-assign]

    def _features(
        self, x: Tensor, wanted: tuple[str, ...], last: str
    ) -> Iterator[tuple[str, Tensor]]:
        for conv in self.convs:
            if conv.endswith("_1") and block(conv) > 1:
                x = average_pool(x, self.fused) if self.pooling == "average" else F.max_pool2d(x, 2)
            if conv in wanted:
                x = self._convolve(x, conv)
                yield conv, x
                x = F.relu(x)  # a copy: the convolution's own output was asked for
            elif self.fused and self.padding != "circular":
                weight, bias = self._filter(conv)
                x = _ConvolveReLU.apply(x, weight, bias, self._frame(conv))
            else:
                x = F.relu_(self._convolve(x, conv))
            if relu_of(conv) in wanted:
                yield relu_of(conv), x
            if conv == last:
                return

    def _filter(self, conv: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"{conv}_weight"), self.get_buffer(f"{conv}_bias")

    def _frame(self, conv: str) -> int:
        """Zeros that a convolution sees beyond the edge; to conv1_1 the picture may bring more."""
        return 0 if conv == "conv1_1" and self.padding != "zeros" else 1

    def _convolve(self, x: Tensor, conv: str) -> Tensor:
        weight, bias = self._filter(conv)
        if self.padding == "circular":
            return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)
        if self.winograd and Winograd.pays(weight, *x.shape[-2:]):
            if conv not in self._winograds:
                with torch.inference_mode(False):  # kept: what is made in there has no gradient
                    self._winograds[conv] = Winograd(weight)
            return self._winograds[conv](x, bias)
        return F.conv2d(x, weight, bias, padding=self._frame(conv))
