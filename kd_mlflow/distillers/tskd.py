"""Teacher-student collaborative distillation with a multi-exit student (Xu et al., Applied Intelligence 2022).

A reconstruction: the abstract names the multi-exit student that learns from a teacher and from itself, and
the vote of the exits; branches and weights follow BYOT.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Context, Terms, full_precision
from kd_mlflow.distillers.byot import Deploy, ExitDistiller
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.exits import ExitOutputs


@full_precision
def feature_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of ``[B, D]``; the target gets no gradient."""
    return F.mse_loss(features, target.detach())


class TSKDOptions(MethodOptions):
    """Options of TSKD."""

    temperature: float = setting(3.0, "Temperature of all softened distributions.", gt=0)
    ce_weight: float = setting(0.5, "Weight of the labels, at every exit.", ge=0)
    teacher_weight: float = setting(0.4, "Weight of the teacher's distribution, at every exit.", ge=0)
    self_weight: float = setting(0.1, "Weight of the deepest exit's distribution, at the others.", ge=0)
    feature_weight: float = setting(0.07, "Weight of the deepest exit's features, at the others.", ge=0)
    deploy: Deploy = setting("final", "What is kept: the plain student, a vote of all exits, or one exit.")


class TSKD(ExitDistiller):
    """A student with exits learns from a teacher and from its own deepest exit (reconstruction)."""

    source = Source(
        "C. Xu et al.: Teacher-student collaborative knowledge distillation, Applied Intelligence",
        2022,
        "reconstruction",
    )
    Options = TSKDOptions
    learns_unlabeled = True
    limits = "The student needs stages of maps to put exits at."

    def __init__(self, context: Context, options: TSKDOptions) -> None:
        super().__init__(context, options, options.deploy)
        self.weights = options

    def exit_loss(self, exits: ExitOutputs, targets: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Terms]:
        """Labels and teacher at every exit, the deepest exit's distribution and features at the others."""
        weights, temperature = self.weights, self.weights.temperature
        *earlier, last = exits.logits
        *features, target = exits.features
        zero = torch.zeros((), device=last.device)
        entropies = self.mean_entropy(exits, labels)
        taught = sum((kd_loss(logits, targets[0], temperature) for logits in exits.logits), zero)
        own = sum((kd_loss(logits, last, temperature) for logits in earlier), zero)
        hint = sum((feature_loss(feature, target) for feature in features), zero)
        total = weights.ce_weight * sum(entropies) + weights.teacher_weight * taught
        total = total + weights.self_weight * own + weights.feature_weight * hint
        return total, {"cross_entropy": entropies[-1], "kd": taught, "self_distillation": own, "feature": hint}
