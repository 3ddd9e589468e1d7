"""Variational information distillation (Ahn, Hu, Damianou, Lawrence and Dai, CVPR 2019, arXiv 1904.05835)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, full_precision
from kd_mlflow.distillers.matching import networks_of, paired_stages, resized
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs

FLOOR, START = 1e-5, 5.0


@full_precision
def variational_loss(mean: Tensor, teacher: Tensor, rho: Tensor) -> Tensor:
    """½ mean[(μ − F_t)² / v + log v], v = softplus(ρ) + 1e-5, one a channel (equation 5 without its constant).

    ``mean`` and ``teacher`` are ``[B, C, H, W]``, ``rho`` ``[C]``; the teacher gets no gradient.
    """
    variance = (F.softplus(rho) + FLOOR)[None, :, None, None]
    return 0.5 * ((mean - teacher.detach()).square() / variance + variance.log()).mean()


class VIDOptions(MethodOptions):
    """Options of VID."""

    weight: float = setting(1.0, "Weight of the sum over stages; 1 on the cross-entropy.", ge=0)


class _Guess(nn.Module):
    """What the student's map says of the teacher's: a mean, and how sure it is of each channel."""

    def __init__(self, channels: int, target: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels, target, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(target, target, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(target, target, 1, bias=False),
        )
        self.rho = nn.Parameter(torch.full((target,), math.log(math.expm1(START - FLOOR))))


class VID(Distiller):
    """The student's maps are to say as much as they can about the teacher's, each channel with a learned variance."""

    source = Source(
        "Ahn, Hu, Damianou, Lawrence, Dai: Variational Information Distillation, CVPR",
        2019,
        "third-party code",
        "1904.05835",
    )
    Options = VIDOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "stages"})

    def __init__(self, context: Context, options: VIDOptions) -> None:
        super().__init__(context, options)
        pairs = paired_stages(*networks_of(context, "vid"))
        self.places = [pair.place for pair in pairs]
        self.guesses = nn.ModuleList(_Guess(pair.student[0], pair.teacher[0]) for pair in pairs)

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy, and the variational term summed over the stages."""
        terms = {"cross_entropy": self.cross_entropy(student.logits, labels), "vid": self.hint(student, teachers[0])}
        return terms["cross_entropy"] + self.options.weight * terms["vid"], terms

    def hint(self, student: Outputs, teacher: Outputs) -> Tensor:
        """The variational term alone, unweighted."""
        parts = []
        for place, guess in zip(self.places, self.guesses, strict=True):
            target = teacher.stages[place]
            mean = resized(guess.mean(student.stages[place]), target.shape[2:])
            parts.append(variational_loss(mean, target, guess.rho))
        return sum(parts[1:], parts[0])
