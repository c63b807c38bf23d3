"""Minimising a loss over pictures with L-BFGS or Adam. `minimize` is the entrance.

This module knows nothing of networks: a loss is any function of a tensor. The pictures of a batch
are its rows, and independent: each has its own optimiser memory, best picture and end.

The loop of `minimize` alternates two parts. `_Descent` works on the device: it evaluates, keeps the
best and steps. `_Ledger` works on the host: every `look_every` evaluations it reads the losses,
reports them and decides which rows have ended. In between, nothing waits for the device.
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

__all__ = ["Memory", "Minimum", "OnPause", "minimize"]

FIRST_STEP = 2 / 255
"""Root mean square of L-BFGS's first step, in pixel values: no curvature is known yet to scale
it."""

LONGEST_STEP = 0.05
"""Greatest root mean square of a step, in pixel values. There is no line search, so a bad pair
early on could throw the picture far off."""

PLATEAU_WINDOW = 15
"""Number of evaluations over which a row's best loss must fall by the share `plateau`."""

STALLED_AFTER = 40
"""Number of evaluations without a new best after which a row ends."""

OnEvaluation = Callable[[Losses, Tensor], None]
"""A callback that is given the losses (B,) of one evaluation, on the CPU, and pictures
(B, 3, H, W). Losses are NaN for rows that have ended or whose loss was not finite. With
`look_every` > 1 several evaluations are reported together, with the pictures of the latest. The
callback may raise an exception to end the optimisation."""

Memory = tuple[Tensor, ...]
"""What an optimiser remembers and can be given again, (B, n) each. That of L-BFGS is left out: it
may take gigabytes, and fills again within a few evaluations."""

OnPause = Callable[[int, Tensor, Memory], None]
"""A callback that is given the number of evaluations so far, and the pictures (B, 3, H, W) and the
memory to go on from: without a memory the best pictures, else those that belong to it. It is called
when losses have been reported and the optimisation goes on. It may raise an exception, as
`OnEvaluation` may."""


@dataclass(frozen=True)
class Minimum:
    """The best pictures seen and their losses.

    `ended` gives the reason for each row: "steps", "plateau", "stalled", "restarted" (it went on
    from its best picture after a loss that was not finite) or "diverged". A row that diverged has
    its best picture from before, if there was one.
    """

    image: Tensor  # (B, 3, H, W)
    losses: Losses
    evaluations: int
    restarts: int  # of all rows
    ended: tuple[str, ...]


