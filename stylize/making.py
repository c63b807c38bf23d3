"""One picture in the making: what is known of it between its request and its result."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from stylize.checkpoint import Checkpoint
from stylize.errors import DivergedError
from stylize.image import to_deep, to_image
from stylize.inputs import Inputs
from stylize.losses import Losses
from stylize.objective import Frame
from stylize.optimize import Memory, OnPause
from stylize.request import Request, Step, StyleResult

__all__ = ["Transfer", "keeper", "report"]


class Transfer:
    """Its inputs, its curve so far and why it ended."""

    def __init__(self, request: Request, began: float) -> None:
        self.inputs = Inputs(
            request.content,
            request.styles(),
            request.config,
            init=request.init,
            mask=request.mask,
            style_mask=request.style_mask,
        )
        self.config = request.config
        self.on_step = request.on_step
        self.on_look = request.on_look
        self.checkpoint = request.checkpoint
        self.began = began
        self.curve: list[Step] = []
        self.ended = ""
        self.note = ""

    def plan(self, reach: float) -> None:
        """Plan the stages, see `Inputs.plan`, and go on from the checkpoint if there is one."""
        self.inputs.plan(reach)
        if self.checkpoint is None:
            return
        if self.checkpoint.fits(self.inputs.stages):
            self.curve = [Step(int(step), *rest) for step, *rest in self.checkpoint.curve.tolist()]
            self.began -= self.curve[-1].seconds
            self.note = f"went on from evaluation {len(self.curve)}"
        else:
            self.checkpoint = None

    def kept(self, number: int, evaluations: int, picture: Tensor, memory: Memory) -> Checkpoint:
        """Return a checkpoint: the stage's number, its evaluations, and what goes on."""
        size = self.inputs.stages[number].size
        steps = [dataclasses.astuple(step) for step in self.curve]
        curve = torch.tensor(steps, dtype=torch.float64, device="cpu")
        done = min(evaluations, self.inputs.stages[number].evaluations - 1)
        return Checkpoint(number, size, done, picture, curve, memory)

    def step(self, content: float, style: float, tv: float) -> Step:
        """Add an evaluation to the curve, and return it."""
        step = self._step(len(self.curve) + 1, content, style, tv)
        self.curve.append(step)
        return step

    def _step(self, number: int, content: float, style: float, tv: float) -> Step:
        """Return the step with this number and these unweighted losses."""
        content_weight, style_weight = self.config.weights()
        loss = content_weight * content + style_weight * style + self.config.tv_weight * tv
        return Step(number, time.perf_counter() - self.began, loss, content, style, tv)

    def end(self, reason: str) -> None:
        """Note why a stage ended, unless something went wrong in an earlier one."""
        if self.ended not in ("diverged", "restarted"):
            self.ended = reason

    def finish(
        self, picture: Tensor, content: float, style: float, tv: float, *, notes: str
    ) -> StyleResult | DivergedError:
        """Return the result, given the picture (1, 3, H, W) and its unweighted losses.

        It is clamped and rounded, and gets the photograph's alpha.
        """
        if self.ended == "diverged":
            return DivergedError(
                "the loss became infinite or NaN, twice; lower the weights, or start from the "
                "content image"
            )
        final = self._step(len(self.curve), content, style, tv)
        image, photograph = to_image(picture), self.inputs.photograph
        if photograph.alpha is not None:
            image.putalpha(photograph.alpha)
        return StyleResult(
            image=image,
            config=self.config,
            loss=final.loss,
            content_loss=final.content_loss,
            style_loss=final.style_loss,
            tv_loss=final.tv_loss,
            curve=tuple(self.curve),
            evaluations=len(self.curve),
            stop_reason=self.ended,
            seconds=time.perf_counter() - self.began,
            notes=notes,
            deep=to_deep(picture) if self.config.bits == 16 else None,
            kept=photograph.kept,
        )


def report(transfers: Sequence[Transfer], frame: Frame, losses: Losses, x: Tensor) -> None:
    """Add an evaluation to the curves of the transfers that go on, and call their callbacks."""
    by_row = zip(*(part.tolist() for part in losses.parts()), strict=True)
    for row, (transfer, (total, *parts)) in enumerate(zip(transfers, by_row, strict=True)):
        if not math.isnan(total):
            step = transfer.step(*parts)
            if transfer.on_step:
                transfer.on_step(step, frame.crop(x[row : row + 1]))


def keeper(transfer: Transfer, number: int, before: int) -> OnPause | None:
    """Return the callback that lets a transfer be kept.

    `number` is that of the stage, `before` the evaluations that an earlier attempt made in it.
    """
    on_look = transfer.on_look
    if on_look is None:
        return None

    def on_pause(evaluations: int, picture: Tensor, memory: Memory) -> None:
        done = before + evaluations
        on_look(len(transfer.curve), lambda: transfer.kept(number, done, picture, memory))

    return on_pause
