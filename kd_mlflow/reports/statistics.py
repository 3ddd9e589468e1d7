"""Is the difference of two networks on the same images more than chance? The one test that every report asks.

With one seed it is McNemar's exact test (1947, Psychometrika 12) of the images that one of the two alone names
rightly. From two seeds on it is the interval of a bootstrap over images and seeds, which McNemar's test knows not of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95
CHUNK_NUMBERS = 2**22


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference of accuracies with its interval, and the number of seeds it rests on.

    Attributes
    ----------
    p_value:
        Of the exact McNemar test, two-sided; None with several seeds.
    first_alone, second_alone:
        With one seed the number of images that the first, or the second, network alone names rightly.
    """

    mean: float
    low: float
    high: float
    seeds: int
    p_value: float | None = None
    first_alone: int | None = None
    second_alone: int | None = None

    @property
    def holds_zero(self) -> bool:
        """Whether the interval cannot tell the difference from none."""
        return self.low <= 0 <= self.high


def paired_difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray], *, draws: int = DRAWS) -> Difference:
    """Mean of ``one − other`` with an interval at 95 % that holds 0 if, and only if, chance is not ruled out.

    Each draw takes test images with replacement and, from two seeds on, seeds with replacement, the same
    for both (a crossed bootstrap: Owen 2007, Annals of Applied Statistics 1). Drawing S seeds of S has too
    small a spread by the factor √((S − 1) / S), which is made up for. With one seed the interval knows
    nothing of the spread of trainings, and with two to four it is still too narrow where trainings differ much.

    With one seed McNemar's exact test decides. Given the n = b + c images that one network alone names rightly, b is
    binomial with a half if the networks are alike; the interval of its share (Clopper and Pearson 1934, Biometrika 26)
    is one of the difference, (2 · share − 1) · n / N. The wider of it and the bootstrap's is given, except that it
    leaves 0 out exactly when the test does (p < 0.05).

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
    if seeds > 1:
        return Difference(mean, float(low), float(high), seeds)
    first, second = int((differences > 0).sum()), int((differences < 0).sum())
    exact_low, exact_high = (bound / images for bound in _conditional_interval(first, second))
    low = exact_low if exact_low > 0 >= low else min(low, exact_low)
    high = exact_high if exact_high < 0 <= high else max(high, exact_high)
    return Difference(mean, float(low), float(high), 1, mcnemar(first, second), first, second)


def mcnemar(first: int, second: int) -> float:
    """Two-sided p-value of McNemar's exact test: of ``first + second`` fair coins, so many or more fall to one side."""
    return min(1.0, 2 * _at_most(min(first, second), first + second, 0.5))


def _conditional_interval(first: int, second: int) -> tuple[float, float]:
    """Images by which the first network is ahead, 95 %, given how many one of the two alone names rightly."""
    total = first + second
    return -_most_behind(second, total), _most_behind(first, total)


def _most_behind(wins: int, total: int) -> float:
    """The largest lead in images that so few wins still allow at 2.5 %."""
    low, high = wins / total if total else 0.0, 1.0
    if wins == total:
        return float(total)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(wins, total, middle) > (1 - LEVEL) / 2 else (low, middle)
    return (2 * low - 1) * total


def _at_most(wins: int, total: int, share: float) -> float:
    """The binomial probability of ``wins`` or fewer out of ``total``."""
    steps = np.arange(1, wins + 1)
    # Each term over the one before it, so that no factorial overflows.
    ratios = np.log((total - steps + 1) / steps) + math.log(share) - math.log1p(-share)
    terms = total * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(ratios)])
    return float(min(1.0, np.exp(terms).sum()))


def pareto(accuracy: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """Which points no other beats: none is at least as accurate and as cheap, and better in one."""
    points = list(zip(accuracy, cost, strict=True))
    return [not any((a >= own and c <= price) and (a > own or c < price) for a, c in points) for own, price in points]
