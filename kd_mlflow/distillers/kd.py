"""Knowledge distillation on softened logits (Hinton, Vinyals and Dean, 2015, arXiv 1503.02531)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, double_precision
from kd_mlflow.distillers.options import SoftTargetOptions, Source
from kd_mlflow.models.taps import Outputs


@double_precision
def soft_divergence(student_logits: Tensor, teacher_log_probabilities: Tensor, temperature: float | Tensor) -> Tensor:
    """KL(p_t ‖ p_s) of each sample ``[B]`` in nats, p_s softened by T, p_t given as log-probabilities ``[B, K]``.

    ``temperature`` is a number, or a tensor that broadcasts against ``[B, K]``.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    return F.kl_div(student, teacher_log_probabilities, reduction="none", log_target=True).sum(dim=1)


@double_precision
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T² · KL(p_t ‖ p_s) of the distributions softened by T, averaged over the batch.

    The factor T² keeps the gradient's scale independent of T, so that the weight of the term means the
    same at every temperature (Hinton et al. 2015, section 2.1). The teacher's logits get no gradient.

    Parameters
    ----------
    student_logits, teacher_logits:
        ``[B, K]``; half precision is widened to float32.
    temperature:
        T > 0; a scalar tensor may carry a gradient.

    Returns
    -------
    Tensor
        A scalar, in nats.
    """
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * soft_divergence(student_logits, teacher, temperature).mean()


@double_precision
def mean_teacher(teacher_logits: Sequence[Tensor], temperature: float | Tensor) -> Tensor:
    """Log of the mean of several teachers' softened probabilities, ``[B, K]``: probabilities, not logits."""
    parts = torch.stack([F.log_softmax(logits.detach() / temperature, dim=1) for logits in teacher_logits])
    return parts.logsumexp(dim=0) - math.log(len(teacher_logits))


@double_precision
def mean_teacher_loss(student_logits: Tensor, teacher_logits: Sequence[Tensor], temperature: float | Tensor) -> Tensor:
    """T² · KL(mean of the teachers' softened probabilities ‖ p_s), averaged over the batch ``[B, K]``: a scalar."""
    target = mean_teacher(teacher_logits, temperature)
    return temperature**2 * soft_divergence(student_logits, target, temperature).mean()


class KD(Distiller):
    """alpha · T² · KL(teacher ‖ student) + (1 − alpha) · cross-entropy; several teachers are averaged."""

    source = Source(
        "Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network", 2015, "third-party code", "1503.02531"
    )
    Options = SoftTargetOptions
    learns_unlabeled = True
    teacher_count = (1, 99)

    def __init__(self, context: Context, options: SoftTargetOptions) -> None:
        super().__init__(context, options)
        self.temperature = options.temperature
        self.kd_weight = options.alpha
        self.ce_weight = 1.0 - options.alpha

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """The weighted sum; ``kd`` and ``cross_entropy`` are reported unweighted."""
        cross_entropy = self.cross_entropy(student.logits, labels)
        kd = self.soft(student.logits, teachers)
        total = self.kd_weight * kd + self.ce_weight * cross_entropy
        return total, {"cross_entropy": cross_entropy, "kd": kd}

    def soft(self, logits: Tensor, teachers: Sequence[Outputs]) -> Tensor:
        """T² · KL from one teacher, or from the mean of several."""
        if len(teachers) == 1:
            return kd_loss(logits, teachers[0].logits, self.temperature)
        return mean_teacher_loss(logits, [teacher.logits for teacher in teachers], self.temperature)
