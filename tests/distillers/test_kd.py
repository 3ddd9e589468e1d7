"""The loss of methods as published: golden values in float64, gradients by hand, traps that must not be fallen into."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.dist import inter_class_loss, intra_class_loss
from kd_mlflow.distillers.dkd import decoupled_divergences, dkd_loss
from kd_mlflow.distillers.joint import weighted_teachers_loss
from kd_mlflow.distillers.kd import kd_loss, mean_teacher, mean_teacher_loss
from kd_mlflow.distillers.temperatures import tempered_divergence
from kd_mlflow.models.taps import Outputs
from tests.distillers.golden import LABELS, PROGRESS, STUDENT, TEACHER, method


def test_cross_entropy_has_the_golden_value():
    loss, _ = method("labels").loss(Outputs(STUDENT), [], LABELS, PROGRESS)
    assert loss.item() == pytest.approx(0.865999, abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "golden"),
    [
        (1, 0.271760),
        (2, 0.374142),
        (3, 0.397141),
        (4, 0.399559),
        (5, 0.397627),
        (6, 0.394946),
        (8, 0.390108),
        (1000, 0.367412),
    ],
)
def test_kd_loss_has_the_golden_value(temperature, golden):
    assert kd_loss(STUDENT, TEACHER, temperature).item() == pytest.approx(golden, abs=1e-6)


@pytest.mark.parametrize(("temperature", "golden"), [(1, 0.271760), (2, 0.093536), (4, 0.024972), (8, 0.006095)])
def test_without_the_factor_the_divergence_has_the_golden_value(temperature, golden):
    assert kd_loss(STUDENT, TEACHER, temperature).item() / temperature**2 == pytest.approx(golden, abs=1e-6)


def test_swapped_networks_give_the_reverse_divergence():
    assert kd_loss(TEACHER, STUDENT, 1).item() == pytest.approx(0.296007, abs=1e-6)


def test_large_temperature_tends_to_the_logit_difference():
    delta = TEACHER - STUDENT
    limit = (delta - delta.mean(dim=1, keepdim=True)).pow(2).sum(dim=1).mean() / (2 * 4)
    assert limit.item() == pytest.approx(0.367188, abs=1e-6)
    assert kd_loss(STUDENT, TEACHER, 1e4).item() == pytest.approx(limit.item(), abs=3e-5)


def test_total_of_the_source_report_has_the_golden_value():
    total, terms = method("kd", temperature=4, alpha=0.7).loss(Outputs(STUDENT), [Outputs(TEACHER)], LABELS, PROGRESS)
    assert total.item() == pytest.approx(0.539491, abs=1e-6)
    assert terms["kd"].item() == pytest.approx(0.399559, abs=1e-6)
    assert terms["cross_entropy"].item() == pytest.approx(0.865999, abs=1e-6)


def test_gradient_is_temperature_times_the_difference_of_the_softened_probabilities():
    student = STUDENT.clone().requires_grad_()
    kd_loss(student, TEACHER, 4).backward()
    golden = torch.tensor([-0.196350, 0.114889, 0.027191, 0.054270], dtype=torch.float64)
    torch.testing.assert_close(student.grad[0], golden, atol=1e-6, rtol=0)
    by_hand = 4 * (F.softmax(STUDENT / 4, dim=1) - F.softmax(TEACHER / 4, dim=1)) / 2
    torch.testing.assert_close(student.grad, by_hand)


def test_wrong_readings_have_other_values():
    probabilities = F.softmax(STUDENT / 4, dim=1)
    soft = F.softmax(TEACHER / 4, dim=1)
    taken_for_log = 16 * F.kl_div(probabilities, soft, reduction="batchmean")
    averaged = 16 * F.kl_div(probabilities.log(), soft, reduction="none").mean()
    assert taken_for_log.item() == pytest.approx(-25.189518, abs=1e-6)
    assert averaged.item() == pytest.approx(0.099890, abs=1e-6)
    assert kd_loss(STUDENT, TEACHER, 4).item() not in (taken_for_log.item(), averaged.item())


def test_a_shift_of_the_logits_changes_nothing():
    assert kd_loss(TEACHER + 7.0, TEACHER, 4).item() == pytest.approx(0, abs=1e-12)


def test_it_is_the_soft_cross_entropy_less_the_teachers_entropy():
    soft = F.softmax(TEACHER / 3, dim=1)
    entropy = -(soft * soft.log()).sum(dim=1).mean()
    expected = 9 * (F.cross_entropy(STUDENT / 3, soft) - entropy)
    assert kd_loss(STUDENT, TEACHER, 3).item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_teacher_gets_no_gradient():
    teacher = TEACHER.clone().requires_grad_()
    kd_loss(STUDENT.clone().requires_grad_(), teacher, 4).backward()
    assert teacher.grad is None


def test_half_precision_logits_are_widened_and_far_margins_stay_finite():
    student = torch.tensor([[60000.0, 0.0]], dtype=torch.float16)
    teacher = torch.tensor([[0.0, 60000.0]], dtype=torch.float16)
    loss = kd_loss(student, teacher, 1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(60000.0, rel=1e-3)


def test_class_weights_and_smoothing_reach_the_cross_entropy():
    weights = torch.tensor([2.0, 1.0, 0.5, 1.0])
    labels = method("labels", Context(4, class_weights=weights, label_smoothing=0.1))
    loss, _ = labels.loss(Outputs(STUDENT.float()), [], LABELS, PROGRESS)
    expected = F.cross_entropy(STUDENT.float(), LABELS, weight=weights, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item())
    assert not list(labels.state_dict())


def test_several_teachers_are_averaged_as_probabilities_not_as_logits():
    kd, other = method("kd", temperature=2, alpha=1), TEACHER.flip(1)
    teachers = [Outputs(TEACHER), Outputs(other)]
    loss, _ = kd.loss(Outputs(STUDENT), teachers, LABELS, PROGRESS)
    mean = (F.softmax(TEACHER / 2, dim=1) + F.softmax(other / 2, dim=1)) / 2
    expected = 4 * F.kl_div(F.log_softmax(STUDENT / 2, dim=1), mean, reduction="batchmean")
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    twice, _ = kd.loss(Outputs(STUDENT), [Outputs(TEACHER)] * 2, LABELS, PROGRESS)
    assert twice.item() == pytest.approx(kd_loss(STUDENT, TEACHER, 2).item(), abs=1e-12)
    torch.testing.assert_close(mean_teacher([TEACHER, other], 2).exp(), mean)


def test_the_loss_stays_in_float32_under_autocast():
    student = STUDENT.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kd_loss(student.bfloat16(), TEACHER.bfloat16(), 4)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.399559, abs=0.02)


@pytest.mark.parametrize("temperature", [100.0, 1000.0, 10000.0])
@pytest.mark.parametrize(
    "divergence",
    [
        lambda student, teacher, t: kd_loss(student, teacher, t),
        lambda student, teacher, t: mean_teacher_loss(student, [teacher, teacher], t),
        lambda student, teacher, t: weighted_teachers_loss(student, torch.stack([teacher] * 2), LABELS, t, "uniform"),
        lambda student, teacher, t: t**2 * tempered_divergence(student, teacher, t).mean(),
        lambda student, teacher, t: t**2 * sum(decoupled_divergences(student, teacher, LABELS, t)).mean(),
        lambda student, teacher, t: dkd_loss(student, teacher, LABELS, t, 1.0, 8.0),
        lambda student, teacher, t: t**2 * inter_class_loss(student, teacher, t),
        lambda student, teacher, t: t**2 * intra_class_loss(student.repeat(2, 1), teacher.flip(0).repeat(2, 1), t),
    ],
    ids=["kd", "mean of teachers", "weighted teachers", "learned temperature", "dkd parts", "dkd", "inter", "intra"],
)
def test_a_divergence_in_float32_is_exact_at_every_temperature(divergence, temperature):
    exact = divergence(STUDENT, TEACHER, temperature)
    single = divergence(STUDENT.float(), TEACHER.float(), temperature)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact.item(), rel=1e-5)


def test_the_gradient_at_a_high_temperature_is_that_of_the_logits_difference():
    student = STUDENT.float().requires_grad_()
    kd_loss(student, TEACHER.float(), 10000.0).backward()
    difference = STUDENT - TEACHER
    limit = (difference - difference.mean(dim=1, keepdim=True)) / (2 * 4)
    torch.testing.assert_close(student.grad, limit.float(), atol=1e-4, rtol=0)
