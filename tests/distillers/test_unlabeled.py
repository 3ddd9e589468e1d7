"""Images without labels: who learns from them, and what the cross-entropy makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.data.batch import Batch
from kd_mlflow.data.labels import UNLABELED
from kd_mlflow.distillers.base import Context, Progress
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.registry import create, method_names
from kd_mlflow.models.inference import freeze
from kd_mlflow.models.taps import Outputs, Tapped
from kd_mlflow.training.teachers import LiveTeacher
from tests.distillers.networks import batch, context, network

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.5, 3.0], [1.5, -1.0, 0.0], [0.2, 0.1, 0.0]])
LABELS = torch.tensor([0, UNLABELED, 2, UNLABELED])
PROGRESS = Progress(epoch=1, epochs=3, step=0, steps_per_epoch=4)


@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 1.0, 0.5])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_over_labeled_images(weights, smoothing):
    labels = create("labels", Context(3, class_weights=weights, label_smoothing=smoothing), {})
    known = LABELS != UNLABELED
    expected = F.cross_entropy(LOGITS[known], LABELS[known], weight=weights, label_smoothing=smoothing)
    assert labels.cross_entropy(LOGITS, LABELS).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_without_any_label_gives_no_cross_entropy_and_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    kd = create("kd", Context(3), {"alpha": 0.7})
    total, terms = kd.loss(Outputs(logits), [Outputs(LOGITS.flip(0))], torch.full((4,), UNLABELED), PROGRESS)
    assert terms["cross_entropy"].item() == 0.0
    assert total.item() == pytest.approx(0.7 * kd_loss(LOGITS, LOGITS.flip(0), 4.0).item(), rel=1e-6)
    total.backward()
    assert logits.grad.isfinite().all()


def test_the_parts_of_a_batch_weigh_its_labeled_images_the_same():
    labels = create("labels", Context(3), {})
    whole = labels.cross_entropy(LOGITS, LABELS)
    labels._whole_labels = LABELS
    parts = [labels.cross_entropy(LOGITS[part], LABELS[part]) for part in (slice(0, 1), slice(1, 4))]
    assert (0.25 * parts[0] + 0.75 * parts[1]).item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("name", method_names())
def test_a_method_that_learns_from_unlabeled_images_takes_a_step_on_them(name):
    student, teacher = network("resnet18"), freeze(network("resnet18", seed=1))
    method = create(name, context(student, teacher), {})
    if not method.learns_unlabeled:
        assert name in {"labels", "dkd", "crd", "ttsd", "iakd"}
        return
    plain = batch()
    labels = plain.labels.clone()
    labels[1:] = UNLABELED
    partly = method.transform_batch(replace(plain, labels=labels), PROGRESS)
    needs = method.needs if method.teacher_needs is None else method.teacher_needs
    taught = [LiveTeacher(teacher, needs, torch.device("cpu"))] if type(method).teacher_count[1] else []
    step = method(partly, Tapped(method.training_student(student), method.needs), taught, PROGRESS)
    total = sum(step.losses.values())
    assert total.isfinite()
    total.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in student.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ctkd", {"host": "dkd"}),
        ("ltkd", {"host": "dkd"}),
        ("lskd", {"host": "dkd"}),
        ("joint", {"teacher_weights": "per_sample"}),
    ],
)
def test_options_that_bring_the_label_into_the_loss_need_labels(name, options):
    student, teacher = network("resnet18"), network("resnet18", seed=1)
    assert not create(name, context(student, teacher), options).learns_unlabeled
    assert create(name, context(student, teacher), {}).learns_unlabeled


def test_a_batch_of_labels_says_which_are_kept_back():
    assert Batch(LOGITS, LABELS, torch.arange(4)).split(2)[1].whole_labels.tolist() == LABELS.tolist()
