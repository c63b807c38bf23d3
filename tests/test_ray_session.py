"""Ray started here: what is private to it and replaced is still there, and only for a while."""

import importlib
import subprocess
import sys

from pipeline.paint.ray_session import UNUSED_STARTERS


def test_the_private_names_of_ray_that_are_replaced_are_there() -> None:
    """Where this fails, a new version of Ray has other names: see `ray_session`."""
    node = importlib.import_module("ray._private.node").Node
    assert [name for name in UNUSED_STARTERS if not callable(getattr(node, name, None))] == []
    state = importlib.import_module("ray._private.state")
    assert callable(state.actors)
    assert callable(state.state.get_draining_nodes)
    assert importlib.import_module("ray._private.worker")._worker_logs_enabled in (True, False)
    assert callable(importlib.import_module("ray._raylet").Config.initialize)


def test_ray_starts_here_without_its_processes_that_a_run_has_no_use_for() -> None:
    code = """
import psutil
import ray._private.node
from pipeline.paint.fleet import Wanted
from pipeline.paint.ray_session import UNUSED_STARTERS, session
node = ray._private.node.Node
before = [getattr(node, name) for name in UNUSED_STARTERS]  # a newer Ray may have other names
with session(Wanted(workers=1, threads=1, device="cpu")) as started:
    assert started.get(started.remote(num_cpus=1)(lambda: 7).remote()) == 7
    for process in psutil.Process().children(recursive=True):
        print(*(part for part in process.cmdline()[:4] if part.endswith((".py", "raylet"))))
assert before == [getattr(node, name) for name in UNUSED_STARTERS]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "raylet" in done.stdout
    for name in ("dashboard.py", "log_monitor.py", "monitor.py"):
        assert name not in done.stdout
