"""Where and in which precision the arithmetic is done."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from kd_mlflow.errors import InputError

Precision = Literal["float32", "bfloat16", "float16"]


def resolve_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` stands for.

    Raises
    ------
    InputError
        The device that was named is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(f"There is no device {name}: PyTorch sees {count} CUDA devices; try --device auto.")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("There is no Metal device on this machine; try --device auto.")
    return device


def resolve_precision(name: str, device: torch.device) -> Precision:
    """``auto`` is bfloat16 on CUDA devices that have it, float16 on those that do not, float32 elsewhere.

    Raises
    ------
    InputError
        float16 on a device for which PyTorch has no scaling of gradients that was ever tried.
    """
    if name == "float16" and device.type not in ("cpu", "cuda"):
        raise InputError(f"--precision float16 is for CUDA devices and CPUs; on {device} give float32 or bfloat16.")
    if name != "auto":
        return name  # type: ignore[return-value]
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def resolve_compile(name: str, device: torch.device) -> bool:
    """``auto`` compiles the network that learns on CUDA devices."""
    return name == "on" or (name == "auto" and device.type == "cuda")


def resolve_memory_format(name: str, device: torch.device) -> torch.memory_format:
    """``auto`` is channels last on CUDA devices; on a CPU the contiguous form was measured faster."""
    last = name == "channels_last" or (name == "auto" and device.type == "cuda")
    return torch.channels_last if last else torch.contiguous_format


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """The context in which forward passes run."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=getattr(torch, precision))
