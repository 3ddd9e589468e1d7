"""Methods that compare the samples of a batch (RKD, SP, PKT, CRD): golden values, invariances, bounded memory."""

from __future__ import annotations

import resource

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers.crd import contrast_loss, draw_negatives
from kd_mlflow.distillers.pkt import transfer_loss
from kd_mlflow.distillers.registry import create
from kd_mlflow.distillers.rkd import angle_loss, distance_loss
from kd_mlflow.distillers.sp import similarity_loss
from kd_mlflow.errors import InputError
from tests.distillers.golden import LABELS, PROGRESS, STUDENT, TEACHER, method
from tests.distillers.networks import batch, context, network, take_step


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


TRIANGLE, OTHER = rows([0, 0], [1, 0], [0, 2]), rows([0, 0], [3, 4], [0, 8])
OWN, TAUGHT = rows([1, 0], [1, 1], [0, 2]), rows([2, 1], [1, 3], [0, 1])


def rotation(seed: int, width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)).double())[0]


def test_rkd_has_the_golden_values():
    assert distance_loss(TRIANGLE, OTHER).item() == pytest.approx(0.033719, abs=1e-6)
    assert angle_loss(TRIANGLE, OTHER).item() == pytest.approx(0.043621, abs=1e-6)


def test_rkd_is_zero_for_a_rotated_scaled_and_moved_teacher():
    teacher = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    student = 3.0 * teacher @ rotation(1, 4) + 5.0
    assert distance_loss(student, teacher).item() == pytest.approx(0, abs=1e-12)
    assert angle_loss(student, teacher).item() == pytest.approx(0, abs=1e-12)


def test_angles_in_chunks_are_the_plain_angles_and_so_is_their_gradient():
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(9, 5, generator=draw).double().requires_grad_()
    teacher = torch.randn(9, 3, generator=draw).double()

    def plain(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        parts = []
        for features in (own, other):
            unit = F.normalize(features[None] - features[:, None], dim=2)
            parts.append(torch.einsum("jid,jkd->jik", unit, unit))
        return F.smooth_l1_loss(*parts)

    expected = torch.autograd.grad(plain(student, teacher), student)[0]
    chunked = angle_loss(student, teacher, chunk_floats=200)
    assert chunked.item() == pytest.approx(plain(student, teacher).item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(chunked, student)[0], expected)


def test_angles_of_a_large_batch_stay_within_bounded_memory():
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(512, 128, generator=draw).requires_grad_()
    angle_loss(student[:8], student[:8]).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    angle_loss(student, torch.randn(512, 128, generator=draw)).backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert torch.isfinite(student.grad).all()
    assert grown < 900, "the angles of both networks, their difference and gradients would be over 2 GiB"


def test_equal_samples_give_finite_gradients():
    student = torch.ones(3, 4, requires_grad=True)
    (distance_loss(student, torch.randn(3, 4)) + angle_loss(student, torch.randn(3, 4))).backward()
    assert torch.isfinite(student.grad).all()


def test_sp_has_the_golden_value_and_its_invariances():
    assert similarity_loss(OWN, TAUGHT).item() == pytest.approx(0.098442, abs=1e-6)
    moved = similarity_loss(2.5 * OWN @ rotation(2, 2), TAUGHT)
    assert moved.item() == pytest.approx(0.098442, abs=1e-6)


def test_pkt_has_the_golden_value():
    assert transfer_loss(OWN, TAUGHT).item() == pytest.approx(0.00281637, abs=1e-8)
    assert transfer_loss(TAUGHT, TAUGHT).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", [distance_loss, angle_loss, similarity_loss, transfer_loss])
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = OWN.clone().requires_grad_(), TAUGHT.clone().requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_ikd_is_plain_kd():
    from kd_mlflow.models.taps import Outputs

    one, other = (
        method(name).loss(Outputs(STUDENT), [Outputs(TEACHER)], LABELS, PROGRESS)[0] for name in ("ikd", "kd")
    )
    assert one.item() == other.item() == pytest.approx(0.539491, abs=1e-6)


def test_crds_positive_is_log_two_where_score_and_noise_are_equal():
    scores = torch.tensor([[0.25]], dtype=torch.float64)
    assert contrast_loss(scores, 1, 4).item() == pytest.approx(0.693147, abs=1e-6)


def test_negatives_are_of_other_classes_and_cover_them():
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2])
    drawn = draw_negatives(torch.tensor([1, 2]), labels, 500, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 500)
    assert set(drawn[0].tolist()) == {0, 2, 4, 5, 6}
    assert set(drawn[1].tolist()) == {0, 1, 3, 4}