class LBFGS:
    """Limited-memory BFGS without line search (Nocedal 1980), with a memory for each row of (B, n).

    The two-loop recursion (Nocedal and Wright, algorithm 7.4) in matrix form (Byrd, Nocedal and
    Schnabel 1994): its first loop solves R a = S q, its second R^T b = D a - gamma Y q, where
    R_ij = s_i.y_j for pairs i no newer than j, and D is the diagonal of R. So the memory is read
    three times, while the loops read and write ten vectors a pair, and there are some fifty kernels
    instead of two hundred.

    The iterates do not depend on the scale of the loss: the first step has a fixed length, and a
    pair (s, y) is used if s.y > 1e-8 |s||y|. `torch.optim.LBFGS` has absolute thresholds instead.

    All tensors keep their place in memory, so that a step can be recorded as a CUDA graph.
    """

    def __init__(
        self,
        history: int,
        first_step: float | None = FIRST_STEP,
        longest_step: float | None = LONGEST_STEP,
    ) -> None:
        self.history = history
        self.first_step = first_step  # None: torch's rule, the gradient times min(1, 1/|g|_1)
        self.longest_step = longest_step  # None: no limit
        self._begun = False
        self.memory: Memory = ()

    def _begin(self, gradient: Tensor) -> None:
        rows, n = gradient.shape
        m = self.history
        # For each row m slots of s, then m slots of y; at the end a vector for what is discarded.
        self._vectors = gradient.new_zeros(rows * 2 * m + 1, n)
        self._pairs = self._vectors[:-1].view(rows, 2 * m, n)
        self._sy = gradient.new_zeros(rows, m, m)  # s_i.y_j, by slots
        self._yy = gradient.new_zeros(rows, m, m)  # y_i.y_j, by slots
        self._used = torch.zeros(rows, m, dtype=torch.bool, device=gradient.device)
        self._slot = torch.zeros(rows, dtype=torch.long, device=gradient.device)  # the next to fill
        self._gamma = gradient.new_zeros(rows, 1)  # size of the initial inverse Hessian; 0: no pair
        self._step = torch.zeros_like(gradient)  # the last step, and the gradient before it
        self._gradient = torch.zeros_like(gradient)
        self._has_last = torch.zeros_like(gradient[:, :1], dtype=torch.bool)
        self._rows = torch.arange(rows, device=gradient.device)
        self._ages = torch.arange(m, device=gradient.device)
        self._begun = True

    def step(self, gradient: Tensor) -> Tensor:
        """Return the step (B, n) to take from a point with this gradient (B, n)."""
        if not self._begun:
            self._begin(gradient)
        self._remember(gradient)
        # A row that has no pair yet makes another first step.
        step = torch.where(self._gamma > 0, self._direction(gradient), self._first(gradient))
        if self.longest_step is not None:
            rms = step.square().mean(1, keepdim=True).sqrt()
            step = step * (self.longest_step / rms.clamp(min=self.longest_step))
        self._step.copy_(step)
        self._gradient.copy_(gradient)
        self._has_last.fill_(True)
        return step

    def forget(self, rows: Tensor) -> None:
        """Empty the memory of the rows that are True in (B, 1); their next step is a first step."""
        if self._begun:
            self._used &= ~rows
            self._gamma *= ~rows
            self._has_last &= ~rows

    def _first(self, gradient: Tensor) -> Tensor:
        """Return a step of steepest descent."""
        if self.first_step is None:
            return -gradient * (1 / gradient.abs().sum(1, keepdim=True)).clamp(max=1)
        rms = gradient.square().mean(1, keepdim=True).sqrt()
        return -gradient * (self.first_step / rms.clamp(min=torch.finfo(rms.dtype).tiny))

    def _remember(self, gradient: Tensor) -> None:
        """Replace the oldest pair by the last step and the change of the gradient along it."""
        s, y = self._step, gradient - self._gradient
        sy, yy = _dot(s, y), _dot(y, y)
        accepted = self._has_last & (sy > 1e-8 * (_dot(s, s) * yy).sqrt())
        taken = accepted[:, 0]
        place, discard = 2 * self.history * self._rows + self._slot, len(self._vectors) - 1
        self._vectors[torch.where(taken, place, discard)] = s
        self._vectors[torch.where(taken, place + self.history, discard)] = y
        self._gamma.copy_(torch.where(accepted, sy / yy, self._gamma))
        products = _products(self._pairs, y)
        row, slot = self._rows, self._slot
        column = torch.where(accepted, products[:, : self.history], self._sy[row, :, slot])
        self._sy[row, :, slot] = column
        column = torch.where(accepted, products[:, self.history :], self._yy[row, :, slot])
        self._yy[row, :, slot] = column
        self._yy[row, slot, :] = column
        self._used[row, slot] |= taken
        self._slot.copy_((slot + taken) % self.history)

    def _direction(self, gradient: Tensor) -> Tensor:
        """Return minus the approximate inverse Hessian times the gradient (B, n).

        The names are those of the equations in the class's docstring, with q the gradient.
        """
        m = self.history
        order = (self._slot[:, None] + self._ages) % m  # oldest pair first
        used = self._used.gather(1, order)
        both = used[:, :, None] & used[:, None, :]

        def ordered(matrix: Tensor) -> Tensor:  # by age instead of slots, unused slots 0
            matrix = matrix[self._rows[:, None, None], order[:, :, None], order[:, None, :]]
            return torch.where(both, matrix, 0)

        r = ordered(self._sy).triu()
        d = r.diagonal(dim1=1, dim2=2)[:, :, None]
        r = r + torch.diag_embed((~used).to(r))  # else R could not be solved with unused slots
        products = _products(self._pairs, gradient)
        sg = torch.where(used, products[:, :m].gather(1, order), 0)[:, :, None]
        yg = torch.where(used, products[:, m:].gather(1, order), 0)[:, :, None]
        gamma = self._gamma[:, :, None]
        a = torch.linalg.solve_triangular(r, -sg, upper=True)
        yq = -yg - ordered(self._yy) @ a
        b = torch.linalg.solve_triangular(r.mT, d * a - gamma * yq, upper=False)
        factors = torch.cat([b, -gamma * a], dim=1)[:, :, 0]
        factors = torch.zeros_like(factors).scatter(1, torch.cat([order, order + m], 1), factors)
        return _sum(factors, self._pairs) - self._gamma * gradient


