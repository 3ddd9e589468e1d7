"""How much a student says what its teacher says."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, float]:
    """Share of equal predictions, and mean KL(teacher ‖ student) in nats, of logits ``[N, K]``.

    Agreement as in Stanton et al. 2021 (arXiv 2106.05945).
    """
    student = F.log_softmax(student_logits.double(), dim=1)
    teacher = F.log_softmax(teacher_logits.double(), dim=1)
    equal = student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)
    return {
        "teacher_agreement": equal.double().mean().item(),
        "teacher_kl": F.kl_div(student, teacher, reduction="batchmean", log_target=True).item(),
    }
