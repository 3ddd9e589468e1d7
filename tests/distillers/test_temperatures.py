"""Learned temperatures (CTKD, LT-KD and what they share): golden values, whom the gradient reaches and which way."""

from __future__ import annotations

import copy

import pytest
import torch

from kd_mlflow.distillers.base import Context, Distiller, Progress
from kd_mlflow.distillers.dkd import dkd_loss
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.registry import create
from kd_mlflow.distillers.temperatures import BoundedTemperature, reversal_factor, reverse_gradient, tempered_divergence
from kd_mlflow.errors import InputError
from kd_mlflow.models.taps import Outputs
from tests.distillers.golden import LABELS, STUDENT, TEACHER
from tests.distillers.networks import context, network, take_step

# After the ramp the gradient is reversed in full.
LATE = Progress(epoch=20, epochs=20, step=19, steps_per_epoch=1)
METHODS = ["ctkd", "ltkd"]


def make(name: str, own_context: Context | None = None, **options: object) -> Distiller:
    """The method in float64, with the distillation term alone unless weights are given."""
    return create(name, own_context or Context(4), {"ce_weight": 0.0, "kd_weight": 1.0, **options}).double()


def gradients(distiller: Distiller, progress: Progress = LATE) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The loss, its gradient at θ and that at the student's logits."""
    student = STUDENT.clone().requires_grad_()
    total, _ = distiller.loss(Outputs(student), [Outputs(TEACHER)], LABELS, progress)
    total.backward()
    return total.item(), distiller.temperature.theta.grad, student.grad


def test_reversal_leaves_values_and_turns_gradients():
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    reverse_gradient(values, 0.25).square().sum().backward()
    assert values.grad.tolist() == [-0.5, 1.0]
    assert torch.equal(reverse_gradient(values, 0.25), values)


def test_the_reversals_strength_grows_along_a_cosine():
    assert reversal_factor(1, 10) == pytest.approx(0.0245, abs=5e-5)
    assert [reversal_factor(epoch, 10) for epoch in (5, 10, 50)] == pytest.approx([0.5, 1.0, 1.0])
    assert reversal_factor(1, 0) == 1.0


@pytest.mark.parametrize("theta", [-1000.0, -2.0, 0.0, 1.0, 1000.0])
def test_the_temperature_stays_within_its_bounds(theta):
    assert 1.5 <= BoundedTemperature(1.5, 7.0, theta)().item() <= 7.0


@pytest.mark.parametrize(
    ("theta", "temperature", "loss", "slope"),
    [(1.0, 15.621172, 0.380331, -0.002966), (-2.0, 3.384058, 0.399100, 0.006074)],
)
def test_ctkd_has_the_golden_values(theta, temperature, loss, slope):
    ctkd = make("ctkd", start=theta)
    value, reversed_slope, _ = gradients(ctkd)
    assert ctkd.temperature().item() == pytest.approx(temperature, abs=1e-6)
    assert value == pytest.approx(loss, abs=1e-6)
    assert reversed_slope.item() == pytest.approx(-slope, abs=1e-6)


@pytest.mark.parametrize(("theta", "slope"), [(1.0, -0.194444), (-2.0, -0.489224)])
def test_ltkd_has_the_golden_gradient_and_a_step_lowers_the_temperature(theta, slope):
    ltkd = make("ltkd", start=theta)
    _, reversed_slope, _ = gradients(ltkd)
    assert reversed_slope.item() == pytest.approx(-slope, abs=1e-6)
    before = ltkd.temperature().item()
    (group,) = ltkd.optimizer_groups()
    torch.optim.SGD(group.parameters, lr=group.learning_rate, momentum=group.momentum).step()
    assert ltkd.temperature().item() < before


def test_ltkd_with_the_factor_in_the_graph_is_ctkd_and_its_difficulty_scales_the_reversal():
    (loss, slope, student), (other, other_slope, other_student) = (
        gradients(make("ctkd")),
        gradients(make("ltkd", t2_in_graph=True, difficulty=0.5)),
    )
    assert loss == other
    assert torch.equal(student, other_student)
    assert other_slope.item() == pytest.approx(slope.item() / 2)


