"""The device and the type that a transfer is computed in, whatever its caller has switched."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch

from stylize.errors import ConfigError

__all__ = ["choose_device", "choose_dtype", "processor", "undisturbed"]


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """cuda, else mps, else cpu. Raises `ConfigError` for one that this machine has not."""
    name = str(name)
    have = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in have.items() if there)
    if not have.get(name.split(":")[0], False):
        there = ", ".join(device for device, is_there in have.items() if is_there)
        raise ConfigError(f"device is {name!r}; torch can use {there} here")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}; write it like cpu or cuda:0") from None


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of weights and features: bfloat16 where the hardware multiplies it, else float32.

    Raises `ConfigError` for a type that is none of float32, bfloat16, float16, float64.
    """
    named = {n: getattr(torch, n) for n in ("float32", "bfloat16", "float16", "float64")}
    if name in named:
        return named[name]  # type: ignore[no-any-return]
    if name != "auto":
        raise ConfigError(f"dtype is {name!r}; it must be auto or {' or '.join(named)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    fast = device.type == "cpu" and _fast_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def processor() -> str:
    """The name of this machine's processor, like "AMD EPYC"."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32. AMX does, and AVX512-BF16 but
    for Intel's, which is half as fast: a virtual machine may hide a processor's AMX."""
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "Intel" not in processor()


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Gradients, and numbers in the types that were chosen, whatever the caller has switched."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
