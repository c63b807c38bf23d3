"""3x3 convolutions with a quarter of the multiplications, for float32 on a CPU.

Winograd's F(4x4, 3x3): Lavin and Gray 2015, *Fast Algorithms for Convolutional Neural Networks*,
section 4.3, whose names A, B, G, U are used here. A tile of 4x4 outputs depends on 6x6 inputs. The
inputs and the filter are each transformed to 6x6 values; their pointwise product, transformed back,
is the output. Over all channels these are 36 matrix products a tile instead of 144. The transforms
themselves are limited by memory, so the method is faster only with many channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Winograd"]

_FILTER = (
    torch.tensor(
        [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
        dtype=torch.float64,
        device="cpu",
    )
    / 24
)
"""G of the paper, (6, 3)."""

_LEAST_CHANNELS = 128
"""Number of channels below which the transforms cost more than they save."""

_LEAST_WORK = 12 * 512
"""Number of tiles times channels below which reading the transformed filter takes longer than
multiplying by it."""

_TILES = 256
"""Number of tiles transformed and multiplied at once: many enough for fast products, few enough for
the cache."""


class Winograd:
    """A convolution with a filter (K, C, 3, 3) and zeros beyond the edge, `F.conv2d(padding=1)`.

    Outputs and gradients have a relative error of 3e-6 of their norm; a direct sum in float32 has
    1e-6. Only the input has a gradient.
    """

    def __init__(self, weight: Tensor) -> None:
        self.filters = _transform_filter(weight)

    @staticmethod
    def pays(weight: Tensor, height: int, width: int) -> bool:
        """Tell whether this is faster than the direct sum, for a filter and a size of the input."""
        fits = weight.device.type == "cpu" and weight.dtype == torch.float32
        tiles, channels = -(-height // 4) * -(-width // 4), min(weight.shape[:2])
        return fits and channels >= _LEAST_CHANNELS and tiles * channels >= _LEAST_WORK

    def __call__(self, x: Tensor, bias: Tensor) -> Tensor:
        """Convolve (B, C, h, w) to (B, K, h, w), channels-last."""
        result: Tensor = _Convolution.apply(x, self.filters, bias)
        return result


class _Convolution(torch.autograd.Function):
    """The convolution, given the transformed filters (36, C, K); its gradient is the adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(filters)
        padded, strips = _in_tiles(x, 1)
        out = _channels_last(x, filters.shape[2], padded.shape[1] - 2, padded.shape[2] - 2)
        for picture, result in zip(padded, out.permute(0, 2, 3, 1), strict=True):
            for a, b in strips:
                _outputs(picture[a : b + 2], filters, bias, result[a:b])
        return _crop(out, x, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        filters = ctx.saved_tensors[0].transpose(1, 2)
        padded, strips = _in_tiles(grads[0], 0)
        out = _channels_last(grads[0], filters.shape[2], padded.shape[1] + 2, padded.shape[2] + 2)
        for picture, result in zip(padded, out.permute(0, 2, 3, 1), strict=True):
            result[:2] = 0
            for a, b in strips:
                _gradients(picture[a:b], filters, result[a : b + 2])
        return _crop(out, grads[0], 1), None, None


def _channels_last(like: Tensor, *shape: int) -> Tensor:
    """Return an empty channels-last tensor (B, *shape) of the type of `like` (B, …)."""
    return torch.empty(
        (len(like), *shape),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _in_tiles(x: Tensor, frame: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return (B, N, h, w) extended by zeros to whole tiles with a frame around, as (B, h, w, N).

    Also return the ranges of rows, each of whole tiles, to be computed at once.
    """
    height, width = x.shape[-2:]
    down, across = -(-height // 4), -(-width // 4)
    fill = (0, 0, frame, 4 * across + frame - width, frame, 4 * down + frame - height)
    count = min(down, max(1, round(down * across / _TILES)))
    cuts = [4 * (down * i // count) for i in range(count + 1)]
    x = x.permute(0, 2, 3, 1)
    return F.pad(x, fill) if any(fill) else x, list(itertools.pairwise(cuts))


def _crop(out: Tensor, like: Tensor, frame: int) -> Tensor:
    """Remove frame and filling from an output. A copy, since an in-place ReLU fails on a view."""
    height, width = like.shape[-2:]
    if out.shape[-2:] == like.shape[-2:]:
        return out
    inner = out[..., frame : frame + height, frame : frame + width]
    return inner.clone(memory_format=torch.channels_last)


def _transform_filter(weight: Tensor) -> Tensor:
    """Compute U = G g G^T for each pair of channels: (K, C, 3, 3) -> (36, C, K)."""
    both = torch.kron(_FILTER, _FILTER).to(weight.dtype)  # (36, 9)
    taps = weight.permute(2, 3, 1, 0).flatten(2).flatten(0, 1)  # (9, C K)
    return (both @ taps).view(36, weight.shape[1], weight.shape[0])


def _outputs(x: Tensor, filters: Tensor, bias: Tensor, out: Tensor) -> None:
    """Compute A^T (U . (B^T x B)) A of m rows of n tiles: (4 m + 2, 4 n + 2, C) -> (4 m, 4 n, K).

    The result is written into `out`.
    """
    m, n = out.shape[0] // 4, out.shape[1] // 4
    _, channels, count = filters.shape
    half = x.new_empty(6, m, 4 * n + 2, channels)
    _transform_input([x[i : i + 4 * m - 3 : 4] for i in range(6)], half.unbind())
    tiles = x.new_empty(6, 6, m, n, channels)
    _transform_input([half[:, :, i : i + 4 * n - 3 : 4] for i in range(6)], tiles.unbind(1))
    products = (tiles.view(36, m * n, channels) @ filters).view(6, 6, m, n, count)
    products[1, 1] += bias  # this point is added to each of the outputs exactly once
    half = x.new_empty(6, 4, m, n, count)
    _transform_output(products.unbind(1), half.unbind(1))
    _transform_output(half.unbind(), out.view(m, 4, n, 4, count).permute(1, 3, 0, 2, 4).unbind())


def _gradients(grad: Tensor, filters: Tensor, out: Tensor) -> None:
    """Compute the adjoint B (U^T . (A y A^T)) B^T: (4 m, 4 n, K) -> (4 m + 2, 4 n + 2, C).

    Tiles overlap by two rows and columns, where their results are summed. Hence the first two rows
    of `out`, which the tiles above have written to, are added to; the others are overwritten.
    """
    m, n = grad.shape[0] // 4, grad.shape[1] // 4
    _, count, channels = filters.shape
    half = grad.new_empty(6, m, 4 * n, count)
    _adjoint_output([grad[i::4] for i in range(4)], half.unbind())
    tiles = grad.new_empty(6, 6, m, n, count)
    _adjoint_output([half[:, :, i::4] for i in range(4)], tiles.unbind(1))
    products = (tiles.view(36, m * n, count) @ filters).view(6, 6, m, n, channels)
    half = grad.new_empty(6, m, 4 * n + 2, channels)
    half[:, :, -2:] = 0
    _adjoint_input(products.unbind(1), [half[:, :, i : i + 4 * n - 3 : 4] for i in range(6)])
    above = out[:2].clone()
    out[-2:] = 0
    _adjoint_input(half.unbind(), [out[i : i + 4 * m - 3 : 4] for i in range(6)])
    out[:2] += above


def _transform_input(d: Sequence[Tensor], v: Sequence[Tensor]) -> None:
    """Write v = B^T d, six to six."""
    a = torch.sub(d[4], d[2], alpha=4)
    b = torch.sub(d[3], d[1], alpha=4)
    torch.add(a, b, out=v[1])
    torch.sub(a, b, out=v[2])
    torch.sub(d[4], d[2], out=a)
    torch.sub(d[3], d[1], out=b)
    torch.add(a, b, alpha=2, out=v[3])
    torch.sub(a, b, alpha=2, out=v[4])
    torch.sub(d[0], d[2], out=v[0])
    torch.add(a, v[0], alpha=4, out=v[0])
    torch.sub(d[5], d[3], out=v[5])
    torch.sub(v[5], b, alpha=4, out=v[5])


def _transform_output(m: Sequence[Tensor], y: Sequence[Tensor]) -> None:
    """Write y = A^T m, six to four. Overwrites m."""
    a = m[1] + m[2]
    b = torch.sub(m[1], m[2], out=m[1])
    c = torch.add(m[3], m[4], out=m[2])
    d = torch.sub(m[3], m[4], out=m[3])
    torch.add(b, d, alpha=2, out=y[1])
    torch.add(a, c, alpha=4, out=y[2])
    torch.add(b, d, alpha=8, out=b)
    torch.add(b, m[5], out=y[3])
    torch.add(a, c, out=a)
    torch.add(a, m[0], out=y[0])


def _adjoint_output(y: Sequence[Tensor], m: Sequence[Tensor]) -> None:
    """Write m = A y, four to six."""
    m[0].copy_(y[0])
    a = y[0] + y[2]
    b = y[1] + y[3]
    torch.add(a, b, out=m[1])
    torch.sub(a, b, out=m[2])
    torch.add(y[0], y[2], alpha=4, out=a)
    torch.add(y[1], y[3], alpha=4, out=b)
    torch.add(a, b, alpha=2, out=m[3])
    torch.sub(a, b, alpha=2, out=m[4])
    m[5].copy_(y[3])


def _adjoint_input(v: Sequence[Tensor], d: Sequence[Tensor]) -> None:
    """Compute d = B v, six to six. Overwrites v.

    The first four of d are written; the last two, which are the next tile's first, are added to.
    """
    a = v[1] + v[2]
    b = torch.sub(v[1], v[2], out=v[1])
    c = torch.add(v[3], v[4], out=v[2])
    e = torch.sub(v[3], v[4], out=v[3])
    torch.mul(v[0], 4, out=d[0])
    torch.sub(v[5], b, out=v[4])
    torch.sub(v[4], e, alpha=0.5, out=v[4])
    torch.mul(v[4], 4, out=d[1])
    torch.add(b, e, alpha=2, out=b)
    torch.sub(b, v[5], alpha=5, out=d[3])
    d[5].add_(v[5])
    torch.add(c, v[0], out=b)
    torch.add(b, a, out=e)
    d[4].add_(e)
    torch.add(b, v[0], alpha=4, out=b)
    torch.add(b, a, alpha=4, out=b)
    torch.neg(b, out=d[2])