def test_both_embeddings_learn_and_banks_move_only_for_the_batch():
    student, teacher = network("shufflenet_v2_x0_5"), network("resnet18", seed=1)
    crd = create("crd", context(student, teacher), {"negatives": 8})
    before = crd.student_bank.clone()
    step = take_step(crd, student, teacher)
    assert crd.student_head.weight.grad.abs().sum() > 0
    assert crd.teacher_head.weight.grad.abs().sum() > 0
    moved = (crd.student_bank != before).any(dim=1)
    assert moved.tolist() == [True] * 4 + [False] * 8
    assert (crd.normalisers > 0).all()
    fixed = crd.normalisers.clone()
    take_step(crd, student, teacher, number=1)
    assert torch.equal(crd.normalisers, fixed)
    assert {"student_bank", "teacher_bank", "normalisers"} <= set(crd.state_dict())
    assert torch.isfinite(step.losses["main"])
    assert torch.equal(crd.rows[batch().index], torch.arange(4))


def test_one_class_has_no_negatives():
    student, teacher = network("shufflenet_v2_x0_5"), network("shufflenet_v2_x0_5", seed=1)
    alone = context(student, teacher)
    alone = type(alone)(3, student=student, teachers=(teacher,), index=torch.arange(4), labels=torch.zeros(4).long())
    with pytest.raises(InputError, match="different classes"):
        create("crd", alone, {})


@pytest.mark.parametrize("offset", [0.0, 100.0, 3000.0, 1e5])
def test_distances_do_not_see_an_offset_that_all_features_share(offset):
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(16, 32, generator=draw), torch.randn(16, 64, generator=draw)
    # Offset and features add up without rounding, so that the distances are exactly the same.
    student, teacher = (values.mul(16).round().div(16) for values in (student, teacher))
    plain = distance_loss(student.double(), teacher.double()).item()
    assert distance_loss(student + offset, teacher + offset).item() == pytest.approx(plain, rel=1e-5)


def test_distances_within_two_far_clusters_are_not_lost():
    draw = torch.Generator().manual_seed(1)
    student = torch.randn(16, 32, generator=draw).mul(16).round().div(16)
    teacher = torch.randn(16, 32, generator=draw).mul(16).round().div(16)
    student[8:] += 4096.0
    assert distance_loss(student, teacher).item() == pytest.approx(
        distance_loss(student.double(), teacher.double()).item(), rel=1e-5
    )


def test_two_images_have_no_relations_to_learn_and_that_is_said():
    features = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert distance_loss(features, 3 * features.flip(0) + 1).item() == pytest.approx(0, abs=1e-12)
    rkd = create("rkd", context(network("resnet18"), network("resnet18")), {})
    assert "always 0" in rkd.notes(2)[0]
    assert rkd.notes(3) == []


@pytest.mark.parametrize("magnitude", [1e-9, 1e-5, 1e6, 1e15])
def test_similarities_do_not_see_the_scale_of_a_batch(magnitude):
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 4, 2, 2, generator=draw), torch.randn(6, 4, 2, 2, generator=draw)
    plain = similarity_loss(student, teacher).item()
    assert similarity_loss(magnitude * student, teacher).item() == pytest.approx(plain, rel=1e-4)
