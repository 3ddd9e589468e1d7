"""Several networks measured in turn (A B C A B C … A): what the machine does meanwhile cancels in the ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kd_mlflow.measures.efficiency import MIB, wait
from kd_mlflow.measures.gpu import Gpu
from kd_mlflow.measures.memory import pass_bytes
from kd_mlflow.measures.rapl import Rapl
from kd_mlflow.measures.resources import SILENT, open_meter

SECONDS = 8.0
ROUNDS = (3, 9)
BATCH_SIZE = 64
# A turn of one network: so long, and so many runs, for single images and for batches each.
TURN_SECONDS, TURN_RUNS = 0.006, 20
# Fewer runs have no median; one that takes so long is its own.
FEWEST_RUNS, SLOW_SECONDS = 3, 0.1
# Counters of energy move every tenth of a second or so.
ENERGY_SECONDS = 0.3
NO_ROOM = "the device's memory does not hold the networks and one image together"
TIMED = {"latency": "latency_ms", "throughput": "throughput_images_per_s", "energy": "joules_per_image"}
COUNTED = {"memory": "memory_mib", "size": "size_mib"}
RATIOS = ("latency", "throughput", "memory", "size", "energy")

Clock = Callable[[], float]
# When a figure was measured, and what it is.
Reading = tuple[float, float]


@dataclass(frozen=True)
class Sitting:
    """What several networks cost, measured together.

    Attributes
    ----------
    reference:
        The network that ratios refer to.
    networks:
        For each network its figures (``latency_ms``, ``throughput_images_per_s``, ``memory_mib``, ``size_mib``,
        ``joules_per_image``) and their ratios to the reference (``latency_ratio`` …), timed ones with
        ``…_spread``: the median distance of the rounds from their median.
    missing:
        For each kind of figure that could not be measured, why.
    threads:
        Of PyTorch, within an operation.
    shared:
        The machine's load while other work shared it; empty if none did.
    """

    reference: str
    networks: dict[str, dict[str, float]]
    missing: dict[str, str]
    rounds: int
    batch_size: int
    threads: int
    device: str
    shared: str = ""

    def ratios(self, name: str) -> dict[str, float]:
        """The network's ratios as metrics: ``latency_ratio_to_teacher``, ``latency_ratio_to_teacher_spread`` …"""
        figures, end = self.networks[name], f"_ratio_to_{self.reference}"
        return {
            key.replace("_ratio", end): value for key, value in figures.items() if key.partition("_ratio")[0] in RATIOS
        }

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


@dataclass
class Readings:
    """What the turns of one network gave, by kind of figure."""

    latency: list[Reading] = field(default_factory=list)
    throughput: list[Reading] = field(default_factory=list)
    energy: list[Reading] = field(default_factory=list)


def measure_in_turn(
    networks: Mapping[str, nn.Module],
    *,
    image_size: int,
    device: torch.device,
    seconds: float = SECONDS,
    batch_size: int = BATCH_SIZE,
    clock: Clock = time.perf_counter,
    meter: Gpu | Rapl | str | None = None,
) -> Sitting:
    """Latency, throughput, memory, size and energy of inference, and their ratios to the first network.

    Each turn of a network gives the median over some runs; each ratio compares it with the reference at the same
    moment, interpolated between the reference's turns before and after. What slows the machine down or speeds it up
    over several turns is thus in both. The ratio is the median over the rounds.

    Memory is that of weights and buffers and the most that a pass of ``batch_size`` images holds besides: by the
    allocator on a GPU, by the tensors that live at a time elsewhere.

    Parameters
    ----------
    networks:
        By name, the reference first; each takes uint8 ``[B, 3, S, S]``. They come back in their mode, on their device.
    seconds:
        Time for all of it, about; three rounds are done whatever they take. What is slow is measured in smaller
        batches and fewer rounds.
    clock:
        Gives seconds.
    meter:
        Where energy is read, or why it cannot be; None to look for it.
    """
    meter = open_meter(device) if meter is None else meter
    with _ready(networks, device), torch.inference_mode():
        image = torch.randint(0, 256, (1, 3, image_size, image_size), dtype=torch.uint8, device=device)
        turns = _Turns(networks, image, device, clock, meter)
        batch_size = turns.fitting_batch(batch_size, seconds)
        end, rounds = clock() + seconds, 0
        while rounds < ROUNDS[0] or (rounds < ROUNDS[1] and clock() < end):
            for name in networks:
                turns.take(name, batch_size)
            rounds += 1
        reference = next(iter(networks))
        turns.take(reference, batch_size)
        counted = {name: _counted(model, image, batch_size, device) for name, model in networks.items()}
    figures = {name: counted[name] | _timed(turns.readings[name]) for name in networks}
    for name in networks:
        figures[name] |= _ratios(name, reference, counted, turns.readings)
    return Sitting(
        reference, figures, turns.missing(batch_size), rounds, batch_size, torch.get_num_threads(), str(device)
    )


