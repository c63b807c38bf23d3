"""Minimising a loss over pictures: L-BFGS or Adam, one callback a step, best picture kept.

Knows nothing of networks: a loss is a function of a tensor. Every row of a batch has its own
memory, its own best, its own divergence and its own end. Between two looks (`look_every`) nothing
waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stylize.errors import DivergedError
from stylize.losses import Losses

__all__ = ["LBFGS", "Minimum", "OnStep", "Step", "minimize"]

FIRST_STEP = 2 / 255
"""Root mean square of L-BFGS's first step, in pixel values: there is no curvature to scale it."""


LONGEST_STEP = 0.05
"""Longest step, likewise: without a line search a bad pair early on would throw the picture far."""


PLATEAU_WINDOW = 15
"""Evaluations over which the best loss must have fallen, else it is a plateau."""


STALLED_AFTER = 40
"""Evaluations without a new best after which nothing is to be hoped for."""


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
"""Told the losses (B,), on the CPU, and the pictures (B, 3, H, W) they belong to; a row whose loss
was not finite, or that has ended, is nan. May raise to end it all. With `look_every` > 1 the
pictures are those of the latest of the evaluations that are told in one go."""


@dataclass(frozen=True)
class Minimum:
    """The best pictures seen (B, 3, H, W), the losses there, and how often one was looked at.

    `ended` says for each row why: steps, plateau, stalled, restarted (went on from the best after
    a loss that was not finite) or diverged. Of a row that diverged the picture is the best before
    it, if there was one.
    """

    image: Tensor
    losses: Losses
    evaluations: int
    restarts: int  # of all rows
    ended: tuple[str, ...]


class LBFGS:
    """Directions of limited-memory BFGS without line search (Nocedal 1980; Nocedal and Wright,
    algorithm 7.4), one memory for each row of (B, n).

    Nothing in it has a unit: the first step has a set length, a pair (s, y) is used if
    s.y > 1e-8 |s||y|. So the loss times any factor gives the same iterates, which
    torch.optim.LBFGS, with its absolute thresholds, does not. A pair has weight 0 in a row that
    refuses it, and in one that has `history` newer ones; the host looks every `look_every` steps
    which pairs have none left, and drops them.
    """

    def __init__(
        self,
        history: int,
        first_step: float | None = FIRST_STEP,
        longest_step: float | None = LONGEST_STEP,
        look_every: int = 1,
    ) -> None:
        self.history = history
        self.first_step = first_step  # None: torch's rule, min(1, 1/|g|_1)
        self.longest_step = longest_step
        self.look_every = look_every
        self._steps = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []  # s, y (B, n), oldest first
        self._weights: Tensor | None = None  # (pairs, B, 1), 1/s.y or 0
        self._gamma: Tensor | None = None  # (B, 1), the size of the initial inverse Hessian, or 0
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # step, gradient, whether it counts

    def step(self, gradient: Tensor) -> Tensor:
        """The step to take from here, (B, n), given the gradient (B, n) here."""
        if self._last is not None:
            self._remember(self._last[0], gradient - self._last[1], self._last[2])
        step = self._first(gradient)
        if self._gamma is not None:  # a row without a single pair so far makes first steps still
            step = torch.where(self._gamma > 0, self._direction(gradient), step)
        if self.longest_step is not None:
            rms = step.square().mean(1, keepdim=True).sqrt()
            step = step * (self.longest_step / rms.clamp(min=self.longest_step))
        counts = torch.ones_like(gradient[:, :1], dtype=torch.bool)
        self._last = (step, gradient, counts)
        return step

    def forget(self, rows: Tensor) -> None:
        """Empty the memory of the rows that are True in (B, 1): their next step is a first step."""
        if self._weights is not None and self._gamma is not None:
            self._weights, self._gamma = self._weights * ~rows, self._gamma * ~rows
        if self._last is not None:
            self._last = (self._last[0], self._last[1], self._last[2] & ~rows)

    def _first(self, gradient: Tensor) -> Tensor:
        if self.first_step is None:
            return -gradient * (1 / gradient.abs().sum(1, keepdim=True)).clamp(max=1)
        rms = gradient.square().mean(1, keepdim=True).sqrt()
        return -gradient * (self.first_step / rms.clamp(min=torch.finfo(rms.dtype).tiny))

    def _remember(self, s: Tensor, y: Tensor, counts: Tensor) -> None:
        sy = _dot(s, y)
        yy = _dot(y, y)
        accepted = counts & (sy > 1e-8 * (_dot(s, s) * yy).sqrt())
        gamma = torch.zeros_like(sy) if self._gamma is None else self._gamma
        self._gamma = torch.where(accepted, sy / yy, gamma)
        # A refused pair stays until the next look: its weight is 0, but 0 times inf is no number.
        self._pairs.append((torch.where(accepted, s, 0), torch.where(accepted, y, 0)))
        new = torch.where(accepted, 1 / sy, 0)[None]
        weights = new if self._weights is None else torch.cat([self._weights, new])
        newer = (weights > 0).flip(0).cumsum(0).flip(0)  # itself included
        self._weights = torch.where(newer <= self.history, weights, 0)
        self._steps += 1
        if self._steps % self.look_every == 0:
            kept = (self._weights > 0).any(dim=1).flatten().tolist()
            if not all(kept):
                self._pairs = [pair for pair, keep in zip(self._pairs, kept, strict=True) if keep]
                self._weights = self._weights[torch.tensor(kept, device=s.device)]

    def _direction(self, gradient: Tensor) -> Tensor:
        assert self._weights is not None
        assert self._gamma is not None
        q = -gradient
        alphas = []
        weights = self._weights.unbind()
        for (s, y), weight in zip(reversed(self._pairs), reversed(weights), strict=True):
            alpha = weight * _dot(s, q)
            q.addcmul_(y, alpha, value=-1)
            alphas.append(alpha)
        q *= self._gamma
        for (s, y), weight, alpha in zip(self._pairs, weights, reversed(alphas), strict=True):
            q.addcmul_(s, alpha - weight * _dot(y, q))
        return q