class Adam:
    """Adam (Kingma and Ba 2014, algorithm 1) with a count of steps for each row of (B, n)."""

    def __init__(self, learning_rate: float, memory: Memory = ()) -> None:
        self.learning_rate = learning_rate
        self.memory = memory  # means of gradients and of their squares, and the count of steps

    def step(self, gradient: Tensor) -> Tensor:
        """Return the step (B, n) to take from a point with this gradient (B, n)."""
        if not self.memory:
            count = torch.zeros_like(gradient[:, :1])
            self.memory = torch.zeros_like(gradient), torch.zeros_like(gradient), count
        mean, square, count = self.memory
        count += 1
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.001)
        root = (square / (1 - 0.999**count)).sqrt()
        return -self.learning_rate * (mean / (1 - 0.9**count)) / (root + 1e-8)

    def forget(self, rows: Tensor) -> None:
        """Empty the memory of the rows that are True in (B, 1)."""
        for part in self.memory:
            part *= ~rows


def _unit(gradient: Tensor) -> Tensor:
    """Return the factors (B, 1) on gradients (B, n) that keep their squares within float32.

    They are powers of two, which do not change L-BFGS's steps by a single bit.
    """
    exponent = gradient.abs().amax(dim=1, keepdim=True).log2().ceil()  # -inf for a flat loss
    return torch.ldexp(torch.ones_like(gradient[:, :1]), -(exponent - 40).clamp(min=0))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of rows: (B, n), (B, n) -> (B, 1)."""
    if len(a) == 1:  # takes half the time of `vecdot`
        return torch.dot(a[0], b[0]).view(1, 1)
    product: Tensor = torch.linalg.vecdot(a, b)
    return product[:, None]


def _products(pairs: Tensor, x: Tensor) -> Tensor:
    """Return the inner product of each vector with x: (B, k, n), (B, n) -> (B, k)."""
    if len(x) == 1:  # takes a third of the time of a batched product on a CPU
        return (pairs[0] @ x[0])[None]
    return (pairs @ x[:, :, None])[:, :, 0]


def _sum(factors: Tensor, pairs: Tensor) -> Tensor:
    """Return the sum of the vectors times their factors: (B, k), (B, k, n) -> (B, n)."""
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
    on_pause: OnPause | None = None,
    memory: Memory = (),
) -> Minimum:
    """Return the pictures of least loss among up to `evaluations`, from `start` (B, 3, H, W).

    A row whose loss is not finite goes back to its best picture with an empty memory. If that
    happens a second time, or at the start, the row has diverged. A row ends early when its best
    loss fell by less than the share `plateau` over `PLATEAU_WINDOW` evaluations, or not at all over
    `STALLED_AFTER`. The host reads the losses only every `look_every` evaluations, so that a GPU
    need not wait for it.

    With `record` the third step and evaluation are recorded as a CUDA graph, which is repeated from
    then on: for one picture a GPU is faster than the host can launch its kernels. The loss must
    launch the same kernels each time. `memory` is that of an earlier minimisation.

    Raises `DivergedError` if all rows diverge.
    """
    if not evaluations:
        with torch.no_grad():
            return Minimum(start.detach().clone(), loss(start), 0, 0, ("steps",) * len(start))
    if optimizer == "adam":
        method: LBFGS | Adam = Adam(learning_rate, memory)
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
            if evaluation == evaluations or not any(ledger.running()):
                break
            if on_pause:
                pictures = descent.x if method.memory else descent.best
                on_pause(evaluation, pictures, method.memory)
            descent.running.copy_(torch.tensor(ledger.running(), device="cpu"))
        evaluation += 1
        if record and evaluation == 3:
            advance = _recorded(advance, start.device)
        advance()
    return Minimum(
        descent.best, descent.best_losses, evaluation, sum(ledger.restarts), ledger.reasons()
    )


class _Descent:
    """The current point of each row and the best one so far.

    All tensors keep their place in memory, so that `advance` can be recorded as a CUDA graph.
    """

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
        """Step, and evaluate there."""
        self.step()
        self.evaluate()

    def evaluate(self) -> None:
        """Compute loss and gradient at the current point, and keep the point if it is the best."""
        x = self.x.detach().requires_grad_(True)
        losses = self.loss(x)
        scale = x[0].numel()  # keeps gradients of mean losses within the range of half precision
        (gradient,) = torch.autograd.grad(losses.total.sum() * scale, x)
        losses, gradient = losses.detach(), gradient.flatten(1)
        finite = losses.total.isfinite() & gradient.isfinite().all(dim=1)
        gradient = torch.where(finite[:, None], gradient, 0)
        if not self.begun:
            self.losses = losses.map(torch.clone)
            self.best_losses = losses.map(lambda part: torch.full_like(part, math.inf))
            self.gradient, self.finite, self.unit = gradient, finite, _unit(gradient)
            self.begun = True
        improved = self.running & finite & (losses.total < self.best_losses.total)
        self.best.copy_(torch.where(_per_picture(improved, self.x), self.x, self.best))
        for last, part in zip(self.losses.parts(), losses.parts(), strict=True):
            last.copy_(part)
        for best, part in zip(self.best_losses.parts(), losses.parts(), strict=True):
            best.copy_(torch.where(improved, part, best))
        self.gradient.copy_(gradient)
        self.finite.copy_(finite)

    def step(self) -> None:
        """Move each row a step, or back to its best if its last loss was not finite."""
        step = self.method.step(self.gradient * self.unit)
        self.method.forget(~self.finite[:, None])
        moved = self.x + step.view_as(self.x)
        if isinstance(self.method, Adam):
            moved = moved.clamp(0, 1)  # not with L-BFGS, whose pairs need the steps as they are
        self.x.copy_(torch.where(_per_picture(self.finite, self.x), moved, self.best))


def _recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record work as a CUDA graph; return a function that repeats it with a single launch."""
    graph = torch.cuda.CUDAGraph()
    try:
        with (
            torch.cuda.device(device),
            # thread_local, because other threads may use the GPU meanwhile.
            torch.cuda.graph(graph, stream=_stream(device), capture_error_mode="thread_local"),
        ):
            work()
    except RuntimeError as error:  # the recording was cut off; its cause may be a lack of memory
        if isinstance(error.__context__, torch.OutOfMemoryError):
            raise error.__context__ from None
        raise

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for recording: cuBLAS keeps a workspace for each stream it sees."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _per_picture(rows: Tensor, x: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, 1, 1), to broadcast over the pictures x."""
    return rows.view(-1, *[1] * (x.dim() - 1))


