"""The contract between a distillation method and the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.data.batch import Batch
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.taps import Outputs


@dataclass(frozen=True, slots=True)
class Progress:
    """Where in the training a step stands. ``epoch`` starts at 1, ``step`` counts from 0 over all epochs."""

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int


@dataclass(frozen=True, slots=True)
class Context:
    """What a method is told when it is built.

    Attributes
    ----------
    class_weights:
        ``[K]`` weights of the cross-entropy, or None.
    label_smoothing:
        Smoothing of the cross-entropy, 0 to 1.
    """

    num_classes: int
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one step.

    Attributes
    ----------
    losses:
        The scalar to minimise, per optimizer group.
    logits:
        ``[B, K]`` of the student, for the running accuracy.
    terms:
        Detached scalars by name, logged as they are.
    """

    losses: dict[str, Tensor]
    logits: Tensor
    terms: dict[str, Tensor]


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return values if values.element_size() >= 4 else values.float()


class StudentModel(Protocol):
    """The tapped student: images in, outputs out."""

    def __call__(self, images: Tensor) -> Outputs: ...


class TeacherSource(Protocol):
    """A teacher's outputs for a batch, from a forward pass or from a store of earlier ones."""

    def __call__(self, batch: Batch) -> Outputs: ...


class Distiller(nn.Module):
    """A method: which outputs it needs and how they become a loss.

    A subclass declares ``needs`` and implements :meth:`loss`; the other hooks have defaults that do
    nothing. Parameters and buffers of the module enter the optimiser and the checkpoint, never the
    exported student.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_teacher: ClassVar[bool] = True

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.label_smoothing = context.label_smoothing
        # Not persistent: it follows from the data, and a checkpoint holds only what was learned.
        self.register_buffer("class_weights", context.class_weights, persistent=False)

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """Run both networks on the same pixels and weigh the terms."""
        teacher_outputs = [teacher(batch) for teacher in teachers]
        outputs = student(batch.images)
        total, terms = self.loss(outputs, teacher_outputs, batch.labels, progress)
        detached = {name: value.detach() for name, value in terms.items()}
        return Step({"main": total}, outputs.logits.detach(), detached)

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its unweighted terms by name."""
        raise NotImplementedError

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in float32 with the run's class weights and label smoothing."""
        return F.cross_entropy(
            at_least_float32(logits), labels, weight=self.class_weights, label_smoothing=self.label_smoothing
        )

    def transform_batch(self, batch: Batch, progress: Progress) -> Batch:
        """Change a batch before both networks see it (mixup); the default leaves it."""
        return batch

    def training_student(self, student: Classifier) -> Classifier:
        """The network that is trained (exits, swapped blocks); the default is the student itself."""
        return student

    def deployed_student(self, student: Classifier) -> Classifier:
        """The network that is kept when training is done; the default is the student itself."""
        return student

    def extra_parameters(self) -> list[nn.Parameter]:
        """What the method itself learns, optimised beside the student."""
        return list(self.parameters())
