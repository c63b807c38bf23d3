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
    for name in (
        "run",
        "transfer",
        "bucket",
        "motifs",
        "cluster",
        "surroundings",
        "report",
        "crash",
    )
]
"""Files of half a minute and more, as `pytest --durations=0` shows."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of files that run the whole command, and give the files an order in which
    processes that share them are busy until they end, at about the same time.

    The files that take longest come first. Those that run the command often wait for it; they come
    in turn with the others, which compute all the time.
    """
    whole: dict[Path, bool] = {}
    for item in items:
        names = vars(getattr(item, "module", None) or object)
        if not names.keys().isdisjoint(("cli", "start", "COMMAND", "Forks")):
            item.add_marker("whole")
        whole[item.path] = item.get_closest_marker("whole") is not None
    place: dict[Path, float] = {}
    for kind in (True, False):
        files = [path for path, found in whole.items() if found == kind]
        place |= {path: number / len(files) for number, path in enumerate(files, 1)}
    place |= {path: LONGEST.index(path.stem) - 99 for path in place if path.stem in LONGEST}
    items.sort(key=lambda item: place[item.path])


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