@dataclass
class _Ledger:
    """What the host knows about each row: its best losses so far, and whether it has ended."""

    rows: int
    plateau: float
    ended: list[str] = field(init=False)  # reason by row, "" while it runs
    restarts: list[int] = field(init=False)  # by row
    bests: list[list[float]] = field(init=False)  # by row, then by evaluation

    def __post_init__(self) -> None:
        self.ended = [""] * self.rows
        self.restarts = [0] * self.rows
        self.bests = [[] for _ in range(self.rows)]
        self._noted: list[Tensor] = []

    def running(self) -> list[bool]:
        """Tell of each row whether it goes on."""
        return [not reason for reason in self.ended]

    def note(self, descent: _Descent) -> None:
        """Keep the numbers of an evaluation on the device, for a later look."""
        # Not as float64, which Apple's GPUs do not have.
        best = descent.best_losses.total
        valid = (descent.finite & descent.running).to(best)
        self._noted.append(torch.stack([*descent.losses.parts(), best, valid]))

    def look(self, evaluation: int, x: Tensor, on_evaluation: OnEvaluation | None) -> None:
        """Read the noted numbers, report them, and decide which rows have ended.

        `evaluation` is the number of the latest. Raises `DivergedError` if all rows have diverged.
        """
        # (evaluations, 6, B). Only here the host waits for the device.
        noted = torch.stack(self._noted).cpu().double()
        picture = x.clone() if on_evaluation else x  # the callback may keep it
        first = evaluation - len(self._noted) + 1
        self._noted = []
        for number, (values, numbers) in enumerate(
            zip(noted, noted.numpy().tolist(), strict=True), first
        ):
            valid = [flag > 0 for flag in numbers[5]]
            for row in range(self.rows):
                if not self.ended[row]:
                    self._judge(row, valid[row], numbers[4][row])
            if all(reason == "diverged" for reason in self.ended):
                raise DivergedError(
                    f"the loss became {numbers[0][0]} at evaluation {number}; "
                    "lower the weights, or start from the content image"
                )
            if on_evaluation and any(valid):
                on_evaluation(Losses(*values[:4].masked_fill(values[5] == 0, math.nan)), picture)

    def _judge(self, row: int, finite: bool, best: float) -> None:
        """Decide after an evaluation whether a row has ended."""
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
        """Return why each row ended, see `Minimum`."""
        return tuple(
            "restarted" if restarts and reason != "diverged" else reason or "steps"
            for reason, restarts in zip(self.ended, self.restarts, strict=True)
        )
