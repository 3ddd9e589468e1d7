"""Runs made of drawn logits, measured by the real measures: what the reports are tested on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kd_mlflow.measures.agreement import agreement
from kd_mlflow.measures.classification import classify
from kd_mlflow.reports.data import Predictions, RunView

NO_GPU = "the work ran on a CPU; energy is read from NVIDIA GPUs only"
SKILL = {"teacher": 2.6, "control": 1.8, "student": 2.2}
COST = {
    "teacher": {"parameters_total": 21_289_802.0, "parameters_mib": 81.2, "flops": 3.0e8, "latency_ms_b1_median": 9.1},
    "student": {"parameters_total": 11_181_642.0, "parameters_mib": 42.7, "flops": 1.5e8, "latency_ms_b1_median": 4.6},
}


def make_views(
    classes: Sequence[str],
    images: int = 400,
    epochs: int = 12,
    roles: Sequence[str] = ("teacher", "control", "student"),
) -> list[RunView]:
    """A view a role; the same seed gives the same views."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % len(classes)
    right = torch.nn.functional.one_hot(labels, len(classes)).double()
    logits = {role: right * SKILL[role] + torch.randn(right.shape, generator=draw).double() for role in roles}
    return [_view(role, logits, labels, classes, epochs) for role in roles]


def _view(
    role: str, logits: dict[str, torch.Tensor], labels: torch.Tensor, classes: Sequence[str], epochs: int
) -> RunView:
    quality = classify(logits[role], labels, classes)
    figures = dict(quality.metrics)
    if role == "student" and "teacher" in logits:
        figures |= agreement(logits[role], logits["teacher"])
    metrics = {f"{split}/{name}": value for split in ("val", "test") for name, value in figures.items()}
    metrics |= {"val/epoch": float(max(1, epochs - 2)), "train_eval/accuracy": 0.97, "generalisation_gap": 0.05}
    cost = COST["teacher" if role == "teacher" else "student"]
    metrics |= {f"efficiency/{name}": value for name, value in cost.items()}
    names = ("inference_power_w", "inference_joules_per_image", "training_energy_j")
    return RunView(
        role=role,
        run_id=f"{role}0123456789abcdef",
        name=f"a {role}",
        architecture="resnet34" if role == "teacher" else "resnet18",
        params={"epochs": str(epochs)},
        history=_history(role, epochs, figures["accuracy"]),
        metrics=metrics,
        missing=dict.fromkeys(names, NO_GPU),
        per_class=quality.per_class,
        confusion=quality.confusion.tolist(),
        reliability=quality.reliability,
        predictions=dict.fromkeys(("val", "test"), said_of(logits[role].argmax(dim=1).numpy(), labels.numpy())),
    )


def said_of(predicted: np.ndarray, labels: np.ndarray) -> Predictions:
    """Predictions of images that stand at the manifest's beginning."""
    return Predictions(np.arange(len(labels)), labels, predicted)


def _history(role: str, epochs: int, accuracy: float) -> dict[str, list[tuple[int, float]]]:
    def curve(start: float, end: float) -> list[tuple[int, float]]:
        return [(epoch, end + (start - end) * 0.6**epoch) for epoch in range(1, epochs + 1)]

    history = {
        "train/accuracy": curve(0.1, accuracy + 0.04),
        "val/accuracy": curve(0.1, accuracy),
        "train/cross_entropy": curve(2.6, 0.3),
        "val/loss": curve(2.4, 0.6),
        "train/loss": curve(2.6, 0.3),
        "train/learning_rate": [(epoch, 1e-3) for epoch in range(1, epochs + 1)],
        "train/images_per_s": [(epoch, 300.0) for epoch in range(1, epochs + 1)],
    }
    if role == "student":
        history |= {"train/kd": curve(9.0, 1.2), "train/loss": curve(7.0, 1.0)}
    return history
