"""RAPL: the energy that the packages of a processor used, as Linux counts it."""

from __future__ import annotations

import re
from pathlib import Path

from kd_mlflow.measures.gpu import GpuSample

ROOT = Path("/sys/class/powercap")
# A package as a whole; what stands below it (cores, memory) is part of it or of another package's.
PACKAGE = re.compile(r"(intel|amd)-rapl:\d+")
MICRO = 1e-6
UNREADABLE = "the processor's energy counter (RAPL) is there, but only root may read it"


class Rapl:
    """All packages together; other processes' work is in their energy."""

    def __init__(self, packages: list[Path]) -> None:
        self.packages = packages
        self._last = [_read(package) for package in packages]
        self._total = 0.0

    def sample(self) -> GpuSample:
        """Joules since the first look; None once a counter can no longer be read."""
        for place, package in enumerate(self.packages):
            try:
                now = _read(package)
            except (OSError, ValueError):
                return GpuSample(None, None, None)
            gained = now - self._last[place]
            if gained < 0:  # the counter began anew
                gained += float((package / "max_energy_range_uj").read_text())
            self._total += gained * MICRO
            self._last[place] = now
        return GpuSample(None, None, self._total)


def open_rapl(root: Path = ROOT) -> Rapl | str:
    """The counters of this machine, or the reason why there are none that can be read; empty for none at all."""
    packages = sorted(path for path in root.glob("*-rapl:*") if PACKAGE.fullmatch(path.name))
    if not packages:
        return ""
    try:
        return Rapl(packages)
    except (OSError, ValueError):
        return UNREADABLE


def _read(package: Path) -> float:
    return float((package / "energy_uj").read_text())
