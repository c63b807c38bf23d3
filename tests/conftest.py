"""Shared by all tests: no download, no cache but a fresh one, one thread; the bundled weights."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forks import Forks, the_forks
from helpers import Gate

if TYPE_CHECKING:
    from stylize.weights import Weights


LONGEST = [
    f"test_{name}"
    for name in ("run", "transfer", "cluster", "surroundings", "report", "bucket", "readme", "log")
]
"""Files of a minute or so, as `pytest --durations=0` shows."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of files that run the whole command.

    The files that take longest come first, so that processes that share the files end at about the
    same time.
    """
    for item in items:
        names = vars(getattr(item, "module", None) or object)
        if not names.keys().isdisjoint(("cli", "start", "COMMAND", "Forks")):
            item.add_marker("whole")
    items.sort(key=lambda item: (_place(item), item.get_closest_marker("whole") is None))


def _place(item: pytest.Item) -> int:
    return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)


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
        # Pictures are tiny: a second thread gains nothing, and waits wherever cores are shared.
        if "torch" in sys.modules:  # imported when the tests were collected
            sys.modules["torch"].set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def forks() -> Forks:
    """The command without the seconds that its imports take: what needs no Ray runs by it."""
    return the_forks()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate that is closed."""
    return Gate(tmp_path / "gate", tmp_path / "gate-log")


@pytest.fixture(scope="session")
def bundled() -> "Weights":
    """The bundled VGG-16."""
    from stylize import weights

    return weights.load()
