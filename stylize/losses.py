"""The losses: content, style (by one of three statistics), total variation, and their weighted sum.

Features are (B, N, h, w) with N channels and M = h*w positions. Every loss is (B,), one value for
each picture, so that the pictures of a batch are optimised independently. Sums are in float32 or
better, whatever the features' type.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylize.config import LayerWeights, StyleConfig
from stylize.encoder import Encoder
from stylize.layers import cell

__all__ = [
    "Losses",
    "PerceptualLoss",
    "Statistic",
    "content_loss",
    "counts_at",
    "gram_matrix",
    "positions",
    "quarters",
    "relative",
]


def _at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or float64 if it is: sums in half precision lose small terms."""
    return x if x.dtype == torch.float64 else x.float()


_PARTS = 16
"""Number of parts that the positions of bfloat16 features are divided into, see `_in_parts`."""

_MANY = 4096
"""Number of positions from which `_in_parts` is faster than one product in float32."""


class _SecondMoment(torch.autograd.Function):
    """F^T W F of rows F (B, M, N), given the square roots (B, M, 1) of the weights W, or None.

    The result is (B, N, N). With D the gradient of the result, that of F is W F (D + D^T), computed
    as one product in F's type.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, roots: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, roots)  # not their product, which would copy each layer
        weighted = rows if roots is None else rows * roots
        if rows.dtype == torch.bfloat16 and rows.shape[1] >= _MANY:
            return _in_parts(weighted)
        wide = _at_least_float32(weighted)
        return wide.transpose(1, 2) @ wide

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rows, roots = ctx.saved_tensors
        weighted = rows if roots is None else rows * roots
        both = (grads[0] + grads[0].transpose(1, 2)).to(rows.dtype)
        product: Tensor = weighted @ both
        return product if roots is None else product.mul_(roots), None


def _in_parts(rows: Tensor) -> Tensor:
    """Compute F^T F of bfloat16 rows (B, M, N) in float32, by products of parts of the positions.

    A product in bfloat16 is summed in float32, but its result is rounded to bfloat16. The rounding
    errors of the parts average out to 3e-4 of the matrix.
    """
    size, count, channels = rows.shape
    part = count // _PARTS
    blocks = rows[:, : part * _PARTS].reshape(size * _PARTS, part, channels)
    products = (blocks.transpose(1, 2) @ blocks).view(size, _PARTS, channels, channels)
    rest = rows[:, part * _PARTS :].float()
    gram: Tensor = products.float().sum(dim=1) + rest.transpose(1, 2) @ rest
    return gram


def _rows(features: Tensor) -> Tensor:
    """Reshape (B, N, h, w) to (B, M, N), without a copy where the memory is channels-last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def gram_matrix(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return G = F F^T / M, (B, N, N): Gatys et al. 2015, eq. 3, divided by the positions.

    With a mask (B, 1, h, w) in [0, 1] it is sum_k m_k f_k f_k^T / sum_k m_k.
    """
    return Statistic.of(features, "gram", mask).gram


@dataclass(frozen=True)
class Statistic:
    """The statistic of one layer's features that the style loss compares, over their positions."""

    gram: Tensor  # (B, N, N)
    mean: Tensor | None = None  # (B, N); None for the style loss "gram"

    @classmethod
    def of(cls, features: Tensor, kind: str, mask: Tensor | None = None) -> Statistic:
        """Return the statistic of features (B, N, h, w) for the style loss `kind`.

        With a mask (B, 1, h, w) each position counts by its value.
        """
        sums = cls.sums(features, kind, mask)
        return sums.over(positions(features, mask))

    @classmethod
    def sums(cls, features: Tensor, kind: str, mask: Tensor | None = None) -> Statistic:
        """Return the statistic before the division by the positions.

        The sums of the parts of a picture add up to those of the whole.
        """
        roots = None if mask is None else _rows(mask).sqrt().to(features.dtype)
        gram: Tensor = _SecondMoment.apply(_rows(features), roots)
        if kind == "gram":
            return cls(gram)
        wide = _at_least_float32(features)
        return cls(gram, (wide if mask is None else wide * mask).sum(dim=(2, 3)))

    def __add__(self, other: Statistic) -> Statistic:
        return Statistic(*(a + b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def map(self, function: Callable[[Tensor], Tensor]) -> Statistic:
        """Apply a function to each tensor."""
        return Statistic(*map(function, self.parts()))

    def over(self, total: Tensor | int) -> Statistic:
        """Divide sums by the number of positions, or by the sum of their weights (B, 1)."""
        divisor = total[:, :, None] if isinstance(total, Tensor) else total
        return Statistic(self.gram / divisor, None if self.mean is None else self.mean / total)

    def parts(self) -> list[Tensor]:
        """Return the tensors that are not None."""
        return [self.gram] if self.mean is None else [self.gram, self.mean]

    def covariance(self) -> Tensor:
        """Return the centred covariance, (B, N, N)."""
        assert self.mean is not None
        return self.gram - self.mean[:, :, None] * self.mean[:, None, :]


def positions(features: Tensor, mask: Tensor | None) -> Tensor | int:
    """Return the number M of positions, or with a mask the sum of its values, (B, 1)."""
    if mask is None:
        return features.shape[-2] * features.shape[-1]
    return mask.sum(dim=(2, 3)).clamp(min=1e-6)


def counts_at(mask: Tensor | None, layer: str) -> Tensor | None:
    """Return how much each position of a layer counts, (B, 1, h, w), given a mask (B, 1, H, W).

    It is the mean over the square of pixels that the position stands for. None stands for 1.
    """
    return None if mask is None else F.avg_pool2d(mask, cell(layer))


def quarters(height: int, width: int, like: Tensor) -> list[Tensor]:
    """Return the weights of each quarter of a picture at a layer's positions, four (1, 1, h, w).

    At each position they sum to 1. They pass from one quarter to the next gradually, over the
    middle half of the side: where they change abruptly, a line shows in the picture. Type and
    device are those of `like`.
    """

    def halves(length: int) -> tuple[Tensor, Tensor]:
        centres = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / length
        second = (2 * centres - 0.5).clamp(0, 1)
        return 1 - second, second

    return [row[None, None, :, None] * column for row in halves(height) for column in halves(width)]


def content_loss(
    features: Tensor, target: Tensor, weight: Tensor | None = None, norm: float = 1
) -> Tensor:
    """Return the power mean over the M positions of d_k = mean_i (F_ik - P_ik)^2, (B,).

    With `norm` 1 it is the mean, Gatys et al. 2015, eq. 1. The larger the norm, the more the
    positions count where F is farthest from P. With a weight (B, 1, h, w) each d_k is multiplied by
    it.
    """
    if norm == 1:
        return _distances(features, target, weight).mean(dim=(1, 2, 3))
    distances = _distances(features, target, weight).mean(dim=1)
    # The greatest as the unit cancels, and keeps powers and their gradients in float32's range.
    unit = distances.detach().amax(dim=(1, 2)).clamp(min=1e-30)
    return power_mean(_mean_power(distances, norm, unit), norm, unit)


def _distances(features: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    squared = (_at_least_float32(features) - _at_least_float32(target)).square()
    return squared if weight is None else weight * squared


def _mean_power(distances: Tensor, norm: float, unit: Tensor) -> Tensor:
    """Return the mean of distances (B, h, w) over a unit (B,), to the power `norm`."""
    powers: Tensor = (distances / unit[:, None, None]) ** norm
    return powers.mean(dim=(1, 2))


def mean_of_powers(
    features: Tensor, target: Tensor, weight: Tensor | None, norm: float, unit: Tensor
) -> Tensor:
    """Return the mean over positions of (d_k / unit)^norm, see `content_loss`, (B,).

    The means of the parts of a picture, weighted by their areas, add up to that of the whole. The
    parts share a unit (B,).
    """
    return _mean_power(_distances(features, target, weight).mean(dim=1), norm, unit)


def power_mean(mean: Tensor, norm: float, unit: Tensor) -> Tensor:
    """Return the power mean, (B,), given `mean_of_powers` and its unit."""
    least = 1e-37  # at 0 a root has no gradient
    root = torch.where(mean > least, mean.clamp(min=least) ** (1 / norm), 0)
    return unit * root


def standing_out(target: Tensor, power: float) -> Tensor | None:
    """Return weights (B, 1, h, w) of mean 1 for positions that stand out, as a face does from a
    wall; None for a power of 0, which weighs all positions alike.

    A weight is the squared distance of the position's features (B, N, h, w) from the picture's mean
    features, raised to `power`, and divided by the mean over all positions.
    """
    if not power:
        return None
    wide = _at_least_float32(target)
    squared = (wide - wide.mean(dim=(2, 3), keepdim=True)).square().mean(dim=1, keepdim=True)
    least = 1e-6 * wide.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-12  # for a flat picture
    weight = (squared + least) ** power
    return weight / weight.mean(dim=(2, 3), keepdim=True)


def style_loss(statistic: Statistic, target: Statistic, kind: str = "gram") -> Tensor:
    """Return the distance of a layer's statistic from the style's, (B,).

    gram: mean over N*N of (G - A)^2, Gatys et al. 2015, eq. 4 without the factor 1/4.
    moments: mean (mu - mu_s)^2 + mean (S - S_s)^2 with centred covariances S.
    wasserstein: squared 2-Wasserstein distance of Gaussians, divided by N, see `_wasserstein`.
    """
    if kind == "gram":
        return (statistic.gram - target.gram).square().mean(dim=(1, 2))
    assert statistic.mean is not None
    assert target.mean is not None
    means = (statistic.mean - target.mean).square()
    if kind == "moments":
        difference = statistic.covariance() - target.covariance()
        return means.mean(dim=1) + difference.square().mean(dim=(1, 2))
    spread = _wasserstein(statistic.covariance(), target.covariance())
    return (means.sum(dim=1) + spread) / statistic.mean.shape[1]


def energy(target: Tensor | Statistic, kind: str = "gram") -> Tensor:
    """Return the loss of all-zero features against a target, (B,), to divide other losses by."""
    if isinstance(target, Tensor):
        return _at_least_float32(target).square().mean(dim=(1, 2, 3))
    if kind == "wasserstein":
        return target.gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    return style_loss(target.map(torch.zeros_like), target, kind)


def _square_root(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square root of (…, N, N) and its pseudoinverse."""
    values, vectors = torch.linalg.eigh(matrix)
    roots = values.clamp(min=0.0).sqrt()
    inverse = torch.where(roots > 0, 1 / roots, 0)
    transposed = vectors.transpose(-1, -2)
    root = (vectors * roots[..., None, :]) @ transposed
    return root, (vectors * inverse[..., None, :]) @ transposed


class _Bures(torch.autograd.Function):
    """tr (R S R)^1/2 for covariances S (B, N, N), where R is the style's S_s^1/2; (B,).

    The gradient has the closed form 1/2 R (R S R)^-1/2 R.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, root: Tensor) -> Tensor:
        product = root @ covariance @ root
        middle, inverse = _square_root((product + product.transpose(-1, -2)) / 2)
        ctx.save_for_backward(root @ inverse @ root)
        return middle.diagonal(dim1=-2, dim2=-1).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return 0.5 * grads[0][:, None, None] * slope, None


def _wasserstein(covariance: Tensor, target: Tensor) -> Tensor:
    """Return tr(S + S_s - 2 (S_s^1/2 S S_s^1/2)^1/2), (B,), with eps I added to S and S_s.

    eps = 1e-4 tr(S_s) / N. A small picture has fewer positions than channels, so some eigenvalues
    are zero, and there the square root has no gradient.
    """
    channels = target.shape[-1]
    trace = target.diagonal(dim1=-2, dim2=-1).sum(-1)
    eps = (1e-4 * trace / channels)[:, None, None] * torch.eye(
        channels, dtype=target.dtype, device=target.device
    )
    a, b = covariance + eps, target + eps
    root, _ = _square_root(b.detach())
    traces = (a + b).diagonal(dim1=-2, dim2=-1).sum(-1)
    return traces - 2 * _Bures.apply(a, root)  # type: ignore[no-any-return]


def total_variation_loss(image: Tensor, reduction: str = "mean") -> Tensor:
    """Return mean |dx| + mean |dy| of pictures (B, 3, H, W) in [0, 1], (B,).

    With `sum` it is the sum over values in 0-255, as in jcjohnson/neural-style.
    """
    dx = (image[..., :, 1:] - image[..., :, :-1]).abs()
    dy = (image[..., 1:, :] - image[..., :-1, :]).abs()
    if reduction == "sum":
        return 255 * (dx.sum(dim=(1, 2, 3)) + dy.sum(dim=(1, 2, 3)))
    return dx.mean(dim=(1, 2, 3)) + dy.mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Losses:
    """The losses of the pictures of a batch, each (B,)."""

    total: Tensor  # the weighted sum, which is minimised
    content: Tensor  # these three are unweighted
    style: Tensor
    tv: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the four tensors."""
        return self.total, self.content, self.style, self.tv

    def map(self, function: Callable[[Tensor], Tensor]) -> Losses:
        """Apply a function to each tensor."""
        return Losses(*map(function, self.parts()))

    def detach(self) -> Losses:
        """Detach each tensor from the graph of gradients."""
        return self.map(Tensor.detach)


_LEAST_SHARE = 0.05
"""Least style loss of the start that weights are divided by, as a share of the target's energy. A
photograph that has the style's statistics already would have 0."""


def relative(layers: LayerWeights) -> dict[str, float]:
    """Divide layer weights by their sum; layers with weight 0 are left out."""
    total = sum(weight for _, weight in layers)
    return {layer: weight / total for layer, weight in layers if weight > 0}


class PerceptualLoss:
    """The function to minimise: content_weight * content + style_weight * style + tv_weight * tv.

    The targets are `content`, {layer: features (B, N, h, w)}, and `style`, {layer: `Statistic`}.
    They come from the same encoder as the picture's features and have their type, so that the
    photograph itself has content loss 0 and the painting itself style loss 0. A loss whose weight
    is 0 is not computed, and reads 0.

    `style_layers` are the weights of the style layers, each a number or (B,); by default those of
    the config. `mask` (1 or B, 1, H, W) says where the style counts. `content_factor` multiplies
    the content weight; it is larger at coarse stages, to keep the photograph's composition.

    With `config.relative`, the content loss is divided by its target's energy, and the style loss
    of each layer by its value for `start`, the photograph in the style's colours: 1 means that
    nothing has been gained yet. Divided by the target's energy instead, a painting whose Gram
    matrix resembles the photograph's would hardly count, and one with strong contrasts would drown
    the subject.

    With `config.focus`, the content loss counts most where the photograph stands out, see
    `standing_out`, so that the subject is kept and the style is freer elsewhere. With
    `config.content_norm`, it counts most where the photograph has been lost most, see
    `content_loss`.

    With `spread`, that share of the style loss is taken of each of the picture's `quarters` by
    itself. A Gram matrix says how much of a pattern there is, but not where; without `spread` a
    quarter may stay plain.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: StyleConfig,
        content: Mapping[str, Tensor],
        style: Mapping[str, Statistic],
        *,
        style_layers: Mapping[str, float | Tensor] | None = None,
        mask: Tensor | None = None,
        content_factor: float = 1.0,
        start: Mapping[str, Statistic] | None = None,
        spread: float = 0.0,
    ) -> None:
        self.encoder = encoder
        self.config = config
        self.content_weight, self.style_weight = config.weights()
        self.content_weight *= content_factor
        self.content_layers: dict[str, float | Tensor] = {}  # weight by layer, a number or (B,)
        self.style_layers: dict[str, float | Tensor] = {}
        if self.content_weight:
            self.content_layers.update(relative(config.content_layers))
        if self.style_weight:
            self.style_layers.update(style_layers or relative(config.style_layers))
        self.content = content
        self.focus = {
            layer: standing_out(content[layer], config.focus) for layer in self.content_layers
        }
        self.content_unit = {
            layer: energy(content[layer]).clamp(min=1e-12) for layer in self.content_layers
        }
        self.style = style
        self.mask = mask
        self.spread = spread
        if config.relative:
            self._make_relative(start)

    def _make_relative(self, start: Mapping[str, Statistic] | None) -> None:
        """Divide the layers' weights as `config.relative` says."""
        for layer, weight in self.content_layers.items():
            self.content_layers[layer] = weight / self.content_unit[layer]
        kind = self.config.style_loss
        for layer, weight in self.style_layers.items():
            divisor = energy(self.style[layer], kind).clamp(min=1e-12)
            if start:
                share = style_loss(start[layer], self.style[layer], kind) / divisor
                divisor = divisor * share.clamp(_LEAST_SHARE, 1)
            self.style_layers[layer] = weight / divisor

    def __call__(self, image: Tensor) -> Losses:
        """Return the losses of pictures (B, 3, H, W)."""
        # The network sees what will be saved, but the gradient passes as if nothing was clamped.
        seen = image + (image.clamp(0, 1) - image).detach() if self.config.clamp else image
        zero = 0 * image.flatten(1).sum(dim=1)  # gives a gradient even if all weights are 0
        total, content, style = self.perceive(seen) if self.layers else (zero, zero, zero)
        tv = zero
        if self.config.tv_weight:
            tv = total_variation_loss(seen, self.config.tv_reduction)
        return Losses(zero + total + self.config.tv_weight * tv, content, style, tv)

    def perceive(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return content_weight * content + style_weight * style, content, and style, each (B,)."""
        nothing = seen.new_zeros(len(seen))
        losses = {"content": nothing, "style": nothing}
        for part, _, loss in self.by_layer(seen):
            losses[part] = losses[part] + loss
        content, style = losses["content"], losses["style"]
        return self.content_weight * content + self.style_weight * style, content, style

    def by_layer(self, seen: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """Yield "content" or "style", a layer, and its weighted share of that loss, (B,).

        The layers come from the first to the deepest.
        """
        for layer, features in self.encoder.walk(seen, self.layers):
            if layer in self.content_layers:
                norm = self.config.content_norm
                loss = content_loss(features, self.content[layer], self.focus[layer], norm)
                yield "content", layer, self.content_layers[layer] * loss
            if layer in self.style_layers:
                parts = self.parts_at(features)
                sums = [Statistic.sums(features, self.config.style_loss, part) for part in parts]
                totals = [positions(features, part) for part in parts]
                yield "style", layer, self.style_part(layer, sums, totals)

    @property
    def layers(self) -> list[str]:
        """The layers that a loss is computed of."""
        return [*self.content_layers, *self.style_layers]

    def content_powers(
        self, layer: str, features: Tensor, target: Tensor, focus: Tensor | None
    ) -> Tensor:
        """Return `mean_of_powers` of a layer's features in a part of the picture, (B,)."""
        norm, unit = self.config.content_norm, self.content_unit[layer]
        return mean_of_powers(features, target, focus, norm, unit)

    def content_part(self, layer: str, powers: Tensor) -> Tensor:
        """Return a layer's weighted share of the content loss, given its `content_powers`, (B,)."""
        loss = power_mean(powers, self.config.content_norm, self.content_unit[layer])
        return self.content_layers[layer] * loss

    def parts_at(self, features: Tensor) -> list[Tensor | None]:
        """Return how much the style counts at each of a layer's positions, (1 or B, 1, h, w).

        The list has one entry for the whole picture, or with `spread` one for each quarter. None
        stands for 1 everywhere.
        """
        height, width = features.shape[-2:]
        mask = self.mask
        if mask is not None:  # averaged over the square that each position stands for
            mask = F.adaptive_avg_pool2d(mask, (height, width))
        if not self.spread:
            return [mask]
        parts = quarters(height, width, _at_least_float32(features))
        return [part if mask is None else part * mask for part in parts]

    def style_part(
        self, layer: str, sums: Sequence[Statistic], totals: Sequence[Tensor | int]
    ) -> Tensor:
        """Return a layer's weighted share of the style loss, (B,).

        `sums` and `totals` are the `Statistic.sums` and `positions` of each of `parts_at`.
        """
        target, kind = self.style[layer], self.config.style_loss
        summed, total = functools.reduce(operator.add, sums), functools.reduce(operator.add, totals)
        loss = style_loss(summed.over(total), target, kind)
        if len(sums) > 1:
            by_quarter = [
                (count / total) * style_loss(quarter.over(count), target, kind)[:, None]
                for quarter, count in zip(sums, totals, strict=True)
            ]
            loss = (1 - self.spread) * loss + self.spread * torch.cat(by_quarter, dim=1).sum(dim=1)
        return self.style_layers[layer] * loss
