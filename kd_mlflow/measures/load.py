"""Whether other work shares the processor or the GPU: every latency, energy and duration is then worth less.

What others use is the processor time of the machine less that of this process and its relatives: the command that
started it, all that they started, and, for a search, its workers on this machine. A load average alone would count
those, and lags by a minute.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from kd_mlflow.measures.gpu import Gpu

# Less than this share of a core, or of all cores, is the noise of any machine.
SLACK_CORES, SLACK_SHARE = 0.25, 0.05
SHORTEST_SECONDS = 0.2
# A training is shared if so much of its time was.
SHARE_OF_TIME = 0.1
SECONDS_BETWEEN_SCANS = 10.0
STARTERS = ("torchrun", "raylet")
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MachineLoad:
    """What went on beside some work.

    Attributes
    ----------
    load:
        Threads that want a core: ours and those of others; the load average where it is higher.
    cores:
        That this process may use.
    other_cores:
        How many of them processes that are not ours used on average.
    gpu_processes:
        Other processes on the same GPU.
    """

    load: float
    cores: float
    other_cores: float
    gpu_processes: int
    shared: bool
    seconds: float

    def __str__(self) -> str:
        said = f"load {self.load:.1f} on {self.cores:g} core{'' if self.cores == 1 else 's'}"
        if not self.gpu_processes:
            return said
        return f"{said}, {self.gpu_processes} other process{'' if self.gpu_processes == 1 else 'es'} on the GPU"

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


class Processor(Protocol):
    """Counters of processor seconds."""

    cores: float

    def busy(self) -> float:
        """Seconds for which the cores worked, whoever for."""

    def own(self) -> float:
        """Seconds of this process and its relatives; never falls."""

    def load_average(self) -> float:
        """Of the last minute, on these cores; 0 where it is not known."""

    def pids(self) -> set[int]:
        """This process and its relatives."""


class LoadMeter:
    """Says what else the machine did since it was last asked.

    Parameters
    ----------
    device:
        Where the work runs: on a GPU it takes one thread of the processor, else those of PyTorch.
    processor:
        The counters; None for this machine's.
    gpu:
        The GPU to ask for other processes; None to ask none.
    processes:
        That do the work together.
    """

    def __init__(
        self,
        device: torch.device,
        processor: Processor | None = None,
        gpu: Gpu | str | None = None,
        clock: Callable[[], float] = time.monotonic,
        processes: int = 1,
    ) -> None:
        self.threads = processes * (1 if device.type == "cuda" else torch.get_num_threads())
        self.processor = processor or ThisMachine()
        self.gpu, self.clock = gpu, clock
        self._last = self._now()

    def look(self, shortest: float = SHORTEST_SECONDS) -> MachineLoad | None:
        """Since the last look that gave an answer; None, at no cost, before so many seconds have passed."""
        before, busy_before, own_before = self._last
        if self.clock() - before < shortest:
            return None
        self._last = now, busy, own = self._now()
        seconds = now - before
        others = max(0.0, (busy - busy_before) - (own - own_before)) / seconds
        cores = self.processor.cores
        slack = max(SLACK_CORES, SLACK_SHARE * cores)
        crowded = others > max(0.0, cores - self.threads) + slack
        on_gpu = self.gpu.other_processes(self.processor.pids()) if isinstance(self.gpu, Gpu) else 0
        load = others + min(self.threads, cores)
        load = max(load, self.processor.load_average()) if crowded else load
        return MachineLoad(load, cores, others, on_gpu, crowded or on_gpu > 0, seconds)

    def _now(self) -> tuple[float, float, float]:
        return self.clock(), self.processor.busy(), self.processor.own()


def together(loads: list[MachineLoad]) -> MachineLoad | None:
    """Several looks as one: shared if a tenth of the time was; the load is then that of the shared time."""
    total = sum(load.seconds for load in loads)
    if not total:
        return None
    shared = [load for load in loads if load.shared]
    is_shared = sum(load.seconds for load in shared) >= SHARE_OF_TIME * total
    told = shared if is_shared else loads
    seconds = sum(load.seconds for load in told)

    def mean(name: str) -> float:
        return sum(getattr(load, name) * load.seconds for load in told) / seconds

    most = max(load.gpu_processes for load in told)
    return MachineLoad(mean("load"), mean("cores"), mean("other_cores"), most, is_shared, total)


class ThisMachine:
    """Counters of the cores that this process may use, in a container those of the container."""

    def __init__(self, cgroups: Path = CGROUPS, mine: Path = Path("/proc/self/cgroup")) -> None:
        self.cpus = _affinity()
        self.groups = _groups(cgroups, mine)
        quota = min((quota for group in self.groups if (quota := _quota(group))), default=0.0)
        counted = any(_used(group) is not None for group in self.groups)
        self.limited = counted and 0 < quota < len(self.cpus)
        self.cores = quota if self.limited else float(len(self.cpus))
        self._seen: dict[tuple[int, float], float] = {}
        self._total, self._scanned, self._looked = 0.0, 0.0, math.inf
        self._roots: list[psutil.Process] = []

    def busy(self) -> float:
        """As :class:`Processor` says; of the container's processes alone where its processor time is limited."""
        if self.limited and (used := next((u for group in self.groups if (u := _used(group)) is not None), None)):
            return used
        each = psutil.cpu_times(percpu=True)
        return sum(_working(times) for number, times in enumerate(each) if number in self.cpus)

    def own(self) -> float:
        """As :class:`Processor` says."""
        for process in self._relatives():
            try:
                times, key = process.cpu_times(), (process.pid, process.create_time())
            except psutil.Error:
                continue
            used = times.user + times.system + getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
            # All that a process used counts if it began since the last look, to the accuracy of its start.
            before = 0.0 if key[1] > self._looked - 1 else used
            self._total += max(0.0, used - self._seen.get(key, before))
            self._seen[key] = used
        self._looked = time.time()
        return self._total

    def pids(self) -> set[int]:
        """As :class:`Processor` says."""
        return {process.pid for process in self._relatives()}

    def load_average(self) -> float:
        """As :class:`Processor` says."""
        all_cores = self.cores == (os.cpu_count() or 0)
        return os.getloadavg()[0] if all_cores and hasattr(os, "getloadavg") else 0.0

    def _relatives(self) -> Iterator[psutil.Process]:
        if not self._roots or time.monotonic() - self._scanned > SECONDS_BETWEEN_SCANS:
            self._roots, self._scanned = _roots(), time.monotonic()
        seen = set()
        for root in self._roots:
            try:
                family = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                if process.pid not in seen:
                    seen.add(process.pid)
                    yield process


