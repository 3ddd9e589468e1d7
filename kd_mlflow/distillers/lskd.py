"""Logit standardisation (Sun, Ren, Li, Wang and Cao, CVPR 2024, arXiv 2403.01427)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

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
from kd_mlflow.distillers.dkd import dkd_loss
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.mlkd import multi_level_terms, two_view_logits
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.errors import InputError
from kd_mlflow.models.taps import Outputs

EPSILON = 1e-7


@full_precision
def standardized(logits: Tensor) -> Tensor:
    """Logits ``[B, K]`` less their mean, over their unbiased standard deviation, sample by sample (algorithm 1).

    The gradient flows through both. A sample's largest value is at most (K − 1) / √K.
    """
    deviation = logits.std(dim=1, keepdim=True)
    return (logits - logits.mean(dim=1, keepdim=True)) / (deviation + EPSILON)


class LSKDOptions(MethodOptions):
    """Options of LSKD."""

    host: Literal["kd", "dkd", "mlkd"] = setting("kd", "The method whose loss the standardised logits enter.")
    temperature: float = setting(
        2.0,
        "Temperature of the standardised logits; mlkd's base. Standardised logits of few classes are small: at 2 no "
        "probability of 10 classes passes 0.35, so take less there.",
        gt=0,
    )
    kd_weight: float = setting(9.0, "Weight of the host's distillation terms, dkd's alpha and beta included.", ge=0)
    ce_weight: float | None = setting(
        None, "Weight of the cross-entropy; empty: 0.1 with kd and mlkd, 1 with dkd. 1 on ImageNet.", ge=0
    )
    alpha: float = setting(1.0, "The host dkd's weight of the label against all others together.", ge=0)
    beta: float = setting(8.0, "The host dkd's weight of the distribution among the others.", ge=0)
    warmup_epochs: int = setting(20, "Epochs over which the host dkd's term grows to full.", ge=0)
    variant: Literal["code", "paper"] = setting("code", "The host mlkd's variant.")


class LSKD(Distiller):
    """Logits brought to mean 0 and deviation 1 before kd, dkd or mlkd, so that only their pattern is matched.

    With mlkd it is the instance terms that see standardised logits, as in the authors' code.
    """

    source = Source(
        "Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation, CVPR",
        2024,
        "authors' code",
        "2403.01427",
    )
    Options = LSKDOptions
    learns_unlabeled = True
    limits = (
        "Needs three classes. With the host dkd it cannot be used with mixed labels; with mlkd each step takes two "
        "views of every image, and batches are not cut into parts (--accumulate)."
    )

    def __init__(self, context: Context, options: LSKDOptions) -> None:
        super().__init__(context, options)
        if context.num_classes < 3:
            raise InputError("The method 'lskd' needs three classes: standardised logits of two are always ±0.71.")
        self.weights = options
        self.learns_unlabeled = options.host != "dkd"
        self.views = 2 if options.host == "mlkd" else 1
        own = 1.0 if options.host == "dkd" else 0.1
        self.ce_weight = own if options.ce_weight is None else options.ce_weight

    @classmethod
    def is_relational(cls, options: LSKDOptions) -> bool:
        """As its host is."""
        return options.host == "mlkd"

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """The loss of the hosts that take one view; ``kd`` or ``dkd`` with T², the latter after its alpha and beta."""
        weights = self.weights
        own, target = standardized(student.logits), standardized(teachers[0].logits)
        cross_entropy = self.cross_entropy(student.logits, labels)
        if weights.host == "kd":
            term, share = kd_loss(own, target, weights.temperature), 1.0
        else:
            term = dkd_loss(own, target, labels, weights.temperature, weights.alpha, weights.beta)
            share = progress.warm_up(weights.warmup_epochs)
        total = self.ce_weight * cross_entropy + weights.kd_weight * share * term
        return total, {"cross_entropy": cross_entropy, weights.host: term}

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """One view for kd and dkd; two for mlkd, as in :class:`MLKD`."""
        weights = self.weights
        if weights.host != "mlkd":
            return super().step(batch, student, teachers, progress)
        weak, strong, both = two_view_logits(batch, student, teachers)
        terms = multi_level_terms(weak, strong, weights.temperature, weights.variant, standardized)
        cross_entropy = self.cross_entropy(both, batch.labels.repeat(2))
        total = 2 * self.ce_weight * cross_entropy + weights.kd_weight * sum(terms.values())
        return make_step({"main": total}, weak[0], {"cross_entropy": cross_entropy, **terms})
