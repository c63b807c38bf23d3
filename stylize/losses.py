"""The losses: content, style (three statistics), total variation, and their weighted sum.

Features are (B, N, h, w) with M = h*w positions; every loss is (B,), one value a picture, so that
a batch is so many separate optimisations. Sums run in float32 whatever the features' type.
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

from stylize.config import StyleConfig
from stylize.encoder import Encoder

__all__ = [
    "Losses",
    "PerceptualLoss",
    "Statistic",
    "content_loss",
    "gram_matrix",
    "quarters",
    "standing_out",
    "style_loss",
    "total_variation_loss",
]


def _wide(x: Tensor) -> Tensor:
    """x in at least float32: sums of half precision lose what they add."""
    return x if x.dtype == torch.float64 else x.float()


_PARTS = 16
"""Parts into which the positions of bfloat16 features are divided, see `_in_parts`."""

_MANY = 4096
"""Positions from which products in bfloat16 and the sum of their parts are the faster way."""


class _SecondMoment(torch.autograd.Function):
    """F^T W F of rows (B, M, N) and the roots of their weights W, (B, M, 1) or none -> (B, N, N).
    Its gradient is one product, W F (D + D^T), in F's type."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, roots: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, roots)  # not their product: that would be a copy of each layer
        weighted = rows if roots is None else rows * roots
        if rows.dtype == torch.bfloat16 and rows.shape[1] >= _MANY:
            return _in_parts(weighted)
        wide = _wide(weighted)
        return wide.transpose(1, 2) @ wide

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rows, roots = ctx.saved_tensors
        weighted = rows if roots is None else rows * roots
        both = (grads[0] + grads[0].transpose(1, 2)).to(rows.dtype)
        product: Tensor = weighted @ both
        return product if roots is None else product.mul_(roots), None


def _in_parts(rows: Tensor) -> Tensor:
    """F^T F of bfloat16 (B, M, N) in float32, from products in bfloat16 of parts of the positions.

    Such a product is summed in float32, but comes out rounded to bfloat16; the roundings of the
    parts average out, to 3e-4 of the matrix.
    """
    size, count, channels = rows.shape
    part = count // _PARTS
    blocks = rows[:, : part * _PARTS].reshape(size * _PARTS, part, channels)
    products = (blocks.transpose(1, 2) @ blocks).view(size, _PARTS, channels, channels)
    rest = rows[:, part * _PARTS :].float()
    gram: Tensor = products.float().sum(dim=1) + rest.transpose(1, 2) @ rest
    return gram


