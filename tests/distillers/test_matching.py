"""Pairs of stages, resizing and connectors; what every method on maps does with missing networks and with weights."""

from __future__ import annotations

import pytest
import torch

from kd_mlflow.distillers.at import attention_loss
from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.emkd import focal_loss, importance_loss, prediction_map_loss
from kd_mlflow.distillers.fitnet import hint_loss
from kd_mlflow.distillers.joint import weighted_teachers
from kd_mlflow.distillers.matching import connector, paired_stages, rectified, resized
from kd_mlflow.distillers.registry import create
from kd_mlflow.distillers.reviewkd import hierarchical_context_loss
from kd_mlflow.errors import InputError
from tests.distillers.networks import context, network, take_step

ON_NETWORKS = ["at", "fitnet", "vid", "ofd", "reviewkd", "crd", "emkd", "joint"]


def test_a_pair_has_the_shapes_of_both_stages():
    pairs = paired_stages(network("mobilenet_v2", size=64), network("resnet18", size=64))
    assert [(pair.place, pair.student, pair.teacher) for pair in pairs] == [
        (-4, (24, 16, 16), (64, 16, 16)),
        (-3, (32, 8, 8), (128, 8, 8)),
        (-2, (96, 4, 4), (256, 4, 4)),
        (-1, (1280, 2, 2), (512, 2, 2)),
    ]


def test_only_the_deepest_pairs_are_kept_when_fewer_are_asked_for():
    assert [p.place for p in paired_stages(network("resnet18"), network("resnet18"), 3)] == [-3, -2, -1]


def test_maps_shrink_by_averaging_and_grow_by_interpolation():
    maps = torch.tensor([[0.0, 4.0], [8.0, 12.0]])[None, None]
    assert resized(maps, (1, 1)).item() == 6.0
    assert resized(maps, (2, 2)) is maps
    row = resized(maps, (4, 4))[0, 0, 0]
    assert row.tolist() == [0.0, 1.0, 3.0, 4.0]


def test_a_connector_is_a_bare_convolution_with_norm():
    parts = connector(3, 5)
    assert parts(torch.randn(2, 3, 4, 4)).shape == (2, 5, 4, 4)
    assert sum(parameter.numel() for parameter in parts.parameters()) == 3 * 5 + 2 * 5
    assert connector(3, 5, rectified=True)(torch.randn(2, 3, 4, 4)).min().item() == 0.0


def test_linear_bottlenecks_are_not_rectified():
    found = {}
    for name in ("resnet18", "vgg11_bn", "shufflenet_v2_x0_5", "mobilenet_v2"):
        model = network(name)
        found[name] = [rectified(model, place) for place in range(-4, 0)]
    assert found.pop("mobilenet_v2") == [False, False, False, True]
    assert set(map(tuple, found.values())) == {(True,) * 4}


@pytest.mark.parametrize(("teacher", "smallest"), [("resnet18", 0.0), ("mobilenet_v2", -0.1)])
def test_a_hint_can_have_the_signs_of_the_teachers_map(teacher, smallest):
    fitnet = create("fitnet", context(network("resnet18"), network(teacher, seed=1)), {})
    made = fitnet.connector(torch.randn(4, 128, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert (made.min().item() < 0) == (smallest < 0)


@pytest.mark.parametrize("method", ON_NETWORKS)
def test_unknown_networks_are_refused_when_the_method_is_built(method):
    with pytest.raises(InputError, match=method):
        create(method, Context(3), {})


def test_the_power_of_attention_has_a_gradient_at_zero():
    maps = torch.zeros(2, 3, 2, 2)
    maps[:, :, 0] = 1.0
    maps.requires_grad_()
    attention_loss(maps, torch.rand(2, 3, 2, 2), power=1.0).backward()
    assert torch.isfinite(maps.grad).all()
    with pytest.raises(InputError, match="power"):
        create("at", context(network("resnet18"), network("resnet18")), {"power": 0.5})


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("at", {"attention": 1000}),
        ("fitnet", {"hint": 100}),
        ("sp", {"similarity": 3000}),
        ("pkt", {"transfer": 30000}),
        ("rkd", {"distance": 25, "angle": 50}),
        ("vid", {"vid": 1}),
        ("ofd", {"feature": 1}),
        ("crd", {"contrast": 0.8}),
        ("reviewkd", {"review": 3 / 20}),
        ("emkd", {"kd": 0.1, "importance": 0.9}),
    ],
)
def test_terms_are_unweighted_and_the_loss_weighs_them_as_published(method, weights):
    student, teacher = network("resnet18"), network("resnet34", seed=1)
    step = take_step(create(method, context(student, teacher), {}), student, teacher, epoch=3)
    assert set(step.terms) == {"cross_entropy", *weights}
    expected = step.terms["cross_entropy"] + sum(weight * step.terms[name] for name, weight in weights.items())
    assert step.losses["main"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [attention_loss, hint_loss, importance_loss, hierarchical_context_loss])
def test_large_half_precision_maps_are_widened(loss):
    one, other = torch.zeros(2, 2, 4, 4).half(), torch.full((2, 2, 4, 4), 60000.0).half()
    other[..., 0] = 0
    for maps in ((one, other), (other, one)):
        assert loss(*maps).dtype == torch.float32
        assert torch.isfinite(loss(*maps))


def test_far_margins_stay_finite_in_half_precision():
    right = torch.tensor([60000.0, -60000.0, 0.0]).half()[None, :, None, None]
    wrong, masks = -right, torch.zeros(1, 1, 1, dtype=torch.long)
    for value in (prediction_map_loss(right, wrong), focal_loss(wrong, masks)):
        assert torch.isfinite(value)
    assert prediction_map_loss(right, wrong, "paper").item() == pytest.approx(120000.0, rel=1e-3)
    two = torch.stack([right[..., 0, 0], wrong[..., 0, 0]])
    for weighting in ("uniform", "per_sample"):
        target = weighted_teachers(two, torch.tensor([0]), 1.0, weighting)
        assert torch.isfinite(target.exp()).all()
        assert target.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
