"""A backbone's weights: bundled, from a file or the cache, or downloaded once.

Whatever their source, filters are converted to one convention: the input is RGB in [0, 1] minus a
mean colour. The factor 255, the channel order and the division by the standard deviation are folded
into conv1_1. The mean is subtracted from the picture instead, so that zero padding is still the
mean colour.

Torch is imported only where tensors are read, so that asking for a file's identity is quick.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import platformdirs
from safetensors import SafetensorError, safe_open

from stylize.errors import WeightsError
from stylize.files import write_atomic
from stylize.layers import CONVS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BUNDLED",
    "CAFFE_MEAN",
    "TORCHVISION_MEAN",
    "TORCHVISION_STD",
    "VGG19_URL",
    "Convention",
    "OnBytes",
    "Weights",
    "cache_folder",
    "fetch_vgg19",
    "find",
    "hub_folder",
    "identity",
    "import_file",
    "load",
    "pack",
    "verify",
    "vgg19_on_disk",
    "why_not_fetched",
]

Convention = Literal["torchvision", "caffe"]
"""The input that a network expects: RGB in [0, 1] normalised by mean and standard deviation
(torchvision), or BGR in 0-255 minus the mean (Caffe, Keras and files converted from them)."""

BUNDLED = Path(__file__).parent / "vgg16.safetensors"

_RGB = tuple[float, float, float]

CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)  # RGB

# Copies of torchvision's values, which a test compares: importing them takes seconds, also where
# nothing is downloaded, because the URL names the file in the cache.
TORCHVISION_MEAN = (0.485, 0.456, 0.406)
TORCHVISION_STD = (0.229, 0.224, 0.225)
VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"

OnBytes = Callable[[int, int], None]
"""Is told of a download: bytes that are there, bytes of the whole file or 0."""

_KNOCK = 5.0  # seconds that a server has to say whether it has the file
_TIMEOUT = 15.0  # seconds without a byte after which a download has failed
_TELL = 10.0  # seconds between two reports of a download's progress


@dataclass(frozen=True)
class Weights:
    """A backbone's filters, float16 or float32, for RGB in [0, 1] minus `mean`.

    `filters[conv]` is (out, in, 3, 3) and `biases[conv]` is (out,). `activation_means[pooling]` has
    (out,) for each convolution, see `stylize.calibration`; only the bundled network has them.
    """

    backbone: str  # vgg16 or vgg19
    sha256: str  # of the tensors, see `digest`
    mean: _RGB
    filters: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    activation_means: Mapping[str, Mapping[str, Tensor]]

    @property
    def bundled(self) -> bool:
        """Whether this is the bundled network, whose features are scaled as published."""
        return bool(self.activation_means)

    def with_mean(self, mean: _RGB = CAFFE_MEAN) -> Weights:
        """Return the same network for RGB minus another mean; conv1_1's bias makes up for it.

        The means of the conventions differ by up to half a grey level. The mean is also the colour
        of zero padding and of the noise that a transfer may start from. With one mean for all, the
        same network in two conventions gives the same objective.
        """
        if mean == self.mean:
            return self
        first = self.filters["conv1_1"].double()  # (out, 3, 3, 3)
        shift = first.new_tensor(mean) - first.new_tensor(self.mean)
        bias = self.biases["conv1_1"].double() + (first.sum(dim=(2, 3)) * shift).sum(dim=1)
        return replace(self, mean=mean, biases={**self.biases, "conv1_1": bias.float()})


def cache_folder() -> Path:
    """Return the folder of downloaded and converted weights; `STYLIZE_CACHE` overrides it.

    It is the user's cache, or a temporary folder for a user without a home.
    """
    if chosen := os.environ.get("STYLIZE_CACHE"):
        return Path(chosen)
    try:
        return Path(platformdirs.user_cache_dir("stylize-batch"))
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return Path(tempfile.gettempdir(), f"stylize-batch-{os.getuid()}")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 in hex of names, shapes and values; the file format does not matter."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def pack(
    backbone: str,
    mean: _RGB,
    tensors: Mapping[str, Tensor],
    extra: Mapping[str, str] | None = None,
) -> bytes:
    """Return a weights file in the project's form: safetensors with a header.

    The header has the backbone, the mean, the digest of the tensors and what is in `extra`.
    """
    header = {
        "backbone": backbone,
        "mean": ",".join(repr(value) for value in mean),
        "sha256": digest(tensors),
        **(extra or {}),
    }
    from safetensors.torch import save

    return save({name: t.contiguous() for name, t in tensors.items()}, header)


def load(path: str | os.PathLike[str] = BUNDLED) -> Weights:
    """Read weights from a file that `pack` wrote, memory-mapped. Raises `WeightsError`."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        mean = tuple(float(value) for value in header["mean"].split(","))
        backbone, sha256 = header["backbone"], header["sha256"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"the weights file {path} cannot be read: {error}") from error
    means: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("mean."):
            _, pooling, conv = name.split(".")
            means.setdefault(pooling, {})[conv] = tensor
    return Weights(
        backbone=backbone,
        sha256=sha256,
        mean=(mean[0], mean[1], mean[2]),
        filters={n[:-7]: t for n, t in tensors.items() if n.endswith(".weight")},
        biases={n[:-5]: t for n, t in tensors.items() if n.endswith(".bias")},
        activation_means=means,
    )