def _rows(features: Tensor) -> Tensor:
    """(B, N, h, w) -> (B, M, N), without a copy where the memory is channels-last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def gram_matrix(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """G = F F^T / M, (B, N, N): Gatys et al. 2015, eq. 3, over the number of positions.

    With a mask (B, 1, h, w) in [0, 1]: sum_k m_k f_k f_k^T / sum_k m_k.
    """
    return Statistic.of(features, "gram", mask).gram


@dataclass(frozen=True)
class Statistic:
    """What is compared of one layer: the Gram matrix (B, N, N) and, but for `gram`, the mean
    (B, N)."""

    gram: Tensor
    mean: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor, kind: str, mask: Tensor | None = None) -> Statistic:
        """The statistic of features (B, N, h, w) that the style loss `kind` compares."""
        sums = cls.sums(features, kind, mask)
        return sums.over(positions(features, mask))

    @classmethod
    def sums(cls, features: Tensor, kind: str, mask: Tensor | None = None) -> Statistic:
        """The statistic before it is divided by the positions: those of parts of a picture add
        up."""
        roots = None if mask is None else _rows(mask).sqrt().to(features.dtype)
        gram: Tensor = _SecondMoment.apply(_rows(features), roots)
        if kind == "gram":
            return cls(gram)
        wide = _wide(features)
        return cls(gram, (wide if mask is None else wide * mask).sum(dim=(2, 3)))

    def __add__(self, other: Statistic) -> Statistic:
        return Statistic(*(a + b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def map(self, function: Callable[[Tensor], Tensor]) -> Statistic:
        return Statistic(*map(function, self.parts()))

    def over(self, total: Tensor | int) -> Statistic:
        """The sums divided by the number of positions, or by their weights (B, 1)."""
        by = total[:, :, None] if isinstance(total, Tensor) else total
        return Statistic(self.gram / by, None if self.mean is None else self.mean / total)

    def parts(self) -> list[Tensor]:
        return [self.gram] if self.mean is None else [self.gram, self.mean]

    def covariance(self) -> Tensor:
        """(B, N, N), centred."""
        assert self.mean is not None
        return self.gram - self.mean[:, :, None] * self.mean[:, None, :]


def positions(features: Tensor, mask: Tensor | None) -> Tensor | int:
    """How many positions a statistic is over: M, or with a mask the sum of its weights (B, 1)."""
    if mask is None:
        return features.shape[-2] * features.shape[-1]
    return mask.sum(dim=(2, 3)).clamp(min=1e-6)


def quarters(height: int, width: int, like: Tensor) -> list[Tensor]:
    """Weights of a picture's four quarters at each of a layer's positions, (1, 1, h, w) of the type
    of `like`; they sum to 1.

    From each quarter to the next they change little by little, over the middle half of the side:
    where they are cut, each is painted by itself, and the cut is a line in the picture.
    """

    def halves(length: int) -> tuple[Tensor, Tensor]:
        at = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / length
        second = (2 * at - 0.5).clamp(0, 1)
        return 1 - second, second

    return [row[None, None, :, None] * column for row in halves(height) for column in halves(width)]


def content_loss(features: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over N*M of (F - P)^2, (B,). Gatys et al. 2015, eq. 1, as a mean.

    With F times k and target 0 it is k^2 times as much; equal features give exactly 0. With a
    weight (B, 1, h, w), each position counts by it.
    """
    away = (_wide(features) - _wide(target)).square()
    return (away if weight is None else weight * away).mean(dim=(1, 2, 3))


def standing_out(target: Tensor, power: float) -> Tensor | None:
    """How far a position's features (B, N, h, w) are from the picture's mean ones, squared, to a
    power; over the mean of that, so (B, 1, h, w) of mean 1. None with power 0: all positions alike.

    A face has more of it than the wall behind.
    """
    if not power:
        return None
    wide = _wide(target)
    away = (wide - wide.mean(dim=(2, 3), keepdim=True)).square().mean(dim=1, keepdim=True)
    least = 1e-6 * wide.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-12  # of a flat picture
    weight = (away + least) ** power
    return weight / weight.mean(dim=(2, 3), keepdim=True)


def style_loss(statistic: Statistic, target: Statistic, kind: str = "gram") -> Tensor:
    """How far a layer's statistic is from the style's, (B,).

    gram: mean over N*N of (G - A)^2, Gatys et al. 2015, eq. 4 without the 1/4.
    moments: mean (mu - mu_s)^2 + mean (S - S_s)^2, with centred covariances S.
    wasserstein: squared 2-Wasserstein distance of Gaussians over N, see `_wasserstein`.
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
    """The loss of all-zero features against a target, (B,): what `relative` losses are over."""
    if isinstance(target, Tensor):
        return _wide(target).square().mean(dim=(1, 2, 3))
    if kind == "wasserstein":
        return target.gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    nothing = Statistic(torch.zeros_like(target.gram), None)
    if target.mean is not None:
        nothing = Statistic(nothing.gram, torch.zeros_like(target.mean))
    return style_loss(nothing, target, kind)


def _square_root(matrix: Tensor, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse of (…, N, N), by one eigendecomposition."""
    values, vectors = torch.linalg.eigh(matrix)
    roots = values.clamp(min=floor).sqrt()
    inverse = torch.where(roots > 0, 1 / roots, 0)
    back = vectors.transpose(-1, -2)
    return (vectors * roots[..., None, :]) @ back, (vectors * inverse[..., None, :]) @ back


