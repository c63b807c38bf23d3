"""The device and the number type that a transfer is computed in, whatever its caller has set."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch

from stylize.errors import ConfigError
from stylize.scopes import Shared

__all__ = ["choose_device", "choose_dtype", "processor", "undisturbed"]


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return the named device; for "auto" the first available of cuda, mps and cpu.

    Raises `ConfigError` for a device that this machine does not have.
    """
    name = str(name)
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, usable in available.items() if usable)
    if not available.get(name.split(":")[0], False):
        usable_here = ", ".join(device for device, usable in available.items() if usable)
        raise ConfigError(f"device is {name!r}; torch can use {usable_here} here")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}; write it like cpu or cuda:0") from None


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of weights and features: float32, bfloat16, float16 or float64.

    "auto" is bfloat16 where the hardware multiplies it faster than float32, else float32. Raises
    `ConfigError` for any other name.
    """
    dtypes: dict[str, torch.dtype] = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float64": torch.float64,
    }
    if name in dtypes:
        return dtypes[name]
    if name != "auto":
        raise ConfigError(f"dtype is {name!r}; it must be auto or {' or '.join(dtypes)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    fast = device.type == "cpu" and _fast_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def processor() -> str:
    """Return the name of this machine's processor, like "AMD EPYC"."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _fast_bfloat16() -> bool:
    """Tell whether the processor multiplies bfloat16 faster than float32.

    With AMX it does. With AVX512-BF16 alone it does unless it is Intel's, which takes twice as
    long as float32; an Intel processor can look like that when a virtual machine hides its AMX.
    """
    if _supports("amx_tile"):
        return True
    return _supports("avx512_bf16") and "Intel" not in processor()


def _supports(feature: str) -> bool:
    """Ask torch about the processor. It answers by private names, which may be gone one day."""
    answer = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(answer and answer())


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Enable gradients and compute in the chosen types, whatever the caller has switched.

    On a GPU, products of float32 matrices use TF32 in here. For products of bfloat16 values it is
    exact; of other values it keeps 11 significant bits.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        _tf32 if device.type == "cuda" else contextlib.nullcontext(),
    ):
        yield


@contextlib.contextmanager
def _tf32_products() -> Iterator[None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller chose TF32 by torch's newer switches, which this one rejects
        before = "high"
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


_tf32 = Shared(_tf32_products)
