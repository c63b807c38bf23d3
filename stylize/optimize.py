"""Minimising a loss over pictures: L-BFGS or Adam, one callback a step, best picture kept.

Knows nothing of networks: a loss is a function of a tensor. Every row of a batch has its own
memory, its own best and its own divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stylize.errors import DivergedError
from stylize.losses import Losses

__all__ = ["LBFGS", "Minimum", "OnStep", "Step", "minimize"]

FIRST_STEP = 2 / 255
"""Root mean square of L-BFGS's first step, in pixel values: there is no curvature to scale it."""


LONGEST_STEP = 0.05
"""Longest step, likewise: without a line search a bad pair early on would throw the picture far."""


@dataclass(frozen=True)
class Step:
    """One evaluation of loss and gradient. Losses are unweighted but for `loss`, their sum with
    the configured weights."""

    step: int  # evaluations so far, over all scales
    seconds: float  # since the start of the transfer
    loss: float
    content_loss: float
    style_loss: float
    tv_loss: float


OnStep = Callable[[Losses, Tensor], None]
"""Told the losses (B,) and the pictures (B, 3, H, W) they belong to; may raise to end it all."""


@dataclass(frozen=True)
class Minimum:
    """The best pictures seen (B, 3, H, W), the losses there, and how often one was looked at."""

    image: Tensor
    losses: Losses
    evaluations: int
    restarts: int


class LBFGS:
    """Directions of limited-memory BFGS without line search (Nocedal 1980; Nocedal and Wright,
    algorithm 7.4), one memory for each row of (B, n).

    Nothing in it has a unit: the first step has a set length, a pair (s, y) is used if
    s.y > 1e-8 |s||y|. So the loss times any factor gives the same iterates, which
    torch.optim.LBFGS, with its absolute thresholds, does not.
    """

    def __init__(
        self,
        history: int,
        first_step: float | None = FIRST_STEP,
        longest_step: float | None = LONGEST_STEP,
    ) -> None:
        self.history = history
        self.first_step = first_step  # None: torch's rule, min(1, 1/|g|_1)
        self.longest_step = longest_step
        self.clear()

    def clear(self) -> None:
        """Forget all pairs; the next step is a first step."""
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y (B, n), 1/s.y (B, 1) or 0
        self._gamma: Tensor | None = None  # (B, 1), the size of the initial inverse Hessian
        self._last: tuple[Tensor, Tensor] | None = None  # step taken and gradient before it

    def step(self, gradient: Tensor) -> Tensor:
        """The step to take from here, (B, n), given the gradient (B, n) here."""
        if self._last is not None:
            self._remember(self._last[0], gradient - self._last[1])
        step = self._first(gradient)
        if self._gamma is not None:  # a row without a single pair so far makes first steps still
            step = torch.where(self._gamma > 0, self._direction(gradient), step)
        if self.longest_step is not None:
            rms = step.square().mean(1, keepdim=True).sqrt()
            step = step * (self.longest_step / rms.clamp(min=self.longest_step))
        self._last = (step, gradient)
        return step

    def _first(self, gradient: Tensor) -> Tensor:
        if self.first_step is None:
            return -gradient * (1 / gradient.abs().sum(1, keepdim=True)).clamp(max=1)
        rms = gradient.square().mean(1, keepdim=True).sqrt()
        return -gradient * (self.first_step / rms.clamp(min=torch.finfo(rms.dtype).tiny))

    def _remember(self, s: Tensor, y: Tensor) -> None:
        sy = _dot(s, y)
        yy = _dot(y, y)
        accepted = sy > 1e-8 * (_dot(s, s) * yy).sqrt()
        if not bool(accepted.any()):
            return
        if self._gamma is None:
            self._gamma = torch.zeros_like(sy)
        self._gamma = torch.where(accepted, sy / yy, self._gamma)
        pairs = [*self._pairs, (s, y, 1 / sy)]
        if not bool(accepted.all()):
            # A row whose pair is refused keeps those that it has, behind an empty one of weight 0.
            nothing = torch.zeros_like(s)
            kept = [(nothing, nothing, torch.zeros_like(sy)), *self._pairs]
            pairs = [
                (
                    torch.where(accepted, a, b),
                    torch.where(accepted, c, d),
                    torch.where(accepted, e, f),
                )
                for (a, c, e), (b, d, f) in zip(pairs, kept, strict=True)
            ]
        self._pairs = pairs[-self.history :]

    def _direction(self, gradient: Tensor) -> Tensor:
        assert self._gamma is not None
        q = -gradient
        alphas = []
        for s, y, inverse in reversed(self._pairs):
            alpha = inverse * _dot(s, q)
            q = torch.addcmul(q, y, alpha, value=-1)
            alphas.append(alpha)
        q = q * self._gamma
        for (s, y, inverse), alpha in zip(self._pairs, reversed(alphas), strict=True):
            q = torch.addcmul(q, s, alpha - inverse * _dot(y, q))
        return q


