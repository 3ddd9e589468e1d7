"""Memory, utilisation, power and energy while something runs, sampled beside it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType

import psutil
import torch

from kd_mlflow.measures.gpu import Gpu, GpuSample, open_gpu

MIB = 2**20
SECONDS = 0.2
NO_GPU = "the work ran on a CPU; energy is read from NVIDIA GPUs only"


@dataclass(frozen=True)
class Usage:
    """Figures by name, and the reason for each that could not be measured."""

    metrics: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class ResourceMeter:
    """Samples one device and this process in a background thread for as long as the block lasts.

    The step is never touched: NVML and the operating system are asked from the thread alone.
    """

    def __init__(self, device: torch.device, gpu: Gpu | str | None = None) -> None:
        self.device = device
        if gpu is None:
            gpu = open_gpu(device.index or 0) if device.type == "cuda" else NO_GPU
        self.gpu = gpu
        self.samples: list[tuple[float, GpuSample]] = []
        self.resident = 0
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
        """Peak memory, mean utilisation and power, energy in all and an image."""
        metrics = {"peak_memory_mib": self._peak_memory()}
        names = ("gpu_utilisation_mean", "power_w_mean", "energy_j", "joules_per_image")
        if isinstance(self.gpu, str):
            return Usage(metrics, dict.fromkeys(names, self.gpu))
        busy = _mean([sample.busy for _, sample in self.samples])
        joules, seconds = self._energy()
        found = {
            "gpu_utilisation_mean": busy,
            "power_w_mean": joules / seconds if joules is not None and seconds > 0 else None,
            "energy_j": joules,
            "joules_per_image": joules / images if joules is not None and images else None,
        }
        metrics |= {name: value for name, value in found.items() if value is not None}
        missing = {name: "this card does not tell" for name, value in found.items() if value is None}
        return Usage(metrics, missing)

    def _peak_memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        return self.resident / MIB

    def _energy(self) -> tuple[float | None, float]:
        """Joules by the card's counter, else the integral of its power (trapezoids); and the seconds."""
        if len(self.samples) < 2:
            return None, 0.0
        (start, first), (end, last) = self.samples[0], self.samples[-1]
        if first.joules is not None and last.joules is not None:
            return last.joules - first.joules, end - start
        points = [(moment, sample.watts) for moment, sample in self.samples if sample.watts is not None]
        if len(points) < 2:
            return None, end - start
        pairs = pairwise(points)
        return sum((b - a) * (p + q) / 2 for (a, p), (b, q) in pairs), end - start

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS):
            self._look()

    def _look(self) -> None:
        self.resident = max(self.resident, psutil.Process().memory_info().rss)
        if not isinstance(self.gpu, str):
            self.samples.append((time.monotonic(), self.gpu.sample()))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
