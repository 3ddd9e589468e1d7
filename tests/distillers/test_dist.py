"""Correlation instead of equality: golden values, what is the same to it, a batch of two."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers.dist import correlation, inter_class_loss, intra_class_loss
from kd_mlflow.models.taps import Outputs
from tests.distillers.golden import LABELS, PROGRESS, STUDENT, TEACHER, method

OWN = torch.tensor([[1, 2, 0.5], [0, 0.5, 3], [2, -1, 0.3]], dtype=torch.float64)
OTHER = torch.tensor([[2, 1, 0], [0.5, -0.5, 4], [1, 0, 1]], dtype=torch.float64)


def test_terms_have_the_golden_values():
    assert inter_class_loss(STUDENT, TEACHER, 1.0).item() == pytest.approx(0.370684, abs=1e-6)
    assert inter_class_loss(OWN, OTHER, 1.0).item() == pytest.approx(0.492660, abs=1e-6)
    assert intra_class_loss(OWN, OTHER, 1.0).item() == pytest.approx(0.315915, abs=1e-6)


def test_the_total_has_the_square_of_the_temperature_and_the_weight():
    total, terms = method("dist", beta=3.0).loss(Outputs(STUDENT), [Outputs(TEACHER)], LABELS, PROGRESS)
    expected = 0.865999 + 2 * 16 * (3 * terms["inter"] + terms["intra"])
    assert total.item() == pytest.approx(expected.item(), abs=1e-5)
    assert terms["inter"].item() == pytest.approx(inter_class_loss(STUDENT, TEACHER, 4.0).item())


def test_an_affine_map_of_the_probabilities_has_no_loss_and_one_of_the_logits_has():
    teacher = F.softmax(TEACHER, dim=1)
    mapped = 0.6 * teacher + 0.1
    torch.testing.assert_close(mapped.sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert inter_class_loss(mapped.log(), TEACHER, 1.0).item() == pytest.approx(0, abs=1e-6)
    assert inter_class_loss(0.6 * TEACHER + 0.1, TEACHER, 1.0).item() > 1e-3


def test_correlation_is_numpys_and_nothing_for_a_constant_row():
    expected = torch.corrcoef(torch.stack((OWN[0], OTHER[0])))[0, 1]
    assert correlation(OWN, OTHER)[0].item() == pytest.approx(expected.item(), abs=1e-7)
    assert correlation(torch.ones(1, 3), OTHER[:1].float()).item() == 0.0


def test_with_two_samples_the_columns_are_perfectly_correlated_or_opposed():
    student, teacher = F.softmax(STUDENT, dim=1), F.softmax(TEACHER, dim=1)
    assert correlation(student.T, teacher.T).abs().tolist() == pytest.approx([1.0] * 4, abs=1e-4)
    own = STUDENT.clone().requires_grad_()
    intra_class_loss(own, TEACHER, 1.0).backward()
    assert own.grad.abs().max().item() == pytest.approx(0, abs=1e-4)


def test_the_teacher_gets_no_gradient():
    teacher = TEACHER.clone().requires_grad_()
    total, _ = method("dist").loss(Outputs(STUDENT.clone().requires_grad_()), [Outputs(teacher)], LABELS, PROGRESS)
    total.backward()
    assert teacher.grad is None


def test_far_margins_stay_finite_with_their_gradients():
    student = torch.tensor([[60000, -60000, 0], [60000, 0, 0]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[-60000, 60000, 0], [60000, 0, 0]], dtype=torch.float16)
    total, _ = method("dist").loss(Outputs(student), [Outputs(teacher)], torch.tensor([0, 1]), PROGRESS)
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()
