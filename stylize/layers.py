"""Layers by name: which ones a backbone has, and which pixels a position of a layer depends on.

`conv4_2` is the output of the second convolution of block 4, `relu4_2` the same after the ReLU.
Between blocks there is a pooling. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from stylize.errors import ConfigError

__all__ = ["CONVS", "block", "cell", "conv_of", "deepest", "has_layer", "reach", "relu_of", "sees"]

CONVS: Mapping[str, tuple[str, ...]] = {
    name: tuple(f"conv{b}_{i}" for b, n in enumerate(counts, 1) for i in range(1, n + 1))
    for name, counts in {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}.items()
}
"""The convolutions of each backbone, in order."""


def conv_of(layer: str) -> str:
    """Return the convolution whose output a layer is, before or after the ReLU."""
    return "conv" + layer[4:]


def relu_of(layer: str) -> str:
    """Return the same convolution's output after the ReLU."""
    return "relu" + layer[4:]


def block(layer: str) -> int:
    """Return the block that a layer is in, 1 to 5."""
    return int(layer[4])


def cell(layer: str) -> int:
    """Return the side of the square of pixels that a position of a layer stands for.

    It is 2^(number of poolings before the layer), and the least side of a picture for that layer.
    """
    return 1 << (block(layer) - 1)


def has_layer(backbone: str, layer: str) -> bool:
    """Tell whether a backbone has a layer of this name."""
    conv = conv_of(layer)
    return conv in CONVS[backbone] and layer in (conv, relu_of(conv))


def reach(layer: str, backbone: str) -> int:
    """Return how many pixels beyond its own square a position of a layer sees on each side.

    Each 3x3 convolution sees one position further, and pooling makes positions twice as wide.
    """
    order = CONVS[backbone]
    return sum(cell(conv) for conv in order[: order.index(conv_of(layer)) + 1])


def sees(layer: str) -> int:
    """Return the side of the square of pixels that a position of a layer sees in VGG-19.

    VGG-16, with fewer convolutions a block, sees a little less, but is treated alike.
    """
    return cell(layer) + 2 * reach(layer, "vgg19")


def deepest(layers: Iterable[str], backbone: str) -> str:
    """Return the convolution that computes the deepest of some layers.

    Raises `ConfigError` for a layer that the backbone does not have.
    """
    order = CONVS[backbone]
    layers = list(layers)
    for layer in layers:
        if not has_layer(backbone, layer):
            ends = ", ".join({block(conv): conv[4:] for conv in order}.values())
            raise ConfigError(f"{layer} is not in {backbone}; its conv and relu go up to {ends}")
    return max(map(conv_of, layers), key=order.index)