class _Adam:
    """torch's Adam on pictures, which are clamped after each step: it has no line to leave."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.clear()

    def clear(self) -> None:
        self._optimizer: torch.optim.Adam | None = None

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        if self._optimizer is None:
            self._x = x.clone()
            self._optimizer = torch.optim.Adam([self._x], lr=self.learning_rate)
        self._x.copy_(x)
        self._x.grad = gradient
        self._optimizer.step()
        return self._x.clamp(0, 1)


def _unit(gradient: Tensor) -> float:
    """What gradients are multiplied by, so that their squares stay within float32 whatever the
    weights. A power of two: L-BFGS's steps are the same to the last bit."""
    exponent = math.frexp(float(gradient.abs().max()))[1]
    return 2.0 ** -max(0, exponent - 40)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, n), (B, n) -> (B, 1)"""
    product: Tensor = torch.linalg.vecdot(a, b)
    return product[:, None]


def minimize(
    loss: Callable[[Tensor], Losses],
    start: Tensor,
    *,
    evaluations: int,
    optimizer: str = "lbfgs",
    history: int = 20,
    learning_rate: float = 0.02,
    on_step: OnStep | None = None,
) -> Minimum:
    """The pictures of least loss among `evaluations` + 1 looked at, from `start` (B, 3, H, W).

    A loss that is not finite goes back to the best picture with an empty memory; coming a second
    time, or at the very start, it raises `DivergedError`.
    """
    x = start.detach().clone()
    scale = x[0].numel()  # keeps gradients of mean losses within the range of half precision
    lbfgs = LBFGS(history)
    adam = _Adam(learning_rate)
    unit = 0.0
    best: Minimum | None = None
    restarts = 0
    for evaluation in range(1, evaluations + 1):
        x.requires_grad_(True)
        losses = loss(x)
        (gradient,) = torch.autograd.grad(losses.total.sum() * scale, x)
        x = x.detach()
        losses = Losses(*(part.detach() for part in _parts(losses)))
        if not (losses.total.isfinite().all() and gradient.isfinite().all()):
            restarts += 1
            if best is None or restarts > 1:
                raise DivergedError(
                    f"the loss became {losses.total.tolist()[0]} at evaluation {evaluation}; "
                    "lower the weights, or start from the content image"
                )
            x = best.image.clone()
            lbfgs.clear()
            adam.clear()
            continue
        unit = unit or _unit(gradient)
        gradient = gradient * unit
        best = _better(best, x, losses, evaluation, restarts)
        if on_step:
            on_step(losses, x)
        if optimizer == "adam":
            x = adam.step(x, gradient)
        else:
            x = x + lbfgs.step(gradient.flatten(1)).view_as(x)
    if best is None:  # nothing was to be evaluated
        with torch.no_grad():
            best = Minimum(x, loss(x), 0, 0)
    return Minimum(best.image, best.losses, evaluations, restarts)


def _parts(losses: Losses) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return losses.total, losses.content, losses.style, losses.tv


def _better(
    best: Minimum | None, x: Tensor, losses: Losses, evaluations: int, restarts: int
) -> Minimum:
    """The better of two in each row."""
    if best is None:
        return Minimum(x.clone(), losses, evaluations, restarts)
    won = losses.total < best.losses.total  # (B,)
    if bool(won.all()):
        return Minimum(x.clone(), losses, evaluations, restarts)
    image = torch.where(won.view(-1, 1, 1, 1), x, best.image)
    parts = zip(_parts(losses), _parts(best.losses), strict=True)
    return Minimum(
        image, Losses(*(torch.where(won, a, b) for a, b in parts)), evaluations, restarts
    )
