"""Shared by all tests: no download, no cache but a fresh one, two threads; a few fixtures."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from stylize.weights import Weights

IMAGES = Path(__file__).parent.parent / "manifests" / "images"


@pytest.fixture(scope="session", autouse=True)
def _own_caches() -> Iterator[None]:
    """Nobody's cache is read or written, and VGG-19 is never downloaded."""
    with (
        tempfile.TemporaryDirectory(prefix="stylize-tests-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("STYLIZE_CACHE", os.path.join(folder, "cache"))
        patch.setenv("TORCH_HOME", os.path.join(folder, "torch"))
        patch.setenv("STYLIZE_OFFLINE", "1")
        if "torch" in sys.modules:  # tests that need it have imported it when collected
            sys.modules["torch"].set_num_threads(2)
        yield


@pytest.fixture(scope="session")
def bundled() -> "Weights":
    """The bundled VGG-16."""
    from stylize import weights

    return weights.load()
