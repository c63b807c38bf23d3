"""The batch: manifests, scheduling, the index, the command line.

from pipeline import plot_curves, read_index

table = read_index("OUT")  # pyarrow.Table, the newest row of each pair
plot_curves("OUT")  # its loss curves as a matplotlib figure
"""

import importlib
from typing import TYPE_CHECKING, Any

from stylize import __version__

if TYPE_CHECKING:
    from pipeline.store.reading import read_index as read_index
    from pipeline.views.curves import plot_curves as plot_curves

__all__ = ["__version__", "plot_curves", "read_index"]

_MODULES = {"plot_curves": "views.curves", "read_index": "store.reading"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.{_MODULES[name]}"), name)
