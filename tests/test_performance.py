"""docs/performance.md says what the code computes, and the counting is right where it can be done
by hand; `bench` measures what it says."""

import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType

import pytest
from helpers import cli

from pipeline.paint import bench

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


def test_bench_puts_the_time_of_an_evaluation_beside_that_of_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "SIZES", (32, 64))
    monkeypatch.setattr(bench, "_PEAK_SIZES", (256,))
    found = json.loads(bench.bench(device="cpu", dtype="float32", threads=1).to_json())
    assert [e["size"] for e in found["evaluations"]] == [32, 64]
    for e in found["evaluations"]:
        assert 0 < e["seconds"] < 10
        peak = max(found["product_gflops"], found["convolution_gflops"])
        assert e["share_of_peak"] == pytest.approx(e["gflops"] / e["seconds"] / peak)
        assert 0.01 < e["share_of_peak"] < 2
    assert found["evaluations"][1]["gflops"] == pytest.approx(4 * found["evaluations"][0]["gflops"])
    assert 0.2 < found["convolution_gflops"] / found["product_gflops"] < 5
    assert found["pairs_per_hour"] == pytest.approx(3600 / found["seconds_per_pair"])
    assert (found["dtype"], found["threads"]) == ("float32", 1)


@pytest.mark.slow
def test_bench_ends_within_two_minutes() -> None:
    began = time.monotonic()
    done = cli("bench")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 120
    assert "share of peak" in done.stdout
    assert "pairs an hour" in done.stdout
