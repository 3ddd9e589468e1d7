"""Memory, utilisation, power and energy while something runs, sampled beside it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import psutil
import torch

from kd_mlflow.measures.gpu import Gpu, GpuSample, open_gpu
from kd_mlflow.measures.rapl import Rapl, open_rapl

MIB = 2**20
SECONDS = 0.2
NO_GPU = "the work ran on a CPU; energy is read from NVIDIA GPUs, and from processors with a counter (RAPL)"
NO_UTILISATION = "the work ran on a CPU"
SILENT = "this card does not tell"


@dataclass(frozen=True)
class Usage:
    """Figures by name, and the reason for each that could not be measured."""

    metrics: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class GpuTotals:
    """What samples of one device add up to; its size does not grow with their number."""

    def __init__(self) -> None:
        self._first: tuple[float, GpuSample] | None = None
        self._last: tuple[float, GpuSample] | None = None
        self._powered: tuple[float, float] | None = None
        self._integral: float | None = None
        self._busy, self._busy_samples = 0.0, 0

    def add(self, moment: float, sample: GpuSample) -> None:
        """A sample at a moment in seconds; moments never fall."""
        self._first = self._first or (moment, sample)
        self._last = (moment, sample)
        if sample.watts is not None:
            if self._powered is not None:
                before, watts = self._powered
                self._integral = (self._integral or 0.0) + (moment - before) * (watts + sample.watts) / 2
            self._powered = (moment, sample.watts)
        if sample.busy is not None:
            self._busy, self._busy_samples = self._busy + sample.busy, self._busy_samples + 1

    @property
    def busy(self) -> float | None:
        """Mean utilisation in per cent."""
        return self._busy / self._busy_samples if self._busy_samples else None

    @property
    def joules(self) -> float | None:
        """By the card's counter, else the integral of its power (trapezoids)."""
        if self._first is None or self._last is None:
            return None
        first, last = self._first[1].joules, self._last[1].joules
        return last - first if first is not None and last is not None and last > first else self._integral

    @property
    def seconds(self) -> float:
        """From the first sample to the last."""
        return self._last[0] - self._first[0] if self._first and self._last else 0.0


class ResourceMeter:
    """Samples one device and this process in a background thread for as long as the block lasts.

    The step is never touched: NVML and the operating system are asked from the thread alone.

    Parameters
    ----------
    device:
        Where the work runs; power and energy are known for NVIDIA GPUs, and for processors whose counter may be
        read, of all that they do.
    gpu:
        What to sample, or the reason why there is none; None to look for it.

    Examples
    --------
    >>> with ResourceMeter(torch.device("cpu")) as meter:
    ...     images = train()
    >>> meter.usage(images).metrics["peak_memory_mib"]
    """

    def __init__(self, device: torch.device, gpu: Gpu | Rapl | str | None = None) -> None:
        self.device = device
        self.gpu = open_meter(device) if gpu is None else gpu
        self._totals = GpuTotals()
        self._resident = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="resource-meter", daemon=True)

    def __enter__(self) -> ResourceMeter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._look()

    def usage(self, images: int) -> Usage:
        """Peak memory (MiB), mean utilisation (%) and power (W), energy in all and an image (J)."""
        metrics = {"peak_memory_mib": self._peak_memory()}
        names = ("gpu_utilisation_mean", "power_w_mean", "energy_j", "joules_per_image")
        if isinstance(self.gpu, str):
            return Usage(metrics, dict.fromkeys(names, self.gpu))
        joules, seconds = self._totals.joules, self._totals.seconds
        known = joules is not None
        values = (
            self._totals.busy,
            joules / seconds if known and seconds > 0 else None,
            joules,
            joules / images if known and images else None,
        )
        found = dict(zip(names, values, strict=True))
        metrics |= {name: value for name, value in found.items() if value is not None}
        silent = NO_UTILISATION if isinstance(self.gpu, Rapl) else SILENT
        return Usage(metrics, {name: silent for name, value in found.items() if value is None})

    def _peak_memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        return self._resident / MIB

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS):
            self._look()

    def _look(self) -> None:
        self._resident = max(self._resident, psutil.Process().memory_info().rss)
        if not isinstance(self.gpu, str):
            self._totals.add(time.monotonic(), self.gpu.sample())


def open_meter(device: torch.device) -> Gpu | Rapl | str:
    """Where the energy of work on the device is read, or the reason why it cannot be."""
    if device.type == "cpu":
        return open_rapl() or NO_GPU
    if device.type != "cuda":
        return NO_GPU
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return open_gpu(index, uuid=None if uuid is None else str(uuid))
