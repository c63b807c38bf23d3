"""docs/performance.md says what the code computes, and the counting is right where it can be done
by hand."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def roofline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roofline", DOCS / "roofline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["roofline"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_tables_on_paper_are_those_that_the_code_makes(roofline: ModuleType) -> None:
    page = (DOCS / "performance.md").read_text()
    assert roofline.written(page) == page, "run python docs/roofline.py --write"


def test_multiply_adds_of_a_16_pixel_square_are_those_counted_by_hand(roofline: ModuleType) -> None:
    # Filters of VGG-16 by block, times positions; forward and back. Then N x N x positions of the
    # five Gram matrices, forward and back.
    convs = (
        (3 * 64 + 64 * 64) * 9 * 256
        + (64 * 128 + 128 * 128) * 9 * 64
        + (128 * 256 + 2 * 256 * 256) * 9 * 16
        + (256 * 512 + 2 * 512 * 512) * 9 * 4
        + 512 * 512 * 9 * 1
    )
    grams = 64**2 * 256 + 128**2 * 64 + 256**2 * 16 + 512**2 * 4 + 512**2 * 1
    assert roofline.work(16, 16, "vgg16") == 2 * convs + 2 * grams


def test_the_roofline_counts_the_same_work_as_bench(roofline: ModuleType) -> None:
    for backbone in ("vgg16", "vgg19"):
        flops = sum(flops for _, flops, _ in roofline.operations(512, 384, backbone))
        assert flops == 2 * roofline.work(512, 384, backbone)


def test_a_card_without_limits_on_memory_runs_at_its_peak(roofline: ModuleType) -> None:
    card = roofline.Card("imagined", flops=1e12, bandwidth=1e30)
    took = roofline.seconds(256, 256, "vgg16", card)
    assert took["all"] == pytest.approx(2 * roofline.work(256, 256, "vgg16") / 1e12)
