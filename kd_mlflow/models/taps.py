"""provisional"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kd_mlflow.models.classifier import Classifier


@dataclass(frozen=True, slots=True)
class Outputs:
    logits: Tensor
    pooled: Tensor | None = None
    stages: list[Tensor] | None = None
    preactivations: list[Tensor] | None = None


class Tapped:
    def __init__(self, model: Classifier, needs: frozenset[str]) -> None:
        self.model = model

    def __call__(self, images: Tensor) -> Outputs:
        return Outputs(self.model(images))
