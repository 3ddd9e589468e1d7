"""Knowledge distillation on softened logits (Hinton, Vinyals and Dean, 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Context, Distiller, Progress, at_least_float32
from kd_mlflow.models.taps import Outputs


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(p_t ‖ p_s) of the distributions softened by T, averaged over the batch.

    The factor T² keeps the gradient's scale independent of T, so that the weight of the term means the
    same at every temperature (Hinton et al. 2015, section 2.1). The teacher's logits get no gradient.

    Parameters
    ----------
    student_logits, teacher_logits:
        ``[B, K]``; half precision is widened to float32.
    temperature:
        T > 0.

    Returns
    -------
    Tensor
        A scalar, in nats.
    """
    student = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(at_least_float32(teacher_logits.detach()) / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class KD(Distiller):
    """alpha · T² · KL(teacher ‖ student) + (1 − alpha) · cross-entropy."""

    def __init__(self, context: Context, *, temperature: float, alpha: float) -> None:
        super().__init__(context)
        self.temperature = temperature
        self.kd_weight = alpha
        self.ce_weight = 1.0 - alpha

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum; ``kd`` and ``cross_entropy`` are reported unweighted."""
        cross_entropy = self.cross_entropy(student.logits, labels)
        kd = kd_loss(student.logits, teachers[0].logits, self.temperature)
        total = self.kd_weight * kd + self.ce_weight * cross_entropy
        return total, {"cross_entropy": cross_entropy, "kd": kd}
