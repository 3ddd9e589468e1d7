"""How well logits name the classes of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from torch import Tensor

from kd_mlflow.errors import GuardError, InputError

BINS = 15


@dataclass(frozen=True)
class Classification:
    """The figures of one split.

    Attributes
    ----------
    metrics:
        By name; macro averages weigh the classes that the split holds alike, weighted ones by support
        (weighted recall is the accuracy). ``top5_accuracy`` only with more than five classes.
    per_class:
        A row a class: support, precision, recall, f1, average_precision; the last four are None for a
        class that the split does not hold.
    confusion:
        ``[K, K]`` counts, rows are the truth.
    reliability:
        A row a confidence bin: lower, upper, count, and mean confidence and accuracy within.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    confusion: np.ndarray
    reliability: list[dict[str, Any]]


def classify(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Classification:
    """Measure logits ``[N, K]`` against labels ``[N]``.

    Mean average precision is the unweighted mean over the classes present of the non-interpolated
    average precision of their softmax scores over the whole split.

    Raises
    ------
    InputError
        The split is empty.
    GuardError
        A logit is not finite.
    """
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu()
    _check(logits)
    probabilities = F.softmax(logits, dim=1).numpy()
    truth, predicted, known = labels.numpy(), probabilities.argmax(axis=1), np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=known, zero_division=0)
    averages, held = _average_precisions(truth, probabilities), support > 0
    bins = reliability(probabilities, truth)
    metrics = {"accuracy": float(np.mean(predicted == truth))}
    if len(classes) > 5:
        metrics["top5_accuracy"] = float(top_k_accuracy_score(truth, probabilities, k=5, labels=known))
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        metrics[f"macro_{name}"] = float(np.mean(values[held]))
        metrics[f"weighted_{name}"] = float(np.average(values, weights=support))
    metrics["mean_average_precision"] = float(np.nanmean(averages))
    metrics["negative_log_likelihood"] = F.cross_entropy(logits, labels).item()
    metrics["calibration_error"] = calibration_error(bins)
    columns = {"precision": precision, "recall": recall, "f1": f1, "average_precision": averages}
    rows = [
        {"class": name, "support": int(support[k])}
        | {column: float(values[k]) if held[k] else None for column, values in columns.items()}
        for k, name in enumerate(classes)
    ]
    return Classification(metrics, rows, confusion_matrix(truth, predicted, labels=known), bins)


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> list[dict[str, Any]]:
    """Confidence against accuracy in 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    rows = []
    for place in range(BINS):
        inside = places == place
        count = int(inside.sum())
        rows.append(
            {
                "lower": place / BINS,
                "upper": (place + 1) / BINS,
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    return rows


def calibration_error(bins: list[dict[str, Any]]) -> float:
    """Expected calibration error: the mean gap of confidence and accuracy, weighted by count."""
    total = sum(row["count"] for row in bins)
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in bins if row["count"]) / total


def _check(logits: Tensor) -> None:
    if not len(logits):
        raise InputError("The split to measure holds no images; choose one that does, or add images to it.")
    spoilt = int((~logits.isfinite().all(dim=1)).sum())
    if spoilt:
        raise GuardError(
            f"The network's outputs are not finite for {spoilt} of {len(logits)} images; "
            "train it with a smaller learning rate or in float32."
        )


def _average_precisions(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """``[K]``; NaN for a class that the split does not hold."""
    values = np.full(probabilities.shape[1], np.nan)
    for k in np.unique(truth):
        values[k] = average_precision_score(truth == k, probabilities[:, k])
    return values
