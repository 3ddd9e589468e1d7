"""Adaptive joint learning from outputs and middle maps (Sepahvand and Abdali-Mohammadi, Comput. Biol. Med. 2023).

A reconstruction from the abstract; the learned weights are those of Kendall, Gal and Cipolla (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.distillers.base import (
    Context,
    Distiller,
    ParameterGroup,
    Progress,
    Terms,
    at_least_float32,
    double_precision,
    full_precision,
)
from kd_mlflow.distillers.kd import soft_divergence
from kd_mlflow.distillers.matching import connector, networks_of, paired_stages, resized
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs

MAPS = 3


@full_precision
def learned_weighting(losses: Tensor, log_sigma: Tensor) -> Tensor:
    """Σ_j ℓ_j / (2 σ_j²) + log σ_j of ``[J]`` losses and ``[J]`` log σ (Kendall et al. 2018, equation 7)."""
    return (losses / (2 * (2 * log_sigma).exp()) + log_sigma).sum()


@double_precision
def weighted_teachers(logits: Tensor, labels: Tensor, temperature: float, weighting: str) -> Tensor:
    """Log of the teachers' mean softened probabilities ``[B, K]``, out of their logits ``[M, B, K]``.

    ``uniform`` weighs them the same, ``per_sample`` by softmax(−cross-entropy of each teacher) for every sample.
    """
    logits = logits.detach()
    softened = F.log_softmax(logits / temperature, dim=2)
    if weighting == "uniform":
        weights = torch.zeros(logits.shape[:2], dtype=softened.dtype, device=softened.device)
    else:
        right = F.log_softmax(logits, dim=2).gather(2, labels.expand(len(logits), -1)[..., None])
        weights = right[..., 0]
    return (softened + F.log_softmax(weights, dim=0)[..., None]).logsumexp(dim=0)


@double_precision
def weighted_teachers_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, weighting: str
) -> Tensor:
    """T² · KL(weighted mean of the teachers' softened probabilities ‖ p_s), averaged over the batch: a scalar.

    ``student_logits`` is ``[B, K]``; the rest as in :func:`weighted_teachers`.
    """
    target = weighted_teachers(teacher_logits, labels, temperature, weighting)
    return temperature**2 * soft_divergence(student_logits, target, temperature).mean()


class JointOptions(MethodOptions):
    """Options of joint learning."""

    weights: Literal["learned", "static"] = setting("learned", "Learn the terms' weights, or take those given.")
    ce_weight: float = setting(1.0, "Static weight of the cross-entropy.", ge=0)
    kd_weight: float = setting(1.0, "Static weight of the softened targets.", ge=0)
    feature_weight: float = setting(1.0, "Static weight of the middle maps.", ge=0)
    temperature: float = setting(4.0, "Temperature of both distributions.", gt=0)
    teacher_weights: Literal["uniform", "per_sample"] = setting(
        "uniform", "Several teachers the same, or for every sample by how well each knows its label."
    )


class Joint(Distiller):
    """Labels, outputs and middle maps of one or several teachers, with learned weights (reconstruction)."""

    source = Source(
        "Sepahvand, Abdali-Mohammadi: joint learning from final and middle layers, Comput. Biol. Med. 155",
        2023,
        "reconstruction",
    )
    Options = JointOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "stages"})
    teacher_count = (1, 99)

    def __init__(self, context: Context, options: JointOptions) -> None:
        super().__init__(context, options)
        student, _ = networks_of(context, "joint")
        pairs = [paired_stages(student, teacher, MAPS) for teacher in context.teachers]
        self.places = [[pair.place for pair in own] for own in pairs]
        self.connectors = nn.ModuleList(
            nn.ModuleList(connector(pair.student[0], pair.teacher[0]) for pair in own) for own in pairs
        )
        self.learns_unlabeled = options.teacher_weights == "uniform"
        learned = options.weights == "learned"
        self.log_sigma = nn.Parameter(torch.zeros(3)) if learned else None

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """The three terms under learned or static weights."""
        options = self.options
        taught = torch.stack([teacher.logits for teacher in teachers])
        terms = {
            "cross_entropy": self.cross_entropy(student.logits, labels),
            "kd": weighted_teachers_loss(student.logits, taught, labels, options.temperature, options.teacher_weights),
            "feature": self.feature(student, teachers),
        }
        losses = torch.stack([at_least_float32(term) for term in terms.values()])
        if self.log_sigma is not None:
            total = learned_weighting(losses, self.log_sigma)
            names = zip(("ce_sigma", "kd_sigma", "feature_sigma"), self.log_sigma.exp(), strict=True)
            return total, terms | dict(names)
        weights = (options.ce_weight, options.kd_weight, options.feature_weight)
        return sum(weight * loss for weight, loss in zip(weights, terms.values(), strict=True)), terms

    def feature(self, student: Outputs, teachers: Sequence[Outputs]) -> Tensor:
        """Squared differences of the deepest maps, summed over the stages, averaged over the teachers."""
        total = torch.zeros((), device=student.logits.device)
        for teacher, places, connectors in zip(teachers, self.places, self.connectors, strict=True):
            for place, connect in zip(places, connectors, strict=True):
                goal = teacher.stages[place]
                total = total + _difference(resized(connect(student.stages[place]), goal.shape[2:]), goal)
        return total / len(teachers)

    def optimizer_groups(self) -> list[ParameterGroup]:
        """The weights; decay would pull them to 1."""
        return [] if self.log_sigma is None else [ParameterGroup("weights", [self.log_sigma], weight_decay=0.0)]


@full_precision
def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student, teacher.detach())
