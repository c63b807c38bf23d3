"""Takes pictures and times while a program that knows nothing of it optimises with torch's L-BFGS.

Shares nothing with the engine. `record` puts itself in the place of `torch.optim.LBFGS.step` and
asks for one iteration a call, which walks through the same points as many iterations a call; so
the state can be kept, and a run of ten minutes cut into shorter ones.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

_step = torch.optim.LBFGS.step


class Done(Exception):
    """All evaluations are made, or the time of this slice is up."""


def record(
    folder: Path,
    picture: Callable[[torch.Tensor], Image.Image],
    *,
    evaluations: int,
    every: int,
    minutes: float,
) -> None:
    """From now on L-BFGS writes `folder`/NNNN.png and seconds.json, and raises `Done` at the end.

    `picture` is the program's own way from what it optimises to a picture. Seconds run from the
    first evaluation, without what keeping pictures and state takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, log = folder / "state.pt", folder / "seconds.json"
    seconds: list[float] = json.loads(log.read_text()) if log.exists() else []
    ends = time.monotonic() + 60 * minutes

    def step(optimizer: torch.optim.LBFGS, closure: Callable[[], Any]) -> Any:
        group = optimizer.param_groups[0]
        (x,) = group["params"]
        group["max_iter"], total = 1, group["max_iter"]
        if state.exists() and not optimizer.state[x]:
            kept = torch.load(state, weights_only=True)
            x.data.copy_(kept["x"])
            optimizer.load_state_dict(kept["optimizer"])
            del seconds[kept["evaluations"] :]  # made after the state was kept, so made again
        loss = None
        for _ in range(total):
            over = len(seconds) >= evaluations or time.monotonic() > ends
            if over or (seconds and len(seconds) % 50 == 0):
                kept = {"x": x.data, "optimizer": optimizer.state_dict()}
                torch.save(kept | {"evaluations": len(seconds)}, state)
                log.write_text(json.dumps(seconds))
                print(f"{len(seconds)} of {evaluations} evaluations", file=sys.stderr)
            if over:
                raise Done
            seen = x.detach().clone()
            before = time.perf_counter()
            loss = _step(optimizer, closure)
            took = time.perf_counter() - before
            seconds.append(took + (seconds[-1] if seconds else 0.0))
            if len(seconds) % every == 0 or len(seconds) == evaluations:
                picture(seen).save(folder / f"{len(seconds):04d}.png")
        group["max_iter"] = total
        return loss

    torch.optim.LBFGS.step = step


def caffe_weights() -> dict[str, torch.Tensor]:
    """The bundled VGG-16 under torchvision's names, for BGR in 0-255 minus the mean."""
    from safetensors.torch import load_file

    path = Path(__file__).parents[2] / "stylize" / "weights" / "vgg16.safetensors"
    tensors = load_file(path)
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24]  # of the convolutions among all layers
    convs = sorted(name[:-7] for name in tensors if name.endswith(".weight"))
    state = {}
    for conv, place in zip(convs, places, strict=True):
        weight = tensors[f"{conv}.weight"].float()
        # The file's first filters take RGB in [0, 1].
        state[f"features.{place}.weight"] = weight.flip(1) / 255 if place == 0 else weight
        state[f"features.{place}.bias"] = tensors[f"{conv}.bias"].float()
    return state
