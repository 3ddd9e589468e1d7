"""What came out of one distillation, in words no stronger than the figures carry."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kd_mlflow.reports.data import RunView


def verdict(views: Sequence[RunView]) -> list[str]:
    """What came out, in words, no stronger than the figures carry."""
    lines = [_standing(view) for view in views]
    by_role = {view.role: view for view in views}
    if {"student", "control"} <= set(by_role):
        lines.append(gain(by_role["student"], by_role["control"]))
    return lines


def _standing(view: RunView) -> str:
    known = [
        f"{view.metrics[key]:.2%} accuracy on {split}"
        for split, key in (("validation", "val/accuracy"), ("test", "test/accuracy"))
        if key in view.metrics
    ]
    return f"{view.role.capitalize()} ({view.architecture}): {', '.join(known) or 'not measured'}."


def gain(student: RunView, control: RunView) -> str:
    """Did distillation help, and is the difference larger than chance on so many images?"""
    ours, theirs = student.metrics["test/accuracy"], control.metrics["test/accuracy"]
    points, images = (ours - theirs) * 100, sum(row["support"] for row in student.per_class)
    on_validation = student.metrics["val/accuracy"] - control.metrics["val/accuracy"]
    if points > 0:
        outcome = f"beat the labels-only control on test by {points:.2f} points"
    elif points < 0:
        outcome = f"did not beat the labels-only control: on test it is {-points:.2f} points below"
    else:
        outcome = "is level with the labels-only control on test"
    error = standard_error(ours, theirs, images) * 100
    size = "more than two of them" if abs(points) > 2 * error else "within two of them, not told apart from chance"
    return (
        f"The distilled student {outcome} ({on_validation * 100:+.2f} on validation). The binomial standard error of "
        f"such a difference on {images} images is {error:.2f} points: this one is {size}; and it rests on one seed."
    )


def standard_error(first: float, second: float, images: int) -> float:
    """Standard error of the difference of two accuracies on ``images`` images, taken as independent."""
    return math.sqrt((first * (1 - first) + second * (1 - second)) / max(images, 1))
