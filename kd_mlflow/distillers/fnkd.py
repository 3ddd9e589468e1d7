"""Feature-normalised knowledge distillation (Xu, Rui, Li and Gu, ECCV 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import (
    Context,
    Distiller,
    Progress,
    Step,
    StudentModel,
    TeacherSource,
    at_least_float32,
    full_precision,
    make_step,
)
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.taps import Outputs

# A feature of norm 0 has no direction to keep.
SMALLEST_NORM = 1e-6


@full_precision
def divided_logits(logits: Tensor, features: Tensor, norm_bound: float) -> Tensor:
    """τ · v / ‖f‖ of logits ``[B, K]`` and pooled features ``[B, D]``: the paper's way."""
    return norm_bound * logits / features.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM)


@full_precision
def bounded_logits(features: Tensor, weight: Tensor, bias: Tensor | None, norm_bound: float) -> Tensor:
    """The classifier's answer ``[B, K]`` to features shortened to norm τ at most: the code's way.

    Features below τ are not lengthened, and the bias is not scaled.

    Parameters
    ----------
    features:
        ``[B, D]``, pooled.
    weight, bias:
        ``[K, D]`` and ``[K]`` of the classifier layer.
    """
    norms = features.norm(dim=1, keepdim=True)
    return F.linear(features * (norm_bound / norms.clamp_min(norm_bound)), weight, bias)


@full_precision
def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """H(softmax(teacher), softmax(student)) of each sample ``[B]`` in nats; the teacher gets no gradient."""
    target = F.softmax(teacher_logits.detach(), dim=1)
    return -(target * F.log_softmax(student_logits, dim=1)).sum(dim=1)


class FNKDOptions(MethodOptions):
    """Options of FNKD."""

    norm_bound: float = setting(
        2.0,
        "The norm τ that features are brought to; 2 for CIFAR, 8 for larger images. For other data take a fraction of "
        "the mean norm in train/teacher_norm.",
        gt=0,
    )
    weight: float = setting(
        9.0,
        "Weight λ² of the soft term, 1 on the cross-entropy; for other data (mean norm / τ)², with the mean norm of "
        "train/teacher_norm.",
        ge=0,
    )
    variant: Literal["code", "paper"] = setting(
        "code", "Shorten the features before the classifier, as the authors' code, or divide the logits, as the paper."
    )


class FNKD(Distiller):
    """Each sample's feature norm in place of one temperature: a small norm hints at a noisy label."""

    source = Source(
        "Xu, Rui, Li, Gu: Feature Normalized Knowledge Distillation for Image Classification, ECCV",
        2020,
        "authors' code",
    )
    Options = FNKDOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "pooled"})
    limits = (
        "Both networks need a classifier layer; where that is a convolution (SqueezeNet), the variant code applies it "
        "to the mean of its input."
    )

    def __init__(self, context: Context, options: FNKDOptions) -> None:
        super().__init__(context, options)
        self.weights = options
        self.teachers = context.teachers[:1]
        if options.variant == "code" and not self.teachers:
            raise InputError("The method 'fnkd' uses the teacher's classifier layer, and the teacher is not known.")
        for model in (*self.teachers, *([context.student] if context.student is not None else [])):
            classifier(model)

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """``soft`` is the unweighted cross-entropy with the teacher; the norms are means over the batch."""
        target, own = teachers[0](batch), student(batch.images)
        cross_entropy = self.cross_entropy(own.logits, batch.labels)
        if self.weights.variant == "code":
            taught = self.bounded(self.teachers[0], target)
            logits = self.bounded(student.model, own)
        else:
            taught = divided_logits(target.logits, target.pooled, self.weights.norm_bound)
            logits = divided_logits(own.logits, own.pooled, self.weights.norm_bound)
        soft = soft_cross_entropy(logits, taught).mean()
        terms = {"cross_entropy": cross_entropy, "soft": soft}
        terms |= {"student_norm": _mean_norm(own.pooled), "teacher_norm": _mean_norm(target.pooled)}
        return make_step({"main": cross_entropy + self.weights.weight * soft}, own.logits, terms)

    def bounded(self, model: Classifier, outputs: Outputs) -> Tensor:
        """The code's logits of a network for what it has just given."""
        layer = classifier(model)
        device = outputs.pooled.device
        bias = None if layer.bias is None else layer.bias.to(device)
        return bounded_logits(outputs.pooled, layer.weight.flatten(1).to(device), bias, self.weights.norm_bound)


def classifier(model: Classifier) -> nn.Module:
    """The classifier layer of a network.

    Raises
    ------
    InputError
        It has none.
    """
    if model.head is None:
        raise InputError(
            f"The method 'fnkd' cannot take '{model.spec.architecture}': it has no classifier layer; choose another "
            "method or architecture."
        )
    return model.head


def _mean_norm(features: Tensor) -> Tensor:
    return at_least_float32(features.detach()).norm(dim=1).mean()
