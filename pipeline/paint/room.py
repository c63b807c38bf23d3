"""How many pictures are painted at once, by the memory there is. Imports torch inside functions."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from pipeline.paint.attempts import is_short_of_memory
from pipeline.paint.resources import crowded
from stylize.errors import DivergedError

if TYPE_CHECKING:
    from stylize.request import Request, StyleResult
    from stylize.transfer import Stylizer

__all__ = ["DeviceFullError", "Room"]

_SHORT_HISTORY = 5  # gradients that L-BFGS remembers where memory is short

_T = TypeVar("_T")


class DeviceFullError(Exception):
    """Other programs hold the GPU's memory. It may have room again later. No pair's fault."""


@dataclass
class Room:
    """How much may be painted at once, by what did not fit and what did since then."""

    _pixels: float = math.inf
    _painted: int = 0  # groups, since it last changed
    _patience: int = 4  # groups, before more is tried again
    _grown: bool = False  # more was tried again

    def transfer(
        self,
        stylizer: Stylizer,
        group: Sequence[_T],
        requests_of: Callable[[Sequence[_T]], list[Request]],
        pixels: int,
    ) -> list[StyleResult | DivergedError]:
        """Transfer a group whose pictures have so many pixels each.

        If memory does not suffice, half of the pictures are tried at a time. A single one is tried
        once more in tiles and with a shorter history, which its notes say. `requests_of` makes the
        requests of some of the group. Raises `DeviceFullError`, and what the transfer raises.
        """
        requests, whole = requests_of(group), len(group) * pixels
        if whole <= self._pixels or len(group) == 1:
            try:
                done = list(stylizer.transfer_batch(requests))
            except Exception as error:
                if not is_short_of_memory(error):
                    raise
                self._shrink(whole)
            else:
                self._see_painted()
                return done
            _free_memory(stylizer)  # only now: the error held tensors
        if len(group) > 1:
            half = len(group) // 2
            return [
                result
                for part in (group[:half], group[half:])
                for result in self.transfer(stylizer, part, requests_of, pixels)
            ]
        try:
            return [_with_less_memory(stylizer, requests[0])]
        except Exception as error:
            _free_memory(stylizer)
            if is_short_of_memory(error) and (why := crowded(stylizer.device)):
                raise DeviceFullError(f"{socket.gethostname()}: {why}") from error
            raise

    def _shrink(self, pixels: int) -> None:
        """Note that so many pixels did not fit. If they were more than before, it was too soon."""
        self._patience = min(64, 2 * self._patience) if self._grown else self._patience
        self._pixels, self._painted, self._grown = pixels // 2, 0, False

    def _see_painted(self) -> None:
        """Note that what was tried did fit. After a while more is tried again."""
        self._painted += 1
        if self._painted >= self._patience and self._pixels < math.inf:
            self._pixels, self._painted, self._grown = 2 * self._pixels, 0, True


def _free_memory(stylizer: Stylizer) -> None:
    import torch

    if stylizer.device.type == "cuda":
        torch.cuda.empty_cache()


def _with_less_memory(stylizer: Stylizer, request: Request) -> StyleResult | DivergedError:
    """Paint one picture in tiles and with a short history, and say so in its notes."""
    history = request.config.history
    less = replace(request.config, history=min(history, _SHORT_HISTORY))
    (done,) = stylizer.in_tiles().transfer_batch([replace(request, config=less)])
    if isinstance(done, DivergedError):
        return done
    note = f"memory was short: history {history} -> {less.history}"
    return replace(done, notes=f"{note}; {done.notes}" if done.notes else note)