class Adam:
    """Kingma and Ba 2014, algorithm 1, with a count of steps for each row of (B, n)."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self._mean: Tensor | None = None

    def step(self, gradient: Tensor) -> Tensor:
        """The step to take from here, (B, n), given the gradient (B, n) here."""
        if self._mean is None:
            self._mean = torch.zeros_like(gradient)
            self._square = torch.zeros_like(gradient)
            self._count = torch.zeros_like(gradient[:, :1])
        self._count = self._count + 1
        self._mean = torch.lerp(self._mean, gradient, 0.1)
        self._square = torch.lerp(self._square, gradient.square(), 0.001)
        mean = self._mean / (1 - 0.9**self._count)
        square = self._square / (1 - 0.999**self._count)
        return -self.learning_rate * mean / (square.sqrt() + 1e-8)

    def forget(self, rows: Tensor) -> None:
        """Empty the memory of the rows that are True in (B, 1)."""
        assert self._mean is not None
        self._mean, self._square = self._mean * ~rows, self._square * ~rows
        self._count = self._count * ~rows


def _unit(gradient: Tensor) -> Tensor:
    """What gradients (B, n) are multiplied by, (B, 1), so that their squares stay within float32
    whatever the weights. A power of two: L-BFGS's steps are the same to the last bit."""
    exponent = gradient.abs().amax(dim=1, keepdim=True).log2().ceil()  # -inf of a flat loss
    return torch.ldexp(torch.ones_like(gradient[:, :1]), -(exponent - 40).clamp(min=0))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, n), (B, n) -> (B, 1)"""
    if len(a) == 1:  # half the time
        return torch.dot(a[0], b[0]).view(1, 1)
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
    plateau: float = 0.0,
    look_every: int = 1,
    on_step: OnStep | None = None,
) -> Minimum:
    """The pictures of least loss among `evaluations` looked at, from `start` (B, 3, H, W).

    A row's loss that is not finite sends it back to its best picture with an empty memory; coming
    a second time, or at the very start, the row has diverged. A row ends before its evaluations
    are used up when its best loss fell by less than the share `plateau` over `PLATEAU_WINDOW` of
    them, or not at all over `STALLED_AFTER`. The host looks at what came out every `look_every`
    evaluations only, so that a GPU need not wait for it. Raises `DivergedError` if no row is left.
    """
    x = start.detach().clone()
    scale = x[0].numel()  # keeps gradients of mean losses within the range of half precision
    method = Adam(learning_rate) if optimizer == "adam" else LBFGS(history, look_every=look_every)
    unit: Tensor | None = None
    best = x
    best_losses: Losses | None = None
    ledger = _Ledger(len(x), plateau)
    running = torch.ones(len(x), dtype=torch.bool, device=x.device)
    evaluation = 0
    while evaluation < evaluations and ledger.running():
        evaluation += 1
        at = x.detach().requires_grad_(True)
        losses = loss(at)
        (gradient,) = torch.autograd.grad(losses.total.sum() * scale, at)
        losses = losses.detach()
        gradient = gradient.flatten(1)
        finite = losses.total.isfinite() & gradient.isfinite().all(dim=1)
        if best_losses is None:
            best_losses = losses.map(lambda part: torch.full_like(part, math.inf))
        won = running & finite & (losses.total < best_losses.total)
        best = torch.where(_wide(won, x), x, best)
        best_losses = losses.map(lambda a, b, won=won: torch.where(won, a, b), best_losses)
        ledger.note(losses, finite & running, best_losses.total)
        if evaluation % look_every == 0 or evaluation == evaluations:
            ledger.look(evaluation, x, on_step)
            running = torch.tensor([not end for end in ledger.ended], device=x.device)
        gradient = torch.where(finite[:, None], gradient, 0)
        unit = _unit(gradient) if unit is None else unit
        step = method.step(gradient * unit)
        method.forget(~finite[:, None])
        moved = x + step.view_as(x)
        if optimizer == "adam":
            moved = moved.clamp(0, 1)  # it has no line to leave
        x = torch.where(_wide(finite, x), moved, best)
    if best_losses is None:  # nothing was to be evaluated
        with torch.no_grad():
            best_losses = loss(x)
    return Minimum(best, best_losses, evaluation, sum(ledger.restarts), ledger.reasons())


def _wide(rows: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)"""
    return rows.view(-1, *[1] * (x.dim() - 1))


