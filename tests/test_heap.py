"""Blocks that an evaluation freed stay with the process as long as the next one wants them."""

import platform
import resource
import subprocess
import sys
from statistics import median

import pytest
import torch

from stylize import heap
from stylize.encoder import Encoder
from stylize.losses import gram_matrix
from stylize.weights import Weights


def faults(encoder: Encoder) -> float:
    """First touches of pages in an evaluation, once things have settled."""
    picture = torch.rand(1, 3, 256, 256, requires_grad=True)
    counts = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        features = encoder(picture, ["relu1_1", "relu2_1"])
        loss = sum(gram_matrix(f).square().mean() for f in features.values())
        assert isinstance(loss, torch.Tensor)
        torch.autograd.grad(loss, picture)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return median(counts[4:])


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_blocks_are_used_again_and_given_back_at_the_end(bundled: Weights) -> None:
    encoder = Encoder(bundled)
    with heap.kept():
        inside = faults(encoder)
        during = resident()
    assert during - resident() > 2**24
    pages = 64 * 256 * 256 * 4 / resource.getpagesize()  # of relu1_1 alone
    assert inside < pages / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_afterwards_blocks_of_a_few_megabytes_cost_no_more_than_before() -> None:
    code = """
import resource
import torch
from stylize import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
with heap.kept():
    pass
faults()
print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after <= before + 1024  # a block is 1,024 pages, and there are 50


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with heap.kept():
        assert torch.ones(3).sum() == 3
