"""Knowledge review (Chen, Liu, Zhao and Jia, CVPR 2021, arXiv 2104.09044)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, full_precision
from kd_mlflow.distillers.matching import networks_of
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.taps import Outputs, Tapped

LEVELS = (4, 2, 1)
# The authors' width of the fused maps, where the student is that wide.
WIDEST = 512
TAPS = frozenset({"logits", "pooled", "preactivations"})


@full_precision
def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """MSE of maps ``[B, C, H, W]`` at full size and averaged to 4, 2 and 1 (those smaller than H), a scalar.

    Weights 1, ½, ¼, ⅛, divided by their sum (section 3.3); the teacher gets no gradient.
    """
    teacher, height = teacher.detach(), student.shape[2]
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for level in LEVELS:
        if level < height:
            weight /= 2
            pooled = (F.adaptive_avg_pool2d(maps, level) for maps in (student, teacher))
            total = total + weight * F.mse_loss(*pooled)
            weights += weight
    return total / weights


class AttentionFusion(nn.Module):
    """One level of the review: the student's map fused with what came from the deeper levels (figure 3).

    Gives the map in the teacher's width, and the fused one for the next level.
    """

    def __init__(self, channels: int, middle: int, target: int, *, fuse: bool) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.attend = nn.Conv2d(2 * middle, 2, 1) if fuse else None
        self.widen = nn.Sequential(nn.Conv2d(middle, target, 3, padding=1, bias=False), nn.BatchNorm2d(target))

    def forward(self, maps: Tensor, deeper: Tensor | None, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """``side`` is the size of the teacher's map at this level."""
        fused = self.narrow(maps)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, size=fused.shape[2:], mode="nearest")
            gates = torch.sigmoid(self.attend(torch.cat((fused, deeper), dim=1)))
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        if tuple(fused.shape[2:]) != side:
            # Before the 3×3, as the authors do: it works at the teacher's resolution.
            fused = F.interpolate(fused, size=side, mode="nearest")
        return self.widen(fused), fused


class ReviewKDOptions(MethodOptions):
    """Options of ReviewKD."""

    weight: float = setting(1.0, "Weight of the review; 1 on the cross-entropy.", ge=0)
    warmup_epochs: int = setting(20, "Epochs over which the review grows to full weight; 1 on ImageNet.", ge=0)
    middle: int | None = setting(
        None, "Width of the fused maps; empty: that of the student's deepest map, at most 512.", ge=8, le=4096
    )


class ReviewKD(Distiller):
    """Every level of the teacher is learned from all deeper levels of the student, fused by attention."""

    source = Source(
        "Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, CVPR", 2021, "authors' code", "2104.09044"
    )
    Options = ReviewKDOptions
    learns_unlabeled = True
    needs = TAPS
    limits = "Both networks need pre-activations that can be tapped."

    def __init__(self, context: Context, options: ReviewKDOptions) -> None:
        super().__init__(context, options)
        student, teacher = networks_of(context, "reviewkd")
        own, other = _channels(student), _channels(teacher)
        self.count = min(len(own), len(other))
        middle = options.middle or min(WIDEST, own[0])
        # Deepest first; the deepest has nothing to be fused with.
        self.fusions = nn.ModuleList(
            AttentionFusion(channels, middle, target, fuse=number > 0)
            for number, (channels, target) in enumerate(zip(own[: self.count], other[: self.count], strict=True))
        )

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy, and the review summed over the levels; the weight grows over the warm-up."""
        own, other = _levels(student)[: self.count], _levels(teachers[0])[: self.count]
        parts: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, maps, target in zip(self.fusions, own, other, strict=True):
            made, deeper = fusion(maps, deeper, tuple(target.shape[2:]))
            parts.append(hierarchical_context_loss(made, target))
        terms = {"cross_entropy": self.cross_entropy(student.logits, labels), "review": sum(parts[1:], parts[0])}
        weight = self.options.weight * progress.warm_up(self.options.warmup_epochs)
        return terms["cross_entropy"] + weight * terms["review"], terms


def _levels(outputs: Outputs) -> list[Tensor]:
    """Pooled features as a 1×1 map, then the pre-activations, deepest first."""
    return [outputs.pooled[:, :, None, None], *reversed(outputs.preactivations)]


def _channels(model: Classifier) -> list[int]:
    widths = Tapped(model, TAPS).widths
    return [widths.pooled, *[channels for channels, _, _ in reversed(widths.stages)]]
