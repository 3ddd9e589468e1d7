"""Small networks to look at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.zoo import build


@pytest.fixture
def make() -> Callable[..., Classifier]:
    def made(
        architecture: str = "shufflenet_v2_x0_5",
        *,
        classes: int = 5,
        size: int = 32,
        weights: str = "none",
        seed: int | None = 0,
        **spec: object,
    ) -> Classifier:
        names = tuple(f"class {k}" for k in range(classes))
        full = ModelSpec(
            architecture=architecture,
            classes=names,
            image_size=size,
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.25, 0.3),
            **spec,
        )
        return build(full, weights, seed=seed)

    return made