def identity(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Read backbone and SHA-256 from the header of a file that `pack` wrote.

    Raises `WeightsError`.
    """
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
        return header["backbone"], header["sha256"]
    except (OSError, SafetensorError, KeyError) as error:
        raise WeightsError(f"the weights file {path} cannot be read: {error}") from error


def verify(path: str | os.PathLike[str]) -> str:
    """Recompute the digest of a weights file, and return it.

    Raises `WeightsError` if its header has another.
    """
    stated = load(path).sha256
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    actual = digest(tensors)
    if actual != stated:
        raise WeightsError(f"{path} is damaged: its SHA-256 is {actual}, it should be {stated}")
    return actual


def find(
    backbone: str,
    progress: Callable[[str], None] | None = None,
    *,
    download: bool = True,
    on_bytes: OnBytes | None = None,
) -> Path:
    """Return the file with a backbone's weights; "auto" is VGG-19 if available, else VGG-16.

    May download, so it should be called once, by the driver and not by each worker. `progress` is
    called with lines that say what takes long, and why VGG-16 is used; for `on_bytes` see
    `fetch_vgg19`. Raises `WeightsError`.
    """
    say = progress or (lambda line: None)
    if backbone == "vgg16":
        return BUNDLED
    try:
        return fetch_vgg19(say, download=download, on_bytes=on_bytes)
    except WeightsError as error:
        if backbone == "vgg19":
            raise
        say(f"using the bundled VGG-16: {error}")
        return BUNDLED


def vgg19_on_disk() -> Path | None:
    """Return where VGG-19's weights are on this machine: in our cache, else in torch's."""
    name = _vgg19_url().rsplit("/", 1)[-1]
    cached = cache_folder() / Path(name).with_suffix(".safetensors").name
    places = (cached, hub_folder() / "checkpoints" / name)
    return next((place for place in places if place.exists()), None)


def why_not_fetched() -> str:
    """Return why VGG-19 cannot be downloaded, "" if it can: asks the server for its size alone."""
    if _is_offline():
        return "STYLIZE_OFFLINE forbids it"
    try:
        urllib.request.urlopen(_request(_vgg19_url(), "HEAD"), timeout=_KNOCK).close()
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        return str(getattr(reason, "strerror", None) or reason)
    return ""


def fetch_vgg19(
    say: Callable[[str], None] = lambda line: None,
    *,
    download: bool = True,
    on_bytes: OnBytes | None = None,
) -> Path:
    """Return the file with VGG-19's weights (torchvision's IMAGENET1K_V1), downloaded if needed.

    The file is looked for in our cache, then in torch's. Only the convolutions are kept, in
    `cache_folder`. `STYLIZE_OFFLINE=1` forbids the download. `STYLIZE_VGG19_URL` names a mirror;
    its file name must end in the first digits of the file's SHA-256, as torchvision's does. `say`
    is called with lines about the progress; `on_bytes`, if given, with the bytes that are there and
    the bytes of the whole file (0: unknown). Raises `WeightsError`.
    """
    url = _vgg19_url()
    name = url.rsplit("/", 1)[-1]
    cached = cache_folder() / Path(name).with_suffix(".safetensors").name
    if cached.exists():
        return cached
    in_hub = hub_folder() / "checkpoints" / name
    if in_hub.exists():
        return import_file(in_hub, "torchvision", "vgg19", cached)
    if not download:
        raise WeightsError("VGG-19 is not on this disk, and a plan downloads nothing")
    if _is_offline():
        raise WeightsError("VGG-19 is not on this disk and STYLIZE_OFFLINE forbids downloading it")
    say(
        f"downloading VGG-19 (548 MB, once) to {cached.parent}; to go on at once with the bundled "
        "network, stop this and choose --backbone vgg16"
    )
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cached.parent) as file:  # unnamed: a kill leaves nothing
            _download(url, file, on_bytes or _Teller(say))
            file.seek(0)
            return _keep(*_convert(_read_state(file, url), url, "torchvision", "vgg19"), cached)
    except (OSError, HTTPException, ValueError) as error:
        raise WeightsError(
            f"VGG-19 cannot be downloaded to {cached.parent} ({error}); give a file with --weights"
        ) from error


def hub_folder() -> Path:
    """Return `torch.hub.get_dir()`, without the seconds that importing torch takes."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    return Path(os.path.expanduser(folder), "hub")  # a user without a home has no such folder


