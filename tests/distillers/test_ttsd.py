"""A temperature a class: golden values, whom the gradient reaches, how temperatures follow accuracy."""

from __future__ import annotations

import pytest
import torch

from kd_mlflow.distillers.base import Context, Distiller, Progress
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.registry import create
from kd_mlflow.distillers.ttsd import tailored_divergences, tailored_temperatures
from kd_mlflow.errors import InputError
from kd_mlflow.models.taps import Outputs
from tests.distillers.golden import LABELS, STUDENT, TEACHER

TEMPERATURES = torch.tensor([2.0, 4.0, 8.0, 4.0], dtype=torch.float64)
# With ten epochs and the share of 0.3 the temperatures are learned to the end of the third.
LEARNING, FOLLOWING = Progress(3, 10, 5, 2), Progress(4, 10, 7, 2)


def make(**options: object) -> Distiller:
    return create("ttsd", Context(4), {"ce_weight": 0.0, "kd_weight": 1.0, "ramp_epochs": 0, **options}).double()


def total(ttsd: Distiller, progress: Progress, student: torch.Tensor = STUDENT) -> torch.Tensor:
    return ttsd.loss(Outputs(student), [Outputs(TEACHER)], LABELS, progress)[0]


def test_samples_have_the_golden_values_at_the_temperatures_of_their_labels():
    found = tailored_divergences(STUDENT, TEACHER, LABELS, TEMPERATURES, "label", False)
    assert found.tolist() == pytest.approx([0.419227, 0.415421], abs=1e-6)
    assert found.mean().item() == pytest.approx(0.417324, abs=1e-6)


def test_elementwise_temperatures_have_the_golden_value():
    found = tailored_divergences(STUDENT, TEACHER, LABELS, TEMPERATURES, "elementwise", False)
    assert found.mean().item() == pytest.approx(0.870877, abs=1e-6)


@pytest.mark.parametrize("index", ["label", "elementwise"])
def test_equal_temperatures_are_plain_kd(index):
    ttsd = make(index=index, start=-2.0)
    expected = kd_loss(STUDENT, TEACHER, ttsd.temperatures()[0].item())
    assert total(ttsd, LEARNING).item() == pytest.approx(expected.item(), abs=1e-12)


def test_relabelling_the_classes_permutes_the_temperatures():
    order = torch.tensor([2, 0, 3, 1])
    place = order.argsort()
    for index in ("label", "elementwise"):
        plain = tailored_divergences(STUDENT, TEACHER, LABELS, TEMPERATURES, index, False)
        turned = tailored_divergences(
            STUDENT[:, order], TEACHER[:, order], place[LABELS], TEMPERATURES[order], index, False
        )
        torch.testing.assert_close(plain, turned)


def test_temperatures_start_midway_and_classes_that_are_absent_get_no_gradient():
    ttsd = make()
    assert ttsd.temperatures().tolist() == [11.0] * 4
    total(ttsd, LEARNING).backward()
    gradient = ttsd.temperatures.theta.grad
    assert gradient[[1, 3]].tolist() == [0.0, 0.0]
    assert (gradient[[0, 2]] > 0).all()


def test_the_reversed_gradient_is_that_of_the_divergence_alone_unless_the_factor_is_in_the_graph():
    slopes = {}
    for in_graph in (False, True):
        theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        tailored_divergences(STUDENT, TEACHER, LABELS, 1 + 20 * theta.sigmoid(), "label", in_graph).mean().backward()
        ttsd = make(t2_in_graph=in_graph)
        total(ttsd, LEARNING).backward()
        torch.testing.assert_close(ttsd.temperatures.theta.grad, -theta.grad)
        slopes[in_graph] = theta.grad
    assert (slopes[False][[0, 2]] < slopes[True][[0, 2]]).all()


def test_the_reversal_grows_over_its_epochs_and_the_student_does_not_feel_it():
    student = [STUDENT.clone().requires_grad_() for _ in range(2)]
    early, late = make(ramp_epochs=4), make()
    total(early, Progress(2, 10, 3, 2), student[0]).backward()
    total(late, LEARNING, student[1]).backward()
    torch.testing.assert_close(early.temperatures.theta.grad, late.temperatures.theta.grad / 2)
    assert torch.equal(student[0].grad, student[1].grad)


def test_after_their_share_of_the_epochs_the_temperatures_are_frozen():
    ttsd = make()
    assert (ttsd.learning(LEARNING), ttsd.learning(FOLLOWING)) == (True, False)
    student = STUDENT.clone().requires_grad_()
    total(ttsd, FOLLOWING, student).backward()
    assert ttsd.temperatures.theta.grad is None
    assert student.grad.abs().sum() > 0
    assert not make(learned_share=0.0).learning(Progress(1, 10, 0, 2))
    assert make(learned_share=1.0).learning(Progress(10, 10, 19, 2))


