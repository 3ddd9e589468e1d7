"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, double_precision
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.errors import InputError
from kd_mlflow.models.taps import Outputs

TWO_CLASSES = "{0}: with two classes there is one class beside the label, so --{0}-beta has no effect."


@double_precision
def decoupled_divergences(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The two parts of the divergence, each ``[B]`` in nats, without T².

    The target part is KL(b_t ‖ b_s) of the label's softened probability against all others together,
    b = (p_y, 1 − p_y). The other is KL(p̂_t ‖ p̂_s) among the classes that are not the label. The plain
    divergence of a sample is ``target + (1 − p_t,y) · others``.

    Parameters
    ----------
    student_logits, teacher_logits:
        ``[B, K]``, at least two classes; the teacher's get no gradient.
    labels:
        ``[B]``, int64.
    temperature:
        T > 0: a number, or a tensor that broadcasts against ``[B, K]``.
    """
    student = student_logits / temperature
    teacher = teacher_logits.detach() / temperature
    target = F.kl_div(_binary(student, labels), _binary(teacher, labels), reduction="none", log_target=True)
    student_rest = F.log_softmax(_others(student, labels), dim=1)
    teacher_rest = F.log_softmax(_others(teacher, labels), dim=1)
    others = F.kl_div(student_rest, teacher_rest, reduction="none", log_target=True)
    return target.sum(dim=1), others.sum(dim=1)


@double_precision
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    alpha: float,
    beta: float,
) -> Tensor:
    """T² · mean over the batch of alpha · target part + beta · the others', a scalar in nats."""
    target, others = decoupled_divergences(student_logits, teacher_logits, labels, temperature)
    return (temperature**2 * (alpha * target + beta * others)).mean()


def require_two_classes(context: Context, method: str) -> None:
    """Refuse a single class, which has no others.

    Raises
    ------
    InputError
        There are fewer than two classes.
    """
    if context.num_classes < 2:
        raise InputError(f"The method '{method}' tells a class from all others; it needs at least two classes.")


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p_y, 1 − p_y), ``[B, 2]``; the second from the other logits, since 1 − p_y rounds to nothing."""
    log_probabilities = F.log_softmax(logits, dim=1)
    label = log_probabilities.gather(1, labels[:, None])
    return torch.cat((label, _others(log_probabilities, labels).logsumexp(dim=1, keepdim=True)), dim=1)


def _others(values: Tensor, labels: Tensor) -> Tensor:
    """The columns but the label's, ``[B, K − 1]``."""
    columns = torch.arange(values.shape[1] - 1, device=values.device).expand(len(labels), -1)
    return values.gather(1, columns + (columns >= labels[:, None]))


class DKDOptions(MethodOptions):
    """Options of DKD."""

    temperature: float = setting(4.0, "Temperature of both distributions; 1 on ImageNet.", gt=0)
    alpha: float = setting(1.0, "Weight of the label's probability against all others together.", ge=0)
    beta: float = setting(
        8.0, "Weight of the distribution among the others: 0.5 to 8 by the pair of networks; 0.5 on ImageNet.", ge=0
    )
    ce_weight: float = setting(1.0, "Weight of the cross-entropy.", ge=0)
    warmup_epochs: int = setting(20, "Epochs over which the distillation term grows to full; 1 on ImageNet.", ge=0)


class DKD(Distiller):
    """The divergence from the teacher split at the label, so that what it says of the other classes weighs more."""

    source = Source(
        "Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR", 2022, "authors' code", "2203.08679"
    )
    Options = DKDOptions
    limits = (
        "The divergence is split at the label, so it cannot be used with mixed labels; with two classes there is one "
        "other class and beta does nothing."
    )

    def __init__(self, context: Context, options: DKDOptions) -> None:
        super().__init__(context, options)
        require_two_classes(context, "dkd")
        self.num_classes = context.num_classes
        self.weights = options

    def notes(self, batch_size: int) -> list[str]:
        """That beta does nothing with two classes."""
        return [TWO_CLASSES.format("dkd")] if self.num_classes == 2 else []

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """``tckd`` and ``nckd`` are the two parts, with T² but unweighted."""
        weights, squared = self.weights, self.weights.temperature**2
        parts = decoupled_divergences(student.logits, teachers[0].logits, labels, weights.temperature)
        tckd, nckd = (squared * part.mean() for part in parts)
        cross_entropy = self.cross_entropy(student.logits, labels)
        dkd = progress.warm_up(weights.warmup_epochs) * (weights.alpha * tckd + weights.beta * nckd)
        return weights.ce_weight * cross_entropy + dkd, {"cross_entropy": cross_entropy, "tckd": tckd, "nckd": nckd}
