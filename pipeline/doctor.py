"""What of this machine works for a run, what does not, and what to do.

Imports torch and starts Ray, but only when asked.

Each check is a function that returns a `Check`; what it raises is a failure, too.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import locale
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from pipeline import objects, storage
from pipeline.text import count
from stylize import __version__

if TYPE_CHECKING:
    from pipeline.store.folder import OutFolder

__all__ = ["Check", "examine", "facts"]

_TESTED = (3, 11), (3, 13)  # the first and the last Python that the tests were run on
_DRIVER = "/proc/driver/nvidia/version"
_VARIABLES = re.compile(
    r"(STYLIZE_|OMP_|MKL_|CUDA_|RAY_ADDRESS|LANG$|LC_|TMPDIR$|TORCH_HOME$|XDG_CACHE)"
)
"""The environment variables that a report shows. None of them holds a key or a token."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    With `note`, runs work, but less well. With `fails`, they do not, until `remedy` is done.
    """

    name: str
    state: Literal["ok", "note", "fails"]
    found: str
    remedy: str = ""


def examine(out: str = "", address: str = "") -> Iterator[Check]:
    """Look at everything that a run needs, one check after another.

    With `out`, also whether results can be written there. With `address`, that cluster is joined
    instead of starting Ray here. Takes seconds, because it imports torch and starts Ray.
    """
    checks: dict[str, Callable[[], Check]] = {
        "Python": _python,
        "packages": _packages,
        "torch": _torch,
        "GPU": _gpu,
        "cores": _cores,
        "memory": _memory,
        "shared memory": _shared_memory,
        "temporary folder": _temporary_folder,
        "Ray": partial(_ray, address),
        "cache": _cache,
        "language": _language,
        "VGG-16": _vgg16,
        "VGG-19": _vgg19,
    }
    if out:
        checks["output"] = partial(_output, out)
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            yield Check(name, "fails", f"{type(error).__name__}: {first}", _REMEDIES.get(name, ""))


def facts(checks: Iterable[Check]) -> dict[str, object]:
    """Return what a report of a bug should hold, without passwords and without the home's name."""
    variables = {n: text for n, text in sorted(os.environ.items()) if _VARIABLES.match(n)}
    shown = [{n: _discreet(text) for n, text in vars(check).items()} for check in checks]
    return {
        "version": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "checks": shown,
        "packages": _versions(),
        "environment": {n: _discreet(text) for n, text in variables.items()},
    }


def _discreet(text: str) -> str:
    home = os.path.expanduser("~")
    text = re.sub(r"//[^/@\s]+@", "//…@", text)  # user and password of a URL
    return text.replace(home, "~") if len(home) > 1 else text


_REMEDIES: Mapping[str, str] = {
    "packages": "install stylize-batch again",
    "torch": "install it again: pip install --force-reinstall torch",
    "GPU": "restart the machine or update its driver; until then run with --device cpu",
    "Ray": "run with --in-process, which paints one pair after another without Ray",
    "VGG-16": "install stylize-batch again",
}
"""What to do where a check fails without a word about it."""


# --- the machine's programs ---


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.platform()}"
    if not _TESTED[0] <= sys.version_info[:2] <= _TESTED[1]:
        tested = " to ".join(f"{major}.{minor}" for major, minor in _TESTED)
        return Check("Python", "note", found, f"the tests were run with {tested}")
    if sys.platform != "linux":
        return Check("Python", "note", found, "the tests were run on Linux only")
    return Check("Python", "ok", found)


