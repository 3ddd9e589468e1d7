"""Multi-level distillation: golden Gram terms, five temperatures, both readings, two views."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.mlkd import batch_loss, class_loss, low_confidence_shares, multi_level_terms
from tests.distillers.golden import STUDENT, TEACHER, method
from tests.distillers.networks import batch, context, network, take_step

WEAK, STRONG = (STUDENT, TEACHER), (STUDENT.flip(1), TEACHER.flip(0))


def test_batch_and_class_terms_have_the_golden_values():
    assert batch_loss(STUDENT, TEACHER, 4.0).item() == pytest.approx(0.001002, abs=1e-6)
    assert class_loss(STUDENT, TEACHER, 4.0).item() == pytest.approx(0.005429, abs=1e-6)


def test_equal_logits_have_no_loss_and_the_order_of_samples_does_not_matter():
    terms = multi_level_terms((TEACHER, TEACHER), (TEACHER, TEACHER), 4.0, "paper")
    assert [term.item() for term in terms.values()] == pytest.approx([0, 0, 0], abs=1e-12)
    turned = (STUDENT.flip(0), TEACHER.flip(0))
    assert batch_loss(*turned, 4.0).item() == pytest.approx(batch_loss(STUDENT, TEACHER, 4.0).item(), abs=1e-12)
    assert class_loss(*turned, 4.0).item() == pytest.approx(class_loss(STUDENT, TEACHER, 4.0).item(), abs=1e-12)


@pytest.mark.parametrize("base", [4.0, 2.0])
def test_the_paper_sums_every_term_over_five_temperatures_and_both_views(base):
    terms = multi_level_terms(WEAK, STRONG, base, "paper")
    levels = [base, 2.0, 3.0, 5.0, 6.0]
    for name, part in (("instance", kd_loss), ("batch", batch_loss), ("class", class_loss)):
        expected = sum(part(*pair, level) for pair in (WEAK, STRONG) for level in levels)
        assert terms[name].item() == pytest.approx(expected.item(), abs=1e-9)


def test_the_code_leaves_strong_views_out_and_weighs_the_weak_ones_by_the_shares_of_its_masks():
    terms = multi_level_terms(WEAK, STRONG, 4.0, "code")
    samples, classes = low_confidence_shares(TEACHER)
    levels = [4.0, 2.0, 3.0, 5.0, 6.0]
    weak = samples * sum(kd_loss(*WEAK, level) for level in levels)
    strong = sum(kd_loss(*STRONG, level) for level in (4.0, 3.0, 5.0))
    instead = sum(kd_loss(*WEAK, level) for level in (2.0, 6.0))
    assert terms["instance"].item() == pytest.approx((weak + strong + instead).item(), abs=1e-9)
    expected = samples * sum(batch_loss(*WEAK, level) for level in levels)
    assert terms["batch"].item() == pytest.approx(expected.item(), abs=1e-9)
    expected = classes * sum(class_loss(*WEAK, level) for level in levels)
    assert terms["class"].item() == pytest.approx(expected.item(), abs=1e-9)


def test_the_codes_masks_take_the_less_confident_half():
    samples, classes = low_confidence_shares(TEACHER)
    assert (samples.item(), classes.item()) == (0.5, 0.5)
    samples, _ = low_confidence_shares(torch.cat((TEACHER, TEACHER[:1])))
    assert samples.item() == pytest.approx(2 / 3)


def test_the_teacher_gets_no_gradient_and_both_views_of_the_student_do():
    own = [logits.clone().requires_grad_() for logits in (STUDENT, STUDENT.flip(1))]
    other = [logits.clone().requires_grad_() for logits in (TEACHER, TEACHER.flip(0))]
    for variant in ("paper", "code"):
        terms = multi_level_terms((own[0], other[0]), (own[1], other[1]), 4.0, variant)
        sum(terms.values()).backward()
    assert all(logits.grad.abs().sum() > 0 for logits in own)
    assert all(logits.grad is None for logits in other)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_far_margins_stay_finite(variant):
    student = torch.tensor([[60000, -60000, 0], [0, 60000, 1]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[-60000, 60000, 0], [60000, 0, 1]], dtype=torch.float16)
    total = sum(multi_level_terms((student, teacher), (student, teacher), 4.0, variant).values())
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


def test_a_step_sees_both_views_with_both_networks():
    student, teacher = network("resnet18"), network("resnet34", seed=1)
    mlkd = method("mlkd", context(student, teacher), variant="paper")
    assert mlkd.views == 2
    step = take_step(mlkd, student, teacher)
    own, views = batch(), (batch().view(0).images, batch().view(1).images)
    fresh = network("resnet18")
    weak, strong = fresh(torch.cat(views)).chunk(2)
    with torch.no_grad():
        seen = [teacher.eval()(images) for images in views]
    terms = multi_level_terms((weak, seen[0]), (strong, seen[1]), 4.0, "paper")
    entropies = [F.cross_entropy(logits, own.labels) for logits in (weak, strong)]
    expected = 0.1 * sum(entropies) + 0.9 * sum(terms.values())
    assert step.losses["main"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert step.terms["cross_entropy"].item() == pytest.approx(sum(entropies).item() / 2, rel=1e-5)
    torch.testing.assert_close(step.logits, weak.detach())
