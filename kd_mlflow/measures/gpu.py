"""NVML: power, energy and utilisation of the GPUs that PyTorch uses."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

MILLI = 1e-3


@dataclass(frozen=True)
class GpuSample:
    """One look at one device: watts, per cent busy, and joules since the driver was loaded (None: no counter)."""

    watts: float | None
    busy: float | None
    joules: float | None


class Gpu:
    """One device, through a module that speaks NVML's API (``pynvml``)."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml = nvml
        self.handle = handle

    def sample(self) -> GpuSample:
        """What the device tells now; None for what this card cannot."""
        watts = self._ask(lambda: self.nvml.nvmlDeviceGetPowerUsage(self.handle) * MILLI)
        busy = self._ask(lambda: float(self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu))
        joules = self._ask(lambda: self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) * MILLI)
        return GpuSample(watts, busy, joules)

    def other_processes(self, own: Collection[int]) -> int:
        """How many processes but our ``own`` compute on the device; 0 where it does not tell.

        In a container NVML may give process numbers of the host, of which ours cannot be known: this process is then
        taken for one of them.
        """
        try:
            known = {process.pid for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)}
        except self.nvml.NVMLError:
            return 0
        return len(known - set(own)) if known & set(own) else max(0, len(known) - 1)

    def _ask(self, question: Any) -> float | None:
        try:
            return question()
        except self.nvml.NVMLError:
            return None


def open_gpu(index: int, nvml: Any = None, visible: str | None = None, uuid: str | None = None) -> Gpu | str:
    """The device that PyTorch calls ``cuda:index``, or the reason why it cannot be read.

    NVML numbers all devices of the machine by bus; CUDA_VISIBLE_DEVICES says which of them, by number
    or UUID and in which order, PyTorch sees, and CUDA may number the fastest first. So a UUID, where
    PyTorch tells it, goes before the number.

    Parameters
    ----------
    nvml:
        A module that speaks NVML's API; None for ``pynvml``.
    visible:
        What CUDA_VISIBLE_DEVICES holds; None reads the environment.
    uuid:
        The device's UUID, with or without NVML's ``GPU-``.
    """
    nvml = nvml or _pynvml()
    if isinstance(nvml, str):
        return nvml
    try:
        nvml.nvmlInit()
        handle = _search(nvml, uuid) if uuid else None
        if handle is not None:
            return Gpu(nvml, handle)
        listed = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
        names = [name.strip() for name in listed.split(",")] if listed else []
        name = names[index] if index < len(names) else str(index)
        if name.isdigit():
            return Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(int(name)))
        handle = _search(nvml, name)
        return Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(name) if handle is None else handle)
    except nvml.NVMLError as error:
        return f"NVML: {error}"


def nvml_state() -> str | None:
    """None if NVML answers, else the reason why not."""
    found = open_gpu(0)
    return found if isinstance(found, str) else None


def _search(nvml: Any, name: str) -> Any | None:
    """The first device whose UUID begins so: CUDA takes UUIDs cut short, as long as they are unique."""
    for number in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        uuid = nvml.nvmlDeviceGetUUID(handle)
        uuid = uuid.decode() if isinstance(uuid, bytes) else uuid
        if uuid.removeprefix("GPU-").startswith(name.removeprefix("GPU-")):
            return handle
    return None


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError:
        return "the package nvidia-ml-py is not installed"
    return pynvml
