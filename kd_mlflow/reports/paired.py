"""Two networks on the same images: their difference, and the one sentence in which every report tells it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kd_mlflow.reports.data import Predictions, RunView
from kd_mlflow.reports.statistics import Difference, paired_difference

LABELS_ONLY = "the labels-only control"
UNPAIRED = (
    "The runs do not keep what both networks said of the same images (predictions.json), so that they are not paired: "
    "whether the difference is more than chance is not known."
)
# Fewer say little of how much trainings vary.
FEW_SEEDS = 5


def paired(pairs: Iterable[tuple[np.ndarray | None, np.ndarray | None]]) -> Difference | None:
    """The difference over the seeds at which it is known which images ``[N]`` both networks named rightly.

    None if that is known at no seed.
    """
    known = [(a, b) for a, b in pairs if a is not None and b is not None and a.shape == b.shape]
    known = [(a, b) for a, b in known if a.shape == known[0][0].shape and a.size]
    return paired_difference(*zip(*known, strict=True)) if known else None


def paired_views(first: RunView, second: RunView, split: str) -> Difference | None:
    """First minus second on a split; None if the runs do not keep what was said of the same images."""
    ours, theirs = first.predictions.get(split), second.predictions.get(split)
    if ours is None or theirs is None or not _same_images(ours, theirs):
        return None
    return paired([(ours.right, theirs.right)])


def told(subject: str, reference: str, split: str, difference: Difference | None, gain: float | None = None) -> str:
    """Which of two networks is better on a split, no stronger than the test allows.

    Parameters
    ----------
    subject, reference:
        The networks, as the middle of a sentence names them.
    difference:
        ``subject − reference``; None if the two cannot be paired.
    gain:
        The difference of the accuracies alone, for networks that cannot be paired.
    """
    subject = f"T{subject[1:]}" if subject.startswith("the ") else subject  # names of methods stay as they are
    if difference is None:
        differ = f"{subject} and {reference} differ by {signed(gain or 0)} in accuracy on {split}. "
        return UNPAIRED if gain is None else differ + UNPAIRED
    if difference.holds_zero:
        outcome = f"is not told apart from {reference} on {split}"
    else:
        outcome = f"is {'better' if difference.mean > 0 else 'worse'} than {reference} on {split} by more than chance"
    return f"{subject} {outcome}: accuracy differs by {signed(difference.mean)} ({basis(difference)})."


def basis(difference: Difference) -> str:
    """What a difference rests on: its interval, and the test."""
    interval = f"95 % interval {signed(difference.low)} to {signed(difference.high)}"
    if difference.p_value is None:
        return f"{interval}, paired over {seed_count(difference.seeds)} and all images"
    alone = f"{difference.first_alone} to {difference.second_alone}"
    return (
        f"{interval}; exact McNemar test of the images that one of the two alone names rightly, {alone}: "
        f"{p_value(difference.p_value)}; it rests on one seed"
    )


def caveat(difference: Difference | None) -> str:
    """What few seeds do not tell; empty for many."""
    if difference is None or difference.seeds >= FEW_SEEDS:
        return ""
    if difference.seeds == 1:
        return "With one seed the interval knows only the drawing of images, not how trainings vary."
    return f"With {difference.seeds} seeds the interval is too narrow where trainings differ much."


def p_value(value: float) -> str:
    """``p = 0.031``, or ``p < 0.001``."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def signed(value: float) -> str:
    """Four places and a sign; what rounds to nothing is ``+0.0000``."""
    return f"{round(value, 4) + 0.0:+.4f}".replace("-", "−")


def seed_count(count: int) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} seed{'' if count == 1 else 's'}"


def interval_cell(difference: Difference | None) -> str:
    """A difference with its interval in a table; empty for None."""
    if difference is None:
        return ""
    return f"{signed(difference.mean)} ({signed(difference.low)} … {signed(difference.high)})"


def _same_images(first: Predictions, second: Predictions) -> bool:
    return np.array_equal(first.index, second.index) and np.array_equal(first.label, second.label)
