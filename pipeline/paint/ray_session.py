"""Ray as the batch uses it: joined at an address, or started here and gone afterwards.

The only module that imports ray. Everything private to Ray that is replaced stands here, each with
its reason. pyproject.toml caps Ray at the version that was tested, and tests/test_ray_session.py
fails where one of the names is gone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

from pipeline import storage
from pipeline.paint.caller import ClusterError
from pipeline.paint.fleet import Nodes, Wanted
from pipeline.paint.ray_folder import ray_folder
from pipeline.paint.resources import address_space, confined, cores

__all__ = [
    "SHARED_MEMORY",
    "STORE",
    "Actor",
    "Ray",
    "Reference",
    "alive_nodes",
    "draining_nodes",
    "first_line",
    "home_of",
    "logical_gpus",
    "meters",
    "missing_module",
    "session",
]

UNUSED_STARTERS = ("start_monitor", "start_log_monitor", "start_api_server")
"""The methods of Ray's `Node` that start processes of no use on one machine: for its autoscaler,
for the logs of drivers, and for its dashboard, even if that is off. On two cores they delay the
first pair by 2 to 3 s."""

_JOIN = 5.0  # seconds that a cluster has to accept a connection
SHARED_MEMORY = "/dev/shm"  # where Ray has its object store on Linux
_ADDRESSES = 3e9  # bytes of addresses with which Ray starts; with 2e9 it aborts
STORE = 80 * 2**20  # bytes of object store: only small records pass through
_TOKEN_REMEDY = (
    "; if the cluster asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
    "RAY_AUTH_TOKEN_PATH to that of its head"
)
_HOME = str(Path(__file__).parents[2])
"""Where Ray starts. Workers import first from that folder, and the user's own may hold another
pipeline.py."""

Reference = object
"""An answer that an actor has yet to give."""


class Method(Protocol):
    """A method of an actor."""

    def remote(self, *arguments: object) -> Reference:
        """Ask for it, and return at once."""


class Actor(Protocol):
    """A `StyleWorker` in a process of its own."""

    ready: Method
    run: Method
    status: Method
    stop: Method


class ActorClass(Protocol):
    """What Ray makes of a class."""

    def remote(self, *arguments: object) -> Actor:
        """Ask for a new process with an instance of the class."""

    def options(self, **options: object) -> ActorClass:
        """Return the class with other options."""


class Ray(Protocol):
    """The part of the module `ray` that is used."""

    exceptions: ModuleType

    def get(self, answer: Reference) -> Any:
        """Return an answer, or raise what it ended in."""

    def kill(self, actor: Actor) -> None:
        """End an actor's process."""

    def nodes(self) -> list[Mapping[str, Any]]:
        """Return what is known of each node, dead ones included."""

    def remote(self, **options: object) -> Callable[[type], ActorClass]:
        """Return the decorator of classes whose instances become actors."""

    def wait(
        self, answers: Sequence[Reference], *, num_returns: int, timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        """Return those that are there after at most `timeout` seconds, and the others."""


def alive_nodes(ray: Ray) -> Nodes:
    """Return the resources of each node that is alive, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def draining_nodes(ray: Ray) -> frozenset[str]:
    """Return the ids of the nodes that will soon be taken away, as the cluster was told."""
    state = importlib.import_module("ray._private.state").state
    return frozenset(state.get_draining_nodes())


def meters() -> ModuleType:
    """Return Ray's module of metrics, whose meters the nodes show to Prometheus."""
    return importlib.import_module("ray.util.metrics")


def home_of(ray: Ray, actor: Actor) -> tuple[str, str]:
    """Return the id and the host name of the node where an actor is or was, "" if unknown.

    An actor that could not even be made cannot be asked, so the cluster is.
    """
    with contextlib.suppress(Exception):
        state = importlib.import_module("ray._private.state")
        node = state.actors(actor._actor_id.hex())["Address"]["NodeID"]  # type: ignore[attr-defined]
        names = {known["NodeID"]: known["NodeManagerHostname"] for known in ray.nodes()}
        return node, names[node]
    return "", "a node"


def missing_module(error: BaseException) -> str:
    """Return the words about a module that an actor's class needed and did not find, or ""."""
    found = re.search(r"No module named '[^']+'", str(error))
    return found[0] if found else ""


def logical_gpus() -> int:
    """Return how many GPUs a local Ray is told that it has: for tests without a GPU."""
    return int(os.environ.get("STYLIZE_LOGICAL_GPUS") or 0)


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def session(wanted: Wanted) -> Iterator[Ray]:
    """Join the cluster that is wanted, or start Ray here and end it afterwards.

    Raises `ClusterError` where that fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Below `uv run` Ray would have uv begin its workers, and send them the folder it starts in.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    token = {} if wanted.address else _own_token()
    with _environment(token):  # before ray is imported, which reads it
        import ray
        import ray._private.node
        import ray._private.worker

        logging.getLogger("ray").setLevel(logging.ERROR)
        # Otherwise Ray reports each dead worker on standard output, in colours even to a file,
        # whatever `log_to_driver` says.
        ray._private.worker._worker_logs_enabled = False
        start = _joined if wanted.address else _started
        with start(ray, wanted):
            yield cast(Ray, ray)


@functools.cache  # Ray keeps the first token that a process has
def _own_token() -> Mapping[str, str]:
    """Return what gives a Ray that is started here a token of its own. Ray would otherwise write
    one into HOME, which may not be writable, and which a later cluster would then ask for."""
    return {"RAY_AUTH_TOKEN": secrets.token_hex(16)}


def _has_token() -> bool:
    """Return whether there is a token that a cluster may ask for."""
    named = any(os.environ.get(f"RAY_AUTH_TOKEN{end}") for end in ("", "_PATH"))
    return named or os.path.exists(os.path.expanduser(os.path.join("~", ".ray", "auth_token")))


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables inside the block; then restore them, and what Ray itself has set."""
    names = {*changes, "RAY_AUTH_MODE"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _joined(ray: Any, wanted: Wanted) -> Iterator[None]:
    failure = f"no Ray cluster at {wanted.address}"
    with _as_cluster_errors(failure):
        _knock(wanted.address)
    # Somebody listens. Ray says only on standard error that a token was refused.
    with _as_cluster_errors(failure, _TOKEN_REMEDY), _from_home():
        try:
            _join(ray, wanted.address)
        except Exception:
            # Ray shows a token by itself only to a cluster that it finds by ``--address auto``,
            # and one that asks for none does not work with it.
            if os.environ.get("RAY_AUTH_MODE") or not _has_token():
                raise
            _enable_token()
            _join(ray, wanted.address)
    try:
        yield
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _enable_token() -> None:
    """Make Ray, which has read its settings already, show its token from now on."""
    os.environ["RAY_AUTH_MODE"] = "token"
    importlib.import_module("ray._raylet").Config.initialize("")  # compiled, without types


@contextlib.contextmanager
def _started(ray: Any, wanted: Wanted) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with _as_cluster_errors("Ray could not start here"):
            if address_space() < _ADDRESSES:  # it would abort
                raise ClusterError(f"it needs {_ADDRESSES / 1e9:.0f} GB of addresses{confined()}")
            folder = stack.enter_context(ray_folder())
            with _without_unused(ray._private.node.Node), _from_home():
                ray.init(
                    address="local",
                    num_cpus=max(cores(), wanted.workers * wanted.threads),
                    num_gpus=0 if wanted.device == "cpu" else logical_gpus() or None,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=STORE,
                    _plasma_directory=None if os.access(SHARED_MEMORY, os.W_OK) else folder,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                )
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                ray.shutdown()
            sys.stderr.flush()


@contextlib.contextmanager
def _from_home() -> Iterator[None]:
    """Be in `_HOME` inside the block. The folder before may be one that cannot be entered again."""
    before = storage.current_folder()
    os.chdir(_HOME)
    try:
        yield
    finally:
        try:
            os.chdir(before)
        except OSError:
            os.chdir("/")


@contextlib.contextmanager
def _as_cluster_errors(failure: str, remedy: str = "") -> Iterator[None]:
    try:
        yield
    except SystemExit:  # Ray's own answer to a SIGTERM meanwhile
        raise KeyboardInterrupt from None
    except Exception as error:
        raise ClusterError(f"{failure}: {first_line(error)}{remedy}") from error


@contextlib.contextmanager
def _without_unused(node: Any) -> Iterator[None]:
    """Keep Ray's `Node` from starting the processes of `UNUSED_STARTERS` inside the block."""
    replaced = {name: getattr(node, name) for name in UNUSED_STARTERS if hasattr(node, name)}
    for name in replaced:
        setattr(node, name, lambda *arguments, **options: None)
    try:
        yield
    finally:
        for name, method in replaced.items():
            setattr(node, name, method)


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens. Ray would try for most of a minute, deaf to Ctrl-C."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=_JOIN).close()
