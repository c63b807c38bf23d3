"""Where a backbone's weights come from: bundled, a file, the cache, or downloaded once.

Whatever the source, the filters are brought to one convention: RGB in [0, 1] minus the mean
colour. Only the factor 255, the channel order and a division by the standard deviation are folded
into conv1_1; the mean is subtracted before it, so that zero padding stays the mean colour.

Torch is imported where tensors are read, so that asking for a file's identity does not load it.
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
    "Convention",
    "Weights",
    "cache_folder",
    "fetch_vgg19",
    "find",
    "identity",
    "import_file",
    "load",
]

Convention = Literal["torchvision", "caffe"]
"""Input of a foreign network: RGB in [0, 1] normalised by mean and standard deviation
(torchvision), or BGR in 0-255 minus the mean (Caffe, Keras, and the files converted from them)."""

BUNDLED = Path(__file__).parent / "vgg16.safetensors"

_RGB = tuple[float, float, float]

CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)  # RGB
_TORCHVISION_MEAN = (0.485, 0.456, 0.406)
_TORCHVISION_STD = (0.229, 0.224, 0.225)
_VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
_TIMEOUT = 15.0  # seconds without a byte before a download counts as failed
_TELL = 10.0  # seconds between two words on how far it is


@dataclass(frozen=True)
class Weights:
    """A backbone's filters, float16 or float32, for RGB in [0, 1] minus `mean`.

    `filters[conv]` is (out, in, 3, 3), `biases[conv]` is (out,). `activation_means[pooling][conv]`
    is (out,), or there is no entry where the network has not been calibrated.
    """

    backbone: str
    sha256: str
    mean: _RGB
    filters: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    activation_means: Mapping[str, Mapping[str, Tensor]]

    @property
    def bundled(self) -> bool:
        """Whether its features are those of the published network, filter for filter."""
        return bool(self.activation_means)

    def with_mean(self, mean: _RGB = CAFFE_MEAN) -> Weights:
        """The same network for RGB minus another mean, with the difference in conv1_1's bias.

        Each convention has its own mean, up to half a grey level from the other's, and with it its
        own colour where conv1_1 sees zeros beyond the edge and where noise begins. With one mean
        for all, one network under two conventions is one objective.
        """
        if mean == self.mean:
            return self
        first = self.filters["conv1_1"].double()  # (out, 3, 3, 3)
        shift = first.new_tensor(mean) - first.new_tensor(self.mean)
        bias = self.biases["conv1_1"].double() + (first.sum(dim=(2, 3)) * shift).sum(dim=1)
        return replace(self, mean=mean, biases={**self.biases, "conv1_1": bias.float()})


def cache_folder() -> Path:
    """Where downloaded and converted weights are kept; `STYLIZE_CACHE` overrides it."""
    return Path(os.environ.get("STYLIZE_CACHE") or platformdirs.user_cache_dir("stylize-batch"))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values, hex: the same whatever file they came in."""
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
    """The project's own file: safetensors, with backbone, mean and digest in its header."""
    header = {
        "backbone": backbone,
        "mean": ",".join(repr(value) for value in mean),
        "sha256": digest(tensors),
        **(extra or {}),
    }
    from safetensors.torch import save

    return save({name: t.contiguous() for name, t in tensors.items()}, header)


def load(path: str | os.PathLike[str] = BUNDLED) -> Weights:
    """Weights from a file that `pack` wrote, memory-mapped. Raises `WeightsError`."""
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
    """Backbone and SHA-256 of a file that `pack` wrote, from its header alone."""
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
        return header["backbone"], header["sha256"]
    except (OSError, SafetensorError, KeyError) as error:
        raise WeightsError(f"the weights file {path} cannot be read: {error}") from error


def verify(path: str | os.PathLike[str]) -> str:
    """The digest of a weights file, recomputed. Raises `WeightsError` if its header has another."""
    stated = load(path).sha256
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    actual = digest(tensors)
    if actual != stated:
        raise WeightsError(f"{path} is damaged: its SHA-256 is {actual}, it should be {stated}")
    return actual


def find(
    backbone: str, progress: Callable[[str], None] | None = None, *, download: bool = True
) -> Path:
    """The file that holds a backbone's weights; `auto` is VGG-19 if it can be had, else VGG-16.

    May download, so it is called once, by the driver and never by a worker. `progress` is told
    in a line what takes long or why the choice fell. Raises `WeightsError`.
    """
    say = progress or (lambda line: None)
    if backbone == "vgg16":
        return BUNDLED
    try:
        return fetch_vgg19(say, download=download)
    except WeightsError as error:
        if backbone == "vgg19":
            raise
        say(f"using the bundled VGG-16: {error}")
        return BUNDLED


def fetch_vgg19(say: Callable[[str], None] = lambda line: None, *, download: bool = True) -> Path:
    """VGG-19 (torchvision's IMAGENET1K_V1) from our cache, torch's, or downloaded once.

    Trimmed to the convolutions and kept in `cache_folder`. `STYLIZE_OFFLINE=1` forbids the
    download; `STYLIZE_VGG19_URL` names a mirror, whose file name ends in the first digits of its
    SHA-256, as torchvision's does. Raises `WeightsError`.
    """
    url = os.environ.get("STYLIZE_VGG19_URL") or _VGG19_URL
    name = url.rsplit("/", 1)[-1]
    cached = cache_folder() / Path(name).with_suffix(".safetensors").name
    if cached.exists():
        return cached
    in_hub = _hub_folder() / "checkpoints" / name
    if in_hub.exists():
        return import_file(in_hub, "torchvision", "vgg19", cached)
    if not download:
        raise WeightsError("VGG-19 is not on this disk, and a plan downloads nothing")
    if os.environ.get("STYLIZE_OFFLINE", "0") not in ("", "0"):
        raise WeightsError("VGG-19 is not on this disk and STYLIZE_OFFLINE forbids to download it")
    say("downloading VGG-19 (548 MB, once) …")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cached.parent) as file:  # no name: a kill leaves nothing
            _download(url, file, say)
            file.seek(0)
            return _keep(*_convert(_read_state(file, url), url, "torchvision", "vgg19"), cached)
    except (OSError, HTTPException, ValueError) as error:
        raise WeightsError(
            f"VGG-19 cannot be downloaded to {cached.parent} ({error}); give a file with --weights"
        ) from error


