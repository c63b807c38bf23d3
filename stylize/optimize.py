"""Minimising a loss over pictures: L-BFGS or Adam, one callback an evaluation, best picture kept.

Knows nothing of networks: a loss is a function of a tensor. Every row of a batch has its own
memory, its own best, its own divergence and its own end. Between two looks (`look_every`) nothing
waits for the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stylize.errors import DivergedError
from stylize.losses import Losses

__all__ = ["LBFGS", "Minimum", "OnEvaluation", "minimize"]

FIRST_STEP = 2 / 255
"""Root mean square of L-BFGS's first step, in pixel values: there is no curvature to scale it."""


LONGEST_STEP = 0.05
"""Longest step, likewise: without a line search a bad pair early on would throw the picture far."""


PLATEAU_WINDOW = 15
"""Evaluations over which the best loss must have fallen, else it is a plateau."""


STALLED_AFTER = 40
"""Evaluations without a new best after which nothing is to be hoped for."""


OnEvaluation = Callable[[Losses, Tensor], None]
"""A callback that is told losses (B,), on the CPU, and the pictures (B, 3, H, W) they belong to; a
row whose loss was not finite, or that has ended, is nan. May raise to end it all. With `look_every`
> 1 the pictures are those of the latest of the evaluations that are told in one go."""


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
    """Directions of limited-memory BFGS without line search (Nocedal 1980), one memory for each
    row of (B, n).

    The two-loop recursion (Nocedal and Wright, algorithm 7.4) as matrices (Byrd, Nocedal and
    Schnabel 1994): its first loop solves R a = S q, its second R^T b = D a - gamma Y q, with
    R_ij = s_i.y_j for pairs i no newer than j and D the diagonal of R. So the memory is read three
    times where the loops read and write ten vectors a pair, by some fifty kernels where they are
    two hundred.

    Nothing in it has a unit: the first step has a set length, a pair (s, y) is used if
    s.y > 1e-8 |s||y|. So the loss times any factor gives the same iterates, which
    torch.optim.LBFGS, with its absolute thresholds, does not. Its tensors stay where they are, for
    a recording of the step to find them.
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
        self._begun = False

    def _begin(self, gradient: Tensor) -> None:
        rows, n = gradient.shape
        m = self.history
        # s and y of the pairs of each row, in slots, and a last vector that nobody reads.
        self._vectors = gradient.new_zeros(rows * 2 * m + 1, n)
        self._pairs = self._vectors[:-1].view(rows, 2 * m, n)
        self._sy = gradient.new_zeros(rows, m, m)  # s_i.y_j, of slots
        self._yy = gradient.new_zeros(rows, m, m)
        self._used = torch.zeros(rows, m, dtype=torch.bool, device=gradient.device)
        self._slot = torch.zeros(rows, dtype=torch.long, device=gradient.device)  # written next
        self._gamma = gradient.new_zeros(rows, 1)  # size of the initial inverse Hessian, or 0
        self._step = torch.zeros_like(gradient)
        self._gradient = torch.zeros_like(gradient)
        self._counts = torch.zeros_like(gradient[:, :1], dtype=torch.bool)
        self._rows = torch.arange(rows, device=gradient.device)
        self._ages = torch.arange(m, device=gradient.device)
        self._begun = True

    def step(self, gradient: Tensor) -> Tensor:
        """The step to take from here, (B, n), given the gradient (B, n) here."""
        if not self._begun:
            self._begin(gradient)
        self._remember(gradient)
        # A row without a single pair so far makes first steps still.
        step = torch.where(self._gamma > 0, self._direction(gradient), self._first(gradient))
        if self.longest_step is not None:
            rms = step.square().mean(1, keepdim=True).sqrt()
            step = step * (self.longest_step / rms.clamp(min=self.longest_step))
        self._step.copy_(step)
        self._gradient.copy_(gradient)
        self._counts.fill_(True)
        return step

    def forget(self, rows: Tensor) -> None:
        """Empty the memory of the rows that are True in (B, 1): their next step is a first step."""
        if self._begun:
            self._used &= ~rows
            self._gamma *= ~rows
            self._counts &= ~rows

    def _first(self, gradient: Tensor) -> Tensor:
        if self.first_step is None:
            return -gradient * (1 / gradient.abs().sum(1, keepdim=True)).clamp(max=1)
        rms = gradient.square().mean(1, keepdim=True).sqrt()
        return -gradient * (self.first_step / rms.clamp(min=torch.finfo(rms.dtype).tiny))

    def _remember(self, gradient: Tensor) -> None:
        """Put the last step and what it did to the gradient in the place of the oldest pair."""
        s, y = self._step, gradient - self._gradient
        sy, yy = _dot(s, y), _dot(y, y)
        accepted = self._counts & (sy > 1e-8 * (_dot(s, s) * yy).sqrt())
        taken = accepted[:, 0]
        place, nowhere = 2 * self.history * self._rows + self._slot, len(self._vectors) - 1
        self._vectors[torch.where(taken, place, nowhere)] = s
        self._vectors[torch.where(taken, place + self.history, nowhere)] = y
        self._gamma.copy_(torch.where(accepted, sy / yy, self._gamma))
        along = _products(self._pairs, y)
        row, slot = self._rows, self._slot
        here = torch.where(accepted, along[:, : self.history], self._sy[row, :, slot])
        self._sy[row, :, slot] = here
        here = torch.where(accepted, along[:, self.history :], self._yy[row, :, slot])
        self._yy[row, :, slot] = here
        self._yy[row, slot, :] = here
        self._used[row, slot] |= taken
        self._slot.copy_((slot + taken) % self.history)

    def _direction(self, gradient: Tensor) -> Tensor:
        m = self.history
        order = (self._slot[:, None] + self._ages) % m  # oldest pair first
        used = self._used.gather(1, order)
        both = used[:, :, None] & used[:, None, :]

        def ordered(matrix: Tensor) -> Tensor:
            matrix = matrix[self._rows[:, None, None], order[:, :, None], order[:, None, :]]
            return torch.where(both, matrix, 0)

        r = ordered(self._sy).triu()
        d = r.diagonal(dim1=1, dim2=2)[:, :, None]
        r = r + torch.diag_embed((~used).to(r))
        along = _products(self._pairs, gradient)
        sg = torch.where(used, along[:, :m].gather(1, order), 0)[:, :, None]
        yg = torch.where(used, along[:, m:].gather(1, order), 0)[:, :, None]
        gamma = self._gamma[:, :, None]
        a = torch.linalg.solve_triangular(r, -sg, upper=True)
        yq = -yg - ordered(self._yy) @ a
        b = torch.linalg.solve_triangular(r.mT, d * a - gamma * yq, upper=False)
        factors = torch.cat([b, -gamma * a], dim=1)[:, :, 0]
        factors = torch.zeros_like(factors).scatter(1, torch.cat([order, order + m], 1), factors)
        return _sum(factors, self._pairs) - self._gamma * gradient


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
        self._count += 1
        self._mean.lerp_(gradient, 0.1)
        self._square.lerp_(gradient.square(), 0.001)
        mean = self._mean / (1 - 0.9**self._count)
        square = self._square / (1 - 0.999**self._count)
        return -self.learning_rate * mean / (square.sqrt() + 1e-8)

    def forget(self, rows: Tensor) -> None:
        """Empty the memory of the rows that are True in (B, 1)."""
        if self._mean is not None:
            self._mean *= ~rows
            self._square *= ~rows
            self._count *= ~rows


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


def _products(pairs: Tensor, x: Tensor) -> Tensor:
    """(B, k, n), (B, n) -> (B, k), the product of each vector with x."""
    if len(x) == 1:  # a third of the time of one in a batch on a CPU
        return (pairs[0] @ x[0])[None]
    return (pairs @ x[:, :, None])[:, :, 0]


def _sum(factors: Tensor, pairs: Tensor) -> Tensor:
    """(B, k), (B, k, n) -> (B, n), the vectors times their factors."""
    if len(factors) == 1:
        return (factors[0] @ pairs[0])[None]
    return (factors[:, None] @ pairs)[:, 0]


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
    record: bool = False,
    on_evaluation: OnEvaluation | None = None,
) -> Minimum:
    """The pictures of least loss among `evaluations` looked at, from `start` (B, 3, H, W).

    A row's loss that is not finite sends it back to its best picture with an empty memory; coming
    a second time, or at the very start, the row has diverged. A row ends before its evaluations
    are used up when its best loss fell by less than the share `plateau` over `PLATEAU_WINDOW` of
    them, or not at all over `STALLED_AFTER`. The host looks at what came out every `look_every`
    evaluations only, so that a GPU need not wait for it. `record`: the third evaluation and its
    step are recorded as a CUDA graph, and repeated from then on: a GPU gets through one picture
    faster than the host can tell it what to do. The loss must do the same each time.

    Raises `DivergedError` if no row is left.
    """
    if not evaluations:
        with torch.no_grad():
            return Minimum(start.detach().clone(), loss(start), 0, 0, ("steps",) * len(start))
    if optimizer == "adam":
        method: LBFGS | Adam = Adam(learning_rate)
    else:
        method = LBFGS(min(history, evaluations))
    descent = _Descent(loss, start, method)
    ledger = _Ledger(len(start), plateau)
    advance = descent.advance
    evaluation = 1
    descent.evaluate()
    while True:
        ledger.note(descent)
        if evaluation % look_every == 0 or evaluation == evaluations:
            ledger.look(evaluation, descent.x, on_evaluation)
            if evaluation == evaluations or not ledger.running():
                break
            running = [not end for end in ledger.ended]
            descent.running.copy_(torch.tensor(running, device="cpu"))
        evaluation += 1
        if record and evaluation == 3:
            advance = _recorded(advance, start.device)
        advance()
    return Minimum(
        descent.best, descent.best_losses, evaluation, sum(ledger.restarts), ledger.reasons()
    )


class _Descent:
    """Where the rows are, and the best that they were at. All tensors stay where they are."""

    def __init__(
        self, loss: Callable[[Tensor], Losses], start: Tensor, method: LBFGS | Adam
    ) -> None:
        self.loss = loss
        self.method = method
        self.x = start.detach().clone()
        self.best = self.x.clone()
        self.running = torch.ones(len(start), dtype=torch.bool, device=start.device)
        self.begun = False

    def advance(self) -> None:
        """One step, and an evaluation there."""
        self.step()
        self.evaluate()

    def evaluate(self) -> None:
        at = self.x.detach().requires_grad_(True)
        losses = self.loss(at)
        scale = at[0].numel()  # keeps gradients of mean losses within the range of half precision
        (gradient,) = torch.autograd.grad(losses.total.sum() * scale, at)
        losses, gradient = losses.detach(), gradient.flatten(1)
        finite = losses.total.isfinite() & gradient.isfinite().all(dim=1)
        gradient = torch.where(finite[:, None], gradient, 0)
        if not self.begun:
            self.losses = losses.map(torch.clone)
            self.best_losses = losses.map(lambda part: torch.full_like(part, math.inf))
            self.gradient, self.finite, self.unit = gradient, finite, _unit(gradient)
            self.begun = True
        won = self.running & finite & (losses.total < self.best_losses.total)
        self.best.copy_(torch.where(_wide(won, self.x), self.x, self.best))
        for kept, part in zip(self.losses.parts(), losses.parts(), strict=True):
            kept.copy_(part)
        for kept, part in zip(self.best_losses.parts(), losses.parts(), strict=True):
            kept.copy_(torch.where(won, part, kept))
        self.gradient.copy_(gradient)
        self.finite.copy_(finite)

    def step(self) -> None:
        step = self.method.step(self.gradient * self.unit)
        self.method.forget(~self.finite[:, None])
        moved = self.x + step.view_as(self.x)
        if isinstance(self.method, Adam):
            moved = moved.clamp(0, 1)  # it has no line to leave
        self.x.copy_(torch.where(_wide(self.finite, self.x), moved, self.best))


def _recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The same work as a CUDA graph, which one launch repeats."""
    graph = torch.cuda.CUDAGraph()
    try:
        with (
            torch.cuda.device(device),
            # Other threads may use the GPU meanwhile.
            torch.cuda.graph(graph, stream=_stream(device), capture_error_mode="thread_local"),
        ):
            work()
    except RuntimeError as error:  # of a recording that could not end, for want of memory
        if isinstance(error.__context__, torch.OutOfMemoryError):
            raise error.__context__ from None
        raise

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream that is recorded on: each that cuBLAS sees costs a workspace for good."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


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

    def note(self, descent: _Descent) -> None:
        """Keep what a later look will read; the device goes on meanwhile."""
        # In their own type: Apple's GPUs have no float64.
        best = descent.best_losses.total
        counts = (descent.finite & descent.running).to(best)
        self._noted.append(torch.stack([*descent.losses.parts(), best, counts]))

    def look(self, evaluation: int, x: Tensor, on_evaluation: OnEvaluation | None) -> None:
        """Read what was noted, tell it, and decide which rows have ended.

        Raises `DivergedError` if all have, and none but by diverging.
        """
        # (k, 6, B): the one wait for the device
        noted = torch.stack(self._noted).cpu().double()
        picture = x.clone() if on_evaluation else x  # whoever is told may keep it
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
            if on_evaluation and any(counts):
                on_evaluation(Losses(*values[:4].masked_fill(values[5] == 0, math.nan)), picture)

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