class _Turns:
    """Runs the networks and keeps what the clock says of it."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        image: Tensor,
        device: torch.device,
        clock: Clock,
        meter: Gpu | Rapl | str,
    ) -> None:
        self.networks, self.image, self.device, self.clock, self.meter = networks, image, device, clock, meter
        self.readings = {name: Readings() for name in networks}

    def fitting_batch(self, batch_size: int, seconds: float) -> int:
        """The batch, halved until the fewest rounds with it take half of the time; 0 without memory for it."""
        single = {}
        for name in self.networks:
            self._run(name, self.image)
            single[name] = self._run(name, self.image)
        while batch_size > 1 and sum(single.values()) * batch_size * (ROUNDS[0] + 1) > seconds / 2:
            batch_size //= 2
        while batch_size:
            try:
                for name in self.networks:
                    self._run(name, self._many(batch_size))
                return batch_size
            except torch.OutOfMemoryError:
                batch_size //= 2
        return 0

    def take(self, name: str, batch_size: int) -> None:
        """One network's turn."""
        self._run(name, self.image)  # the first run after another network's finds cold caches
        times, moment = self._times(name, self.image, TURN_SECONDS)
        self.readings[name].latency.append((moment, statistics.median(times) * 1e3))
        if not batch_size:
            return
        many, before = self._many(batch_size), self._joules()
        times, moment = self._times(name, many, TURN_SECONDS if before is None else ENERGY_SECONDS)
        self.readings[name].throughput.append((moment, batch_size / statistics.median(times)))
        after = self._joules()
        if before is not None and after is not None and after > before:
            self.readings[name].energy.append((moment, (after - before) / (batch_size * len(times))))

    def missing(self, batch_size: int) -> dict[str, str]:
        """Why there are no figures of a kind."""
        reasons = {} if batch_size else {"throughput": NO_ROOM, "memory": NO_ROOM}
        if any(not readings.energy for readings in self.readings.values()):
            reasons["energy"] = self.meter if isinstance(self.meter, str) else SILENT
        return reasons

    def _times(self, name: str, images: Tensor, seconds: float) -> tuple[list[float], float]:
        """Seconds of each of some runs, and the moment in the middle of them."""
        started = self.clock()
        times = [self._run(name, images)]
        while True:
            taken = self.clock() - started
            enough = taken >= seconds or (len(times) >= TURN_RUNS and seconds == TURN_SECONDS)
            if enough and (len(times) >= FEWEST_RUNS or taken >= SLOW_SECONDS):
                break
            times.append(self._run(name, images))
        return times, (started + self.clock()) / 2

    def _run(self, name: str, images: Tensor) -> float:
        started = self.clock()
        self.networks[name](images)
        wait(self.device)
        return self.clock() - started

    def _many(self, batch_size: int) -> Tensor:
        return self.image.expand(batch_size, -1, -1, -1).contiguous()

    def _joules(self) -> float | None:
        return None if isinstance(self.meter, str) else self.meter.sample().joules


def _timed(readings: Readings) -> dict[str, float]:
    figures = {}
    for kind, name in TIMED.items():
        if values := [value for _, value in getattr(readings, kind)]:
            figures |= _with_spread(name, values)
    return figures


def _ratios(
    name: str, reference: str, counted: Mapping[str, dict[str, float]], readings: Mapping[str, Readings]
) -> dict[str, float]:
    ratios = {
        f"{kind}_ratio": counted[name][figure] / counted[reference][figure]
        for kind, figure in COUNTED.items()
        if figure in counted[name] and counted[reference].get(figure)
    }
    for kind in TIMED:
        own, base = getattr(readings[name], kind), getattr(readings[reference], kind)
        if not own or len(base) < 2:
            continue
        values = [1.0] if name == reference else [value / _at(moment, base) for moment, value in own]
        ratios |= _with_spread(f"{kind}_ratio", values)
    return ratios


def _with_spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, and median absolute deviation."""
    middle = statistics.median(values)
    return {name: middle, f"{name}_spread": statistics.median(abs(value - middle) for value in values)}


def _at(moment: float, readings: Sequence[Reading]) -> float:
    """What the readings, which rise in time, say of a moment between two of them."""
    after = next((place for place, (when, _) in enumerate(readings) if when >= moment), len(readings) - 1)
    (first, low), (last, high) = readings[max(0, after - 1)], readings[after]
    return high if last <= first else low + (high - low) * (moment - first) / (last - first)


def _counted(model: nn.Module, image: Tensor, batch_size: int, device: torch.device) -> dict[str, float]:
    """What does not depend on time: size, and memory at the batch."""
    own = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    figures = {"size_mib": own / MIB}
    if batch_size:
        figures["memory_mib"] = (own + pass_bytes(model, image, batch_size, device)) / MIB
    return figures


@contextmanager
def _ready(networks: Mapping[str, nn.Module], device: torch.device) -> Iterator[None]:
    """All of them on the device and in eval mode while the block lasts."""
    before = {
        name: (model.training, next(model.parameters(), torch.empty(0)).device) for name, model in networks.items()
    }
    try:
        for model in networks.values():
            model.to(device).eval()
        yield
    finally:
        for name, model in networks.items():
            training, where = before[name]
            model.to(where).train(training)
