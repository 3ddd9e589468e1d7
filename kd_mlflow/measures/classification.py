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

BINS = 15


@dataclass(frozen=True)
class Classification:
    """The figures of one split.

    Attributes
    ----------
    metrics:
        By name; macro averages weigh classes alike, weighted ones by support (weighted recall is the
        accuracy). ``top5_accuracy`` only with more than five classes.
    per_class:
        A row a class: support, precision, recall, f1, average_precision.
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
    """
    probabilities = F.softmax(logits.double(), dim=1).numpy()
    truth, predicted, known = labels.numpy(), probabilities.argmax(axis=1), np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=known, zero_division=0)
    averages = _average_precisions(truth, probabilities)
    bins = reliability(probabilities, truth)
    metrics = {"accuracy": float(np.mean(predicted == truth))}
    if len(classes) > 5:
        metrics["top5_accuracy"] = float(top_k_accuracy_score(truth, probabilities, k=5, labels=known))
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        metrics[f"macro_{name}"] = float(np.mean(values))
        metrics[f"weighted_{name}"] = float(np.average(values, weights=support))
    metrics["mean_average_precision"] = float(np.nanmean(averages))
    metrics["negative_log_likelihood"] = F.cross_entropy(logits.double(), labels).item()
    metrics["calibration_error"] = calibration_error(bins)
    rows = [
        {
            "class": name,
            "support": int(support[k]),
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "average_precision": None if np.isnan(averages[k]) else float(averages[k]),
        }
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


def _average_precisions(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """``[K]``; NaN for a class that the split does not hold."""
    values = np.full(probabilities.shape[1], np.nan)
    for k in np.unique(truth):
        values[k] = average_precision_score(truth == k, probabilities[:, k])
    return values
