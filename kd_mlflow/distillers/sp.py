"""Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Distiller, Progress, Terms, full_precision
from kd_mlflow.distillers.gather import gathered
from kd_mlflow.distillers.matching import unit_scale
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs


@full_precision
def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_s − G_t‖²_F / B², G the row-normalised Gram matrix of the batch (equations 1 to 4).

    ``student`` and ``teacher`` are ``[B, …]`` of any widths; the teacher gets no gradient.
    """
    return (_similarities(student) - _similarities(teacher.detach())).square().mean()


def _similarities(maps: Tensor) -> Tensor:
    flat = unit_scale(maps.flatten(1), (0, 1))
    return F.normalize(flat @ flat.T, dim=1)


class SPOptions(MethodOptions):
    """Options of SP."""

    weight: float = setting(3000.0, "Weight of the term; 1 on the cross-entropy.", ge=0)


class SP(Distiller):
    """Samples that are alike to the teacher are to be alike to the student."""

    source = Source(
        "Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV", 2019, "third-party code", "1907.09682"
    )
    Options = SPOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "stages"})
    relational = True
    limits = "Its similarities are those within a batch, of all processes together."

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy, and the similarity term of the last maps."""
        own, other = gathered(student.stages[-1]), gathered(teachers[0].stages[-1])
        terms = {"cross_entropy": self.cross_entropy(student.logits, labels), "similarity": similarity_loss(own, other)}
        return terms["cross_entropy"] + self.options.weight * terms["similarity"], terms
