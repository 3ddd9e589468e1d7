"""Methods on maps (AT, FitNet, VID, OFD, ReviewKD, EMKD, joint): golden values, invariances, connectors that learn."""

from __future__ import annotations

import math

import pytest
import torch

from kd_mlflow.distillers.at import attention, attention_loss
from kd_mlflow.distillers.emkd import (
    dice_loss,
    focal_loss,
    importance,
    importance_loss,
    prediction_map_loss,
    region_affinities,
    region_affinity_loss,
    segmentation_loss,
)
from kd_mlflow.distillers.fitnet import hint_loss
from kd_mlflow.distillers.joint import learned_weighting, weighted_teachers
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.matching import paired_stages, resized
from kd_mlflow.distillers.ofd import last_norms, margins, partial_loss
from kd_mlflow.distillers.registry import create
from kd_mlflow.distillers.reviewkd import hierarchical_context_loss
from kd_mlflow.distillers.vid import variational_loss
from kd_mlflow.errors import InputError
from tests.distillers.golden import LABELS, STUDENT, TEACHER
from tests.distillers.networks import context, network, take_step

DRAW = torch.Generator().manual_seed(0)
MAPS = torch.randn(2, 3, 4, 4, generator=DRAW).double()
OTHERS = torch.randn(2, 5, 4, 4, generator=DRAW).double()


def test_stages_are_paired_from_the_deepest():
    pairs = paired_stages(network("shufflenet_v2_x0_5"), network("resnet18"))
    assert [pair.place for pair in pairs] == list(range(-len(pairs), 0))
    assert pairs[-1].teacher[0] == 512
    ones = torch.ones(1, 1, 2, 2)
    assert resized(ones, (4, 4)).shape == resized(torch.ones(1, 1, 8, 8), (4, 4)).shape == (1, 1, 4, 4)


def test_attention_does_not_see_the_scale_of_a_map():
    expected = attention_loss(MAPS, OTHERS)
    assert expected.item() > 0
    assert attention_loss(7 * MAPS, -0.1 * OTHERS).item() == pytest.approx(expected.item(), abs=1e-12)
    for power in (1.0, 3.0):
        assert attention_loss(-MAPS, MAPS, power=power).item() == pytest.approx(0, abs=1e-12)
    paper = attention_loss(MAPS, OTHERS, "paper")
    assert paper.item() > expected.item()


def test_hint_is_the_mean_squared_difference():
    assert hint_loss(torch.full((1, 2, 2, 2), 3.0), torch.ones(1, 2, 2, 2)).item() == 4.0


def test_vids_variance_starts_at_five_and_learns():
    rho = torch.full((3,), 4.993229, dtype=torch.float64)
    expected = 0.5 * ((MAPS - 1).square() / 5 + math.log(5)).mean()
    assert variational_loss(MAPS, torch.ones_like(MAPS), rho).item() == pytest.approx(expected.item(), abs=1e-6)
    student, teacher = network("shufflenet_v2_x0_5"), network("resnet18", seed=1)
    vid = create("vid", context(student, teacher), {})
    take_step(vid, student, teacher)
    for guess in vid.guesses:
        assert guess.rho.grad.abs().sum() > 0
        assert guess.rho[0].item() == pytest.approx(4.993229, abs=1e-6)
    assert {f"guesses.{number}.rho" for number in range(len(vid.guesses))} <= set(vid.state_dict())


def test_margins_have_the_golden_values():
    found = margins(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([0.0, 0.5, 4.0]))
    assert found.tolist() == pytest.approx([-0.797885, -1.427108, -3.0], abs=1e-6)
    assert margins(torch.tensor([-1.0]), torch.tensor([0.0])).item() == pytest.approx(-0.797885, abs=1e-6)


def test_the_partial_distance_lets_negative_responses_be():
    margin = torch.tensor([-1.0])
    teacher = torch.tensor([2.0, -0.5, -3.0, -3.0]).view(1, 1, 2, 2)
    student = torch.tensor([1.0, -2.0, -4.0, 1.0]).view(1, 1, 2, 2)
    assert partial_loss(student, teacher, margin).item() == pytest.approx(1.0 + 0 + 0 + 4.0)


