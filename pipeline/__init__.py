"""The batch: manifests, scheduling, the index, the command line.

from pipeline import read_index

table = read_index("OUT")  # pyarrow.Table, the newest row of each pair
"""

from typing import Any

__version__ = "0.1.0"

__all__ = ["read_index"]


def __getattr__(name: str) -> Any:
    if name == "read_index":
        from pipeline.index import read_index

        return read_index
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
