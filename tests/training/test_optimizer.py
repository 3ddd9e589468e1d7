"""The learning rate is a function of the step; every parameter is in one group."""

from __future__ import annotations

import pytest
import torch

from kd_mlflow.config import StudentConfig, recipe, resolve
from kd_mlflow.models.classifier import ModelSpec
from kd_mlflow.models.zoo import build
from kd_mlflow.training.optimizer import build_optimizer, rate_factor, set_rate


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


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_trunk_gets_its_share_and_every_parameter_one_group(name):
    spec = ModelSpec(
        architecture="shufflenet_v2_x0_5", classes=("a", "b"), image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    model = build(spec, seed=0)
    extra = torch.nn.Parameter(torch.zeros(3))
    optimizer = build_optimizer(plan(optimizer=name, trunk_factor=0.1), model, [extra], torch.device("cpu"))
    set_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    head = {id(p) for p in model.head_parameters()} | {id(extra)}
    assert len(rates) == len(list(model.parameters())) + 1
    assert {rate for key, rate in rates.items() if key in head} == {0.5}
    assert {rate for key, rate in rates.items() if key not in head} == {0.05}
