"""What a transfer that was broken off goes on from: the picture so far, and its curve.

L-BFGS's memory is left out, which may take gigabytes. It fills again within a few evaluations, so
the result is another one to the bit, and the same to the eye.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import safetensors.torch
from torch import Tensor

from stylize.errors import CheckpointError
from stylize.stages import Stage

__all__ = ["Checkpoint", "OnLook"]

_HASH = hashlib.sha256
_VERSION = "1"
_END = b"\n\n"  # of the facts, before the tensors


@dataclass(frozen=True)
class Checkpoint:
    """A transfer as it was after some evaluations."""

    stage: int  # number of the stage in the transfer's plan, from 0
    size: tuple[int, int]  # of that stage: width, height, pixels
    evaluations: int  # made in that stage
    picture: Tensor  # (1, 3, H, W), extended by its frame: see `optimize.OnPause`
    curve: Tensor  # (n, 6), float64: the numbers of each `Step` of all stages so far
    memory: tuple[Tensor, ...] = ()  # of the optimiser, see `optimize.Memory`

    def fits(self, stages: Sequence[Stage]) -> bool:
        """Return whether a transfer with these stages can go on from here."""
        if not self.stage < len(stages):
            return False
        stage = stages[self.stage]
        return self.size == stage.size and self.evaluations < stage.evaluations

    def encode(self, key: str) -> bytes:
        """Return the bytes to keep: a hash, and what it is the hash of. `key` is the picture's."""
        parts = (self.picture, self.curve, *self.memory)
        tensors = {str(number): part.cpu().contiguous() for number, part in enumerate(parts)}
        facts = (_VERSION, key, f"{self.stage} {self.size[0]} {self.size[1]} {self.evaluations}")
        data = "\n".join(facts).encode() + _END + safetensors.torch.save(tensors)
        return _HASH(data).digest() + data

    @classmethod
    def decode(cls, data: bytes, key: str) -> Checkpoint:
        """Read what `encode` returned for this key. Raises `CheckpointError`."""
        size = _HASH().digest_size
        digest, data = data[:size], data[size:]
        if _HASH(data).digest() != digest:
            raise CheckpointError("it is damaged")
        facts, _, tensors = data.partition(_END)
        version, of, numbers = facts.decode().split("\n")
        if version != _VERSION:
            raise CheckpointError("another version of this program made it")
        if of != key:
            raise CheckpointError("it is of other inputs, settings or weights")
        stage, width, height, evaluations = map(int, numbers.split())
        parts = safetensors.torch.load(tensors)
        picture, curve, *memory = (parts[str(number)] for number in range(len(parts)))
        return cls(stage, (width, height), evaluations, picture, curve, tuple(memory))


OnLook = Callable[[int, Callable[[], Checkpoint]], None]
"""A callback that may keep a transfer as it is. Each time that losses were read and the stage goes
on, it is given the number of evaluations so far, over all stages, and a function that makes a
checkpoint. It may raise `Interrupted` to end the transfer."""
