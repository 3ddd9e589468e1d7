"""The review's levels: fusion, sizes and widths between families, the hierarchical loss, the warm-up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers.registry import create
from kd_mlflow.distillers.reviewkd import AttentionFusion, hierarchical_context_loss
from tests.distillers.networks import context, network, take_step

SHALLOW = "tests.distillers.small:shallow"
DRAW = torch.Generator().manual_seed(0)
MAPS = torch.randn(2, 3, 4, 4, generator=DRAW)


def test_two_gates_mix_a_map_with_the_enlarged_deeper_one():
    fusion = AttentionFusion(3, 6, 5, fuse=True).eval()
    deeper = torch.randn(2, 6, 2, 2, generator=DRAW)
    _, fused = fusion(MAPS, deeper, (4, 4))
    own, large = fusion.narrow(MAPS), deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    gates = fusion.attend(torch.cat((own, large), dim=1)).sigmoid()
    torch.testing.assert_close(fused, own * gates[:, :1] + large * gates[:, 1:])


def test_the_fused_map_goes_on_at_the_teachers_size_before_it_is_widened():
    fusion = AttentionFusion(3, 6, 5, fuse=False).eval()
    wide, fused = fusion(MAPS, None, (8, 8))
    expected = fusion.narrow(MAPS).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(wide, fusion.widen(expected))


@pytest.mark.parametrize(
    ("side", "weights"), [(1, [1]), (2, [1, 1 / 2]), (4, [1, 1 / 2, 1 / 4]), (8, [1, 0.5, 0.25, 0.125])]
)
def test_levels_smaller_than_the_map_count_by_halves(side, weights):
    one, other = torch.rand(2, 3, side, side, generator=DRAW), torch.rand(2, 3, side, side, generator=DRAW)
    sides = [side, *[level for level in (4, 2, 1) if level < side]]
    parts = [F.mse_loss(F.adaptive_avg_pool2d(one, s), F.adaptive_avg_pool2d(other, s)) for s in sides]
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)
    assert hierarchical_context_loss(one, other).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(("own", "other"), [("mobilenet_v2", "vgg11_bn"), ("shufflenet_v2_x0_5", "convnext_tiny")])
def test_levels_of_other_families_are_fused_and_learn(own, other):
    student, teacher = network(own), network(other, seed=1)
    review = create("reviewkd", context(student, teacher), {"middle": 32})
    step = take_step(review, student, teacher, epoch=20)
    assert len(review.fusions) == 5
    assert torch.isfinite(step.losses["main"])
    assert all(parameter.grad is not None for parameter in review.parameters())


@pytest.mark.parametrize(("epoch", "share"), [(1, 0.05), (10, 0.5), (20, 1.0), (40, 1.0)])
def test_the_weight_grows_over_twenty_epochs(epoch, share):
    student, teacher = network("resnet18"), network("resnet18", seed=1)
    review = create("reviewkd", context(student, teacher), {"middle": 16})
    step = take_step(review, student, teacher, epoch=epoch, epochs=40)
    expected = step.terms["cross_entropy"] + share * step.terms["review"]
    assert step.losses["main"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("student", "options", "width"),
    [("resnet18", {}, 512), ("mobilenet_v2", {}, 512), (SHALLOW, {}, 64), (SHALLOW, {"middle": 128}, 128)],
)
def test_fused_maps_are_as_wide_as_the_students_deepest_and_at_most_512(student, options, width):
    review = create("reviewkd", context(network(student), network("resnet18", seed=1)), options)
    assert [fusion.narrow[0].out_channels for fusion in review.fusions] == [width] * len(review.fusions)
