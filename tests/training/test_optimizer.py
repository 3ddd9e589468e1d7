"""The learning rate is a function of the step; every parameter is in one group."""

from __future__ import annotations

import pytest
import torch

from kd_mlflow.config import StudentConfig, recipe, resolve
from kd_mlflow.distillers.base import Context, Distiller, ParameterGroup
from kd_mlflow.distillers.options import MethodOptions
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.zoo import build
from kd_mlflow.training.optimizer import build_optimizers, rate_factor, set_rates


def plan(**given):
    return recipe(resolve(StudentConfig, {"data": "photos", **given}), "control", "float32")


def test_step_schedule_of_the_source_report_falls_tenfold_every_ten_epochs():
    factors = [rate_factor(plan(), epoch * 7, 7) for epoch in (0, 9, 10, 19, 20, 49)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 1e-4])


def test_multistep_falls_at_its_milestones():
    own = plan(schedule="multistep", milestones=(2, 4), gamma=0.5)
    assert [rate_factor(own, step, 1) for step in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_warm_up_rises_to_one_and_cosine_ends_at_zero():
    own = plan(schedule="cosine", warmup_epochs=1, epochs=5)
    assert [rate_factor(own, step, 4) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rate_factor(own, 12, 4) == pytest.approx(0.5)
    assert rate_factor(own, 20, 4) == pytest.approx(0.0)


def test_constant_stays():
    assert rate_factor(plan(schedule="constant"), 999, 3) == 1.0


class Extra(Distiller):
    """A method that learns two things, one of them with an optimiser of its own."""

    def __init__(self, **own) -> None:
        super().__init__(Context(2), MethodOptions())
        self.connector = torch.nn.Parameter(torch.zeros(3))
        self.apart = torch.nn.Parameter(torch.zeros(1))
        self.own = own

    def optimizer_groups(self):
        return [ParameterGroup("apart", [self.apart], **self.own)]


def network() -> Classifier:
    spec = ModelSpec(
        architecture="shufflenet_v2_x0_5", classes=("a", "b"), image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    return build(spec, seed=0)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_trunk_gets_its_share_and_every_parameter_one_group(name):
    model, extra = network(), Extra()
    own = plan(optimizer=name, learning_rate=2.0, trunk_factor=0.1)
    optimizers = build_optimizers(own, model, extra, torch.device("cpu"))
    set_rates(optimizers.values(), 0.5)
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    fresh = {id(p) for p in [*model.head_parameters(), extra.connector, extra.apart]}
    assert len(rates) == len(list(model.parameters())) + 2
    assert {rate for key, rate in rates.items() if key in fresh} == {1.0}
    assert {rate for key, rate in rates.items() if key not in fresh} == {0.1}


def test_a_group_of_its_own_has_its_own_optimiser_and_rate():
    extra = Extra(kind="adam", learning_rate=2e-4, scheduled=False, weight_decay=0.0, betas=(0.5, 0.999))
    made = build_optimizers(plan(optimizer="sgd", weight_decay=0.1), network(), extra, torch.device("cpu"))
    set_rates(made.values(), 0.25)
    (group,) = made["apart"].param_groups
    assert isinstance(made["apart"], torch.optim.Adam)
    assert isinstance(made["main"], torch.optim.SGD)
    assert (group["lr"], group["weight_decay"], group["betas"]) == (2e-4, 0.0, (0.5, 0.999))
    assert [g["weight_decay"] for g in made["main"].param_groups] == [0.1, 0.1]
    without = Extra(kind="sgd", momentum=0.0, weight_decay=0.0)
    made = build_optimizers(plan(optimizer="sgd", learning_rate=0.2), network(), without, torch.device("cpu"))
    set_rates(made.values(), 0.5)
    assert (made["apart"].param_groups[0]["momentum"], made["apart"].param_groups[0]["lr"]) == (0.0, 0.1)
