"""Likeness of student and teacher, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kd_mlflow.measures.agreement import agreement


def test_network_agrees_with_itself_and_any_shift_of_its_logits():
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    for other in (logits, logits + 3):
        found = agreement(logits, other)
        assert found["teacher_agreement"] == 1
        assert found["teacher_kl"] == pytest.approx(0, abs=1e-12)


def test_divergence_is_from_the_teacher_to_the_student():
    teacher, student = torch.tensor([[0.9, 0.1]]).double().log(), torch.tensor([[0.5, 0.5]]).double().log()
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert agreement(student, teacher)["teacher_kl"] == pytest.approx(forward, abs=1e-7)
    assert agreement(teacher, student)["teacher_kl"] == pytest.approx(reverse, abs=1e-7)


def test_agreement_is_the_share_of_equal_predictions():
    student = torch.tensor([[2.0, 1], [1, 2], [2, 1], [1, 2]])
    teacher = torch.tensor([[9.0, 1], [1, 9], [1, 9], [1, 3]])
    assert agreement(student, teacher)["teacher_agreement"] == 0.75


def test_divergence_of_saturated_logits_is_finite():
    assert agreement(torch.tensor([[0.0, 800]]), torch.tensor([[800.0, 0]]))["teacher_kl"] == pytest.approx(800)
