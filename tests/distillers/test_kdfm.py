"""The shared classifier and the discriminator: golden losses, who gets a gradient, what is folded and kept."""

from __future__ import annotations

import copy

import pytest
import torch

from kd_mlflow.distillers.kdfm import discriminator_loss, generator_loss
from kd_mlflow.distillers.registry import create
from kd_mlflow.errors import InputError
from kd_mlflow.models.taps import Tapped
from tests.distillers.networks import batch, context, network, take_step


def make(student="resnet18", teacher="resnet34", **options):
    own, other = network(student), network(teacher, seed=1)
    kdfm = create("kdfm", context(own, other), options)
    return kdfm, kdfm.training_student(own), other


def test_losses_have_the_golden_values_at_a_half():
    half = torch.full((2, 1, 4, 4), 0.5)
    assert discriminator_loss(half, half).item() == pytest.approx(0.25)
    assert generator_loss(half).item() == pytest.approx(0.125)


def test_a_student_with_the_teachers_maps_has_the_teachers_logits():
    teacher = network("resnet18", seed=1)
    kdfm = create("kdfm", context(copy.deepcopy(teacher), teacher), {})
    twin = kdfm.training_student(copy.deepcopy(teacher)).eval()
    torch.testing.assert_close(twin(batch().images), teacher.eval()(batch().images))


def test_the_frozen_classifier_never_moves_and_the_joint_one_learns():
    kdfm, student, teacher = make()
    take_step(kdfm, student, teacher)
    assert all(parameter.grad is None for parameter in student.head.parameters())
    assert torch.equal(student.head.weight, teacher.head.weight)
    joint, student, teacher = make(joint=True)
    take_step(joint, student, teacher)
    assert all(parameter.grad is not None for parameter in student.head.parameters())


def test_the_discriminators_loss_leaves_the_student_alone_and_the_other_way_round():
    kdfm, _, _ = make()
    maps = torch.randn(2, 512, 1, 1, requires_grad=True)
    terms = kdfm.adversarial_terms(maps, torch.randn(2, 512, 1, 1))
    terms["discriminator"].backward()
    assert maps.grad is None
    assert all(parameter.grad is not None for parameter in kdfm.discriminator.parameters())
    kdfm.zero_grad()
    terms = kdfm.adversarial_terms(maps, torch.randn(2, 512, 1, 1))
    terms["adversarial"].backward()
    assert maps.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in kdfm.discriminator.parameters())


def test_the_adversarial_term_counts_after_its_epochs():
    kdfm, student, teacher = make(adversarial_start=5)
    early = take_step(kdfm, student, teacher, epoch=5)
    assert torch.equal(early.losses["main"].detach(), early.terms["cross_entropy"])
    late = take_step(kdfm, student, teacher, epoch=6)
    expected = late.terms["cross_entropy"] + 0.1 * late.terms["adversarial"]
    assert late.losses["main"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("student", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_the_kept_student_is_plain_with_the_same_logits(student):
    kdfm, trained, _ = make(student)
    images = batch(1).images
    expected = trained.eval()(images)
    kept = kdfm.deployed_student(copy.deepcopy(trained)).eval()
    torch.testing.assert_close(kept(images), expected, rtol=1e-4, atol=1e-5)
    assert set(kept.state_dict()) == set(network(student).state_dict())
    assert [value.shape for value in kept.state_dict().values()] == [
        value.shape for value in network(student).state_dict().values()
    ]


def test_maps_and_pooled_features_pass_the_same_adapter():
    _, student, _ = make("shufflenet_v2_x0_5")
    student.eval()
    shared = next(module for module in student.body.modules() if hasattr(module, "adapt"))
    outputs = Tapped(student, frozenset({"logits", "stages"}))(batch().images)
    maps = shared.adapt(outputs.stages[-1], tuple(outputs.stages[-1].shape[2:]))
    torch.testing.assert_close(shared.classifier(maps.mean(dim=(2, 3))), outputs.logits, rtol=1e-4, atol=1e-5)


def test_regression_has_no_discriminator_and_weighs_the_difference_fully():
    kdfm, student, teacher = make(mode="regression")
    step = take_step(kdfm, student, teacher)
    assert set(step.losses) == {"main"}
    assert kdfm.optimizer_groups() == []
    assert step.losses["main"].item() == pytest.approx((step.terms["cross_entropy"] + step.terms["regression"]).item())


@pytest.mark.parametrize("name", ["vgg11", "convnext_tiny"])
def test_networks_with_another_classifier_are_refused(name):
    with pytest.raises(InputError, match=name):
        make("resnet18", name)