def _hub_folder() -> Path:
    """`torch.hub.get_dir()` without the seconds that importing torch takes."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser() / "hub"


def _download(url: str, file: IO[bytes], say: Callable[[str], None]) -> None:
    """Fetch a file whose name ends in -<first digits of its SHA-256>, checked against them.

    Not by torch.hub, which takes seconds to import, though there may be no network to use it on.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "stylize-batch"})
    sha256 = hashlib.sha256()
    told = time.monotonic()
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        while block := answer.read(1 << 20):
            file.write(block)
            sha256.update(block)
            if time.monotonic() - told >= _TELL:
                told = time.monotonic()
                say(f"downloading VGG-19: {file.tell() / 1e6:.0f} MB are here")
    digits = Path(url).stem.rsplit("-", 1)[-1]
    if not sha256.hexdigest().startswith(digits):
        raise WeightsError(
            "VGG-19 came damaged (cut short or changed on the way): its SHA-256 is "
            f"{sha256.hexdigest()}, it should begin with {digits}; try again, or give a file with "
            "--weights"
        )


def import_file(
    path: str | os.PathLike[str],
    convention: Convention = "torchvision",
    backbone: str | None = None,
    target: Path | None = None,
) -> Path:
    """Bring someone else's VGG (.pth or .safetensors, torchvision's names) to the project's form.

    The backbone is told from the number of convolutions. The result is kept in `cache_folder`
    under the hash of its content; a file that is already in the project's form is returned as it
    is. Nothing is unpickled but tensors. Raises `WeightsError`.
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
    """Backbone, mean and tensors in the project's form; `source` is what errors call the file."""
    if any(name.endswith(".running_mean") for name in state):
        raise WeightsError(
            f"{source} has batch normalisation; use a vgg16 or vgg19 without it, for its "
            "convolutions alone are another network"
        )
    theirs = [name for name, tensor in state.items() if tensor.ndim == 4]
    found = {len(names): name for name, names in CONVS.items()}.get(len(theirs))
    if found is None or (backbone and found != backbone):
        raise WeightsError(
            f"{source} has {len(theirs)} convolutions; "
            + " and ".join(f"{name} has {len(names)}" for name, names in CONVS.items())
        )
    tensors: dict[str, Tensor] = {}
    try:
        theirs.sort(key=lambda name: int(name.split(".")[-2]))
        for conv, name in zip(CONVS[found], theirs, strict=True):
            tensors[f"{conv}.weight"] = state[name].float()
            tensors[f"{conv}.bias"] = state[name.removesuffix("weight") + "bias"].float()
    except (ValueError, IndexError, KeyError) as error:
        raise WeightsError(
            f"{source} has not torchvision's names, features.0.weight and so on: {error}"
        ) from error
    _check_shapes(tensors, source, dict(zip(CONVS[found], theirs, strict=True)))
    first = tensors["conv1_1.weight"]  # (64, 3, 3, 3)
    if convention == "caffe":
        tensors["conv1_1.weight"] = first.flip(1) * 255
        return found, CAFFE_MEAN, tensors
    tensors["conv1_1.weight"] = first / first.new_tensor(_TORCHVISION_STD).view(1, 3, 1, 1)
    return found, _TORCHVISION_MEAN, tensors


def _check_shapes(tensors: Mapping[str, Tensor], source: str, theirs: Mapping[str, str]) -> None:
    """Raise `WeightsError` unless each convolution takes what the one before it gives; `theirs` are
    the names that `source` has for them, in order."""
    incoming = 3
    for conv, name in theirs.items():
        weight, bias = tensors[f"{conv}.weight"], tensors[f"{conv}.bias"]
        if tuple(weight.shape[1:]) != (incoming, 3, 3) or bias.shape != weight.shape[:1]:
            raise WeightsError(
                f"{source}: {name} is {tuple(weight.shape)} with a bias {tuple(bias.shape)}; "
                f"{conv} must be (N, {incoming}, 3, 3) with (N,)"
            )
        incoming = len(weight)


def _keep(backbone: str, mean: _RGB, tensors: Mapping[str, Tensor], target: Path | None) -> Path:
    """Write a converted network to `target`, by default into the cache under its digest."""
    target = target or cache_folder() / f"{backbone}-{digest(tensors)[:16]}.safetensors"
    if not target.exists():
        data = pack(backbone, mean, tensors)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, data)
        except OSError as error:
            raise WeightsError(
                f"the weights cannot be kept in {target.parent} ({error.strerror}); "
                "set STYLIZE_CACHE to a folder that can be written"
            ) from error
    return target


def _read_state(file: Path | IO[bytes], source: str) -> dict[str, Tensor]:
    """The tensors of a foreign file. Raises `WeightsError`."""
    import torch

    try:
        if isinstance(file, Path) and file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    except OSError as error:
        raise WeightsError(f"the weights file {source} cannot be read: {error}") from error
    except Exception as error:  # pickle, zip and safetensors errors alike, some a page long
        why = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to run its code
            why = "it is no file of tensors alone"
        raise WeightsError(
            f"the weights file {source} cannot be read (no VGG in .pth or .safetensors): {why}"
        ) from error
