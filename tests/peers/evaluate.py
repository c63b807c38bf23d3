"""The loss of a saved picture by code that shares nothing with the engine but the weights' file.

    python tests/peers/evaluate.py CONTENT STYLE RESULT [RESULT ...]

The objective is neural-style's: relu4_2 x 5 (mean squared difference), relu1_1 … relu5_1 x 100
(mean squared difference of Gram matrices over N*M), average pooling, 0-255 BGR, float32. Pictures
are used as they are; give them at one size. Printed for each: the loss at full size, at 1/2, at
1/4 (all three pictures shrunk by Lanczos), and the sum of the three.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

WEIGHTS = Path(__file__).parents[2] / "stylize" / "weights" / "vgg16.safetensors"
CONVS = ["1_1", "1_2", "P", "2_1", "2_2", "P", "3_1", "3_2", "3_3", "P", "4_1", "4_2", "4_3", "P"]
CONVS += ["5_1"]
STYLE = {"1_1", "2_1", "3_1", "4_1", "5_1"}


def features(image: Image.Image, filters: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    pixels = torch.tensor(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None]
    # The file's first filters take RGB in [0, 1]; undone here, they take RGB in 0-255.
    x = pixels - torch.tensor([123.68, 116.779, 103.939]).view(1, 3, 1, 1)
    found = {}
    for name in CONVS:
        if name == "P":
            x = torch.nn.functional.avg_pool2d(x, 2)
            continue
        weight = torch.tensor(filters[f"conv{name}.weight"].astype(np.float32))
        weight = weight / 255 if name == "1_1" else weight
        bias = torch.tensor(filters[f"conv{name}.bias"].astype(np.float32))
        x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding=1))
        found[name] = x
    return found


def gram(x: torch.Tensor) -> torch.Tensor:
    flat = x[0].reshape(x.shape[1], -1)
    return flat @ flat.T / flat.numel()


class Objective:
    """The loss of pictures against one content and one style picture."""

    def __init__(self, content: Image.Image, style: Image.Image) -> None:
        self.filters = load_file(WEIGHTS)
        with torch.no_grad():
            self.content = features(content, self.filters)["4_2"]
            found = features(style, self.filters)
            self.style = {layer: gram(found[layer]) for layer in STYLE}

    def __call__(self, result: Image.Image) -> float:
        with torch.no_grad():
            found = features(result, self.filters)
            total = 5 * (found["4_2"] - self.content).square().mean()
            for layer in STYLE:
                total += 100 * (gram(found[layer]) - self.style[layer]).square().mean()
        return float(total)


def shrunk(image: Image.Image, k: int) -> Image.Image:
    size = (round(image.width / k), round(image.height / k))
    return image.resize(size, Image.Resampling.LANCZOS)


def three_scales(content: Image.Image, style: Image.Image, result: Image.Image) -> list[float]:
    """Losses at 1, 1/2 and 1/4."""
    return [Objective(shrunk(content, k), shrunk(style, k))(shrunk(result, k)) for k in (1, 2, 4)]


def main() -> None:
    content, style, *results = (Image.open(path).convert("RGB") for path in sys.argv[1:])
    for path, result in zip(sys.argv[3:], results, strict=True):
        scales = three_scales(content, style, result)
        print(path, *(f"{value:.0f}" for value in scales), f"sum {sum(scales):.0f}")


if __name__ == "__main__":
    main()