def _vgg19_url() -> str:
    return os.environ.get("STYLIZE_VGG19_URL") or VGG19_URL


def _is_offline() -> bool:
    return os.environ.get("STYLIZE_OFFLINE", "0") not in ("", "0")


def _request(url: str, method: str) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"User-Agent": "stylize-batch"}, method=method)


class _Teller:
    """Says from time to time how far a download is."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told = time.monotonic()

    def __call__(self, there: int, whole: int) -> None:
        if time.monotonic() - self._told >= _TELL:
            self._told = time.monotonic()
            self._say(f"downloading VGG-19: {there / 2**20:.0f} MB so far")


def _download(url: str, file: IO[bytes], on_bytes: OnBytes) -> None:
    """Download a file whose name ends in -<first digits of its SHA-256>, and check these.

    This does not use torch.hub, which takes seconds to import even if there is no network.
    """
    sha256 = hashlib.sha256()
    with urllib.request.urlopen(_request(url, "GET"), timeout=_TIMEOUT) as answer:
        whole = int(answer.headers.get("Content-Length") or 0)
        while block := answer.read(1 << 20):
            file.write(block)
            sha256.update(block)
            on_bytes(file.tell(), whole)
    digits = Path(url).stem.rsplit("-", 1)[-1]
    if not sha256.hexdigest().startswith(digits):
        raise WeightsError(
            "VGG-19 was downloaded damaged (cut short or altered): its SHA-256 is "
            f"{sha256.hexdigest()}, it should begin with {digits}; try again, or give a file with "
            "--weights"
        )


def import_file(
    path: str | os.PathLike[str],
    convention: Convention = "torchvision",
    backbone: str | None = None,
    target: Path | None = None,
) -> Path:
    """Convert a VGG file (.pth or .safetensors, torchvision's names) to the project's form.

    The number of convolutions tells the backbone; if `backbone` is given it must be that one. The
    result is written to `target`, by default into `cache_folder` under the hash of its content. A
    file that is already in the project's form is returned as it is. Only tensors are unpickled, so
    no code of the file is run. Raises `WeightsError`.
    """
    source = Path(path)
    if source.suffix == ".safetensors":
        with contextlib.suppress(WeightsError):
            identity(source)
            return source
    state = _read_state(source, str(source))
    return _keep(*_convert(state, str(source), convention, backbone), target)


def _convert(
    state: Mapping[str, Tensor], source: str, convention: Convention, backbone: str | None
) -> tuple[str, _RGB, dict[str, Tensor]]:
    """Return backbone, mean and tensors in the project's form.

    `source` is the file's name for errors. Raises `WeightsError`.
    """
    if any(name.endswith(".running_mean") for name in state):
        raise WeightsError(
            f"{source} has batch normalisation; use a vgg16 or vgg19 without it, because its "
            "convolutions alone are another network"
        )
    names = [name for name, tensor in state.items() if tensor.ndim == 4]
    actual = {len(convs): name for name, convs in CONVS.items()}.get(len(names))
    if actual is None or (backbone and actual != backbone):
        raise WeightsError(
            f"{source} has {len(names)} convolutions; "
            + " and ".join(f"{name} has {len(convs)}" for name, convs in CONVS.items())
        )
    tensors: dict[str, Tensor] = {}
    try:
        names.sort(key=lambda name: int(name.split(".")[-2]))
        for conv, name in zip(CONVS[actual], names, strict=True):
            tensors[f"{conv}.weight"] = state[name].float()
            tensors[f"{conv}.bias"] = state[name.removesuffix("weight") + "bias"].float()
    except (ValueError, IndexError, KeyError) as error:
        raise WeightsError(
            f"{source} does not have torchvision's names, features.0.weight and so on: {error}"
        ) from error
    _check_shapes(tensors, source, dict(zip(CONVS[actual], names, strict=True)))
    first = tensors["conv1_1.weight"]  # (64, 3, 3, 3)
    if convention == "caffe":
        tensors["conv1_1.weight"] = first.flip(1) * 255
        return actual, CAFFE_MEAN, tensors
    tensors["conv1_1.weight"] = first / first.new_tensor(TORCHVISION_STD).view(1, 3, 1, 1)
    return actual, TORCHVISION_MEAN, tensors


def _check_shapes(tensors: Mapping[str, Tensor], source: str, names: Mapping[str, str]) -> None:
    """Raise `WeightsError` unless each convolution takes as many channels as the last one gives.

    `names` are those of the convolutions in the file `source`, in order.
    """
    incoming = 3
    for conv, name in names.items():
        weight, bias = tensors[f"{conv}.weight"], tensors[f"{conv}.bias"]
        if tuple(weight.shape[1:]) != (incoming, 3, 3) or bias.shape != weight.shape[:1]:
            raise WeightsError(
                f"{source}: {name} is {tuple(weight.shape)} with a bias {tuple(bias.shape)}; "
                f"{conv} must be (N, {incoming}, 3, 3) with (N,)"
            )
        incoming = len(weight)


def _keep(backbone: str, mean: _RGB, tensors: Mapping[str, Tensor], target: Path | None) -> Path:
    """Write a converted network to `target`, by default into the cache under its digest.

    Return the path. Raises `WeightsError`.
    """
    target = target or cache_folder() / f"{backbone}-{digest(tensors)[:16]}.safetensors"
    if not target.exists():
        data = pack(backbone, mean, tensors)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, data)
        except OSError as error:
            raise WeightsError(
                f"the weights cannot be saved in {target.parent} ({error.strerror}); "
                "set STYLIZE_CACHE to a folder that can be written"
            ) from error
    return target


def _read_state(file: Path | IO[bytes], source: str) -> dict[str, Tensor]:
    """Read the tensors of a file in another form than the project's. Raises `WeightsError`."""
    import torch

    try:
        if isinstance(file, Path) and file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        state: Any = torch.load(file, map_location="cpu", weights_only=True)  # what a file may hold
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    except OSError as error:
        raise WeightsError(f"the weights file {source} cannot be read: {error}") from error
    except Exception as error:  # from pickle, zip or safetensors, and some are a page long
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # torch would advise to run the file's code
            reason = "it does not hold tensors alone"
        raise WeightsError(
            f"the weights file {source} cannot be read (not a VGG in .pth or .safetensors form): "
            f"{reason}"
        ) from error
