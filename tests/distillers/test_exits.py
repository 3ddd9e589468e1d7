"""Methods with a multi-exit student: losses by hand, identities, what is trained and what is kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers.byot import masked_feature_loss, soft_cross_entropy
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.registry import create
from kd_mlflow.distillers.tskd import feature_loss
from kd_mlflow.models.exits import ExitOutputs
from tests.distillers.golden import LABELS, STUDENT, TEACHER, method
from tests.distillers.networks import batch, context, network, take_step

OTHER = STUDENT.flip(1)
FEATURES = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)


def exits(*logits: torch.Tensor) -> ExitOutputs:
    return ExitOutputs(
        [one.clone().requires_grad_() for one in logits], [FEATURES * (n + 1) for n in range(len(logits))]
    )


def test_soft_cross_entropy_is_kl_and_the_targets_entropy():
    soft = F.softmax(TEACHER / 3, dim=1)
    entropy = -(soft * soft.log()).sum(dim=1).mean()
    expected = kd_loss(STUDENT, TEACHER, 3) + 9 * entropy
    assert soft_cross_entropy(STUDENT, TEACHER, 3).item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_feature_mask_drops_places_where_both_are_not_positive():
    own = torch.tensor([[1.0, -1.0, -2.0, 0.0]])
    target = torch.tensor([[2.0, 3.0, -5.0, 0.0]])
    assert masked_feature_loss(own, target).item() == pytest.approx(1 + 16)


def test_self_terms_give_the_deepest_exit_no_gradient():
    tskd = method("tskd", ce_weight=0, teacher_weight=0, self_weight=1, feature_weight=1)
    outputs = exits(OTHER, STUDENT)
    tskd.exit_loss(outputs, [TEACHER], LABELS)[0].backward()
    assert outputs.logits[-1].grad.abs().sum() == 0
    assert outputs.logits[0].grad.abs().sum() > 0


def test_with_one_exit_it_is_knowledge_distillation():
    tskd = method("tskd", temperature=4, ce_weight=0.3, teacher_weight=0.7)
    total, terms = tskd.exit_loss(exits(STUDENT), [TEACHER], LABELS)
    assert total.item() == pytest.approx(0.539491, abs=1e-6)
    assert terms["self_distillation"].item() == 0


def test_without_a_teacher_it_is_byot_but_for_entropy_mask_and_sum():
    """BYOT has the deepest exit's cross-entropy where TSKD has the divergence from it."""
    outputs = exits(OTHER, TEACHER, STUDENT)
    byot, _ = method("byot", alpha=0.1, beta=0, temperature=3).exit_loss(outputs, [], LABELS)
    tskd, _ = method(
        "tskd", temperature=3, ce_weight=0.9, teacher_weight=0, self_weight=0.1, feature_weight=0
    ).exit_loss(outputs, [TEACHER], LABELS)
    soft = F.softmax(STUDENT / 3, dim=1)
    entropy = -(soft * soft.log()).sum(dim=1).mean()
    assert (byot - tskd).item() == pytest.approx((0.1 * 2 * 9 * entropy).item(), abs=1e-9)
    unmasked = (FEATURES - 2 * FEATURES).square().sum()
    assert feature_loss(FEATURES, 2 * FEATURES).item() == pytest.approx((unmasked / FEATURES.numel()).item())


@pytest.mark.parametrize("name", ["tskd", "byot"])
def test_every_exit_trains_and_the_plain_student_is_kept(name):
    plain = network("resnet18")
    keys = set(plain.state_dict())
    teacher = network("resnet34", seed=1)
    teachers = [teacher] if name == "tskd" else []
    distiller = create(name, context(plain, *teachers), {})
    student = distiller.training_student(plain)
    step = take_step(distiller, student, *teachers)
    assert step.logits.shape == (4, 3)
    assert all(parameter.grad is not None for parameter in student.parameters())
    student.eval()
    images = batch(1).images
    named = distiller.alternatives(student, images)
    assert list(named) == ["exit_1", "exit_2", "exit_3", "exit_4", "soft_vote", "hard_vote"]
    assert torch.equal(named["exit_4"], student(images))
    kept = distiller.deployed_student(student).eval()
    assert set(kept.state_dict()) == keys
    assert torch.equal(kept(images), named["exit_4"])


def test_deployed_exits_are_what_is_judged_and_kept():
    plain = network("resnet18")
    distiller = create("byot", context(plain), {"deploy": "soft"})
    student = distiller.training_student(plain).eval()
    images = batch(1).images
    kept = distiller.deployed_student(student)
    probabilities = torch.stack([one.softmax(dim=1) for one in student.exits(images).logits]).mean(dim=0)
    torch.testing.assert_close(kept(images).softmax(dim=1), probabilities)
    assert kept.spec.exits == "soft"