class _Bures(torch.autograd.Function):
    """tr (R S R)^1/2 with R = S_s^1/2; its gradient is 1/2 R (R S R)^-1/2 R, in closed form."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, root: Tensor) -> Tensor:
        inner = root @ covariance @ root
        middle, inverse = _square_root((inner + inner.transpose(-1, -2)) / 2)
        ctx.save_for_backward(root @ inverse @ root)
        return middle.diagonal(dim1=-2, dim2=-1).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return 0.5 * grads[0][:, None, None] * slope, None


def _wasserstein(covariance: Tensor, target: Tensor) -> Tensor:
    """tr(S + S_s - 2 (S_s^1/2 S S_s^1/2)^1/2), (B,), with eps I added to both.

    eps = 1e-4 tr(S_s) / N: features of a small picture have fewer positions than channels, and
    the square root has no slope to follow at a zero eigenvalue.
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
    """mean |dx| + mean |dy| over [0, 1] values, (B,); a step of height h across W columns, h/(W-1).

    `sum`: the sums of the same over 0-255 values, as neural-style has it.
    """
    dx = (image[..., :, 1:] - image[..., :, :-1]).abs()
    dy = (image[..., 1:, :] - image[..., :-1, :]).abs()
    if reduction == "sum":
        return 255 * (dx.sum(dim=(1, 2, 3)) + dy.sum(dim=(1, 2, 3)))
    return dx.mean(dim=(1, 2, 3)) + dy.mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Losses:
    """The parts, unweighted, and what is minimised; each (B,)."""

    total: Tensor
    content: Tensor
    style: Tensor
    tv: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.total, self.content, self.style, self.tv

    def map(self, function: Callable[..., Tensor], *others: Losses) -> Losses:
        """The losses with a function of each part, and of the same part of others."""
        return Losses(*map(function, self.parts(), *(other.parts() for other in others)))

    def detach(self) -> Losses:
        return self.map(Tensor.detach)


_LEAST_SHARE = 0.05
"""Least style loss of the start, as a share of the target's energy, that weights are divided by;
the style itself would have 0."""


