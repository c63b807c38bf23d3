"""Makes the tables on paper of performance.md: work of an evaluation, and what cards could do.

    python docs/roofline.py [--write]

prints them, or puts them between the marks in performance.md. Nothing is measured here. Every
layer, forward and backward, takes the longer of its arithmetic at a card's peak and its memory
traffic at the card's bandwidth (Williams et al. 2009, *Roofline*).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.paint.bench import multiply_adds
from stylize.config import StyleConfig
from stylize.layers import CONVS, block, cell, relu_of
from stylize.stages import plan_stages

SIZES = ((256, 256), (512, 512), (1024, 1024), (2048, 2048), (4096, 3072))
WIDTHS = (64, 128, 256, 512, 512)  # channels of the five blocks
VECTORS = 6  # of the picture's size, read by L-BFGS for each pair it remembers


@dataclass(frozen=True)
class Card:
    name: str
    flops: float  # a second, bfloat16, dense, sums in float32
    bandwidth: float  # bytes a second


CARDS = (
    Card("H200 SXM", 989.4e12, 4.8e12),
    Card("H100 SXM", 989.4e12, 3.35e12),
    Card("A100 SXM 80 GB", 312e12, 2.039e12),
    Card("RTX 4090", 165.2e12, 1.008e12),
    Card("L4", 121e12, 0.3e12),
)


def shapes(backbone: str) -> dict[str, Any]:
    """{conv: something with the filter's shape}, as `multiply_adds` takes them."""
    found = {}
    incoming = 3
    for conv in CONVS[backbone]:
        shape = (WIDTHS[block(conv) - 1], incoming, 3, 3)
        found[conv] = SimpleNamespace(shape=shape, numel=lambda shape=shape: prod(shape))
        incoming = shape[0]
    return found


def work(width: int, height: int, backbone: str) -> float:
    """Multiply-adds of one evaluation of the default preset."""
    return multiply_adds(width, height, StyleConfig(backbone=backbone), shapes(backbone))


def operations(width: int, height: int, backbone: str) -> Iterator[tuple[str, float, float]]:
    """Name, floating point operations and bytes moved of everything in an evaluation.

    Bytes: activations are bfloat16, each operation reads its input and writes its output once;
    the ReLU is done where the convolution writes, its mask is read with the gradient. What an
    operation leaves in the card's cache for the next counts as moved: this is no lower bound.
    """
    config = StyleConfig(backbone=backbone)
    style = {name for name, _ in config.style_layers}
    (content,) = {name for name, _ in config.content_layers}
    for conv, filter in shapes(backbone).items():
        out, incoming = filter.shape[:2]
        positions = (width // cell(conv)) * (height // cell(conv))
        flops = 2 * filter.numel() * positions
        read, written, weights = 2 * incoming * positions, 2 * out * positions, 2 * filter.numel()
        yield "convolutions", flops, read + written + weights
        yield "convolutions", flops, 2 * written + read + weights  # gradient and mask in
        relu = relu_of(conv)
        if relu in style:
            gram = 2 * out**2 * positions
            yield "Gram matrices", gram, written
            yield "Gram matrices", gram, 2 * written  # features in, gradient out
        if relu == content:
            yield "content loss", 0.0, 2 * written
            yield "content loss", 0.0, 3 * written
        if conv == "conv5_1":
            break
        if conv == [c for c in CONVS[backbone] if block(c) == block(conv)][-1]:
            yield "pooling", 0.0, 1.25 * written
            yield "pooling", 0.0, 1.25 * written
    yield "L-BFGS", 0.0, VECTORS * config.history * 4 * 3 * width * height


def seconds(width: int, height: int, backbone: str, card: Card) -> dict[str, float]:
    """Least seconds of one evaluation on a card, by kind of work, and their sum as `all`."""
    found: dict[str, float] = {}
    for name, flops, moved in operations(width, height, backbone):
        took = max(flops / card.flops, moved / card.bandwidth)
        found[name] = found.get(name, 0.0) + took
        key = "arithmetic" if flops / card.flops > moved / card.bandwidth else "memory"
        found[key] = found.get(key, 0.0) + took
    return found | {"all": found["arithmetic"] + found["memory"]}


def pairs_per_hour(size: int, backbone: str, card: Card) -> float:
    """Of square pictures with the default preset: its evaluations at each of its scales."""
    stages = plan_stages((size, size), StyleConfig(size=size))
    return 3600 / sum(
        stage.evaluations * seconds(*stage.size, backbone, card)["all"] for stage in stages
    )


def work_table() -> str:
    lines = ["| picture | VGG-16 | VGG-19 |", "| --- | --- | --- |"]
    for width, height in SIZES:
        counts = (work(width, height, backbone) / 1e9 for backbone in ("vgg16", "vgg19"))
        lines.append(f"| {width}x{height} | " + " | ".join(f"{n:,.1f}" for n in counts) + " |")
    return "\n".join(lines)


def card_table(backbone: str) -> str:
    name = backbone.replace("vgg", "VGG-")
    lines = [
        f"| {name}, 512x512 | ms | at the peak | convolutions | Gram matrices | other layers "
        "| L-BFGS | pairs an hour, 512 px | 1024 px |",
        "| --- " * 9 + "|",
    ]
    for card in CARDS:
        took = seconds(512, 512, backbone, card)
        took["rest"] = took["pooling"] + took["content loss"]
        keys = ("all", "arithmetic", "convolutions", "Gram matrices", "rest", "L-BFGS")
        cells = [f"{1e3 * took[key]:.2f}" for key in keys]
        cells += [f"{pairs_per_hour(size, backbone, card):,.0f}" for size in (512, 1024)]
        lines.append(f"| {card.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {
    "work": work_table,
    "vgg16": lambda: card_table("vgg16"),
    "vgg19": lambda: card_table("vgg19"),
}
PAGE = Path(__file__).with_name("performance.md")


def written(page: str) -> str:
    """The page with each table between its marks made anew."""
    for name, table in TABLES.items():
        before, mark, rest = page.partition(f"<!-- {name}: docs/roofline.py -->\n")
        if not mark:
            raise ValueError(f"{PAGE.name} has no mark for the table {name!r}")
        page = before + mark + table() + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    return page


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print("\n\n".join(table() for table in TABLES.values()))
