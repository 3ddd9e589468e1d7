"""Taps show the inside and change nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.errors import InputError
from kd_mlflow.models.inference import freeze
from kd_mlflow.models.taps import NEEDS, Tapped
from tests.models.test_zoo import FAMILIES


def noise() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_tapped_logits_are_the_plain_ones_and_the_shapes_are_as_announced(make, architecture):
    model = make(architecture).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tapped = Tapped(model, NEEDS)
    outputs, widths = tapped(pixels), tapped.widths
    assert torch.equal(outputs.logits, model(pixels))
    assert outputs.pooled.shape == (2, widths.pooled)
    assert [tuple(stage.shape[1:]) for stage in outputs.stages] == list(widths.stages)
    assert [tuple(stage.shape[1:]) for stage in outputs.preactivations] == list(widths.stages)
    assert [stage.shape[2] for stage in outputs.stages] == [8, 4, 2, 1]


def test_resnet_stages_are_its_layers_at_224_px(make):
    tapped = Tapped(make("resnet34", size=224), frozenset({"stages", "pooled"}))
    assert tapped.widths.stages == ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
    assert tapped.widths.pooled == 512


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "vgg16_bn", "shufflenet_v2_x1_0", "regnet_y_400mf"])
def test_the_relu_of_a_preactivation_is_the_stage(make, architecture):
    outputs = Tapped(make(architecture).eval(), NEEDS)(noise())
    for stage, before in zip(outputs.stages, outputs.preactivations, strict=True):
        assert torch.equal(before.relu(), stage)
        assert (before < 0).any()


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [("mobilenet_v2", F.relu6), ("mobilenet_v3_large", F.hardswish), ("efficientnet_b0", F.silu)],
)
def test_linear_bottlenecks_are_their_own_preactivation_and_the_last_stage_has_one(make, architecture, activation):
    outputs = Tapped(make(architecture).eval(), NEEDS)(noise())
    for stage, before in zip(outputs.stages[:-1], outputs.preactivations[:-1], strict=True):
        assert before is stage
    assert torch.equal(activation(outputs.preactivations[-1]), outputs.stages[-1])


def test_one_relu_for_the_whole_network_is_told_apart_by_its_calls(make):
    model = make("tests.models.networks:one_relu").eval()
    outputs = Tapped(model, NEEDS)(noise())
    assert [tuple(stage.shape[1:]) for stage in outputs.stages] == [(8, 32, 32), (16, 16, 16), (32, 8, 8)]
    for stage, before in zip(outputs.stages, outputs.preactivations, strict=True):
        assert torch.equal(before.relu(), stage)
    assert torch.equal(outputs.logits, model(noise()))


def test_a_map_that_is_later_overwritten_is_kept_as_it_was(make):
    model = make("densenet121").eval()
    outputs = Tapped(model, NEEDS)(noise())
    assert (outputs.stages[-1] < 0).any()
    assert torch.equal(outputs.logits, model(noise()))


def test_rectified_maps_without_a_tappable_relu_are_refused_as_preactivations(make):
    model = make("squeezenet1_0")
    with pytest.raises(InputError, match="pre-activations"):
        Tapped(model, frozenset({"preactivations"}))
    outputs = Tapped(model, frozenset({"stages", "pooled"}))(noise())
    assert outputs.pooled.shape == (2, 512)
    assert outputs.stages[-1].shape[1] == 512


def test_resnet_stages_are_its_layers_even_when_the_image_runs_out_of_pixels(make):
    widths = Tapped(make("resnet18", size=16), frozenset({"stages"})).widths
    assert widths.stages == ((64, 4, 4), (128, 2, 2), (256, 1, 1), (512, 1, 1))


def test_the_pooled_feature_times_the_head_is_the_logits(make):
    model = make("resnet18", dropout=0.5).train()
    outputs = Tapped(model, NEEDS)(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    model.eval()
    torch.testing.assert_close(outputs.pooled, outputs.stages[-1].mean(dim=(2, 3)))


def test_gradients_reach_the_network_through_every_tap_and_the_taps_are_gone_after(make):
    model = make("resnet18")
    outputs = Tapped(model, NEEDS)(torch.zeros(2, 3, 32, 32))
    sum(value.square().mean() for value in [*outputs.stages, *outputs.preactivations, outputs.pooled]).backward()
    assert model.body.conv1.weight.grad is not None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.inplace for module in model.modules() if isinstance(module, torch.nn.ReLU))


def test_logits_alone_attach_nothing(make):
    outputs = Tapped(make(), frozenset({"logits"}))(torch.zeros(2, 3, 32, 32))
    assert outputs.pooled is None
    assert outputs.stages is None


def test_looking_for_stages_moves_no_statistics(make):
    model = make("resnet18").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert Tapped(model, NEEDS).widths.pooled == 512
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_a_network_without_stages_says_so(make):
    with pytest.raises(InputError, match="no stages"):
        Tapped(make("tests.models.test_taps:flat"), frozenset({"stages"}))


def flat(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))


def test_a_frozen_network_stays_in_eval_mode_and_out_of_autograd(make):
    model = freeze(make())
    torch.nn.Sequential(model).train()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
