"""Function matching: divergence alone, on images mixed in pairs by a share of the step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import Context, Progress
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.patient import mixed, mixing_share
from kd_mlflow.models.taps import Outputs
from tests.distillers.golden import LABELS, PROGRESS, STUDENT, TEACHER, method
from tests.distillers.networks import batch, network, take_step


def at(step: int) -> Progress:
    return Progress(1, 1, step, 1000)


@pytest.mark.parametrize(("temperature", "golden"), [(1, 0.271760), (2, 0.374142), (5, 0.397627)])
def test_the_loss_is_the_divergence_with_its_golden_value(temperature, golden):
    total, terms = method("patient", temperature=temperature).loss(
        Outputs(STUDENT), [Outputs(TEACHER)], LABELS, PROGRESS
    )
    assert total.item() == pytest.approx(golden, abs=1e-6)
    assert terms["kd"].item() == total.item()


def test_labels_are_watched_and_teach_nothing():
    patient, slopes = method("patient"), []
    for labels in (LABELS, 3 - LABELS):
        student = STUDENT.clone().requires_grad_()
        total, terms = patient.loss(Outputs(student), [Outputs(TEACHER)], labels, PROGRESS)
        (total + terms["cross_entropy"]).backward()
        slopes.append(student.grad)
    assert torch.equal(*slopes)
    expected = (F.softmax(STUDENT, dim=1) - F.softmax(TEACHER, dim=1)) / 2
    torch.testing.assert_close(slopes[0], expected)


def test_several_teachers_are_averaged_as_probabilities():
    others = [TEACHER, TEACHER.flip(1)]
    loss, _ = method("patient", temperature=2).loss(
        Outputs(STUDENT), [Outputs(logits) for logits in others], LABELS, PROGRESS
    )
    mean = sum(F.softmax(logits / 2, dim=1) for logits in others) / 2
    expected = 4 * F.kl_div(F.log_softmax(STUDENT / 2, dim=1), mean, reduction="batchmean")
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_images_are_mixed_with_the_one_before():
    images = torch.tensor([0, 100, 200], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    found = mixed(images, 0.75)
    assert found.dtype == torch.float32
    assert found[:, 0, 0, 0].tolist() == pytest.approx([50.0, 75.0, 175.0])
    assert torch.equal(mixed(images, 1.0), images.float())
    assert mixed(images.double(), 0.75).dtype == torch.float64


def test_shares_are_a_function_of_seed_and_step_and_cover_the_upper_half_evenly():
    shares = torch.tensor([mixing_share(0, step) for step in range(4000)])
    assert shares.min() >= 0.5
    assert shares.max() <= 1.0
    # The standard error of the mean of 4000 numbers uniform over a half is 0.0023.
    assert shares.mean().item() == pytest.approx(0.75, abs=0.007)
    assert mixing_share(0, 17) == pytest.approx(shares[17].item())
    assert mixing_share(1, 17) != mixing_share(0, 17)


def test_both_networks_see_the_mixed_batch_and_it_is_the_same_after_a_resume():
    one, other = (method("patient", Context(3, seed=5)) for _ in range(2))
    torch.manual_seed(1)
    changed, again = one.transform_batch(batch(), at(7)), other.transform_batch(batch(), at(7))
    assert torch.equal(changed.images, again.images)
    torch.testing.assert_close(changed.images, mixed(batch().images, mixing_share(5, 7)))
    assert not torch.equal(one.transform_batch(batch(), at(8)).images, changed.images)
    assert torch.equal(changed.labels, batch().labels)
    plain = method("patient", Context(3), mixup=False)
    images: Batch = batch()
    assert plain.transform_batch(images, at(7)) is images


def test_far_margins_stay_finite_and_the_teacher_gets_no_gradient():
    student = torch.tensor([[60000.0, 0.0]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[0.0, 60000.0]], dtype=torch.float16, requires_grad=True)
    loss, _ = method("patient", Context(2)).loss(Outputs(student), [Outputs(teacher)], torch.tensor([0]), PROGRESS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(60000.0, rel=1e-3)
    assert teacher.grad is None


def test_a_step_runs_on_networks_of_two_families():
    student, teacher = network("mobilenet_v2"), network("resnet18", seed=1)
    step = take_step(method("patient", Context(3)), student, teacher)
    images = mixed(batch().images, mixing_share(0, 0))
    with torch.no_grad():
        expected = kd_loss(step.logits, teacher.eval()(images), 1.0)
    assert step.losses["main"].item() == pytest.approx(expected.item(), abs=1e-5)