def test_harder_classes_become_softer_within_the_bounds():
    learned = torch.tensor([10.0, 10.0, 10.0, 20.9])
    accuracies = torch.tensor([0.9, 0.5, 0.1, 0.1])
    found = tailored_temperatures(learned, accuracies, 0.5, 1.0, 21.0)
    assert found.tolist() == pytest.approx([7.5, 9.5, 11.5, 21.0])
    assert tailored_temperatures(learned, accuracies, -0.5, 1.0, 21.0).tolist() == pytest.approx(
        [12.5, 10.5, 8.5, 20.9 * 0.85]
    )
    assert torch.equal(tailored_temperatures(learned, accuracies, 0.0, 1.0, 21.0), learned)


def test_classes_not_seen_yet_keep_their_temperature_and_are_not_in_the_average():
    learned = torch.full((3,), 10.0)
    found = tailored_temperatures(learned, torch.tensor([0.8, 0.4, -1.0]), 0.5, 1.0, 21.0)
    assert found.tolist() == pytest.approx([9.0, 11.0, 10.0])
    assert torch.equal(tailored_temperatures(learned, torch.full((3,), -1.0), 0.5, 1.0, 21.0), learned)


def test_accuracies_are_taken_in_at_the_first_step_of_the_next_epoch():
    ttsd = make()
    right, wrong = STUDENT.flip(0)[:1], STUDENT[:1]

    def count(logits: torch.Tensor, label: int, step: int) -> None:
        ttsd.follow(logits, torch.tensor([label]), Progress(step // 2 + 1, 10, step, 2))

    count(right, 2, 0)
    count(wrong, 2, 1)
    assert ttsd.accuracies.tolist() == [-1.0] * 4
    count(right, 2, 2)
    assert ttsd.accuracies.tolist() == [-1.0, -1.0, 0.5, -1.0]
    assert (ttsd.hits.tolist(), ttsd.counts.tolist()) == ([0, 0, 1, 0], [0, 0, 1, 0])
    count(wrong, 1, 3)
    count(wrong, 0, 4)
    assert ttsd.accuracies.tolist() == pytest.approx([-1.0, 1.0, 0.9 * 0.5 + 0.1, -1.0])


def test_accuracies_survive_a_checkpoint():
    ttsd, other = make(), make()
    for step in range(3):
        total(ttsd, Progress(step // 2 + 1, 10, step, 2))
    assert set(ttsd.state_dict()) == {"temperatures.theta", "accuracies", "hits", "counts"}
    other.load_state_dict(ttsd.state_dict())
    following = Progress(6, 10, 10, 2)
    assert torch.equal(total(ttsd, following), total(other, following))
    assert torch.equal(ttsd.current(following), other.current(following))
    # Of the classes seen, the second sample's was known and the first one's was not.
    current = ttsd.current(following)
    assert current[0] > current[1] > current[2]


def test_the_direction_is_an_option_and_kappa_of_nothing_freezes():
    found = {}
    for harder, kappa in (("softer", 0.5), ("sharper", 0.5), ("softer", 0.0)):
        ttsd = make(harder=harder, kappa=kappa)
        ttsd.accuracies.copy_(torch.tensor([0.2, 0.4, 0.6, 0.8]))
        found[harder, kappa] = ttsd.current(FOLLOWING)
    assert found["softer", 0.5][0] > 11 > found["softer", 0.5][3]
    assert found["sharper", 0.5][0] < 11 < found["sharper", 0.5][3]
    assert found["softer", 0.0].tolist() == [11.0] * 4


def test_theta_has_neither_momentum_nor_decay():
    ttsd = create("ttsd", Context(4), {})
    (group,) = ttsd.optimizer_groups()
    assert (group.name, group.kind, group.learning_rate) == ("temperature", "sgd", 0.05)
    assert (group.momentum, group.weight_decay) == (0.0, 0.0)
    assert ttsd.extra_parameters() == []


@pytest.mark.parametrize("index", ["label", "elementwise"])
def test_far_margins_stay_finite_and_the_teacher_gets_no_gradient(index):
    ttsd = create("ttsd", Context(3), {"index": index})
    student = torch.tensor([[60000, -60000, 0], [0, 60000, 1]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[-60000, 60000, 0], [60000, 0, 1]], dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms = ttsd.loss(Outputs(student), [Outputs(teacher)], torch.tensor([0, 1]), Progress(1, 10, 0, 2))
    loss.backward()
    assert loss.dtype == terms["temperature"].dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    assert torch.isfinite(ttsd.temperatures.theta.grad).all()
    assert teacher.grad is None


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(InputError, match="--ttsd-highest"):
        make(lowest=30.0)