def _roots() -> list[psutil.Process]:
    """The topmost of our commands above this process; for a search also those of its workers elsewhere."""
    me = psutil.Process()
    top = me
    for process in me.parents():
        if _is_ours(process):
            top = process
    roots = [top]
    if any(word in ("search", "search-worker") for word in _words(top)):
        for process in psutil.process_iter():
            words = _words(process)
            if process.pid != top.pid and "search-worker" in words and _names_us(words):
                roots.append(process)
    return roots


def _is_ours(process: psutil.Process) -> bool:
    words = _words(process)
    return _names_us(words) or any(Path(word).name in STARTERS for word in words[:3])


def _names_us(words: list[str]) -> bool:
    return any(Path(word).name in ("kd-mlflow", "kd_mlflow") for word in words[:4])


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _working(times: Any) -> float:
    """Of one core, everything that is not idle; time that another virtual machine took among it."""
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _groups(root: Path, mine: Path) -> list[Path]:
    """This process's control groups, the innermost first; in version 1 those of the controller ``cpu``."""
    try:
        lines = [line.split(":", 2) for line in mine.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for number, controllers, path in lines:
        if number == "0" and not controllers and (root / "cgroup.controllers").is_file():
            base = root
        elif "cpu" in controllers.split(","):
            base = next((root / name for name in (controllers, "cpu") if (root / name).is_dir()), root / "cpu")
        else:
            continue
        inner = base / path.lstrip("/")
        # In a container of its own name space the path may not exist: its group is then mounted at the top.
        inner = inner if inner.is_dir() else base
        found += [inner, *(up for up in inner.parents if up == base or base in up.parents)]
    return found


def _quota(group: Path) -> float:
    """Cores that the group may use; 0 for any number."""
    try:
        if (file := group / "cpu.max").is_file():
            quota, period = file.read_text().split()
            return 0.0 if quota == "max" else float(quota) / float(period)
        quota, period = (float((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return max(0.0, quota / period)
    except (OSError, ValueError):
        return 0.0


def _used(group: Path) -> float | None:
    """Processor seconds of all processes of the group."""
    try:
        if (file := group / "cpu.stat").is_file():
            figures = dict(line.split() for line in file.read_text().splitlines())
            if "usage_usec" in figures:
                return float(figures["usage_usec"]) / 1e6
        return float((group / "cpuacct.usage").read_text()) / 1e9
    except (OSError, ValueError):
        return None
