"""Where a teacher's outputs come from."""

from __future__ import annotations

import torch

from kd_mlflow.data.batch import Batch
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.inference import freeze
from kd_mlflow.models.taps import Outputs, Tapped


class LiveTeacher:
    """A forward pass of the teacher, in eval mode and without gradient, whatever happens around it."""

    def __init__(self, model: Classifier, needs: frozenset[str], device: torch.device) -> None:
        self.tapped = Tapped(freeze(model).to(device), needs)

    def __call__(self, batch: Batch) -> Outputs:
        """Outputs for ``batch.images``."""
        with torch.no_grad():
            return self.tapped(batch.images)
