"""Be your own teacher: self-distillation through exits (Zhang et al., ICCV 2019, arXiv 1905.08094)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import (
    Context,
    Distiller,
    Progress,
    Step,
    StudentModel,
    TeacherSource,
    Terms,
    full_precision,
    make_step,
)
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.exits import ExitOutputs, plain, soft_vote, vote, with_exits

Deploy = Literal["final", "soft", "hard", "exit1", "exit2", "exit3"]


@full_precision
def soft_cross_entropy(logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """T² · H(softmax(target / T), softmax(logits / T)), averaged over the batch; the target gets no gradient."""
    target = F.softmax(target_logits.detach() / temperature, dim=1)
    return -(temperature**2) * (target * F.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean()


@full_precision
def masked_feature_loss(features: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences of ``[B, D]`` where either is positive; the target gets no gradient."""
    target = target.detach()
    active = (features > 0) | (target > 0)
    return ((features - target).square() * active).sum()


class ExitDistiller(Distiller):
    """What methods with a multi-exit student share: its making, its undoing, and figures of every exit."""

    built_on = frozenset({"pooled", "stages"})

    def __init__(self, context: Context, options: MethodOptions, deploy: Deploy) -> None:
        super().__init__(context, options)
        self.deploy: Deploy = deploy
        self.seed = context.seed

    def training_student(self, student: Classifier) -> Classifier:
        """The student with a branch at each earlier stage."""
        return with_exits(student, self.deploy, self.seed)

    def deployed_student(self, student: Classifier) -> Classifier:
        """The plain student, or the student with its exits if they are deployed."""
        return plain(student) if self.deploy == "final" else student

    def alternatives(self, student: Classifier, images: Tensor) -> dict[str, Tensor]:
        """Each exit alone, and both votes."""
        logits = student.exits(images).logits
        named = {f"exit_{number}": own for number, own in enumerate(logits, 1)}
        return named | {"soft_vote": soft_vote(logits), "hard_vote": vote(logits)}

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """One pass of the student gives all exits."""
        targets = [teacher(batch).logits for teacher in teachers]
        exits = student.model.exits(batch.images)
        total, terms = self.exit_loss(exits, targets, batch.labels)
        return make_step({"main": total}, exits.logits[-1], terms)

    def exit_loss(self, exits: ExitOutputs, targets: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Terms]:
        """The loss of all exits; ``targets`` are the teachers' logits ``[B, K]``."""
        raise NotImplementedError

    def mean_entropy(self, exits: ExitOutputs, labels: Tensor) -> list[Tensor]:
        """Cross-entropy of every exit."""
        return [self.cross_entropy(logits, labels) for logits in exits.logits]


class BYOTOptions(MethodOptions):
    """Options of BYOT."""

    temperature: float = setting(3.0, "Temperature of the exits' and the deepest exit's distributions.", gt=0)
    alpha: float = setting(0.1, "Weight of the deepest exit's distribution; 1 - alpha on the labels.", ge=0, le=1)
    beta: float = setting(1e-6, "Weight of the feature term, which is a sum over the batch.", ge=0)
    deploy: Deploy = setting("final", "What is kept: the plain student, a vote of all exits, or one exit.")


class BYOT(ExitDistiller):
    """A student with exits learns from the labels and from its own deepest exit; there is no teacher."""

    source = Source(
        "Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher, ICCV", 2019, "third-party code", "1905.08094"
    )
    Options = BYOTOptions
    learns_unlabeled = True
    teacher_count = (0, 0)
    limits = "The student needs stages of maps to put exits at."

    def __init__(self, context: Context, options: BYOTOptions) -> None:
        super().__init__(context, options, options.deploy)
        self.temperature, self.alpha, self.beta = options.temperature, options.alpha, options.beta

    def exit_loss(self, exits: ExitOutputs, targets: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Terms]:
        """(1 − α) Σ CE_e + α T² Σ_{e<E} H(p_E, p_e) + β Σ_{e<E} ‖masked h_e − h_E‖²."""
        entropies = self.mean_entropy(exits, labels)
        *earlier, last = exits.logits
        *features, target = exits.features
        zero = torch.zeros((), device=last.device)
        soft = sum((soft_cross_entropy(logits, last, self.temperature) for logits in earlier), zero)
        hint = sum((masked_feature_loss(own, target) for own in features), zero)
        # The loop weighs a part of the batch by its share; this sum is over the whole batch.
        hint = hint * (self.whole_count(labels) / len(labels))
        total = (1 - self.alpha) * sum(entropies) + self.alpha * soft + self.beta * hint
        return total, {"cross_entropy": entropies[-1], "self_distillation": soft, "feature": hint}
