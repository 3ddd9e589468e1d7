"""The logits, labels and features that golden values are quoted for, in float64."""

from __future__ import annotations

import torch

from kd_mlflow.distillers.base import Context, Distiller, Progress
from kd_mlflow.distillers.registry import create

STUDENT = torch.tensor([[1, 2, 0.5, -1], [0, 0.5, 3, 1]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 1, 0, -2], [0.5, -0.5, 4, 0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])
PROGRESS = Progress(epoch=1, epochs=1, step=0, steps_per_epoch=1)


def method(name: str, context: Context | None = None, **options: object) -> Distiller:
    """A method for four classes, with some options set."""
    return create(name, context or Context(4), options)
