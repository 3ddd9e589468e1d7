"""Standardised logits: golden values, what they are blind to, what few classes do to them, the three hosts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers.base import Context, Progress
from kd_mlflow.distillers.dkd import dkd_loss
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.lskd import standardized
from kd_mlflow.distillers.mlkd import multi_level_terms
from kd_mlflow.models.taps import Outputs
from tests.distillers.golden import LABELS, PROGRESS, STUDENT, TEACHER, method
from tests.distillers.networks import batch, context, network, take_step


def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return kd_loss(standardized(student), standardized(teacher), 2.0)


def test_loss_has_the_golden_value_and_a_biased_deviation_another():
    def biased(logits: torch.Tensor) -> torch.Tensor:
        deviation = logits.std(dim=1, keepdim=True, unbiased=False)
        return (logits - logits.mean(dim=1, keepdim=True)) / deviation

    assert loss(STUDENT, TEACHER).item() == pytest.approx(0.106822, abs=1e-6)
    assert kd_loss(biased(STUDENT), biased(TEACHER), 2.0).item() == pytest.approx(0.143264, abs=1e-6)


def test_scale_and_shift_of_the_students_logits_change_nothing():
    moved = 3.7 * STUDENT - 11.0
    assert loss(moved, TEACHER).item() == pytest.approx(loss(STUDENT, TEACHER).item(), abs=1e-7)


def test_a_student_that_is_an_affine_map_of_the_teacher_has_no_loss():
    assert loss(2 * TEACHER - 1, TEACHER).item() == pytest.approx(0, abs=1e-7)


def test_the_gradient_sums_to_nothing_and_is_orthogonal_to_the_centred_logits():
    student = STUDENT.clone().requires_grad_()
    loss(student, TEACHER).backward()
    centred = STUDENT - STUDENT.mean(dim=1, keepdim=True)
    assert student.grad.abs().max() > 0.01
    assert student.grad.sum(dim=1).abs().max().item() == pytest.approx(0, abs=1e-7)
    assert (student.grad * centred).sum(dim=1).abs().max().item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("classes", "probability"), [(10, 0.35), (1000, 0.9999)])
def test_the_largest_value_and_probability_are_bounded_by_the_number_of_classes(classes, probability):
    sure = standardized(F.one_hot(torch.tensor([3]), classes).double() * 50)
    assert sure.max().item() == pytest.approx((classes - 1) / classes**0.5, rel=1e-6)
    assert F.softmax(sure / 2, dim=1).max().item() == pytest.approx(probability, abs=5e-3)


def test_the_total_with_kd_has_weights_of_the_paper():
    total, terms = method("lskd").loss(Outputs(STUDENT), [Outputs(TEACHER)], LABELS, PROGRESS)
    assert terms["kd"].item() == pytest.approx(0.106822, abs=1e-6)
    assert total.item() == pytest.approx(0.1 * 0.865999 + 9 * 0.106822, abs=1e-5)


def test_with_dkd_alpha_and_beta_are_multiplied_by_nine():
    late = Progress(20, 20, 19, 1)
    total, terms = method("lskd", host="dkd").loss(Outputs(STUDENT), [Outputs(TEACHER)], LABELS, late)
    expected = dkd_loss(standardized(STUDENT), standardized(TEACHER), LABELS, 2.0, 9.0, 72.0)
    assert total.item() == pytest.approx(0.865999 + expected.item(), abs=1e-5)
    assert set(terms) == {"cross_entropy", "dkd"}


def test_with_mlkd_the_instance_terms_are_standardised_and_two_views_are_asked_for():
    weak, strong = (STUDENT, TEACHER), (STUDENT.flip(1), TEACHER.flip(0))
    plain = multi_level_terms(weak, strong, 2.0, "paper")
    terms = multi_level_terms(weak, strong, 2.0, "paper", standardized)
    levels = (2.0, 2.0, 3.0, 5.0, 6.0)
    expected = sum(
        kd_loss(standardized(own), standardized(other), level) for own, other in (weak, strong) for level in levels
    )
    assert terms["instance"].item() == pytest.approx(expected.item(), abs=1e-9)
    assert torch.equal(terms["batch"], plain["batch"])
    assert (method("lskd", host="mlkd").views, method("lskd").views) == (2, 1)


def test_with_mlkd_a_step_runs_on_networks():
    student, teacher = network("shufflenet_v2_x0_5"), network("resnet18", seed=1)
    lskd = method("lskd", context(student, teacher), host="mlkd")
    step = take_step(lskd, student, teacher)
    terms = step.terms
    expected = 0.2 * terms["cross_entropy"] + 9 * (terms["instance"] + terms["batch"] + terms["class"])
    assert step.losses["main"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.logits.shape == (len(batch().labels), 3)


@pytest.mark.parametrize("host", ["kd", "dkd"])
def test_far_margins_and_constant_logits_stay_finite(host):
    student = torch.tensor([[60000, -60000, 0], [1, 1, 1]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[-60000, 60000, 0], [1, 1, 1]], dtype=torch.float16)
    lskd = method("lskd", Context(3), host=host)
    total, _ = lskd.loss(Outputs(student), [Outputs(teacher)], torch.tensor([0, 1]), PROGRESS)
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


def test_the_teacher_gets_no_gradient():
    teacher = TEACHER.clone().requires_grad_()
    for host in ("kd", "dkd"):
        own = method("lskd", host=host)
        own.loss(Outputs(STUDENT.clone().requires_grad_()), [Outputs(teacher)], LABELS, PROGRESS)[0].backward()
    assert teacher.grad is None
