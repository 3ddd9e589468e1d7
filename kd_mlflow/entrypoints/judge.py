"""How good a trained network is: quality on every split, likeness to its teacher, cost of use."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from kd_mlflow.config import Recipe
from kd_mlflow.data.labels import LabeledImages, label_mask
from kd_mlflow.data.loading import evaluation_batches
from kd_mlflow.distillers.base import Distiller
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.measures.agreement import agreement
from kd_mlflow.measures.classification import Classification, classify
from kd_mlflow.training.evaluation import measure_accuracy, measure_alternatives, predict_logits
from kd_mlflow.training.loop import Fit


@dataclass(frozen=True)
class Judged:
    """One split: logits ``[N, K]``, labels and manifest places ``[N]``, and what follows from them.

    ``teacher_logits`` are the first teacher's on the same images, if there is one.
    """

    logits: Tensor
    labels: Tensor
    index: Tensor
    quality: Classification
    likeness: dict[str, float]
    teacher_logits: Tensor | None

    @property
    def metrics(self) -> dict[str, float]:
        """Quality and likeness by name."""
        return self.quality.metrics | self.likeness


@dataclass(frozen=True)
class Verdict:
    """The validation split at the selected epoch, then the test split, read once."""

    val: Judged
    test: Judged
    train_accuracy: float

    @property
    def generalisation_gap(self) -> float:
        """Training minus validation accuracy, both on centre crops in eval mode."""
        return self.train_accuracy - self.val.quality.metrics["accuracy"]


def judge_split(
    session: Session, model: nn.Module, split: str, batch_size: int, teacher: nn.Module | Tensor | None = None
) -> Judged:
    """Measure a network on one split, and beside its teacher, or the teacher's logits on it, if it has one."""
    logits, labels, index = split_logits(session, model, split, batch_size)
    quality = classify(logits, labels, session.store.classes)
    if teacher is None:
        return Judged(logits, labels, index, quality, {}, None)
    known = isinstance(teacher, Tensor)
    teacher_logits = teacher if known else split_logits(session, teacher, split, batch_size)[0]
    return Judged(logits, labels, index, quality, agreement(logits, teacher_logits), teacher_logits)


def judge(session: Session, model: nn.Module, recipe: Recipe, teacher: nn.Module | None) -> Verdict:
    """Validation first, then test, then the training images whose labels it had, measured the same way."""
    val = judge_split(session, model, "val", recipe.batch_size, teacher)
    test = judge_split(session, model, "test", recipe.batch_size, teacher)
    mask = label_mask(session.store, recipe)
    labeled = None if mask is None else LabeledImages(mask, alone=True)
    batches = evaluation_batches(
        session.store, "train", batch_size=recipe.batch_size, device=session.device, labeled=labeled
    )
    return Verdict(val, test, measure_accuracy(model, batches, session.device, session.precision))


def judge_alternatives(session: Session, fit: Fit, distiller: Distiller, batch_size: int) -> dict[str, float]:
    """Figures of a trained network's other predictions (its exits, their votes) on validation and test.

    For each its accuracy, and the share that it gets right of what the deployed network gets wrong.
    """
    figures: dict[str, float] = {}
    for split, prefix in (("val", "best"), ("test", "test")):
        batches = evaluation_batches(session.store, split, batch_size=batch_size, device=session.device)
        figures |= {
            f"{prefix}/{name}": value
            for name, value in measure_alternatives(
                fit.trained, fit.best, distiller.alternatives, batches, session.device, session.precision
            ).items()
        }
    return figures


def split_logits(session: Session, model: nn.Module, split: str, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[N, K]``, labels and manifest places ``[N]`` of a split, as :func:`predict_logits` gives them."""
    batches = evaluation_batches(session.store, split, batch_size=batch_size, device=session.device)
    return predict_logits(model.to(session.device), batches, session.device, session.precision)
