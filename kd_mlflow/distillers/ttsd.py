"""A temperature tailored to every class (Chen et al., IEEE SmartWorld 2024).

A reconstruction from a description: temperatures are first learned against the student, then follow how well
it knows each class. Parametrisation, schedule and factors are those of the nearest published method, CTKD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kd_mlflow.distillers.base import Context, Distiller, ParameterGroup, Progress, Terms, full_precision
from kd_mlflow.distillers.gather import gathered
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.distillers.temperatures import (
    BoundedTemperature,
    require_bounds,
    reversal_factor,
    reverse_gradient,
    tempered_divergence,
)
from kd_mlflow.models.taps import Outputs

Index = Literal["label", "elementwise"]
# Share of an epoch's accuracy that stays in the average of the epochs.
DECAY = 0.9
UNSEEN = -1.0


@full_precision
def tailored_divergences(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperatures: Tensor,
    index: Index,
    t2_in_graph: bool,
) -> Tensor:
    """T_y² · KL(p_t ‖ p_s) of each sample ``[B]`` in nats.

    Parameters
    ----------
    student_logits, teacher_logits:
        ``[B, K]``; the teacher's get no gradient.
    temperatures:
        ``[K]``, one a class.
    index:
        ``label``: both networks are softened by the temperature of the sample's label. ``elementwise``:
        each class's logit is divided by that class's temperature.
    t2_in_graph:
        Whether the factor T² carries a gradient to the temperatures.
    """
    own = temperatures[labels]
    softened = own[:, None] if index == "label" else temperatures
    squared = own.square() if t2_in_graph else own.detach().square()
    return squared * tempered_divergence(student_logits, teacher_logits, softened)


def tailored_temperatures(
    learned: Tensor, accuracies: Tensor, strength: float, lowest: float, highest: float
) -> Tensor:
    """T_k = clip(T_k (1 + κ (ā − a_k))), ``[K]``: softer for classes the student knows less than the average.

    Parameters
    ----------
    learned:
        ``[K]``: the temperatures as they were learned.
    accuracies:
        ``[K]``; negative for a class not seen yet, which keeps its temperature and is not in the average ā.
    strength:
        κ; negative for sharper instead of softer.
    """
    seen = accuracies >= 0
    mean = (accuracies * seen).sum() / seen.sum().clamp_min(1)
    return (learned * (1 + strength * (mean - accuracies) * seen)).clamp(lowest, highest)


class TTSDOptions(MethodOptions):
    """Options of TTSD."""

    index: Index = setting(
        "label", "Soften a sample by its label's temperature, or each class's logit by that class's."
    )
    lowest: float = setting(1.0, "Lower bound of the temperatures.", gt=0)
    highest: float = setting(21.0, "Upper bound of the temperatures.", gt=0)
    start: float = setting(0.0, "θ of every class at the start; 0 is midway between the bounds.")
    learned_share: float = setting(
        0.3, "Share of the epochs in which the temperatures are learned, before they follow accuracy.", ge=0, le=1
    )
    kappa: float = setting(0.5, "How strongly temperatures follow the accuracy of their class.", ge=0)
    harder: Literal["softer", "sharper"] = setting("softer", "What classes become that the student knows less well.")
    ramp_epochs: int = setting(10, "Epochs over which the reversed gradient grows to full.", ge=0)
    learning_rate: float = setting(0.05, "Learning rate of the temperatures' SGD.", gt=0)
    t2_in_graph: bool = setting(False, "Let the factor T² move the temperatures, too.")
    ce_weight: float = setting(0.1, "Weight of the cross-entropy.", ge=0)
    kd_weight: float = setting(0.9, "Weight of the distillation term.", ge=0)


class TTSD(Distiller):
    """A temperature for each class, learned against the student, later led by its accuracy (reconstruction)."""

    source = Source(
        "Chen et al.: Tailored Temperature for Student in Knowledge Distillation, IEEE SWC", 2024, "reconstruction"
    )
    Options = TTSDOptions
    limits = "The label chooses the temperature, so it cannot be used with mixed labels."
    accuracies: Tensor
    hits: Tensor
    counts: Tensor

    def __init__(self, context: Context, options: TTSDOptions) -> None:
        super().__init__(context, options)
        require_bounds("ttsd", options.lowest, options.highest)
        self.weights = options
        classes = context.num_classes
        self.temperatures = BoundedTemperature(options.lowest, options.highest, options.start, classes)
        self.strength = options.kappa if options.harder == "softer" else -options.kappa
        self.register_buffer("accuracies", torch.full((classes,), UNSEEN))
        self.register_buffer("hits", torch.zeros(classes))
        self.register_buffer("counts", torch.zeros(classes))

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """``kd`` with T²; ``temperature`` is the mean over the classes."""
        weights = self.weights
        self.follow(student.logits, labels, progress)
        temperatures = self.current(progress)
        kd = tailored_divergences(
            student.logits, teachers[0].logits, labels, temperatures, weights.index, weights.t2_in_graph
        ).mean()
        cross_entropy = self.cross_entropy(student.logits, labels)
        total = weights.ce_weight * cross_entropy + weights.kd_weight * kd
        return total, {"cross_entropy": cross_entropy, "kd": kd, "temperature": temperatures.mean()}

    def learning(self, progress: Progress) -> bool:
        """Whether the temperatures are still learned."""
        return progress.epoch <= round(self.weights.learned_share * progress.epochs)

    def current(self, progress: Progress) -> Tensor:
        """The temperatures ``[K]``: with a reversed gradient while they are learned, without one afterwards."""
        weights = self.weights
        if self.learning(progress):
            return reverse_gradient(self.temperatures(), reversal_factor(progress.epoch, weights.ramp_epochs))
        learned = self.temperatures().detach()
        return tailored_temperatures(learned, self.accuracies, self.strength, weights.lowest, weights.highest)

    @torch.no_grad()
    def follow(self, logits: Tensor, labels: Tensor, progress: Progress) -> None:
        """Count what the student gets right in training; the first part of an epoch first takes in the one before.

        The first accuracy of a class is taken as it is, later ones are averaged in.
        """
        if progress.part == 0 and progress.step % progress.steps_per_epoch == 0:
            accuracies = self.hits / self.counts.clamp_min(1)
            averaged = DECAY * self.accuracies + (1 - DECAY) * accuracies
            new = torch.where(self.accuracies < 0, accuracies, averaged)
            self.accuracies.copy_(torch.where(self.counts > 0, new, self.accuracies))
            self.hits.zero_()
            self.counts.zero_()
        right = (logits.argmax(dim=1) == labels).to(self.hits.dtype)
        here = torch.zeros(1, 2, len(self.counts), dtype=self.hits.dtype, device=self.hits.device)
        here[0, 0].index_add_(0, labels, right)
        here[0, 1].index_add_(0, labels, torch.ones_like(right))
        # All processes count the same, or their temperatures would part.
        hits, counts = gathered(here).sum(dim=0)
        self.hits += hits
        self.counts += counts

    def optimizer_groups(self) -> list[ParameterGroup]:
        """θ, without momentum and decay: a class that is absent from a batch keeps its temperature."""
        rate, own = self.weights.learning_rate, list(self.temperatures.parameters())
        return [ParameterGroup("temperature", own, "sgd", rate, weight_decay=0.0, momentum=0.0)]
