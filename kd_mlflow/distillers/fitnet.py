"""FitNets: hints from a middle layer (Romero et al., ICLR 2015, arXiv 1412.6550)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, full_precision
from kd_mlflow.distillers.matching import connector, networks_of, paired_stages, rectified, resized
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs


@full_precision
def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of maps ``[B, C, H, W]``; the teacher gets no gradient (equation 3)."""
    return F.mse_loss(student, teacher.detach())


class FitNetOptions(MethodOptions):
    """Options of FitNet."""

    stage: int = setting(
        2, "The stage that gives the hint, from 1 (shallow); at most what both networks have.", ge=1, le=4
    )
    weight: float = setting(100.0, "Weight of the hint; 1 on the cross-entropy.", ge=0)


class FitNet(Distiller):
    """A middle map of the student, through a learned connector, matches the teacher's."""

    source = Source(
        "Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets, ICLR", 2015, "third-party code", "1412.6550"
    )
    Options = FitNetOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "stages"})
    limits = "Hint and labels are learned together, as common code does; the paper does it in two stages."

    def __init__(self, context: Context, options: FitNetOptions) -> None:
        super().__init__(context, options)
        student, teacher = networks_of(context, "fitnet")
        pairs = paired_stages(student, teacher)
        pair = pairs[min(options.stage, len(pairs)) - 1]
        self.place = pair.place
        # Behind a ReLU the negative values of a linear bottleneck or of a GELU could never be matched.
        positive = rectified(teacher, pair.place)
        self.connector = connector(pair.student[0], pair.teacher[0], rectified=positive)

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy and hint."""
        target = teachers[0].stages[self.place]
        own = resized(self.connector(student.stages[self.place]), target.shape[2:])
        terms = {"cross_entropy": self.cross_entropy(student.logits, labels), "hint": hint_loss(own, target)}
        return terms["cross_entropy"] + self.options.weight * terms["hint"], terms
