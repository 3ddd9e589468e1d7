"""Relational knowledge distillation (Park, Kim, Lu and Cho, CVPR 2019, arXiv 1904.05068)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, double_precision, full_precision
from kd_mlflow.distillers.gather import gathered
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs

# Floats that one chunk of angles may hold: 64 MiB.
CHUNK_FLOATS = 2**24


@double_precision
def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the distances of all pairs, each network's divided by its mean (equations 5 to 7).

    ``student`` is ``[B, D_s]``, ``teacher`` ``[B, D_t]``; the teacher gets no gradient. Averaged over all B² entries.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()))


@full_precision
def angle_loss(student: Tensor, teacher: Tensor, chunk_floats: int = CHUNK_FLOATS) -> Tensor:
    """Smooth L1 between the angles of all triples, averaged over B³ entries, degenerate ones included (equation 8).

    Chunks of the middle sample are computed again in the backward pass, so that B³ numbers are never held.
    """
    count = len(student)
    step = max(1, chunk_floats // (count * max(count, student.shape[1], teacher.shape[1])))
    parts = [
        checkpoint(_angle_sum, student, teacher.detach(), first, min(first + step, count), use_reentrant=False)
        for first in range(0, count, step)
    ]
    return torch.stack(parts).sum() / count**3


def _angle_sum(student: Tensor, teacher: Tensor, first: int, last: int) -> Tensor:
    return F.smooth_l1_loss(_angles(student, first, last), _angles(teacher, first, last), reduction="sum")


def _angles(features: Tensor, first: int, last: int) -> Tensor:
    """Cosines ``[J, B, B]`` at the samples first to last between the directions to all others."""
    directions = F.normalize(features[None] - features[first:last, None], dim=2)
    return directions @ directions.transpose(1, 2)


def _relative_distances(features: Tensor) -> Tensor:
    # Distances do not depend on a common offset, but the rounding of their squares does.
    features = features - features.mean(dim=0)
    squares = features.square().sum(dim=1)
    squared = (squares[:, None] + squares[None] - 2 * features @ features.T).clamp(min=1e-12)
    distances = squared.sqrt()
    distances = distances * (1 - torch.eye(len(features), dtype=distances.dtype, device=distances.device))
    positive = distances > 0
    return distances / (distances.sum() / positive.sum().clamp(min=1))


class RKDOptions(MethodOptions):
    """Options of RKD."""

    distance_weight: float = setting(25.0, "Weight of the distances (1 in metric learning).", ge=0)
    angle_weight: float = setting(50.0, "Weight of the angles (2 in metric learning).", ge=0)
    ce_weight: float = setting(1.0, "Weight of the cross-entropy.", ge=0)


class RKD(Distiller):
    """Matches the distances and angles between the samples of a batch instead of each sample's own output."""

    source = Source("Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR", 2019, "authors' code", "1904.05068")
    Options = RKDOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "pooled"})
    relational = True
    limits = (
        "Its relations are those within a batch, of all processes together; with two images both terms are always 0, "
        "since one distance divided by the mean distance is 1."
    )

    def __init__(self, context: Context, options: RKDOptions) -> None:
        super().__init__(context, options)
        self.weights = options

    def notes(self, batch_size: int) -> list[str]:
        """That a batch of one or two images has no relations to learn."""
        if batch_size > 2:
            return []
        return [f"rkd: with {batch_size} images in a batch its terms are always 0; set a larger --batch-size."]

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy, distances and angles of the pooled features."""
        own, other = gathered(student.pooled), gathered(teachers[0].pooled)
        terms = {
            "cross_entropy": self.cross_entropy(student.logits, labels),
            "distance": distance_loss(own, other),
            "angle": angle_loss(own, other),
        }
        total = self.weights.ce_weight * terms["cross_entropy"] + self.weights.distance_weight * terms["distance"]
        return total + self.weights.angle_weight * terms["angle"], terms
