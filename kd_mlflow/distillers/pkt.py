"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, arXiv 1803.10837)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Distiller, Progress, Terms, full_precision
from kd_mlflow.distillers.gather import gathered
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs

EPSILON = 1e-7


@full_precision
def transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all B² pairs of p_t log(p_t / p_s), p the row-normalised cosine similarities mapped to 0..1.

    ``student`` and ``teacher`` are ``[B, D]`` of any widths; the teacher gets no gradient.
    """
    own, other = _conditional(student), _conditional(teacher.detach())
    return (other * ((other + EPSILON) / (own + EPSILON)).log()).mean()


def _conditional(features: Tensor) -> Tensor:
    unit = F.normalize(features, dim=1, eps=EPSILON)
    similarities = (unit @ unit.T + 1) / 2
    return similarities / similarities.sum(dim=1, keepdim=True)


class PKTOptions(MethodOptions):
    """Options of PKT."""

    weight: float = setting(30000.0, "Weight of the term, a mean over pairs; 1 on the cross-entropy.", ge=0)


class PKT(Distiller):
    """The probability that one sample is a neighbour of another is the same in both feature spaces."""

    source = Source(
        "Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV",
        2018,
        "authors' code",
        "1803.10837",
    )
    Options = PKTOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "pooled"})
    relational = True
    limits = "Its probabilities are those within a batch, of all processes together."

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy, and the transfer term of the pooled features."""
        own, other = gathered(student.pooled), gathered(teachers[0].pooled)
        terms = {"cross_entropy": self.cross_entropy(student.logits, labels), "transfer": transfer_loss(own, other)}
        return terms["cross_entropy"] + self.options.weight * terms["transfer"], terms