def test_margins_come_from_the_last_norm_of_each_stage():
    teacher = network("resnet34")
    norms = last_norms(teacher)
    body = teacher.body
    assert norms == [layer[-1].bn2 for layer in (body.layer1, body.layer2, body.layer3, body.layer4)][-len(norms) :]
    with pytest.raises(InputError, match="'vgg11' has none"):
        create("ofd", context(network("resnet18"), network("vgg11")), {})


def test_hcl_of_a_constant_difference_is_its_square_at_every_level():
    assert hierarchical_context_loss(MAPS + 0.3, MAPS).item() == pytest.approx(0.09, abs=1e-12)


def test_hcl_of_a_checkerboard_counts_at_full_size_alone():
    board = torch.ones(1, 1, 8, 8).double()
    board[..., ::2, 1::2] = board[..., 1::2, ::2] = -1
    assert hierarchical_context_loss(board, torch.zeros_like(board)).item() == pytest.approx(1 / 1.875, abs=1e-12)


def test_reviewkds_training_parameters_at_the_papers_widths():
    student, teacher = network("resnet18", size=64), network("resnet34", seed=1, size=64)
    review = create("reviewkd", context(student, teacher), {})
    assert sum(parameter.numel() for parameter in review.parameters()) == pytest.approx(7.55e6, rel=0.01)
    take_step(review, student, teacher)
    assert all(parameter.grad is not None for parameter in review.parameters())


def test_importance_does_not_see_scale_and_is_zero_for_equal_maps():
    for variant in ("code", "paper"):
        assert importance_loss(MAPS, MAPS, variant).item() == pytest.approx(0, abs=1e-12)
        expected = importance_loss(MAPS, OTHERS, variant).item()
        assert importance_loss(3 * MAPS, OTHERS, variant).item() == pytest.approx(expected, abs=1e-12)
    assert importance_loss(MAPS[..., ::2, ::2], OTHERS).item() > 0


