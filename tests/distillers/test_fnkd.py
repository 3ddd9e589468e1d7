"""Feature norms as temperatures: golden values, the projection of the gradient, both readings on real networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.fnkd import bounded_logits, divided_logits, soft_cross_entropy
from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier, LinearHead, ModelSpec
from kd_mlflow.models.taps import Outputs
from tests.distillers.golden import PROGRESS, method
from tests.distillers.networks import batch, context, network, take_step

OWN = torch.tensor([[3, 4, 0], [1, 2, 2]], dtype=torch.float64)
OTHER = torch.tensor([[6, 8, 0], [2, 0, 0]], dtype=torch.float64)
OWN_WEIGHT = torch.tensor([[0.2, 0.1, 0], [0, 0.3, 0.1], [0.1, -0.2, 0.4]], dtype=torch.float64)
OTHER_WEIGHT = torch.tensor([[0.3, 0.1, 0.2], [-0.1, 0.2, 0], [0, 0.1, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])
BIAS = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)


def bare(weight: Tensor) -> Classifier:
    """A network that is its classifier layer."""
    head = LinearHead(3, 3, bias=False).double()
    head.weight = nn.Parameter(weight.clone())
    spec = ModelSpec(architecture="bare", classes=("a", "b", "c"), image_size=1, mean=(0.5,) * 3, std=(0.2,) * 3)
    return Classifier(spec, nn.Sequential(head))


class Given:
    """A tapped network whose features are given."""

    def __init__(self, model: Classifier, features: Tensor) -> None:
        self.model = model
        self.features = features

    def __call__(self, images: Tensor | Batch) -> Outputs:
        return Outputs(F.linear(self.features, self.model.head.weight), self.features)


def golden_step(variant: str):
    student, teacher = bare(OWN_WEIGHT), bare(OTHER_WEIGHT)
    fnkd = method("fnkd", Context(3, student=student, teachers=(teacher,)), variant=variant)
    images = Batch(torch.zeros(2, 3, 1, 1), LABELS, torch.arange(2))
    return fnkd.step(images, Given(student, OWN), [Given(teacher, OTHER)], PROGRESS)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_both_readings_have_the_golden_values_without_bias_and_with_norms_above_the_bound(variant):
    step = golden_step(variant)
    assert step.losses["main"].item() == pytest.approx(11.032237, abs=1e-6)
    assert step.terms["cross_entropy"].item() == pytest.approx((0.893854 + 0.880099) / 2, abs=1e-6)
    assert step.terms["soft"].item() == pytest.approx((1.116519 + 1.137983) / 2, abs=1e-6)
    assert step.terms["student_norm"].item() == pytest.approx(4.0)
    assert step.terms["teacher_norm"].item() == pytest.approx(6.0)


def test_samples_have_the_golden_values():
    own, other = F.linear(OWN, OWN_WEIGHT), F.linear(OTHER, OTHER_WEIGHT)
    hard = F.cross_entropy(own, LABELS, reduction="none")
    assert hard.tolist() == pytest.approx([0.893854, 0.880099], abs=1e-6)
    divided = soft_cross_entropy(divided_logits(own, OWN, 2.0), divided_logits(other, OTHER, 2.0))
    assert divided.tolist() == pytest.approx([1.116519, 1.137983], abs=1e-6)
    bounded = [
        bounded_logits(features, weight, None, 2.0) for features, weight in ((OWN, OWN_WEIGHT), (OTHER, OTHER_WEIGHT))
    ]
    assert soft_cross_entropy(*bounded).tolist() == pytest.approx([1.116519, 1.137983], abs=1e-6)


def test_with_equal_norms_it_is_the_cross_entropy_of_kd_at_their_ratio_to_the_bound():
    radius, norm_bound = 5.0, 2.0
    own, other = (radius * F.normalize(features, dim=1) for features in (OWN, OTHER))
    own_logits, other_logits = F.linear(own, OWN_WEIGHT), F.linear(other, OTHER_WEIGHT)
    soft = soft_cross_entropy(
        divided_logits(own_logits, own, norm_bound), divided_logits(other_logits, other, norm_bound)
    )
    temperature = radius / norm_bound
    target = F.softmax(other_logits / temperature, dim=1)
    expected = F.cross_entropy(own_logits / temperature, target, reduction="none")
    torch.testing.assert_close(soft, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("variant", "bias"), [("paper", None), ("code", None), ("code", BIAS)])
def test_the_soft_terms_gradient_is_orthogonal_to_the_feature(variant, bias):
    own = OWN.clone().requires_grad_()
    if variant == "code":
        logits = bounded_logits(own, OWN_WEIGHT, bias, 2.0)
    else:
        logits = divided_logits(F.linear(own, OWN_WEIGHT, bias), own, 2.0)
    soft_cross_entropy(logits, F.linear(OTHER, OTHER_WEIGHT)).sum().backward()
    assert own.grad.abs().max() > 1e-3
    assert (own.grad * OWN).sum(dim=1).tolist() == pytest.approx([0, 0], abs=1e-12)


def test_the_logit_gradient_falls_with_the_norm():
    target, slopes = F.linear(OTHER, OTHER_WEIGHT), []
    for factor in (1.0, 2.0):
        # Features of twice the norm, held fixed, and logits that come out the same after division.
        logits = (factor * F.linear(OWN, OWN_WEIGHT)).requires_grad_()
        soft_cross_entropy(divided_logits(logits, factor * OWN, 2.0), target).sum().backward()
        slopes.append(logits.grad)
    torch.testing.assert_close(slopes[1], slopes[0] / 2)


def test_the_code_leaves_short_features_alone_and_does_not_scale_the_bias():
    short = 0.1 * OWN
    torch.testing.assert_close(bounded_logits(short, OWN_WEIGHT, BIAS, 2.0), F.linear(short, OWN_WEIGHT, BIAS))
    scaled = bounded_logits(OWN, OWN_WEIGHT, BIAS, 2.0)
    torch.testing.assert_close(scaled - BIAS, F.linear(2.0 * F.normalize(OWN, dim=1), OWN_WEIGHT))


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_half_precision_and_features_of_nothing_stay_finite(variant):
    logits = torch.tensor([[60000, -60000, 0], [0, 60000, 1]], dtype=torch.float16, requires_grad=True)
    features = torch.tensor([[60000, 60000, 60000], [0, 0, 0]], dtype=torch.float16, requires_grad=True)
    if variant == "code":
        tempered = bounded_logits(features, torch.full((3, 3), 60000.0), None, 2.0)
    else:
        tempered = divided_logits(logits, features, 2.0)
    soft = soft_cross_entropy(tempered, -logits.detach())
    assert soft.dtype == torch.float32
    assert torch.isfinite(soft).all()
    soft[:1].sum().backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [("shufflenet_v2_x0_5", "resnet18"), ("squeezenet1_1", "resnet18"), ("resnet18", "mobilenet_v3_small")],
)
def test_a_step_teaches_networks_of_any_width(variant, student, teacher):
    own, other = network(student), network(teacher, seed=1)
    step = take_step(method("fnkd", context(own, other), variant=variant), own, other)
    expected = step.terms["cross_entropy"] + 9 * step.terms["soft"]
    assert step.losses["main"].item() == pytest.approx(expected.item())
    assert own.head.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in other.parameters())


def test_features_within_the_bound_give_the_networks_own_logits():
    own, other = network("resnet18"), network("resnet18", seed=1)
    step = take_step(method("fnkd", context(own, other), norm_bound=1e6), own, other)
    with torch.no_grad():
        target = other.eval()(batch().images)
    expected = soft_cross_entropy(step.logits, target).mean()
    assert step.terms["soft"].item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_networks_are_no_part_of_the_method():
    own, other = network("resnet18"), network("resnet18", seed=1)
    assert list(method("fnkd", context(own, other)).parameters()) == []


def test_networks_without_a_classifier_layer_are_refused():
    own, other = network("resnet18"), network("resnet18", seed=1)
    headless = network("resnet18")
    headless.body.fc = nn.Linear(512, 3)
    for pair in (context(headless, other), context(own, headless)):
        with pytest.raises(InputError, match="no classifier layer"):
            method("fnkd", pair)
    with pytest.raises(InputError, match="not known"):
        method("fnkd", replace(context(own), teachers=()))
