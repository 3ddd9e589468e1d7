"""Decoupled distillation: golden values, its identity with KD, margins at which a logarithm of a softmax fails."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers.base import Context, Progress
from kd_mlflow.distillers.dkd import decoupled_divergences, dkd_loss
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.registry import create
from kd_mlflow.distillers.temperatures import tempered_divergence
from kd_mlflow.errors import InputError
from kd_mlflow.models.taps import Outputs
from tests.distillers.golden import LABELS, STUDENT, TEACHER, method

LATE = Progress(epoch=20, epochs=20, step=19, steps_per_epoch=1)


def test_the_two_parts_have_the_golden_values():
    target, others = decoupled_divergences(STUDENT, TEACHER, LABELS, 4.0)
    assert 16 * target.mean().item() == pytest.approx(0.323739, abs=1e-6)
    assert 16 * others.mean().item() == pytest.approx(0.141224, abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "alpha", "beta", "golden"), [(4, 1, 8, 1.453527), (1, 1, 0.5, 0.331117)], ids=["cifar", "imagenet"]
)
def test_loss_has_the_golden_value(temperature, alpha, beta, golden):
    assert dkd_loss(STUDENT, TEACHER, LABELS, temperature, alpha, beta).item() == pytest.approx(golden, abs=1e-6)
    dkd = method("dkd", temperature=temperature, alpha=alpha, beta=beta, warmup_epochs=0)
    total, terms = dkd.loss(Outputs(STUDENT), [Outputs(TEACHER)], LABELS, LATE)
    assert total.item() == pytest.approx(0.865999 + golden, abs=2e-6)
    assert set(terms) == {"cross_entropy", "tckd", "nckd"}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_plain_divergence_is_the_target_part_and_what_is_left_of_the_others(temperature):
    target, others = decoupled_divergences(STUDENT, TEACHER, LABELS, temperature)
    left = 1 - F.softmax(TEACHER / temperature, dim=1).gather(1, LABELS[:, None]).squeeze(1)
    torch.testing.assert_close(target + left * others, tempered_divergence(STUDENT, TEACHER, temperature))


def test_with_two_classes_there_is_only_the_target_part():
    student, teacher = STUDENT[:, :2], TEACHER[:, :2]
    target, others = decoupled_divergences(student, teacher, torch.tensor([0, 1]), 4.0)
    assert others.tolist() == [0.0, 0.0]
    assert 16 * target.mean().item() == pytest.approx(kd_loss(student, teacher, 4.0).item(), abs=1e-12)


def test_the_warm_up_grows_the_term_and_not_the_cross_entropy():
    dkd = method("dkd", beta=2.0)
    totals = {}
    for epoch in (1, 10, 20, 30):
        totals[epoch], terms = dkd.loss(Outputs(STUDENT), [Outputs(TEACHER)], LABELS, Progress(epoch, 30, epoch - 1, 1))
    full = totals[20] - terms["cross_entropy"]
    assert full.item() == pytest.approx(terms["tckd"].item() + 2 * terms["nckd"].item())
    assert (totals[10] - terms["cross_entropy"]).item() == pytest.approx(full.item() / 2)
    assert (totals[1] - terms["cross_entropy"]).item() == pytest.approx(full.item() / 20)
    assert totals[30].item() == totals[20].item()


@pytest.mark.parametrize(("margin", "dtype"), [(120.0, torch.float32), (60000.0, torch.float16)])
def test_far_margins_stay_finite_with_their_gradients(margin, dtype):
    student = torch.tensor([[margin, 0, 0], [-margin, margin, 0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0, margin, -margin], [margin, -margin, 0]], dtype=dtype)
    loss = dkd_loss(student, teacher, torch.tensor([0, 0]), 1.0, 1.0, 8.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_the_target_part_at_a_margin_where_one_minus_the_probability_rounds_to_nothing():
    student, teacher = torch.tensor([[120.0, 0.0, 0.0]]), torch.tensor([[0.0, 120.0, 0.0]])
    target, _ = decoupled_divergences(student, teacher, torch.tensor([0]), 1.0)
    assert target.item() == pytest.approx(120 - torch.tensor(2.0).log().item(), rel=1e-6)


def test_the_teacher_gets_no_gradient():
    teacher = TEACHER.clone().requires_grad_()
    dkd_loss(STUDENT.clone().requires_grad_(), teacher, LABELS, 4.0, 1.0, 8.0).backward()
    assert teacher.grad is None


def test_a_gradient_check_by_differences():
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: dkd_loss(z, TEACHER, LABELS, 4.0, 1.0, 8.0), student)


def test_a_single_class_is_refused():
    with pytest.raises(InputError, match="at least two classes"):
        method("dkd", Context(1))


def test_with_two_classes_beta_has_no_effect_and_that_is_said():
    student, teacher = STUDENT[:, :2], TEACHER[:, :2]
    losses = {dkd_loss(student, teacher, torch.tensor([0, 1]), 4, 1.0, beta).item() for beta in (0.5, 2.0, 8.0)}
    assert max(losses) - min(losses) < 1e-12
    (note,) = create("dkd", Context(2), {}).notes(64)
    assert "--dkd-beta has no effect" in note
    assert create("dkd", Context(3), {}).notes(64) == []
