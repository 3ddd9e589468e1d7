"""Swapped blocks: who gets a gradient, how often, and the identities at both ends."""

from __future__ import annotations

import copy

import pytest
import torch

from kd_mlflow.distillers.base import Progress
from kd_mlflow.distillers.iakd import IAKD, pair_blocks, student_probability, swapped
from kd_mlflow.distillers.registry import create
from kd_mlflow.errors import InputError
from kd_mlflow.models.inference import freeze
from tests.distillers.networks import batch, context, network, take_step


def pair(
    student: str = "resnet18", teacher: str = "resnet34", **options
) -> tuple[IAKD, torch.nn.Module, torch.nn.Module]:
    own, other = network(student), freeze(network(teacher, seed=1))
    return create("iakd", context(own, other), options), own, other


def test_resnets_of_equal_widths_have_eight_pairs_split_as_described():
    iakd, student, teacher = pair()
    assert [len(one.student) for one in iakd.pairs] == [1] * 8
    assert [len(one.teacher) for one in iakd.pairs] == [1, 2, 2, 2, 3, 3, 1, 2]
    assert iakd.pairs[1].teacher == tuple(teacher.body.layer1[1:])
    assert iakd.pairs[6].student == (student.body.layer4[0],)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("mobilenet_v2", "resnet34"),
        ("resnet18", "resnet50"),
        ("shufflenet_v2_x0_5", "vgg11"),
        ("vgg11", "mobilenet_v2"),
    ],
)
def test_unequal_stages_are_refused_in_a_sentence(student, teacher):
    with pytest.raises(InputError, match=f"'{teacher}' and '{student}'"):
        pair(student, teacher)


def test_networks_of_features_swap_too():
    iakd, student, _ = pair("vgg11", "vgg13")
    assert len(iakd.pairs) == 6
    step = take_step(iakd, student, network("vgg13", seed=1))
    assert torch.isfinite(step.losses["main"])


def test_with_the_students_own_blocks_it_is_ordinary_training_bit_for_bit():
    iakd, student, _ = pair(start=1.0)
    plain = copy.deepcopy(student)
    step = take_step(iakd, student)
    loss = torch.nn.functional.cross_entropy(plain(batch().images), batch().labels)
    loss.backward()
    assert torch.equal(step.losses["main"], loss)
    for own, other in zip(student.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)
    for own, other in zip(student.buffers(), plain.buffers(), strict=True):
        assert torch.equal(own, other)


def test_with_the_teachers_blocks_it_is_stem_teacher_stages_and_head():
    iakd, student, teacher = pair(start=0.0)
    images = batch().images
    student.eval()
    with swapped(iakd.pairs, [False] * 8):
        hybrid = student(images)
    body = student.body
    maps = body.maxpool(body.relu(body.bn1(body.conv1(student.normalize(images)))))
    for layer in (teacher.body.layer1, teacher.body.layer2, teacher.body.layer3, teacher.body.layer4):
        maps = layer(maps)
    torch.testing.assert_close(hybrid, body.fc(body.avgpool(maps).flatten(1)))
    assert "forward" not in vars(student.body.layer1[0])


def test_swapped_out_blocks_get_no_gradient_and_those_before_them_do():
    iakd, student, teacher = pair()
    with swapped(iakd.pairs, [True, False] + [True] * 6):
        student(batch().images).sum().backward()
    grads = [any(p.grad is not None for module in one.student for p in module.parameters()) for one in iakd.pairs]
    assert grads == [True, False, True, True, True, True, True, True]
    assert all(parameter.grad is not None for parameter in student.body.layer1[0].parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert int(student.body.layer1[1].bn1.num_batches_tracked) == 0
    assert int(student.body.layer1[0].bn1.num_batches_tracked) == 1


def test_blocks_are_drawn_with_the_probability_and_by_seed_and_step_alone():
    iakd, _, _ = pair()
    draws = [iakd.own_blocks(Progress(1, 10, step, 50), 0.7) for step in range(2000)]
    share = torch.tensor(draws).double().mean().item()
    assert abs(share - 0.7) < 3 * (0.7 * 0.3 / 16000) ** 0.5
    assert iakd.own_blocks(Progress(9, 10, 17, 50), 0.7) == draws[17]


def test_schedules():
    assert [student_probability("uniform", 0.4, done) for done in (0.0, 0.9)] == [0.4, 0.4]
    assert [student_probability("linear", 0.5, done) for done in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]
    review = [student_probability("review", 0.5, done, (0.0, 0.5)) for done in (0.0, 0.25, 0.5, 0.75)]
    assert review == [0.5, 0.75, 0.5, 0.75]
    iakd, _, _ = pair(schedule="uniform")
    assert iakd.probability(Progress(9, 10, 8 * 5, 5)) == 0.5
    assert iakd.probability(Progress(10, 10, 9 * 5, 5)) == 1.0
    phases, _, _ = pair(schedule="review", phase_epochs="3,6", final_share=0.0)
    assert phases.probability(Progress(4, 9, 3 * 5, 5)) == 0.5


def test_the_teacher_teaches_by_its_logits_as_well_if_asked():
    iakd, student, teacher = pair(kd_weight=0.5)
    step = take_step(iakd, student, teacher)
    expected = step.terms["cross_entropy"] + 0.5 * step.terms["kd"]
    assert step.losses["main"].item() == pytest.approx(expected.item())
    assert pair_blocks(student, teacher)[0].student == iakd.pairs[0].student


@pytest.mark.parametrize(("epochs", "options"), [(1, {}), (5, {"final_share": 1.0}), (2, {"final_share": 0.6})])
def test_a_schedule_without_swaps_is_refused(epochs, options):
    iakd, _, _ = pair(**options)
    with pytest.raises(InputError, match=f"swaps no block in {epochs} epochs"):
        iakd.check_epochs(epochs)


def test_two_epochs_are_enough_to_swap():
    iakd, _, _ = pair()
    iakd.check_epochs(2)
    assert iakd.probability(Progress(1, 2, 0, 5)) == 0.5
    assert iakd.probability(Progress(2, 2, 5, 5)) == 1.0


@pytest.mark.parametrize("phases", ["60,30", "30,30", "0,30"])
def test_phases_out_of_order_are_refused(phases):
    with pytest.raises(InputError, match=r"--iakd-phase-epochs.*ascend"):
        pair(schedule="review", phase_epochs=phases)


def test_a_phase_that_never_begins_is_refused():
    iakd, _, _ = pair(schedule="review", phase_epochs="30,60")
    iakd.check_epochs(100)
    with pytest.raises(InputError, match=r"--iakd-phase-epochs 60 never begins.*first 45 of 50"):
        iakd.check_epochs(50)
