"""Methods that another method's loss is the host of: a temperature learned against the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from kd_mlflow.distillers.base import Context, Distiller, ParameterGroup, Progress, Terms
from kd_mlflow.distillers.dkd import TWO_CLASSES, decoupled_divergences, require_two_classes
from kd_mlflow.distillers.options import MethodOptions, setting
from kd_mlflow.distillers.temperatures import (
    InstanceTemperature,
    reversal_factor,
    reverse_gradient,
    tempered_divergence,
)
from kd_mlflow.distillers.vid import VID
from kd_mlflow.models.taps import Outputs


class HostOptions(MethodOptions):
    """What methods with a learned temperature have in common."""

    host: Literal["kd", "dkd", "vid"] = setting(
        "kd", "The loss that the temperature enters; vid is kd together with VID's term on the stages."
    )
    lowest: float = setting(1.0, "Lower bound of the temperature.", gt=0)
    highest: float = setting(21.0, "Upper bound of the temperature.", gt=0)
    start: float = setting(1.0, "θ at the start, T = lowest + (highest − lowest) · sigmoid(θ); 1 gives 15.6.")
    ramp_epochs: int = setting(10, "Epochs over which the reversed gradient grows to full; 5 on ImageNet.", ge=0)
    learning_rate: float = setting(0.05, "Learning rate of the temperature's SGD; 0.1 on ImageNet.", gt=0)
    ce_weight: float | None = setting(
        None, "Weight of the cross-entropy; empty: 0.1, or 1 with dkd. 1 on ImageNet.", ge=0
    )
    kd_weight: float | None = setting(
        None, "Weight of the distillation term; empty: 0.9, or 1 with dkd. 1 on ImageNet.", ge=0
    )
    alpha: float = setting(1.0, "The host dkd's weight of the label against all others together.", ge=0)
    beta: float = setting(
        2.0, "The host dkd's weight of the distribution among the others; nothing with two classes.", ge=0
    )
    warmup_epochs: int = setting(
        0, "Epochs over which the host dkd's term grows to full; CTKD's authors use none.", ge=0
    )
    vid_weight: float = setting(1.0, "The host vid's weight of its own term.", ge=0)


class LearnedTemperature(Distiller):
    """Base of the methods whose temperature climbs the loss that the student descends.

    Parameters
    ----------
    temperature:
        The module that gives T; its parameters are the group ``temperature``.
    strength:
        Factor of the reversed gradient, beside its schedule.
    t2_in_graph:
        Whether the factor T² carries a gradient to the temperature.
    """

    limits = (
        "With the host dkd it cannot be used with mixed labels, and with two classes beta does nothing; the host vid "
        "needs stages of maps."
    )

    def __init__(
        self, context: Context, options: HostOptions, temperature: nn.Module, *, strength: float, t2_in_graph: bool
    ) -> None:
        super().__init__(context, options)
        self.weights = options
        self.temperature = temperature
        self.strength = strength
        self.t2_in_graph = t2_in_graph
        whole = options.host == "dkd"
        self.ce_weight = (1.0 if whole else 0.1) if options.ce_weight is None else options.ce_weight
        self.kd_weight = (1.0 if whole else 0.9) if options.kd_weight is None else options.kd_weight
        self.vid = VID(context, VID.Options()) if options.host == "vid" else None
        if self.vid is not None:
            self.needs = self.needs | self.vid.needs
        if whole:
            require_two_classes(context, "dkd")
        self.learns_unlabeled = not whole
        self.two_classes = context.num_classes == 2

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """The host's parts with T² but unweighted, and the mean ``temperature``."""
        temperature = self.current(student.logits, teachers[0].logits, progress)
        cross_entropy = self.cross_entropy(student.logits, labels)
        soft, parts = self.soft(student.logits, teachers[0].logits, labels, temperature, progress)
        total = self.ce_weight * cross_entropy + self.kd_weight * soft
        terms = {"cross_entropy": cross_entropy, **parts}
        if self.vid is not None:
            terms["vid"] = self.vid.hint(student, teachers[0])
            total = total + self.weights.vid_weight * terms["vid"]
        return total, {**terms, "temperature": temperature.mean()}

    def notes(self, batch_size: int) -> list[str]:
        """That the host dkd's beta does nothing with two classes."""
        method = type(self).__name__.lower()
        return [TWO_CLASSES.format(method)] if self.weights.host == "dkd" and self.two_classes else []

    def current(self, student_logits: Tensor, teacher_logits: Tensor, progress: Progress) -> Tensor:
        """T, a scalar or ``[B, 1]``, whose gradient is reversed."""
        if isinstance(self.temperature, InstanceTemperature):
            temperature = self.temperature(student_logits, teacher_logits)
        else:
            temperature = self.temperature()
        factor = self.strength * reversal_factor(progress.epoch, self.weights.ramp_epochs)
        return reverse_gradient(temperature, factor)

    def soft(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """The distillation term of the host and its parts, with T² inside the mean over the batch."""
        squared = (temperature if self.t2_in_graph else temperature.detach()).flatten().square()
        if self.weights.host != "dkd":
            kd = (squared * tempered_divergence(student_logits, teacher_logits, temperature)).mean()
            return kd, {"kd": kd}
        divergences = decoupled_divergences(student_logits, teacher_logits, labels, temperature)
        tckd, nckd = ((squared * part).mean() for part in divergences)
        share = progress.warm_up(self.weights.warmup_epochs)
        return share * (self.weights.alpha * tckd + self.weights.beta * nckd), {"tckd": tckd, "nckd": nckd}

    def optimizer_groups(self) -> list[ParameterGroup]:
        """The temperature's SGD; decay would pull θ to 0, the middle of the bounds."""
        rate, own = self.weights.learning_rate, list(self.temperature.parameters())
        return [ParameterGroup("temperature", own, "sgd", rate, weight_decay=0.0, momentum=0.9)]