@dataclass
class _Ledger:
    """What the host knows of each row, from look to look."""

    rows: int
    plateau: float
    ended: list[str] = field(init=False)  # "" while it runs
    restarts: list[int] = field(init=False)
    bests: list[list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.ended = [""] * self.rows
        self.restarts = [0] * self.rows
        self.bests = [[] for _ in range(self.rows)]
        self._noted: list[Tensor] = []

    def running(self) -> bool:
        return not all(self.ended)

    def note(self, losses: Losses, counts: Tensor, best: Tensor) -> None:
        """Keep what a later look will read; the device goes on meanwhile."""
        # In their own type: Apple's GPUs have no float64.
        self._noted.append(torch.stack([*losses.parts(), best, counts.to(best)]))

    def look(self, evaluation: int, x: Tensor, on_step: OnStep | None) -> None:
        """Read what was noted, tell it, and decide which rows have ended.

        Raises `DivergedError` if all have, and none but by diverging.
        """
        # (k, 6, B): the one wait for the device
        noted = torch.stack(self._noted).cpu().double()
        first = evaluation - len(self._noted) + 1
        self._noted = []
        for number, (values, numbers) in enumerate(
            zip(noted, noted.numpy().tolist(), strict=True), first
        ):
            counts = [count > 0 for count in numbers[5]]
            for row in range(self.rows):
                if not self.ended[row]:
                    self._judge(row, counts[row], numbers[4][row])
            if all(end == "diverged" for end in self.ended):
                raise DivergedError(
                    f"the loss became {numbers[0][0]} at evaluation {number}; "
                    "lower the weights, or start from the content image"
                )
            if on_step and any(counts):
                on_step(Losses(*values[:4].masked_fill(values[5] == 0, math.nan)), x)

    def _judge(self, row: int, finite: bool, best: float) -> None:
        bests = self.bests[row]
        if not finite:
            self.restarts[row] += 1
            if not bests or self.restarts[row] > 1:
                self.ended[row] = "diverged"
            return
        bests.append(best)
        if len(bests) > PLATEAU_WINDOW:
            before = bests[-1 - PLATEAU_WINDOW]
            if before - best < self.plateau * before:
                self.ended[row] = "plateau"
        if len(bests) > STALLED_AFTER and bests[-1 - STALLED_AFTER] == best:
            self.ended[row] = "stalled"

    def reasons(self) -> tuple[str, ...]:
        ends = zip(self.ended, self.restarts, strict=True)
        return tuple(
            "restarted" if restarts and end != "diverged" else end or "steps"
            for end, restarts in ends
        )