def _versions() -> dict[str, str]:
    """Return the version of each package that this one needs. Raises `PackageNotFoundError`."""
    needs = importlib.metadata.requires("stylize-batch") or []
    names = [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    return {name: importlib.metadata.version(name) for name in names}


def _packages() -> Check:
    versions = _versions()
    return Check("packages", "ok", ", ".join(f"{n} {v}" for n, v in versions.items()))


def _torch() -> Check:
    import torch

    torch.nn.functional.conv2d(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    return Check("torch", "ok", f"{torch.__version__}, built {built}")


def _gpu() -> Check:
    import torch

    driver = _driver()
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        for number in range(len(cards)):
            torch.ones(1, device=f"cuda:{number}").sum().item()
        names = ", ".join(f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards)
        return Check("GPU", "ok", f"{names}, driver {driver or 'unknown'}")
    if driver:
        found = f"NVIDIA driver {driver}, which torch {torch.__version__} cannot use"
        remedy = "update the driver, or install a torch for it; until then runs use the CPU"
        return Check("GPU", "note", found, remedy)
    if torch.backends.mps.is_available():
        return Check("GPU", "note", "Apple's (mps)", "the tests were not run on it")
    return Check("GPU", "ok", "none: runs use the CPU")


def _driver() -> str:
    """Return the version of NVIDIA's driver, "" without one."""
    with contextlib.suppress(OSError), open(_DRIVER, encoding="utf-8") as file:
        found = re.search(r"\s(\d+\.[\d.]+)\s", file.readline())
        return found[1] if found else "unknown"
    return ""


# --- the machine ---


def _cores() -> Check:
    from pipeline.paint.resources import cores

    return Check("cores", "ok", f"{cores()} of {os.cpu_count()}")


def _memory() -> Check:
    import psutil

    from pipeline.paint.fleet import WORKER_MEMORY
    from pipeline.paint.resources import memory_limit

    whole = memory_limit()
    free = min(whole, psutil.virtual_memory().available)
    found = f"{free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
    fixed, pixel = WORKER_MEMORY
    need = fixed + pixel * 512**2
    if free < need:
        remedy = f"a worker takes {need / 1e9:.1f} GB at 512 px; close programs, or use --workers 1"
        return Check("memory", "note", found, remedy)
    return Check("memory", "ok", found)


def _shared_memory() -> Check:
    from pipeline.paint.ray_session import SHARED_MEMORY, STORE

    if not os.access(SHARED_MEMORY, os.W_OK):
        found, remedy = f"{SHARED_MEMORY} cannot be written", "Ray uses its folder instead"
        return Check("shared memory", "note" if sys.platform == "linux" else "ok", found, remedy)
    free = shutil.disk_usage(SHARED_MEMORY).free
    found = f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free"
    if free < STORE:
        remedy = "Ray uses its folder instead; in a container, --shm-size=256m makes room"
        return Check("shared memory", "note", found, remedy)
    return Check("shared memory", "ok", found)


def _temporary_folder() -> Check:
    from pipeline.paint.ray_folder import NoFolderError, base_folder

    try:
        folder = base_folder()
    except NoFolderError as error:
        found, _, remedy = str(error).rpartition("; ")
        return Check("temporary folder", "fails", found, remedy)
    free = shutil.disk_usage(folder).free
    return Check("temporary folder", "ok", f"{folder} has {free / 1e9:.1f} GB free")


def _ray(address: str) -> Check:
    from pipeline.paint.caller import ClusterError
    from pipeline.paint.fleet import Wanted
    from pipeline.paint.ray_session import alive_nodes, session

    began = time.monotonic()
    try:
        with session(Wanted(address=address)) as ray:
            nodes = alive_nodes(ray)
    except ClusterError as error:
        return Check("Ray", "fails", str(error), "" if address else _REMEDIES["Ray"])
    cpus = sum(int(node.get("CPU", 0)) for node in nodes.values())
    gpus = sum(int(node.get("GPU", 0)) for node in nodes.values())
    took = f"{time.monotonic() - began:.0f} s"
    did = f"joined {address}" if address else "started and ended"
    has = ", ".join((count(len(nodes), "node"), count(cpus, "core"), count(gpus, "GPU")))
    return Check("Ray", "ok", f"{importlib.metadata.version('ray')}, {did} in {took}: {has}")


def _cache() -> Check:
    from stylize.weights import cache_folder

    folder = str(cache_folder())
    parent = _existing(folder)
    if not os.access(parent, os.W_OK | os.X_OK):
        remedy = "set STYLIZE_CACHE to a folder that can be written, for VGG-19 to be kept there"
        return Check("cache", "note", f"{folder}: {parent} cannot be written", remedy)
    return Check("cache", "ok", folder)


def _language() -> Check:
    encodings = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    found = f"file names are {encodings[0]}, texts {encodings[1]}"
    if {name.lower().replace("-", "") for name in encodings} != {"utf8"}:
        return Check("language", "note", found, "set LANG=C.UTF-8 for names with accents")
    return Check("language", "ok", found)


# --- weights and results ---


def _vgg16() -> Check:
    from stylize import weights

    return Check("VGG-16", "ok", f"bundled, {weights.verify(weights.BUNDLED)[:16]}…")


def _vgg19() -> Check:
    from stylize import weights

    if there := weights.vgg19_on_disk():
        return Check("VGG-19", "ok", f"on this disk: {there}")
    if why := weights.why_not_fetched():
        remedy = "runs use the bundled VGG-16; give a file with --weights, or connect"
        return Check("VGG-19", "note", f"not on this disk, and cannot be downloaded: {why}", remedy)
    remedy = "the first run downloads 548 MB, unless it has --backbone vgg16"
    return Check("VGG-19", "note", "not on this disk; it can be downloaded", remedy)


def _output(out: str) -> Check:
    """Write a probe, read it and remove it: below OUT, or beside it while it is not there."""
    from pipeline.store.folder import OutFolder
    from pipeline.store.lock import Lock, LockedError

    try:
        folder = OutFolder(out)
        local = storage.local_path(out)
        if local is None:
            with objects.in_haste():
                return _bucket(folder)
        storage.check_writable(os.path.join(_existing(local), "probe"))
        if folder.has_index:
            Lock(folder, "doctor").release()
    except LockedError as error:
        return Check("output", "note", *str(error).split("; ", 1))
    except storage.StorageError as error:
        return Check("output", "fails", *str(error).split("; ", 1))
    free = shutil.disk_usage(_existing(local)).free
    return Check("output", "ok", f"{out} can be written, {free / 1e9:.1f} GB free")


def _bucket(folder: OutFolder) -> Check:
    """Write a probe, look whether conditions on writes hold, and remove it."""
    from pipeline.store.bucket import check_conditions
    from pipeline.store.lock import at_work

    probe = folder.probe("doctor")
    storage.put(probe, b"probe")
    try:
        check_conditions(folder.absolute, probe)
    finally:
        storage.remove(probe)
    if holders := at_work(folder):
        found = f"{folder.absolute} is in use, or a run died there: {'; '.join(holders)}"
        remedy = "wait until it is done; the lock of a dead run is taken over after 5 minutes"
        return Check("output", "note", found, remedy)
    return Check("output", "ok", f"{folder.absolute} can be written")


def _existing(path: str) -> str:
    """Return what exists at a local path, or else the nearest above it."""
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path
