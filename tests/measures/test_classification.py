"""Quality of logits, against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kd_mlflow.errors import GuardError, InputError
from kd_mlflow.measures.classification import classify

SIX = [str(number) for number in range(6)]


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_case(images: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    # Uneven on purpose: squares pile up in the first classes.
    labels = (torch.rand(images, generator=draw) ** 2 * classes).long()
    return torch.randn(images, classes, generator=draw) + torch.nn.functional.one_hot(labels, classes), labels


def test_averages_of_three_classes_by_hand():
    # Truth a a a a b b c; a is called a three times and b once, b is called b and c, c is called c.
    predicted, labels = [0, 0, 0, 1, 1, 2, 2], torch.tensor([0, 0, 0, 0, 1, 1, 2])
    found = classify(torch.eye(3)[predicted] * 3, labels, ["a", "b", "c"])
    assert found.metrics["accuracy"] == pytest.approx(5 / 7)
    assert found.metrics["macro_precision"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found.metrics["macro_recall"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert found.metrics["weighted_precision"] == pytest.approx((4 * 1 + 2 / 2 + 1 / 2) / 7)
    f1 = [2 * 0.75 / 1.75, 0.5, 2 * 0.5 / 1.5]
    assert found.metrics["macro_f1"] == pytest.approx(sum(f1) / 3)
    assert found.metrics["weighted_f1"] == pytest.approx((4 * f1[0] + 2 * f1[1] + f1[2]) / 7)
    assert found.confusion.tolist() == [[3, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert [row["support"] for row in found.per_class] == [4, 2, 1]
    assert [row["class"] for row in found.per_class] == ["a", "b", "c"]


def test_weighted_recall_is_the_accuracy_and_macro_recall_is_not():
    logits, labels = random_case(300, 6)
    metrics = classify(logits + torch.arange(6), labels, SIX).metrics
    assert metrics["weighted_recall"] == pytest.approx(metrics["accuracy"], abs=1e-12)
    assert abs(metrics["macro_recall"] - metrics["accuracy"]) > 0.05


def test_average_precision_is_not_interpolated():
    first = [0.9, 0.8, 0.7, 0.1]
    found = classify(logits_of([[p, 1 - p] for p in first]), torch.tensor([0, 1, 0, 1]), ["yes", "no"])
    assert found.per_class[0]["average_precision"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-9)
    assert found.metrics["mean_average_precision"] == pytest.approx(0.8333333, abs=1e-6)


def test_mean_average_precision_is_of_the_whole_set_not_of_batches():
    logits, labels = random_case(200, 6)
    whole = classify(logits, labels, SIX).metrics["mean_average_precision"]
    parts = [classify(logits[i : i + 20], labels[i : i + 20], SIX) for i in range(0, 200, 20)]
    assert abs(whole - np.mean([part.metrics["mean_average_precision"] for part in parts])) > 0.01


def test_top5_counts_the_truth_among_the_five_highest():
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]] * 4)
    metrics = classify(logits, torch.tensor([0, 4, 5, 5]), SIX).metrics
    assert (metrics["accuracy"], metrics["top5_accuracy"]) == (0.25, 0.5)


def test_top5_is_left_out_where_it_would_be_one_by_construction():
    assert "top5_accuracy" not in classify(*random_case(50, 5), SIX[:5]).metrics


def test_negative_log_likelihood_by_hand():
    metrics = classify(logits_of([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([0, 1]), ["a", "b"]).metrics
    assert metrics["negative_log_likelihood"] == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


def test_likelihood_of_a_sure_mistake_is_finite():
    metrics = classify(torch.tensor([[500.0, 0.0]]), torch.tensor([1]), ["a", "b"]).metrics
    assert metrics["negative_log_likelihood"] == pytest.approx(500)


def test_calibration_error_by_hand():
    # Three of four right at confidence 0.9, one of two right at 0.6: gaps 0.15 and 0.1.
    logits = logits_of([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    found = classify(logits, torch.tensor([0, 0, 0, 1, 0, 1]), ["a", "b"])
    assert found.metrics["calibration_error"] == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    rows = [row for row in found.reliability if row["count"]]
    assert [(row["count"], row["accuracy"]) for row in rows] == [(2, 0.5), (4, 0.75)]
    assert [row["confidence"] for row in rows] == pytest.approx([0.6, 0.9])
    assert all(row["lower"] < row["confidence"] <= row["upper"] for row in rows)


def test_reliability_has_fifteen_equal_bins_that_hold_every_image():
    rows = classify(*random_case(300, 6), SIX).reliability
    assert [row["lower"] for row in rows] == pytest.approx([k / 15 for k in range(15)])
    assert sum(row["count"] for row in rows) == 300
    assert all(row["accuracy"] is None and row["confidence"] is None for row in rows if not row["count"])


def test_full_confidence_is_in_the_last_bin():
    rows = classify(torch.tensor([[900.0, 0.0]]), torch.tensor([0]), ["a", "b"]).reliability
    assert [row["count"] for row in rows] == [0] * 14 + [1]


def test_class_that_the_split_does_not_hold_has_no_figures_and_lowers_no_average():
    logits = torch.eye(3)[[0, 0, 1, 1]] * 5
    found = classify(logits, torch.tensor([0, 0, 1, 1]), ["a", "b", "absent"])
    assert found.metrics["macro_recall"] == found.metrics["macro_f1"] == found.metrics["mean_average_precision"] == 1
    absent = found.per_class[2]
    assert absent == {
        "class": "absent",
        "support": 0,
        "precision": None,
        "recall": None,
        "f1": None,
        "average_precision": None,
    }
    assert found.confusion.shape == (3, 3)


def test_class_never_predicted_has_precision_zero():
    found = classify(torch.tensor([[2.0, 0], [2, 0]]), torch.tensor([0, 1]), ["a", "b"])
    assert (found.per_class[1]["precision"], found.per_class[1]["recall"]) == (0, 0)
    assert found.metrics["macro_precision"] == 0.25


def test_half_precision_logits_with_gradient_are_measured():
    logits, labels = random_case(100, 6)
    logits = logits.bfloat16().requires_grad_()
    metrics = classify(logits, labels, SIX).metrics
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_outputs_that_are_not_finite_are_refused_with_their_number():
    logits = torch.zeros(4, 2)
    logits[1, 0], logits[3, 1] = float("nan"), float("inf")
    with pytest.raises(GuardError, match="not finite for 2 of 4 images"):
        classify(logits, torch.zeros(4).long(), ["a", "b"])


def test_empty_split_is_refused():
    with pytest.raises(InputError, match="holds no images"):
        classify(torch.zeros(0, 2), torch.zeros(0).long(), ["a", "b"])
