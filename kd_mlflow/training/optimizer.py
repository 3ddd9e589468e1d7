"""Optimisers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from kd_mlflow.config import Recipe
from kd_mlflow.distillers.base import Distiller, ParameterGroup
from kd_mlflow.models.classifier import Classifier


def rate_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate at a step as a factor of the recipe's.

    Schedules ``step`` and ``multistep`` fall at the start of an epoch, ``cosine`` falls every step to 0
    after the last one. During warm-up the factor rises linearly and ends at 1.

    Parameters
    ----------
    step:
        Steps already taken, from 0.
    steps_per_epoch:
        Steps in one pass over the training split.
    """
    warmup = recipe.warmup_epochs * steps_per_epoch
    ramp = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    epoch = step // steps_per_epoch
    if recipe.schedule == "step":
        return ramp * recipe.gamma ** (epoch // recipe.step_size)
    if recipe.schedule == "multistep":
        return ramp * recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)
    if recipe.schedule == "cosine":
        total = max(1.0, recipe.epochs * steps_per_epoch - warmup)
        done = min(1.0, max(0.0, (step - warmup) / total))
        return ramp * 0.5 * (1.0 + math.cos(math.pi * done))
    return ramp


def build_optimizers(
    recipe: Recipe, student: Classifier, distiller: Distiller, device: torch.device
) -> dict[str, torch.optim.Optimizer]:
    """One optimiser for student and method under ``main``, and one for each group that the method sets apart.

    Each group of parameters carries its ``base`` rate, and whether that follows the schedule.
    ``trunk_factor`` slows what was there before the new head.
    """
    head = {id(parameter) for parameter in student.head_parameters()}
    trunk = [p for p in student.parameters() if p.requires_grad and id(p) not in head]
    fresh = [p for p in student.parameters() if p.requires_grad and id(p) in head]
    fresh += [p for p in distiller.extra_parameters() if p.requires_grad]
    main = [
        {"params": trunk, "base": recipe.learning_rate * recipe.trunk_factor},
        {"params": fresh, "base": recipe.learning_rate},
    ]
    made = {"main": _optimizer(recipe, recipe.optimizer, main, device)}
    for group in distiller.optimizer_groups():
        made[group.name] = _group_optimizer(recipe, group, device)
    return made


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Give every group its base rate, times the schedule's factor where it follows that."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * (factor if group["scheduled"] else 1.0)


def _group_optimizer(recipe: Recipe, group: ParameterGroup, device: torch.device) -> torch.optim.Optimizer:
    own = {"weight_decay": group.weight_decay, "momentum": group.momentum, "betas": group.betas}
    rate = recipe.learning_rate if group.learning_rate is None else group.learning_rate
    parameters = [{"params": list(group.parameters), "base": rate, "scheduled": group.scheduled}]
    given = {name: value for name, value in own.items() if value is not None}
    return _optimizer(recipe, group.kind or recipe.optimizer, parameters, device, **given)


def _optimizer(
    recipe: Recipe, kind: str, groups: list[dict[str, Any]], device: torch.device, **own: Any
) -> torch.optim.Optimizer:
    given = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": device.type in ("cpu", "cuda")}
    if kind == "sgd":
        given["momentum"] = recipe.momentum
    given |= {name: value for name, value in own.items() if name != ("betas" if kind == "sgd" else "momentum")}
    groups = [{"scheduled": True, **group} for group in groups]
    return {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](groups, **given)
