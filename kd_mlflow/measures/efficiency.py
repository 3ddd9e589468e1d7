"""What a network costs: its size, its arithmetic, its time, its memory, its energy."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kd_mlflow.measures.flops import count_flops
from kd_mlflow.measures.resources import ResourceMeter

logger = logging.getLogger(__name__)

MIB = 2**20
WARM_UP = 5
LATENCY_RUNS = (30, 200)
THROUGHPUT_RUNS = (3, 100)
MEMORY_AND_ENERGY = {
    "peak_memory_mib": "inference_peak_memory_mib",
    "joules_per_image": "inference_joules_per_image",
    "power_w_mean": "inference_power_w",
}


@dataclass(frozen=True)
class Efficiency:
    """Figures by name, and the reason for each that could not be measured."""

    metrics: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Seconds of each timed run, and how many runs there were with the warm-up."""

    seconds: list[float]
    runs: int


def measure(
    model: nn.Module,
    *,
    image_size: int,
    device: torch.device,
    batch_size: int,
    file: Path | None = None,
    seconds: float = 1.0,
) -> Efficiency:
    """Size, FLOPs, latency, throughput, memory and energy of inference on uint8 images.

    FLOPs count a multiplication and an addition as two, for one image. Latency is that of single
    images after a warm-up; throughput that of batches of ``batch_size``, or of half, a quarter … of it
    if a GPU's memory does not hold that. ``…_spread`` is the median distance of the runs from their median. Peak
    memory is the allocator's on a GPU, the process's resident set on a CPU. Sizes are in MiB.

    Parameters
    ----------
    model:
        Takes uint8 ``[B, 3, S, S]``; is left on ``device``, in the mode it came in.
    file:
        The weights file whose size is given.
    seconds:
        Time for the latency and for the throughput measurement each, at most.
    """
    was_training = model.training
    model.to(device).eval()
    metrics = _sizes(model)
    if file is not None:
        metrics["file_mib"] = file.stat().st_size / MIB
    one = torch.randint(0, 256, (1, 3, image_size, image_size), dtype=torch.uint8, device=device)
    with torch.inference_mode():
        metrics["flops"] = float(count_flops(model, one))
        times = _timed(partial(model, one), device, seconds, LATENCY_RUNS).seconds
        metrics["latency_ms_b1_median"] = statistics.median(times) * 1e3
        metrics["latency_ms_b1_spread"] = _spread(times) * 1e3
        metrics["latency_ms_b1_p95"] = float(np.percentile(times, 95)) * 1e3
        large = _throughput(model, one, device, batch_size, seconds)
    model.train(was_training)
    return Efficiency(metrics | large.metrics, large.missing)


def _throughput(model: nn.Module, image: Tensor, device: torch.device, batch_size: int, seconds: float) -> Efficiency:
    """Images a second at a large batch, and the memory and energy that it takes."""
    while True:
        try:
            many = image.repeat(batch_size, 1, 1, 1)
            with ResourceMeter(device) as meter:
                timing = _timed(partial(model, many), device, seconds, THROUGHPUT_RUNS)
            break
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            # A network that was trained in small batches must not fail its run on this figure.
            batch_size //= 2
            logger.info("Throughput is measured at a batch of %d: memory does not hold more.", batch_size)
    used, names = meter.usage(images=batch_size * timing.runs), MEMORY_AND_ENERGY
    metrics = {names[name]: value for name, value in used.metrics.items() if name in names}
    metrics["throughput_images_per_s"] = batch_size / statistics.median(timing.seconds)
    metrics["throughput_images_per_s_spread"] = _spread([batch_size / taken for taken in timing.seconds])
    metrics["throughput_batch_size"] = float(batch_size)
    return Efficiency(metrics, {names[name]: reason for name, reason in used.missing.items() if name in names})


def _sizes(model: nn.Module) -> dict[str, float]:
    parameters, buffers = list(model.parameters()), list(model.buffers())
    return {
        "parameters_total": float(sum(tensor.numel() for tensor in parameters)),
        "parameters_trainable": float(sum(tensor.numel() for tensor in parameters if tensor.requires_grad)),
        "parameters_mib": _mib(parameters),
        "buffers_total": float(sum(tensor.numel() for tensor in buffers)),
        "buffers_mib": _mib(buffers),
    }


def _mib(tensors: list[Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB


def _timed(run: Callable[[], object], device: torch.device, seconds: float, runs: tuple[int, int]) -> Timing:
    """Times runs after a warm-up: at least ``runs[0]``, then until the time or ``runs[1]`` is up."""
    warm, end = 0, time.perf_counter() + seconds
    while warm == 0 or (warm < WARM_UP and time.perf_counter() < end):
        run()
        wait(device)
        warm += 1
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < runs[0] or (len(times) < runs[1] and time.perf_counter() < end):
        started = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - started)
    return Timing(times, warm + len(times))


def _spread(values: list[float]) -> float:
    """The median distance from the median."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
