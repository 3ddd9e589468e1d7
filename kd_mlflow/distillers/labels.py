"""Training with labels alone: how teachers are made, and the control that every student is held against."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kd_mlflow.distillers.base import Distiller, Progress
from kd_mlflow.models.taps import Outputs


class Labels(Distiller):
    """Cross-entropy on the labels."""

    needs_teacher = False

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the student's logits ``[B, K]``."""
        cross_entropy = self.cross_entropy(student.logits, labels)
        return cross_entropy, {"cross_entropy": cross_entropy}
