"""Knowledge distillation as function matching (Beyer et al., CVPR 2022, arXiv 2106.05237)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kd_mlflow.data.batch import Batch
from kd_mlflow.data.draws import uniform
from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms
from kd_mlflow.distillers.kd import mean_teacher_loss
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.taps import Outputs

_DRAW = 0x6D6978


def mixed(images: Tensor, share: float) -> Tensor:
    """Each image times ``share`` and the one before it times the rest, ``[B, 3, H, W]``, in float32 or wider.

    The first image is mixed with the last.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return torch.lerp(images.roll(1, dims=0), images, share)


def mixing_share(seed: int, step: int) -> float:
    """max(a, 1 − a) for a ~ Beta(1, 1), which is uniform: one number from ½ to 1 for a step's whole batch."""
    drawn = float(uniform(seed, step, np.zeros(1, dtype=np.int64), _DRAW)[0])
    return max(drawn, 1.0 - drawn)


class PatientOptions(MethodOptions):
    """Options of the patient teacher."""

    temperature: float = setting(1.0, "Temperature of both distributions; the authors try 1, 2, 5 and 10.", gt=0)
    mixup: bool = setting(True, "Mix images in pairs before both networks see them.")


class Patient(Distiller):
    """T² · KL(teacher ‖ student) on mixed images, without labels, for as long as one has patience."""

    source = Source(
        "Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov: Knowledge distillation: A good teacher is patient and "
        "consistent, CVPR",
        2022,
        "authors' code",
        "2106.05237",
    )
    Options = PatientOptions
    learns_unlabeled = True
    teacher_count = (1, 99)
    limits = (
        "It needs a very long schedule. With mixup the training accuracy is that on mixed images against the label of "
        "the larger share, and a teacher's stored outputs cannot be used."
    )

    def __init__(self, context: Context, options: PatientOptions) -> None:
        super().__init__(context, options)
        self.temperature = options.temperature
        self.mixup = options.mixup
        self.seed = context.seed

    def transform_batch(self, batch: Batch, progress: Progress) -> Batch:
        """The batch with its images mixed by a share that is a function of (seed, step)."""
        if not self.mixup:
            return batch
        return replace(batch, images=mixed(batch.images, mixing_share(self.seed, progress.step)))

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """``kd`` alone is learned from, ``cross_entropy`` only watched; teachers' probabilities are averaged."""
        kd = mean_teacher_loss(student.logits, [teacher.logits for teacher in teachers], self.temperature)
        return kd, {"cross_entropy": self.cross_entropy(student.logits.detach(), labels), "kd": kd}
