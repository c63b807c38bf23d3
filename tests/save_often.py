"""A plug-in of coverage for the workers of Ray, which ends them without a word, and calls them in
threads that Python did not begin: what they covered is saved again and again."""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import coverage


def coverage_init(registry: Any, options: dict[str, str]) -> None:
    """Called by coverage in each process that it measures."""
    if not any(part.endswith("default_worker.py") for part in sys.orig_argv):
        return
    with contextlib.suppress(ImportError):  # tests have nodes that lack the package
        from pipeline.paint.worker import Worker

        for method in ("ready", "run"):
            setattr(Worker, method, _measured(getattr(Worker, method)))
    threading.Thread(target=_save_often, daemon=True).start()


def _measured(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any) -> Any:
        if sys.gettrace() is None:
            sys.settrace(threading.gettrace())
        return method(*arguments)

    return call


def _save_often() -> None:
    while True:
        time.sleep(0.2)
        if measured := coverage.Coverage.current():
            measured.save()
