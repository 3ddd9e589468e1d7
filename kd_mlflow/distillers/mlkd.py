"""Multi-level logit distillation (Jin, Wang and Lin, CVPR 2023): samples, batch and classes, on two views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import (
    Context,
    Distiller,
    Progress,
    Step,
    StudentModel,
    TeacherSource,
    Terms,
    full_precision,
    make_step,
)
from kd_mlflow.distillers.gather import gathered
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.options import MethodOptions, Source, setting

# Beside the base temperature; a base that is among them counts twice.
TEMPERATURES = (2.0, 3.0, 5.0, 6.0)
# The code's strong view is seen at these alone; at the others the weak one stands in for it.
STRONG_IN_CODE = (3.0, 5.0)

Variant = Literal["code", "paper"]
Pair = tuple[Tensor, Tensor]


@full_precision
def batch_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """‖P_s P_sᵀ − P_t P_tᵀ‖² / B, of softened probabilities P ``[B, K]``: which samples are alike."""
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return (student @ student.T - teacher @ teacher.T).square().sum() / len(student)


@full_precision
def class_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """‖P_sᵀ P_s − P_tᵀ P_t‖² / K, of softened probabilities P ``[B, K]``: which classes go together."""
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return (student.T @ student - teacher.T @ teacher).square().sum() / student.shape[1]


@full_precision
def low_confidence_shares(teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of samples, and of classes, whose confidence is at most the median: about a half each.

    The authors' masks. In their code they multiply losses that are already summed up, and so select
    nothing; only their means count.
    """
    probabilities = F.softmax(teacher_logits.detach(), dim=1)
    return _share_below_median(probabilities.amax(dim=1)), _share_below_median(probabilities.sum(dim=0))


def multi_level_terms(
    weak: Pair,
    strong: Pair,
    temperature: float,
    variant: Variant,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Terms:
    """``instance``, ``batch`` and ``class``, each summed over the base temperature and the fixed ones.

    ``paper`` has every term on both views. ``code`` is what the authors ran: batch and class terms on the
    weak view alone; all terms of the weak view times the shares of :func:`low_confidence_shares`; and at
    temperatures 2 and 6 the instance term's strong view is the weak one again.

    Parameters
    ----------
    weak, strong:
        Logits of student and teacher under each view, ``[B, K]``.
    prepare:
        What the logits of the instance terms pass through first.
    """
    ready = prepare or _unchanged
    prepared = {name: (ready(own), ready(other)) for name, (own, other) in (("weak", weak), ("strong", strong))}
    whole = [(gathered(own), gathered(other)) for own, other in (weak, strong)]
    levels = (temperature, *TEMPERATURES)
    instance = {name: [kd_loss(*pair, level) for level in levels] for name, pair in prepared.items()}
    views = whole[:1] if variant == "code" else whole
    between_samples = sum(batch_loss(*pair, level) for pair in views for level in levels)
    between_classes = sum(class_loss(*pair, level) for pair in views for level in levels)
    if variant == "paper":
        return {
            "instance": sum(instance["weak"]) + sum(instance["strong"]),
            "batch": between_samples,
            "class": between_classes,
        }
    samples, classes = low_confidence_shares(weak[1])
    # The base, whatever its value, is seen in its own view.
    views = ["strong", *("strong" if level in STRONG_IN_CODE else "weak" for level in TEMPERATURES)]
    second = sum(instance[view][place] for place, view in enumerate(views))
    return {
        "instance": samples * sum(instance["weak"]) + second,
        "batch": samples * between_samples,
        "class": classes * between_classes,
    }


def two_view_logits(
    batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource]
) -> tuple[Pair, Pair, Tensor]:
    """Logits of student and teacher under the weak and the strong view, and the student's under both ``[2B, K]``.

    The student sees both views in one pass, so that its BatchNorm statistics are those of both together.
    """
    targets = [teachers[0](batch.view(number)).logits for number in (0, 1)]
    both = student(torch.cat((batch.images, batch.others[0]))).logits
    weak, strong = both.chunk(2)
    return (weak, targets[0]), (strong, targets[1]), both


def _softened(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Pair:
    student = F.softmax(student_logits / temperature, dim=1)
    return student, F.softmax(teacher_logits.detach() / temperature, dim=1)


def _share_below_median(values: Tensor) -> Tensor:
    return (values <= values.quantile(0.5)).to(values.dtype).mean()


def _unchanged(logits: Tensor) -> Tensor:
    return logits


class MLKDOptions(MethodOptions):
    """Options of MLKD."""

    temperature: float = setting(4.0, "Base temperature, beside 2, 3, 5 and 6; 1 on ImageNet.", gt=0)
    ce_weight: float = setting(0.1, "Weight of the cross-entropy, on each view; 0.5 on ImageNet.", ge=0)
    kd_weight: float = setting(0.9, "Weight of the distillation terms; 0.5 on ImageNet.", ge=0)
    variant: Variant = setting(
        "code", "The terms as the authors' code has them (strong views left out in places), or as the paper."
    )


class MLKD(Distiller):
    """Softened logits at five temperatures, likeness of samples and of classes, on a weak and a strong view."""

    source = Source("Jin, Wang, Lin: Multi-Level Logit Distillation, CVPR", 2023, "authors' code")
    Options = MLKDOptions
    learns_unlabeled = True
    views = 2
    relational = True
    limits = (
        "Every step takes two views of each image, and with them twice the time; both go through the student in one "
        "pass, so its BatchNorm statistics are those of weak and strong views together."
    )

    def __init__(self, context: Context, options: MLKDOptions) -> None:
        super().__init__(context, options)
        self.weights = options

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """Both views through both networks; ``cross_entropy`` is the mean over the views, the loss has their sum."""
        weak, strong, both = two_view_logits(batch, student, teachers)
        weights = self.weights
        terms = multi_level_terms(weak, strong, weights.temperature, weights.variant)
        cross_entropy = self.cross_entropy(both, batch.labels.repeat(2))
        total = 2 * weights.ce_weight * cross_entropy + weights.kd_weight * sum(terms.values())
        return make_step({"main": total}, weak[0], {"cross_entropy": cross_entropy, **terms})
