"""What came out of one distillation, in words no stronger than the figures carry."""

from __future__ import annotations

from collections.abc import Sequence

from kd_mlflow.reports.data import RunView
from kd_mlflow.reports.paired import LABELS_ONLY, caveat, paired_views, signed, told


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
    """Did distillation help, and is that more than chance on the same test images? (The test of every comparison.)"""
    difference = paired_views(student, control, "test")
    on_test, on_validation = (student.metrics[key] - control.metrics[key] for key in ("test/accuracy", "val/accuracy"))
    sentence = told("the distilled student", LABELS_ONLY, "test", difference, on_test)
    said = [sentence, f"On validation they differ by {signed(on_validation)}.", caveat(difference)]
    return " ".join(filter(None, said))
