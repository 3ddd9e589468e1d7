"""Margins from the teacher's BatchNorm: which one it is in every family, and how the stages are weighed."""

from __future__ import annotations

import pytest
import torch

from kd_mlflow.distillers.ofd import last_norms, margins, partial_loss
from kd_mlflow.distillers.registry import create
from kd_mlflow.errors import InputError
from kd_mlflow.models.taps import Tapped
from tests.distillers.golden import PROGRESS
from tests.distillers.networks import batch, context, network, take_step


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("resnet50", ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"]),
        # The last two stages are one activation before and after a pooling.
        ("vgg11_bn", ["features.12", "features.19", "features.26", "features.26"]),
        ("mobilenet_v2", ["features.3.conv.3", "features.6.conv.3", "features.13.conv.3", "features.18.1"]),
    ],
)
def test_the_norm_is_that_before_the_stages_activation(architecture, names):
    model = network(architecture)
    assert last_norms(model) == [model.body.get_submodule(name) for name in names]


@pytest.mark.parametrize("architecture", ["densenet121", "shufflenet_v2_x0_5", "vgg11"])
def test_stages_that_end_otherwise_are_refused(architecture):
    with pytest.raises(InputError, match=f"BatchNorm.*'{architecture}'"):
        create("ofd", context(network("resnet18"), network(architecture)), {})


def test_a_margin_is_the_mean_of_the_negative_part():
    draws = 0.5 + 2.0 * torch.randn(400_000, generator=torch.Generator().manual_seed(0)).double()
    found = margins(torch.tensor([2.0]), torch.tensor([0.5])).item()
    assert found == pytest.approx(draws[draws < 0].mean().item(), abs=0.01)


def test_a_channel_that_is_hardly_ever_negative_has_three_deviations():
    assert margins(torch.tensor([2.0, 0.0]), torch.tensor([9.0, 1.0])).tolist() == pytest.approx([-6.0, 0.0], abs=1e-6)


def test_a_norm_without_spread_below_zero_has_its_own_value_as_margin():
    assert margins(torch.tensor([0.0]), torch.tensor([-1.5])).item() == pytest.approx(-1.5, abs=1e-6)


def test_the_teacher_gets_no_gradient_and_the_student_none_where_nothing_counts():
    teacher = torch.tensor([2.0, -3.0, -3.0]).view(1, 1, 1, 3).requires_grad_()
    student = torch.tensor([1.0, -4.0, 1.0]).view(1, 1, 1, 3).requires_grad_()
    partial_loss(student, teacher, torch.tensor([-1.0])).backward()
    assert teacher.grad is None
    assert student.grad.flatten().tolist() == [-2.0, 0.0, 4.0]


def test_each_shallower_stage_counts_half_per_sample_and_divisor():
    student, teacher = network("resnet18").eval(), network("vgg11_bn", seed=1).eval()
    ofd = create("ofd", context(student, teacher), {"divisor": 10.0}).eval()
    own, other = (Tapped(model, ofd.needs)(batch().images) for model in (student, teacher))
    _, terms = ofd.loss(own, [other], batch().labels, PROGRESS)
    expected = 0.0
    for depth in range(4):
        norm, goal = last_norms(teacher)[depth], other.preactivations[depth]
        made = ofd.connectors[depth](own.preactivations[depth])
        made = torch.nn.functional.adaptive_avg_pool2d(made, goal.shape[2:]) if made.shape[2] > goal.shape[2] else made
        if made.shape[2:] != goal.shape[2:]:
            made = torch.nn.functional.interpolate(made, size=goal.shape[2:], mode="bilinear")
        part = partial_loss(made, goal, margins(norm.weight.detach(), norm.bias.detach()).float())
        expected += part.item() / 2 ** (3 - depth)
    assert terms["feature"].item() == pytest.approx(expected / 4 / 10, rel=1e-5)


def test_connectors_learn_between_families_and_margins_are_in_no_checkpoint():
    student, teacher = network("mobilenet_v2"), network("vgg11_bn", seed=1)
    ofd = create("ofd", context(student, teacher), {})
    take_step(ofd, student, teacher)
    assert all(connect[0].weight.grad.abs().sum() > 0 for connect in ofd.connectors)
    assert not any("margin" in name for name in ofd.state_dict())
