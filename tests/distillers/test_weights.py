"""The loss of each method is its terms under its own weights, taken where the method says."""

from __future__ import annotations

import pytest
import torch

from kd_mlflow.distillers.at import attention_loss
from kd_mlflow.distillers.matching import resized
from kd_mlflow.distillers.registry import create
from kd_mlflow.distillers.sp import similarity_loss
from kd_mlflow.models.taps import Tapped
from tests.distillers.networks import batch, context, network, take_step

PAIR = ("resnet34", "resnet18")


def stepped(method: str, *, epoch: int = 9, **options):
    """A step of the method with ResNets; also the distiller and the two networks in train and eval mode."""
    teacher, student = network(PAIR[0], seed=1), network(PAIR[1])
    teachers = [] if method == "dml" else [teacher]
    distiller = create(method, context(student, *teachers), options)
    trained = distiller.training_student(student)
    return take_step(distiller, trained, *teachers, epoch=epoch), distiller, trained, teacher


@pytest.mark.parametrize(
    ("method", "options", "weights"),
    [
        ("at", {"weight": 7.0}, {"attention": 7.0}),
        ("sp", {"weight": 7.0}, {"similarity": 7.0}),
        ("pkt", {"weight": 7.0}, {"transfer": 7.0}),
        (
            "rkd",
            {"distance_weight": 3.0, "angle_weight": 5.0, "ce_weight": 0.5},
            {"cross_entropy": 0.5, "distance": 3.0, "angle": 5.0},
        ),
        (
            "emkd",
            {"pmd_weight": 3.0, "imd_weight": 5.0, "ce_weight": 0.5},
            {"cross_entropy": 0.5, "kd": 3.0, "importance": 5.0},
        ),
        ("dml", {"weight": 3.0}, {"mutual": 3.0}),
        (
            "kdfm",
            {"kd_weight": 3.0, "regression_weight": 5.0, "adversarial_weight": 7.0, "adversarial_start": 0},
            {"kd": 3.0, "regression": 5.0, "adversarial": 7.0},
        ),
        ("kdfm", {"mode": "regression", "regression_weight": 3.0}, {"regression": 3.0}),
        ("kdfm", {"mode": "regression"}, {"regression": 1.0}),
        (
            "joint",
            {"weights": "static", "ce_weight": 0.5, "kd_weight": 3.0, "feature_weight": 5.0},
            {"cross_entropy": 0.5, "kd": 3.0, "feature": 5.0},
        ),
    ],
)
def test_the_loss_is_the_terms_under_their_weights(method, options, weights):
    step, *_ = stepped(method, **options)
    expected = sum(weight * step.terms[name] for name, weight in ({"cross_entropy": 1.0} | weights).items())
    assert step.losses["main"].item() == pytest.approx(float(expected), rel=1e-5)


def test_the_peers_of_dml_learn_from_labels_and_from_the_others():
    one, *_ = stepped("dml", weight=1.0)
    other, *_ = stepped("dml", weight=4.0)
    entropy = one.terms["peer_cross_entropy"]
    mutual = one.losses["peers"] - entropy
    assert mutual > 0
    assert (other.losses["peers"] - entropy).item() == pytest.approx(4 * mutual.item(), rel=1e-4)


def _stages(student, teacher):
    """The maps of both networks on the test batch, as a step sees them."""
    with torch.no_grad():
        own = Tapped(student, frozenset({"logits", "stages"}))(batch().images).stages
        goal = Tapped(teacher.eval(), frozenset({"logits", "stages"}))(batch().images).stages
    return own, goal


def test_attention_is_taken_at_every_stage_and_similarity_at_the_last():
    step, _, student, teacher = stepped("at")
    own, goal = _stages(student, teacher)
    places = len(goal)
    parts = [attention_loss(resized(own[p], goal[p].shape[2:]), goal[p]).item() for p in range(places)]
    assert places == 4
    assert float(step.terms["attention"]) == pytest.approx(sum(parts), rel=1e-3)
    step, _, student, teacher = stepped("sp")
    own, goal = _stages(student, teacher)
    assert float(step.terms["similarity"]) == pytest.approx(similarity_loss(own[-1], goal[-1]).item(), rel=1e-3)


def test_joint_compares_the_three_deepest_stages_of_each_teacher():
    _, joint, _, _ = stepped("joint")
    assert [len(connectors) for connectors in joint.connectors] == [3]


def test_kdfm_gives_the_discriminator_an_adam_of_its_own_that_no_schedule_touches():
    _, kdfm, _, _ = stepped("kdfm", discriminator_rate=3e-4)
    (group,) = [group for group in kdfm.optimizer_groups() if group.name == "discriminator"]
    assert (group.kind, group.learning_rate, group.scheduled) == ("adam", 3e-4, False)


def test_the_teacher_of_tskd_teaches_every_exit():
    weights = {"ce_weight": 0.0, "self_weight": 0.0, "feature_weight": 0.0, "teacher_weight": 1.0}
    _, _, student, _ = stepped("tskd", **weights)
    heads = {name.split(".")[0]: 0.0 for name, _ in student.exits.named_parameters()}
    for name, parameter in student.exits.named_parameters():
        if parameter.grad is not None:
            heads[name.split(".")[0]] += float(parameter.grad.abs().sum())
    assert all(value > 0 for value in heads.values())