@pytest.mark.parametrize("name", METHODS)
def test_the_student_does_not_feel_the_reversal_and_theta_feels_its_strength(name):
    found = [gradients(make(name), Progress(epoch, 20, epoch - 1, 1)) for epoch in (1, 5, 20)]
    assert all(torch.equal(student, found[0][2]) for _, _, student in found)
    full = found[2][1].item()
    assert found[1][1].item() == pytest.approx(full / 2)
    assert found[0][1].item() == pytest.approx(reversal_factor(1, 10) * full)


def test_without_reversal_theta_gets_nothing():
    assert gradients(make("ltkd", difficulty=0.0))[1].item() == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_a_frozen_temperature_is_plain_kd(name):
    distiller = make(name, start=-2.0)
    distiller.temperature.requires_grad_(False)
    student, plain = (STUDENT.clone().requires_grad_() for _ in range(2))
    total, terms = distiller.loss(Outputs(student), [Outputs(TEACHER)], LABELS, LATE)
    expected = kd_loss(plain, TEACHER, distiller.temperature().item())
    total.backward()
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(student.grad, plain.grad)
    assert terms["temperature"].item() == pytest.approx(3.384058, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_weights_follow_the_host(name):
    kd, dkd = create(name, Context(4), {}), create(name, Context(4), {"host": "dkd"})
    assert (kd.ce_weight, kd.kd_weight) == (0.1, 0.9)
    assert (dkd.ce_weight, dkd.kd_weight) == (1.0, 1.0)
    total, terms = kd.loss(Outputs(STUDENT), [Outputs(TEACHER)], LABELS, LATE)
    assert set(terms) == {"cross_entropy", "kd", "temperature"}
    assert total.item() == pytest.approx(0.1 * 0.865999 + 0.9 * 0.380331, abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_host_dkd_is_dkd_at_the_learned_temperature(name):
    distiller = make(name, host="dkd", beta=2.0, warmup_epochs=40, start=-2.0)
    loss, slope, _ = gradients(distiller)
    expected = dkd_loss(STUDENT, TEACHER, LABELS, distiller.temperature().item(), 1.0, 2.0) / 2
    assert loss == pytest.approx(expected.item(), abs=1e-12)
    assert slope.abs() > 0


def test_theta_is_a_group_of_its_own_without_decay():
    ctkd = create("ctkd", Context(4), {})
    (group,) = ctkd.optimizer_groups()
    assert (group.name, group.kind, group.learning_rate, group.momentum) == ("temperature", "sgd", 0.05, 0.9)
    assert group.weight_decay == 0.0
    assert group.scheduled
    assert ctkd.extra_parameters() == []
    assert list(ctkd.state_dict()) == ["temperature.theta"]
    other = create("ctkd", Context(4), {"start": 0.0})
    other.load_state_dict(ctkd.state_dict())
    assert other.temperature().item() == ctkd.temperature().item()


def test_a_temperature_for_each_sample_starts_equal_and_weighs_inside_the_mean():
    ctkd = make("ctkd", instance=True)
    total, terms = ctkd.loss(Outputs(STUDENT), [Outputs(TEACHER)], LABELS, LATE)
    assert total.item() == pytest.approx(0.380331, abs=1e-6)
    assert terms["temperature"].item() == pytest.approx(15.621172, abs=1e-6)
    torch.nn.init.normal_(ctkd.temperature.layers[2].weight)
    student = STUDENT.clone().requires_grad_()
    total, _ = ctkd.loss(Outputs(student), [Outputs(TEACHER)], LABELS, LATE)
    total.backward()
    own = ctkd.temperature(STUDENT, TEACHER).detach()
    assert own.shape == (2, 1)
    assert own[0] != own[1]
    expected = (own.flatten() ** 2 * tempered_divergence(STUDENT, TEACHER, own)).mean()
    assert total.item() == pytest.approx(expected.item(), abs=1e-12)
    assert all(parameter.grad.abs().sum() > 0 for parameter in ctkd.temperature.parameters())
    plain = STUDENT.clone().requires_grad_()
    (own.flatten() ** 2 * tempered_divergence(plain, TEACHER, own)).mean().backward()
    torch.testing.assert_close(student.grad, plain.grad)


@pytest.mark.parametrize("options", [{}, {"instance": True}, {"host": "dkd"}], ids=["kd", "instance", "dkd"])
def test_far_margins_stay_finite_under_autocast(options):
    ctkd = create("ctkd", Context(3), options)
    student = torch.tensor([[60000, -60000, 0], [0, 60000, 1]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[-60000, 60000, 0], [60000, 0, 1]], dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, terms = ctkd.loss(Outputs(student), [Outputs(teacher)], torch.tensor([0, 1]), LATE)
    total.backward()
    assert total.dtype == terms["temperature"].dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in ctkd.temperature.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_gets_no_gradient(name):
    teacher = TEACHER.clone().requires_grad_()
    for host in ("kd", "dkd"):
        own = make(name, host=host)
        own.loss(Outputs(STUDENT.clone().requires_grad_()), [Outputs(teacher)], LABELS, LATE)[0].backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", METHODS)
def test_bounds_in_the_wrong_order_are_refused(name):
    with pytest.raises(InputError, match=f"--{name}-highest"):
        create(name, Context(4), {"lowest": 5.0, "highest": 5.0})


@pytest.mark.parametrize("name", METHODS)
def test_the_host_vid_adds_its_term_on_the_stages(name):
    student, teacher = network("shufflenet_v2_x0_5"), network("resnet18", seed=1)
    own = create(name, context(student, teacher), {"host": "vid", "vid_weight": 0.5})
    assert own.needs == {"logits", "stages"}
    start = copy.deepcopy(own.temperature.theta.detach())
    step = take_step(own, student, teacher, epoch=20, epochs=20)
    terms = step.terms
    expected = 0.1 * terms["cross_entropy"] + 0.9 * terms["kd"] + 0.5 * terms["vid"]
    assert step.losses["main"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert own.temperature.theta.grad.abs() > 0
    assert torch.equal(own.temperature.theta, start)
    assert own.extra_parameters()
    assert all(parameter.grad is not None for parameter in own.extra_parameters())


@pytest.mark.parametrize("magnitude", [0.01, 1.0, 20.0, 100.0, 10000.0])
def test_a_samples_temperature_does_not_depend_on_the_scale_of_the_logits(magnitude):
    ctkd = make("ctkd", instance=True)
    torch.nn.init.normal_(ctkd.temperature.layers[2].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    plain = ctkd.temperature(STUDENT, TEACHER)
    large = ctkd.temperature(magnitude * STUDENT + 5.0, magnitude * TEACHER - 7.0)
    torch.testing.assert_close(large, plain, rtol=1e-6, atol=0)
    assert 1.01 < large.min().item() < large.max().item() < 20.99


@pytest.mark.parametrize("magnitude", [20.0, 100.0])
def test_a_samples_temperature_still_learns_from_large_logits(magnitude):
    ctkd = create("ctkd", Context(10), {"instance": True})
    sgd = torch.optim.SGD(ctkd.temperature.parameters(), lr=0.05, momentum=0.9)
    draw, slopes = torch.Generator().manual_seed(0), []
    for step in range(30):
        teacher = magnitude * torch.randn(64, 10, generator=draw)
        student = teacher + 0.5 * magnitude * torch.randn(64, 10, generator=draw)
        sgd.zero_grad()
        progress = Progress(epoch=1, epochs=50, step=step, steps_per_epoch=30)
        ctkd.loss(Outputs(student), [Outputs(teacher)], teacher.argmax(dim=1), progress)[0].backward()
        slopes.append(sum(float(parameter.grad.abs().sum()) for parameter in ctkd.temperature.parameters()))
        sgd.step()
    assert min(slopes) > 1e-4


def test_a_temperature_for_each_sample_is_called_a_reconstruction():
    assert create("ctkd", Context(4), {"instance": True}).source.evidence == "reconstruction"
    assert create("ctkd", Context(4), {}).source.evidence == "authors' code"


@pytest.mark.parametrize("name", METHODS)
def test_the_host_dkd_is_at_full_weight_from_the_first_epoch_with_beta_two(name):
    distiller = make(name, host="dkd")
    early, _, _ = gradients(distiller, Progress(epoch=3, epochs=240, step=2, steps_per_epoch=1))
    expected = dkd_loss(STUDENT, TEACHER, LABELS, distiller.temperature().item(), 1.0, 2.0)
    assert early == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_with_two_classes_the_host_dkd_says_that_beta_has_no_effect(name):
    assert create(name, Context(2), {"host": "dkd"}).notes(64) == [
        f"{name}: with two classes there is one class beside the label, so --{name}-beta has no effect."
    ]
    assert create(name, Context(3), {"host": "dkd"}).notes(64) == []
    assert create(name, Context(2), {}).notes(64) == []
