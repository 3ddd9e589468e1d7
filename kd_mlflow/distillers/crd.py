"""Contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import (
    Context,
    Distiller,
    Progress,
    Step,
    StudentModel,
    TeacherSource,
    full_precision,
    make_step,
)
from kd_mlflow.distillers.gather import gathered
from kd_mlflow.distillers.matching import networks_of
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.errors import InputError
from kd_mlflow.models.taps import Tapped

# Floats of drawn bank rows that one chunk may hold: 64 MiB.
CHUNK_FLOATS = 2**24
POOLED = frozenset({"logits", "pooled"})


@full_precision
def contrast_loss(scores: Tensor, negatives: int, samples: int) -> Tensor:
    """−log h₊/(h₊ + m/n) − Σ log (m/n)/(h₋ + m/n), averaged over the batch (equation 19).

    Parameters
    ----------
    scores:
        ``[B, 1 + m]``: h of the positive, then of the negatives, already divided by Z.
    negatives, samples:
        m and n.
    """
    noise = negatives / samples
    positive = (scores[:, 0] / (scores[:, 0] + noise)).log()
    negative = (noise / (scores[:, 1:] + noise)).log().sum(dim=1)
    return -(positive + negative).mean()


def draw_negatives(labels: Tensor, bank_labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows of the bank ``[B, count]`` whose class is not the sample's, with replacement.

    ``labels`` is ``[B]``, ``bank_labels`` ``[N]``, both on the CPU.
    """
    order = bank_labels.argsort(stable=True)
    classes = torch.bincount(bank_labels, minlength=int(labels.max()) + 1)
    start = (classes.cumsum(0) - classes)[labels][:, None]
    others = (len(bank_labels) - classes[labels])[:, None]
    drawn = (torch.rand(len(labels), count, generator=generator, dtype=torch.float64) * others).long()
    drawn = drawn.minimum(others - 1)
    return order[torch.where(drawn >= start, drawn + classes[labels][:, None], drawn)]


class CRDOptions(MethodOptions):
    """Options of CRD."""

    width: int = setting(128, "Width of the common space.", ge=8, le=2048)
    negatives: int = setting(
        1024,
        "Negatives a sample, of other classes, drawn with replacement (16384 for the 50,000 of CIFAR); at most the "
        "number of images outside the smallest class.",
        ge=1,
    )
    temperature: float = setting(0.07, "Temperature of the contrast.", ge=0.02)
    momentum: float = setting(0.5, "How much of its old row a sample keeps in the banks.", ge=0, lt=1)
    weight: float = setting(0.8, "Weight of the contrast; 1 on the cross-entropy.", ge=0)


class CRD(Distiller):
    """Features of one image are to be near in both networks, those of other classes far, against memory banks."""

    source = Source(
        "Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR", 2020, "authors' code", "1910.10699"
    )
    Options = CRDOptions
    needs = POOLED
    relational = True
    # The banks and the normalizer follow the batch, and the draws its size.
    limits = "Negatives need a second class."
    rows: Tensor
    student_bank: Tensor
    teacher_bank: Tensor
    normalisers: Tensor

    def __init__(self, context: Context, options: CRDOptions) -> None:
        super().__init__(context, options)
        student, teacher = networks_of(context, "crd")
        if context.index is None or context.labels is None:
            raise InputError("The method 'crd' remembers every training image, and those are not known.")
        sizes = context.labels.unique(return_counts=True)[1]
        if len(sizes) < 2:
            raise InputError("The method 'crd' contrasts images of different classes, and there is only one.")
        widths = [Tapped(model, POOLED).widths.pooled for model in (student, teacher)]
        self.student_head, self.teacher_head = (nn.Linear(width, options.width) for width in widths)
        self.samples, self.seed = len(context.index), context.seed
        self.negatives = min(options.negatives, self.samples - int(sizes.min()))
        self.bank_labels = context.labels.cpu()
        rows = torch.full((int(context.index.max()) + 1,), -1)
        rows[context.index.cpu()] = torch.arange(self.samples)
        self.register_buffer("rows", rows, persistent=False)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, F.normalize(torch.randn(self.samples, options.width), dim=1))
        # Z of the student against the teacher's bank, and the other way round; negative until the first batch.
        self.register_buffer("normalisers", torch.full((2,), -1.0))

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """Cross-entropy, and both directions of the contrast; the banks follow afterwards."""
        target, own = teachers[0](batch), student(batch.images)
        rows = self.rows[batch.index]
        embedded = self.embed(own.pooled, target.pooled)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + progress.step)
        drawn = draw_negatives(self.bank_labels[rows.cpu()], self.bank_labels, self.negatives, generator)
        chosen = torch.cat([rows[:, None], drawn.to(rows.device)], dim=1)
        terms = {"cross_entropy": self.cross_entropy(own.logits, batch.labels)}
        terms["contrast"] = self.contrast(*embedded, chosen)
        self.remember(*embedded, rows)
        total = terms["cross_entropy"] + self.options.weight * terms["contrast"]
        return make_step({"main": total}, own.logits, terms)

    @full_precision
    def embed(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both networks' features in the common space, ``[B, width]`` of length 1; both heads learn."""
        return (
            F.normalize(self.student_head(student), dim=1),
            F.normalize(self.teacher_head(teacher.detach()), dim=1),
        )

    @full_precision
    def contrast(self, student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
        """The sum of both directions; ``chosen`` ``[B, 1 + m]`` are rows of the banks, the positive first."""
        parts = []
        for number, (own, bank) in enumerate(((student, self.teacher_bank), (teacher, self.student_bank))):
            exponentials = _exponentials(own, bank, chosen, self.options.temperature)
            if self.normalisers[number] < 0:
                self.normalisers[number] = gathered(exponentials.detach().mean()[None]).mean() * self.samples
            # A copy: the other direction may still set its own in this buffer.
            scores = exponentials / self.normalisers[number].clone()
            parts.append(contrast_loss(scores, self.negatives, self.samples))
        return parts[0] + parts[1]

    @torch.no_grad()
    def remember(self, student: Tensor, teacher: Tensor, rows: Tensor) -> None:
        """Move the samples' rows towards what they are now, those of all processes."""
        momentum, rows = self.options.momentum, gathered(rows)
        for bank, own in ((self.student_bank, student), (self.teacher_bank, teacher)):
            bank[rows] = F.normalize(momentum * bank[rows] + (1 - momentum) * gathered(own).to(bank.dtype), dim=1)


def _exponentials(own: Tensor, bank: Tensor, chosen: Tensor, temperature: float) -> Tensor:
    """exp(v · m / τ) ``[B, 1 + m]``; the drawn rows are looked up again in the backward pass, chunk by chunk."""
    step = max(1, CHUNK_FLOATS // (chosen.shape[1] * bank.shape[1]))
    # A copy: the banks change before the backward pass looks the rows up again.
    rows = bank.clone()

    def scores(part: Tensor, places: Tensor) -> Tensor:
        return (torch.einsum("bd,bmd->bm", part, rows[places]) / temperature).exp()

    parts = [
        checkpoint(scores, own[first : first + step], chosen[first : first + step], use_reentrant=False)
        for first in range(0, len(own), step)
    ]
    return torch.cat(parts)
