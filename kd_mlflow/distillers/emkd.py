"""Efficient medical distillation (Qin et al., IEEE TMI 2021, arXiv 2108.09987): importance maps, losses on masks.

For classification the importance maps and plain KD apply. The losses on masks are for segmentation, which has
no task here yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, full_precision
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.matching import networks_of, paired_stages, unit_scale
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs

Variant = Literal["code", "paper"]


@full_precision
def importance(maps: Tensor, variant: Variant = "code") -> Tensor:
    """``[B, C, H, W]`` to ``[B, H·W]`` of length 1: the channels' Σ |F| (paper) or mean F⁴ (code)."""
    maps = unit_scale(maps, (1, 2, 3))
    statistic = maps.abs().sum(dim=1) if variant == "paper" else maps.pow(4).mean(dim=1)
    return F.normalize(statistic.flatten(1), dim=1)


@full_precision
def importance_loss(student: Tensor, teacher: Tensor, variant: Variant = "code") -> Tensor:
    """mean_B Σ_places (A_s − A_t)², the student's map first resized to the teacher's; the teacher gets no gradient."""
    if student.shape[2:] != teacher.shape[2:]:
        student = F.interpolate(student, size=teacher.shape[2:], mode="bilinear", align_corners=False)
    difference = importance(student, variant) - importance(teacher.detach(), variant)
    return difference.square().sum(dim=1).mean()


@full_precision
def prediction_map_loss(
    student: Tensor, teacher: Tensor, variant: Variant = "code", temperature: float = 4.0
) -> Tensor:
    """The divergence of the class distributions of every pixel, averaged over pixels and batch.

    ``code``: T² · KL(t ‖ s); ``paper``: KL(s ‖ t) at T = 1. Logits are ``[B, K, H, W]``; the teacher gets no gradient.
    """
    scale = temperature if variant == "code" else 1.0
    own, other = F.log_softmax(student / scale, dim=1), F.log_softmax(teacher.detach() / scale, dim=1)
    first, second = (own, other) if variant == "code" else (other, own)
    return scale**2 * F.kl_div(first, second, reduction="none", log_target=True).sum(dim=1).mean()


@full_precision
def region_affinities(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines between the mean features of every pair of regions, and which pairs exist.

    Parameters
    ----------
    maps:
        ``[B, C, H, W]``.
    masks:
        ``[B, H', W']``, int64: each pixel's class; resized by nearest.

    Returns
    -------
    tuple of Tensor
        ``[B, P]`` cosines of the pairs i < j of classes, and ``[B, P]`` bool: both classes are in the image.
    """
    count = int(masks.max()) + 1
    masks = F.interpolate(masks[:, None].double(), size=maps.shape[2:], mode="nearest")[:, 0].long()
    members = F.one_hot(masks, count).flatten(1, 2).to(maps.dtype)
    size = members.sum(dim=1)
    sums = torch.einsum("bcp,bpk->bkc", maps.flatten(2), members)
    unit = F.normalize(sums / size.clamp(min=1)[..., None], dim=2)
    first, second = torch.triu_indices(count, count, 1, device=maps.device)
    cosines = (unit[:, first] * unit[:, second]).sum(dim=2)
    return cosines, (size[:, first] > 0) & (size[:, second] > 0)


@full_precision
def region_affinity_loss(student: Tensor, teacher: Tensor, masks: Tensor) -> Tensor:
    """mean_B (V_s − V_t)², V the mean cosine over an image's pairs of regions; images without a pair do not count.

    Maps may differ in width and size; the teacher gets no gradient.
    """
    own, own_pairs = _mean_affinity(student, masks)
    other, other_pairs = _mean_affinity(teacher.detach(), masks)
    counted = own_pairs & other_pairs
    return ((own - other).square() * counted).sum() / counted.sum().clamp(min=1)


def _mean_affinity(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    cosines, exists = region_affinities(maps, masks)
    return (cosines * exists).sum(dim=1) / exists.sum(dim=1).clamp(min=1), exists.any(dim=1)


@full_precision
def focal_loss(logits: Tensor, masks: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over pixels of (1 − p)^γ · −log p of the true class; ``[B, K, H, W]`` and ``[B, H, W]`` (Lin 2017)."""
    log_probability = F.log_softmax(logits, dim=1).gather(1, masks[:, None])
    return -((1 - log_probability.exp()).pow(gamma) * log_probability).mean()


@full_precision
def dice_loss(logits: Tensor, masks: Tensor, smoothing: float = 1.0) -> Tensor:
    """1 − the mean over classes of 2|P ∩ M| / (|P| + |M|), with soft P; ``[B, K, H, W]`` and ``[B, H, W]``."""
    probabilities = logits.softmax(dim=1)
    truth = F.one_hot(masks, logits.shape[1]).movedim(3, 1).to(probabilities.dtype)
    overlap, total = (probabilities * truth).sum(dim=(0, 2, 3)), (probabilities + truth).sum(dim=(0, 2, 3))
    return 1 - ((2 * overlap + smoothing) / (total + smoothing)).mean()


@full_precision
def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """½ focal + ½ Dice."""
    return 0.5 * focal_loss(logits, masks) + 0.5 * dice_loss(logits, masks)


class EMKDOptions(MethodOptions):
    """Options of EMKD."""

    variant: Variant = setting("code", "The channels' statistic: mean of the fourth power (code) or sum of magnitudes.")
    temperature: float = setting(4.0, "Temperature of the prediction term.", gt=0)
    pmd_weight: float = setting(0.1, "Weight of the prediction term, for classification KD.", ge=0)
    imd_weight: float = setting(0.9, "Weight of the importance maps.", ge=0)
    ce_weight: float = setting(1.0, "Weight of the cross-entropy.", ge=0)


class EMKD(Distiller):
    """Matches where activation is important at a low and a high stage, and the predictions."""

    source = Source(
        "Qin et al.: Efficient Medical Image Segmentation Based on Knowledge Distillation, IEEE TMI",
        2021,
        "authors' code",
        "2108.09987",
    )
    Options = EMKDOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "stages"})
    limits = "Made for segmentation: region affinities need masks and do not apply to classification."

    def __init__(self, context: Context, options: EMKDOptions) -> None:
        super().__init__(context, options)
        places = [pair.place for pair in paired_stages(*networks_of(context, "emkd"))]
        self.places = sorted({places[0], places[-1]})

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy, predictions, and the importance maps of the first and the last stage."""
        options, teacher = self.options, teachers[0]
        maps = [importance_loss(student.stages[p], teacher.stages[p], options.variant) for p in self.places]
        terms = {
            "cross_entropy": self.cross_entropy(student.logits, labels),
            "kd": kd_loss(student.logits, teacher.logits, options.temperature),
            "importance": sum(maps[1:], maps[0]),
        }
        total = options.ce_weight * terms["cross_entropy"] + options.pmd_weight * terms["kd"]
        return total + options.imd_weight * terms["importance"], terms
