"""Is a difference more than chance? The paired bootstrap over test images and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95
CHUNK_NUMBERS = 2**22


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference with its interval, and the number of seeds it rests on."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def holds_zero(self) -> bool:
        """Whether the interval cannot tell the difference from none."""
        return self.low <= 0 <= self.high


def paired_difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray], *, draws: int = DRAWS) -> Difference:
    """Mean of ``one − other`` with a percentile interval at 95 %.

    Each draw takes test images with replacement and, from two seeds on, seeds with replacement, the same
    for both (a crossed bootstrap: Owen 2007, Annals of Applied Statistics 1). Drawing S seeds of S has too
    small a spread by the factor √((S − 1) / S), which is made up for. With one seed the interval knows
    nothing of the spread of trainings, and with two to four it is still too narrow where trainings differ much.

    Parameters
    ----------
    one, other:
        For every seed ``[N]`` whether each test image was named rightly; the same seeds and images.
    """
    differences = np.stack([a.astype(np.int8) - b.astype(np.int8) for a, b in zip(one, other, strict=True)])
    seeds, images = differences.shape
    random = np.random.default_rng(0)
    # [draws, S]: how often each seed is drawn; one seed alone always is.
    chosen = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws).astype(np.float64)
    if seeds > 1:
        chosen = 1 + (chosen - 1) * np.sqrt(seeds / (seeds - 1))
    # Images on which the methods differ alike at every seed are exchangeable: drawing their patterns, which are few,
    # is drawing images.
    patterns, counts = np.unique(differences, axis=1, return_counts=True)
    sums, step = np.empty(draws), max(1, CHUNK_NUMBERS // len(counts))
    for first in range(0, draws, step):
        part = slice(first, first + step)
        drawn = random.multinomial(images, counts / images, size=len(chosen[part])).astype(np.float64)
        sums[part] = (chosen[part] * (drawn @ patterns.T.astype(np.float64))).sum(axis=1)
    # What does not vary shall have an interval without rounding.
    low, high = np.quantile((sums / differences.size).round(12), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = int(differences.sum(dtype=np.int64)) / differences.size
    return Difference(mean, float(low), float(high), seeds)


def pareto(accuracy: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """Which points no other beats: none is at least as accurate and as cheap, and better in one."""
    points = list(zip(accuracy, cost, strict=True))
    return [not any((a >= own and c <= price) and (a > own or c < price) for a, c in points) for own, price in points]
