"""Knowledge distillation of image classifiers with every run recorded in MLflow."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd_mlflow.entrypoints.compare import compare
    from kd_mlflow.entrypoints.distill import distill
    from kd_mlflow.entrypoints.evaluate import evaluate
    from kd_mlflow.entrypoints.train import train_student, train_teacher
    from kd_mlflow.models.artifact import load_model

__version__ = "0.1.0"

_PUBLIC = {
    "compare": "kd_mlflow.entrypoints.compare",
    "distill": "kd_mlflow.entrypoints.distill",
    "evaluate": "kd_mlflow.entrypoints.evaluate",
    "load_model": "kd_mlflow.models.artifact",
    "train_student": "kd_mlflow.entrypoints.train",
    "train_teacher": "kd_mlflow.entrypoints.train",
}

__all__ = ["__version__", "compare", "distill", "evaluate", "load_model", "train_student", "train_teacher"]


def __getattr__(name: str) -> object:
    """Import the heavy parts only when they are asked for."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'kd_mlflow' has no attribute {name!r}")