def relative(layers: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """Layer weights over their sum; layers with weight 0 are left out."""
    total = sum(weight for _, weight in layers)
    return {layer: weight / total for layer, weight in layers if weight > 0}


class PerceptualLoss:
    """content_weight * content + style_weight * style + tv_weight * tv of a picture.

    The targets are `content`, {layer: features (B, N, h, w)}, and `style`, {layer: `Statistic`}.
    They come from the same encoder in the same type as the picture's features, so that the content
    itself has content loss 0 and the style itself style loss 0. A part whose weight is 0 is not
    computed and reads 0. `style_layers` are the weights of the style layers where they are not the
    configured ones, each a number or (B,). `mask` (1 or B, 1, H, W): where the style counts.
    `content_factor` is on the content weight: coarse stages hold on to the photograph more
    strongly.

    With `config.relative` the content loss is over its target's energy, and a layer's style loss
    over what `start`, the photograph in the style's colours, has of it: 1 is no way gone yet. Over
    the target's energy alone, a painting that shares its colours with the photograph's Gram matrix
    hardly counts, and one in strong contrasts drowns the subject.

    With `config.focus` the content loss counts most where the photograph stands out, see
    `standing_out`: there the subject is kept, and elsewhere the style has more of a free hand.

    With `spread` that share of the style loss is over each of the picture's `quarters` by itself,
    so that none is left plain: a Gram matrix says how much of a pattern there is, not where.
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
        self.content_layers: dict[str, float | Tensor] = {}  # layer -> weight, or (B,) of them
        self.style_layers: dict[str, float | Tensor] = {}
        if self.content_weight:
            self.content_layers.update(relative(config.content_layers))
        if self.style_weight:
            self.style_layers.update(style_layers or relative(config.style_layers))
        self.content = content
        self.focus = {
            layer: standing_out(content[layer], config.focus) for layer in self.content_layers
        }
        self.style = style
        self.mask = mask
        self.spread = spread
        if config.relative:
            for layer, weight in self.content_layers.items():
                self.content_layers[layer] = weight / energy(content[layer]).clamp(min=1e-12)
            kind = config.style_loss
            for layer, weight in self.style_layers.items():
                over = energy(style[layer], kind).clamp(min=1e-12)
                if start:
                    share = style_loss(start[layer], style[layer], kind) / over
                    over = over * share.clamp(_LEAST_SHARE, 1)
                self.style_layers[layer] = weight / over

    def __call__(self, image: Tensor) -> Losses:
        """Losses of pictures (B, 3, H, W)."""
        # The network sees what will be saved; the gradient passes as if nothing were cut off.
        seen = image + (image.clamp(0, 1) - image).detach() if self.config.clamp else image
        zero = 0 * image.flatten(1).sum(dim=1)  # has a gradient, should all weights be 0
        total, content, style = self.perceive(seen) if self.layers else (zero, zero, zero)
        tv = zero
        if self.config.tv_weight:
            tv = total_variation_loss(seen, self.config.tv_reduction)
        return Losses(zero + total + self.config.tv_weight * tv, content, style, tv)

    def perceive(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """content_weight * content + style_weight * style, content, style of pictures; each
        (B,)."""
        nothing = seen.new_zeros(len(seen))
        losses = {"content": nothing, "style": nothing}
        for part, _, loss in self.by_layer(seen):
            losses[part] = losses[part] + loss
        content, style = losses["content"], losses["style"]
        return self.content_weight * content + self.style_weight * style, content, style

    def by_layer(self, seen: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """ "content" or "style", the layer, and its weighted share of that loss, (B,); from the
        first layer to the deepest."""
        for layer, features in self.encoder.walk(seen, self.layers):
            if layer in self.content_layers:
                loss = content_loss(features, self.content[layer], self.focus[layer])
                yield "content", layer, self.content_layers[layer] * loss
            if layer in self.style_layers:
                parts = self.parts_at(features)
                sums = [Statistic.sums(features, self.config.style_loss, part) for part in parts]
                totals = [positions(features, part) for part in parts]
                yield "style", layer, self.style_part(layer, sums, totals)

    @property
    def layers(self) -> list[str]:
        """All layers that are looked at."""
        return [*self.content_layers, *self.style_layers]

    def parts_at(self, features: Tensor) -> list[Tensor | None]:
        """Where the style counts at a layer's positions, (1 or B, 1, h, w), None for everywhere: of
        the whole picture, or with `spread` of each of its quarters."""
        height, width = features.shape[-2:]
        mask = self.mask
        if mask is not None:  # averaged over what each position stands for
            mask = F.adaptive_avg_pool2d(mask, (height, width))
        if not self.spread:
            return [mask]
        parts = quarters(height, width, _wide(features))
        return [part if mask is None else part * mask for part in parts]

    def style_part(
        self, layer: str, sums: Sequence[Statistic], totals: Sequence[Tensor | int]
    ) -> Tensor:
        """A layer's weighted share of the style loss, (B,), from the sums of the whole picture or
        of its quarters, and the `positions` that each is over."""
        target, kind = self.style[layer], self.config.style_loss
        summed, total = functools.reduce(operator.add, sums), functools.reduce(operator.add, totals)
        loss = style_loss(summed.over(total), target, kind)
        if len(sums) > 1:
            alone = [
                (count / total) * style_loss(one.over(count), target, kind)[:, None]
                for one, count in zip(sums, totals, strict=True)
            ]
            loss = (1 - self.spread) * loss + self.spread * torch.cat(alone, dim=1).sum(dim=1)
        return self.style_layers[layer] * loss