def region_maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (1, 0) above and (1, 1) below, and the mask that tells them apart."""
    student = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]).double().view(1, 2, 2, 2)
    return student, torch.tensor([[[0, 0], [1, 1]]])


def test_region_affinity_has_the_golden_values():
    student, masks = region_maps()
    cosines, exists = region_affinities(student, masks)
    assert cosines.item() == pytest.approx(0.707107, abs=1e-6)
    assert exists.all()
    orthogonal = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).double().view(1, 2, 2, 2)
    assert region_affinity_loss(student, orthogonal, masks).item() == pytest.approx(0.5, abs=1e-6)
    assert region_affinity_loss(4 * student, orthogonal, masks).item() == pytest.approx(0.5, abs=1e-6)
    assert region_affinity_loss(student, student, masks).item() == pytest.approx(0, abs=1e-12)
    large = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert region_affinity_loss(student, orthogonal, large).item() == pytest.approx(0.5, abs=1e-6)


def test_absent_regions_make_no_pairs():
    student, masks = region_maps()
    gap = masks * 2
    cosines, exists = region_affinities(student, gap)
    assert exists.tolist() == [[False, True, False]]
    assert cosines[exists].item() == pytest.approx(0.707107, abs=1e-6)
    student = student.requires_grad_()
    loss = region_affinity_loss(student, torch.rand(1, 2, 2, 2).double(), torch.zeros(1, 2, 2, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(student.grad).all()


def test_prediction_maps_are_kd_at_every_pixel_for_any_number_of_classes():
    pair = [STUDENT[:, :3], TEACHER[:, :3]]
    pixels = [logits.T[None, :, :, None].clone() for logits in pair]
    assert prediction_map_loss(*pixels).item() == pytest.approx(kd_loss(*pair, 4).item())
    assert prediction_map_loss(*pixels, "paper").item() == pytest.approx(
        kd_loss(TEACHER[:, :3], STUDENT[:, :3], 1).item()
    )


def test_segmentation_losses_are_small_for_right_and_large_for_wrong_masks():
    masks = torch.tensor([[[0, 1], [2, 1]]])
    right = torch.nn.functional.one_hot(masks, 3).movedim(3, 1).double() * 40
    assert segmentation_loss(right, masks).item() == pytest.approx(0, abs=1e-6)
    assert segmentation_loss(right, (masks + 1) % 3).item() > 10
    flat = torch.zeros(1, 3, 2, 2).double()
    assert focal_loss(flat, masks).item() == pytest.approx((2 / 3) ** 2 * math.log(3))
    assert 0 < dice_loss(flat, masks).item() < 1


def test_learned_weights_rest_where_sigma_squared_is_the_loss():
    losses = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    log_sigma = (0.5 * losses.log()).requires_grad_()
    learned_weighting(losses, log_sigma).backward()
    assert log_sigma.grad.abs().max().item() == pytest.approx(0, abs=1e-12)
    at_zero = torch.zeros(3, dtype=torch.float64)
    assert learned_weighting(losses, at_zero).item() == pytest.approx(2.75)


def test_teachers_are_averaged_as_probabilities():
    both = torch.stack([TEACHER, TEACHER])
    torch.testing.assert_close(weighted_teachers(both, LABELS, 4, "uniform"), (TEACHER / 4).log_softmax(dim=1))
    torch.testing.assert_close(weighted_teachers(both, LABELS, 4, "per_sample"), (TEACHER / 4).log_softmax(dim=1))
    two = torch.stack([TEACHER, TEACHER.flip(1)])
    uniform = weighted_teachers(two, LABELS, 1, "uniform").exp()
    torch.testing.assert_close(uniform, two.softmax(dim=2).mean(dim=0))
    right = two.softmax(dim=2).gather(2, LABELS.expand(2, -1)[..., None])[..., 0]
    weights = right / right.sum(dim=0)
    expected = (two.softmax(dim=2) * weights[..., None]).sum(dim=0)
    torch.testing.assert_close(weighted_teachers(two, LABELS, 1, "per_sample").exp(), expected)


def test_static_weights_without_features_are_cross_entropy_and_kd():
    student, teacher = network("resnet18"), network("resnet34", seed=1)
    static = {"weights": "static", "feature_weight": 0.0}
    one = take_step(create("joint", context(student, teacher), static), student, teacher)
    expected = one.terms["cross_entropy"] + one.terms["kd"]
    assert one.losses["main"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_duplicate_teachers_change_nothing_but_the_connectors():
    student, teacher = network("shufflenet_v2_x0_5"), network("resnet18", seed=1)
    twice = create("joint", context(student, teacher, teacher), {"weights": "static", "feature_weight": 0.0})
    once = create("joint", context(student, teacher), {"weights": "static", "feature_weight": 0.0})
    student.eval()
    kd = [take_step(once, student, teacher).terms["kd"], take_step(twice, student, teacher, teacher).terms["kd"]]
    assert kd[0].item() == pytest.approx(kd[1].item(), rel=1e-5)
    (group,) = create("joint", context(student, teacher), {}).optimizer_groups()
    assert (group.name, group.weight_decay) == ("weights", 0.0)


@pytest.mark.parametrize("loss", [attention_loss, hint_loss, importance_loss, hierarchical_context_loss])
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = MAPS.clone().requires_grad_(), (MAPS + 1).requires_grad_()
    loss(student, teacher.flip(3)).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("magnitude", [1e-12, 3e-6, 1.0, 6e4, 1e12])
@pytest.mark.parametrize(
    "attended",
    [
        lambda maps: importance(maps, "code"),
        lambda maps: importance(maps, "paper"),
        lambda maps: attention(maps, 2.0),
        lambda maps: attention(maps, 4.0),
    ],
    ids=["importance code", "importance paper", "attention", "attention of the fourth power"],
)
def test_normalized_maps_have_length_one_and_a_gradient_at_every_magnitude(attended, magnitude):
    maps = torch.rand(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    large = (magnitude * maps).requires_grad_()
    attention_map = attended(large)
    torch.testing.assert_close(attention_map, attended(maps), rtol=1e-4, atol=1e-6)
    assert attention_map.norm(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    attention_map[:, 0].sum().backward()
    plain = maps.clone().requires_grad_()
    attended(plain)[:, 0].sum().backward()
    torch.testing.assert_close(large.grad * magnitude, plain.grad, rtol=1e-3, atol=1e-6)


def test_a_map_of_zeros_stays_zero_and_finite():
    maps = torch.zeros(1, 3, 2, 2, requires_grad=True)
    importance(maps).sum().backward()
    assert importance(maps).tolist() == [[0.0] * 4]
    assert maps.grad.isfinite().all()
