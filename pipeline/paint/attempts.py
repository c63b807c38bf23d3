"""The rows of attempts: as one begins, and as one fails. Never imports torch or ray."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace

from pipeline import storage
from pipeline.records import Result, Task
from pipeline.text import utc_now
from stylize import __version__
from stylize.config import ALGORITHM
from stylize.errors import ImageReadError, StylizeError

__all__ = ["BUG", "failed_row", "is_short_of_memory", "new_row"]

BUG = "bug: "
"""Prefix of the `error_type` of an error that this program never raises on purpose."""

_FORESEEN = (StylizeError, OSError, MemoryError, storage.OutsideError)
_SHORT_OF_MEMORY = ("CUDA error: out of memory", "STATUS_ALLOC_FAILED", "can't allocate memory")
"""What the driver, cuBLAS and the CPU's allocator say, each in its own words."""


def new_row(task: Task) -> Result:
    """Return the row of an attempt that begins now. It says `failed` until the pair is painted."""
    pair = task.pair
    return Result(
        pair_id=pair.pair_id,
        row=pair.row,
        content=pair.content,
        style=pair.style,
        output=pair.output,
        status="failed",
        settings=pair.config.to_json(),
        preset=pair.config.preset,
        algorithm=ALGORITHM,
        attempt=task.attempt,
        version=__version__,
        started_at=utc_now(),
        meta=pair.meta,
        generated_id=pair.generated_id,
    )


def failed_row(row: Result, error: BaseException, status: str = "failed") -> Result:
    """Return the row of an attempt that ended in an error.

    An error that is neither raised on purpose nor the system's is a bug: the row says so, and
    carries the traceback for the run's log.
    """
    kind, trace = type(error).__name__, ""
    if not isinstance(error, _FORESEEN) and not is_short_of_memory(error):
        kind = f"{BUG}{kind}"
        trace = "".join(traceback.format_exception(error))
    message = str(error) or type(error).__name__
    unopened = isinstance(error, ImageReadError) and isinstance(error.__cause__, OSError)
    return replace(
        row,
        status=status,
        error_type=kind,
        error_message=message,
        traceback=trace,
        unopened=unopened,
        too_large=is_short_of_memory(error),
    )


def is_short_of_memory(error: BaseException) -> bool:
    """Return whether memory did not suffice: the same work may succeed with less at once."""
    torch = sys.modules.get("torch")  # whoever painted has imported it
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or any(text in str(error) for text in _SHORT_OF_MEMORY)
    )
