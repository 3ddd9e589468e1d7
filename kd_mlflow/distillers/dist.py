"""Distillation by correlation from a stronger teacher (Huang et al., NeurIPS 2022, arXiv 2205.10536)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, double_precision, full_precision
from kd_mlflow.distillers.gather import gathered
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs

EPSILON = 1e-8


@full_precision
def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two ``[N, M]``, ``[N]``; 0 where a row is constant."""
    first = first - first.mean(dim=1, keepdim=True)
    second = second - second.mean(dim=1, keepdim=True)
    return (first * second).sum(dim=1) / (first.norm(dim=1) * second.norm(dim=1) + EPSILON)


@double_precision
def inter_class_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """1 − mean correlation of the samples' probabilities over the classes, from ``[B, K]``, without T²."""
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return 1 - correlation(student, teacher).mean()


@double_precision
def intra_class_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """1 − mean correlation of the classes' probabilities over the batch, from ``[B, K]``, without T².

    With two samples every correlation is 1 or −1, whatever the distance, and there is no gradient to speak of.
    """
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return 1 - correlation(student.T, teacher.T).mean()


def _softened(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student = F.softmax(student_logits / temperature, dim=1)
    return student, F.softmax(teacher_logits.detach() / temperature, dim=1)


class DISTOptions(MethodOptions):
    """Options of DIST."""

    temperature: float = setting(4.0, "Temperature of both distributions; 1 on ImageNet.", gt=0)
    weight: float = setting(2.0, "Weight of both correlations together; 1 on the cross-entropy.", ge=0)
    beta: float = setting(1.0, "Weight of the correlation within samples, over the classes.", ge=0)
    gamma: float = setting(1.0, "Weight of the correlation within classes, over the batch.", ge=0)


class DIST(Distiller):
    """Probabilities that correlate with the teacher's, sample by sample and class by class, instead of equal ones."""

    source = Source(
        "Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS",
        2022,
        "authors' code",
        "2205.10536",
    )
    Options = DISTOptions
    learns_unlabeled = True
    relational = True
    limits = (
        "With two samples in a batch the correlation within classes says nothing, and with two classes that between "
        "them."
    )

    def __init__(self, context: Context, options: DISTOptions) -> None:
        super().__init__(context, options)
        self.weights = options

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """``inter`` and ``intra`` without T² and weights."""
        weights, temperature = self.weights, self.weights.temperature
        own, target = student.logits, teachers[0].logits
        cross_entropy = self.cross_entropy(own, labels)
        inter = inter_class_loss(own, target, temperature)
        # Over the batch of all processes: a class has few samples in a part of it.
        intra = intra_class_loss(gathered(own), gathered(target), temperature)
        relations = temperature**2 * (weights.beta * inter + weights.gamma * intra)
        terms = {"cross_entropy": cross_entropy, "inter": inter, "intra": intra}
        return cross_entropy + weights.weight * relations, terms
