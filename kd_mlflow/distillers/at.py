"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, full_precision
from kd_mlflow.distillers.matching import networks_of, paired_stages, resized, unit_scale
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs


@full_precision
def attention(maps: Tensor, power: float = 2.0) -> Tensor:
    """The mean over channels of |F|^p, flattened and L2-normalised: ``[B, C, H, W]`` to ``[B, H·W]``."""
    return F.normalize(unit_scale(maps, (1, 2, 3)).abs().pow(power).mean(dim=1).flatten(1), dim=1)


@full_precision
def attention_loss(student: Tensor, teacher: Tensor, variant: str = "code", power: float = 2.0) -> Tensor:
    """The difference of two attention maps, a scalar; the teacher gets no gradient.

    ``code``: the mean over batch and places of the squared difference; it shrinks with the resolution.
    ``paper``: the mean over the batch of its L2 norm (equation 2, without ½).
    """
    difference = attention(student, power) - attention(teacher.detach(), power)
    if variant == "code":
        return difference.square().mean()
    return difference.square().sum(dim=1).clamp(min=1e-24).sqrt().mean()


class ATOptions(MethodOptions):
    """Options of AT."""

    variant: Literal["code", "paper"] = setting("code", "Squared and averaged over places, or the norm itself.")
    power: float = setting(2.0, "The power p of the activations.", ge=1)
    weight: float = setting(1000.0, "Weight of the sum over stages; 1 on the cross-entropy. About 500 for paper.", ge=0)


class AT(Distiller):
    """The student looks where the teacher looks: maps of mean squared activation are matched at every stage."""

    source = Source(
        "Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR", 2017, "authors' code", "1612.03928"
    )
    Options = ATOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "stages"})

    def __init__(self, context: Context, options: ATOptions) -> None:
        super().__init__(context, options)
        self.places = [pair.place for pair in paired_stages(*networks_of(context, "at"))]

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy, and the attention term summed over the stages."""
        options, parts = self.options, []
        for place in self.places:
            target = teachers[0].stages[place]
            own = resized(student.stages[place], target.shape[2:])
            parts.append(attention_loss(own, target, options.variant, options.power))
        terms = {"cross_entropy": self.cross_entropy(student.logits, labels), "attention": sum(parts[1:], parts[0])}
        return terms["cross_entropy"] + options.weight * terms["attention"], terms
