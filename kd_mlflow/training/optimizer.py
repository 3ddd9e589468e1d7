"""Optimisers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kd_mlflow.config import Recipe
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


def build_optimizer(
    recipe: Recipe, student: Classifier, extra: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD over trunk, head and the method's own parameters.

    Each group carries a ``factor`` by which the rate of that group is multiplied: ``trunk_factor`` for
    what was there before the new head, 1 for the rest.
    """
    head = {id(parameter) for parameter in student.head_parameters()}
    trunk = [p for p in student.parameters() if p.requires_grad and id(p) not in head]
    fresh = [p for p in student.parameters() if p.requires_grad and id(p) in head] + list(extra)
    groups: list[dict[str, Any]] = [{"params": trunk, "factor": recipe.trunk_factor}, {"params": fresh, "factor": 1.0}]
    common = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": device.type in ("cpu", "cuda")}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum, **common)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, **common)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
