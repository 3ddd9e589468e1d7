"""Training with labels alone: how teachers are made, and the control that every student is held against."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kd_mlflow.distillers.base import Distiller, Progress, Terms
from kd_mlflow.distillers.options import Source
from kd_mlflow.models.taps import Outputs


class Labels(Distiller):
    """Cross-entropy on the labels."""

    source = Source("none: the control", 0, "paper")
    teacher_count = (0, 0)

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy of the student's logits ``[B, K]``."""
        cross_entropy = self.cross_entropy(student.logits, labels)
        return cross_entropy, {"cross_entropy": cross_entropy}
