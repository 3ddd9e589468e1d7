"""What learned temperatures share: gradient reversal, bounds, the reversal's schedule, the divergence."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.distillers.base import double_precision, full_precision
from kd_mlflow.distillers.kd import soft_divergence
from kd_mlflow.errors import InputError

HIDDEN = 128
# Less than the variance of any logits that are not all equal.
TINY = 1e-12


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.factor * gradient, None


def reverse_gradient(values: Tensor, factor: float) -> Tensor:
    """The values as they are; their gradient times −factor (Ganin and Lempitsky 2015's reversal layer)."""
    return _Reversal.apply(values, factor)


def reversal_factor(epoch: int, ramp_epochs: int) -> float:
    """λ(e) = ½ (1 − cos(π · min(e, E) / E)): how strongly the gradient is reversed in epoch e, from 1; 1 for E = 0."""
    if not ramp_epochs:
        return 1.0
    return 0.5 * (1.0 - math.cos(math.pi * min(epoch, ramp_epochs) / ramp_epochs))


@double_precision
def tempered_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """KL(p_t ‖ p_s) of each sample ``[B]`` in nats, without T²; a temperature's gradient comes from both networks.

    ``temperature`` broadcasts against the logits ``[B, K]``; the teacher's logits get no gradient.
    """
    target = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return soft_divergence(student_logits, target, temperature)


class BoundedTemperature(nn.Module):
    """T = lowest + (highest − lowest) · σ(θ), of one θ or of one a class.

    Parameters
    ----------
    start:
        θ before the first step.
    classes:
        The length of θ; None for a single number.
    """

    def __init__(self, lowest: float, highest: float, start: float, classes: int | None = None) -> None:
        super().__init__()
        self.lowest = lowest
        self.highest = highest
        self.theta = nn.Parameter(torch.full(() if classes is None else (classes,), start))

    def forward(self) -> Tensor:
        """T, shaped like θ."""
        return bounded(self.theta, self.lowest, self.highest)


class InstanceTemperature(nn.Module):
    """A temperature for each sample, from the logits of both networks.

    The layers see each network's logits less their mean and over their standard deviation: raw logits of 20
    and more would drive θ into the sigmoid's flat ends, where no gradient brings it back. The last layer
    starts at weights 0 and bias θ, so that training starts from one temperature for all. The paper names
    such a form without its layers, and the authors' code has none: this is a reconstruction.
    """

    def __init__(self, lowest: float, highest: float, start: float, num_classes: int) -> None:
        super().__init__()
        self.lowest = lowest
        self.highest = highest
        self.layers = nn.Sequential(nn.Linear(2 * num_classes, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        nn.init.zeros_(self.layers[2].weight)
        nn.init.constant_(self.layers[2].bias, start)

    @full_precision
    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """T ``[B, 1]`` from logits ``[B, K]``, which get no gradient by this way."""
        shape = teacher_logits.shape[1:]
        both = torch.cat(
            [F.layer_norm(logits.detach(), shape, eps=TINY) for logits in (teacher_logits, student_logits)], dim=1
        )
        return bounded(self.layers(both.to(self.layers[0].weight.dtype)), self.lowest, self.highest)


def bounded(theta: Tensor, lowest: float, highest: float) -> Tensor:
    """θ of any size and shape mapped into the bounds."""
    return lowest + (highest - lowest) * torch.sigmoid(theta)


def require_bounds(method: str, lowest: float, highest: float) -> None:
    """Refuse bounds of a temperature in the wrong order.

    Raises
    ------
    InputError
        The upper bound is not above the lower.
    """
    if highest <= lowest:
        raise InputError(f"--{method}-highest is {highest}, which is not above --{method}-lowest, {lowest}.")
