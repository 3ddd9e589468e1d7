"""The contract between a distillation method and the training loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, ParamSpec, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.data.batch import Batch
from kd_mlflow.data.labels import UNLABELED
from kd_mlflow.distillers.options import MethodOptions, Source
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.taps import Outputs

Terms = dict[str, Tensor]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where in the training a step stands.

    Attributes
    ----------
    epoch:
        From 1.
    step:
        From 0 over all epochs.
    part:
        Which part of the step's batch it is, from 0. What happens once a step happens in part 0.
    """

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    part: int = 0

    def warm_up(self, epochs: int) -> float:
        """min(epoch / epochs, 1); 1 without a warm-up."""
        return min(self.epoch / epochs, 1.0) if epochs else 1.0


@dataclass(frozen=True)
class Context:
    """What a method is told when it is built.

    Attributes
    ----------
    class_weights:
        ``[K]`` weights of the cross-entropy, or None.
    label_smoothing:
        Smoothing of the cross-entropy, 0 to 1.
    student, teachers:
        The networks, for what depends on their shapes; None and empty where only logits matter.
    index, labels:
        ``[N]``: places in the manifest and labels of the training split.
    seed:
        Of everything that a method draws.
    """

    num_classes: int
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    student: Classifier | None = None
    teachers: tuple[Classifier, ...] = ()
    index: Tensor | None = None
    labels: Tensor | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one step.

    Attributes
    ----------
    losses:
        The scalars to minimise, by the group of parameters they are for. All are differentiated at
        once: a loss that must not reach the parameters of another group is detached from them.
    logits:
        ``[B, K]`` of the student, for the running accuracy.
    terms:
        Detached scalars by name, logged as they are.
    """

    losses: dict[str, Tensor]
    logits: Tensor
    terms: Terms


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of a method that are not optimised like the student.

    Attributes
    ----------
    kind:
        The optimiser; None: the run's own.
    learning_rate:
        None: the run's own.
    scheduled:
        Whether the rate follows the run's schedule.
    weight_decay, momentum, betas:
        None: the run's own.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    kind: Literal["adam", "adamw", "sgd"] | None = None
    learning_rate: float | None = None
    scheduled: bool = True
    weight_decay: float | None = None
    momentum: float | None = None
    betas: tuple[float, float] | None = None


class StudentModel(Protocol):
    """The tapped student: images in, outputs out; ``model`` is the network behind it."""

    model: Classifier

    def __call__(self, images: Tensor) -> Outputs: ...


class TeacherSource(Protocol):
    """A teacher's outputs for a batch, from a forward pass or from a store of earlier ones."""

    def __call__(self, batch: Batch) -> Outputs: ...


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return values if values.element_size() >= 4 or not values.is_floating_point() else values.float()


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """A loss whose arithmetic is float32 or wider, whatever surrounds it.

    Tensors given by position are widened, also inside lists, and autocast is off: matrix products in
    it would be narrowed again.
    """

    @functools.wraps(function)
    def widened(*args: P.args, **kwargs: P.kwargs) -> R:
        wide = [_map_tensors(argument, at_least_float32) for argument in args]
        device = next((tensor.device.type for tensor in _tensors(wide)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*wide, **kwargs)

    return widened


def double_precision(function: Callable[P, R]) -> Callable[P, R]:
    """A loss whose arithmetic is float64 and whose result is float32 again (wider if its first tensor was wider).

    For differences of nearly equal numbers that a large factor multiplies afterwards: at T = 1,000 the
    divergence of two softened distributions is about 1e-6, the rounding of a float32 logarithm 1e-7, and T²
    a million. Metal has no float64: there the arithmetic stays float32. Tensors as in :func:`full_precision`.
    """

    @functools.wraps(function)
    def widened(*args: P.args, **kwargs: P.kwargs) -> R:
        floating = [tensor for tensor in _tensors(args) if tensor.is_floating_point()]
        dtype = at_least_float32(floating[0]).dtype if floating else torch.float32
        wide = [_map_tensors(argument, _as_float64) for argument in args]
        with torch.autocast(floating[0].device.type if floating else "cpu", enabled=False):
            return _map_tensors(function(*wide, **kwargs), lambda values: values.to(dtype))

    return widened


def _as_float64(values: Tensor) -> Tensor:
    if not values.is_floating_point() or values.device.type == "mps":
        return at_least_float32(values)
    return values.double()


def _map_tensors(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """The value with its tensors converted, also those in lists and tuples."""
    if isinstance(value, Tensor):
        return convert(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, convert) for item in value)
    return value


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    nested = (_tensors(value) if isinstance(value, (list, tuple)) else [value] for value in values)
    return [item for items in nested for item in items if _is_tensor(item)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


class Distiller(nn.Module):
    """A method: which outputs it needs and how they become a loss.

    A subclass declares ``source``, ``Options`` and ``needs`` and implements :meth:`loss`; the other hooks
    have defaults that do nothing. Parameters and buffers of the module enter the optimiser and the
    checkpoint, never the exported student. Networks must not become submodules: keep them in a tuple.

    Attributes
    ----------
    needs:
        Taps of the student; and of the teachers, unless ``teacher_needs`` says otherwise.
    built_on:
        Taps beyond ``needs`` that the method's parts look at when they are built.
    teacher_count:
        The fewest and the most teachers that the method takes.
    views:
        How many augmentations of each image a batch holds; those after the first are strong ones.
    relational:
        Whether the loss sees images together: pairs of a batch, its statistics, or a memory that every batch changes.
        Its mean over the parts of a batch is then not that of the batch, and a batch never goes through in parts.
    learns_unlabeled:
        Whether the method learns from images without labels (:data:`kd_mlflow.data.labels.UNLABELED`): labels reach
        its loss by :meth:`cross_entropy` alone, and something else teaches on every image. Else it is given labeled
        images only.
    limits:
        What the method cannot do, as a sentence for its documentation.
    """

    source: ClassVar[Source]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    needs: frozenset[str] = frozenset({"logits"})
    teacher_needs: frozenset[str] | None = None
    built_on: ClassVar[frozenset[str]] = frozenset()
    teacher_count: ClassVar[tuple[int, int]] = (1, 1)
    views: int = 1
    relational: ClassVar[bool] = False
    learns_unlabeled: bool = False
    limits: ClassVar[str] = ""

    def __init__(self, context: Context, options: MethodOptions) -> None:
        super().__init__()
        self.options = options
        self.label_smoothing = context.label_smoothing
        # Not persistent: it follows from the data, and a checkpoint holds only what was learned.
        self.register_buffer("class_weights", context.class_weights, persistent=False)
        self._whole_labels: Tensor | None = None

    def forward(
        self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress
    ) -> Step:
        """:meth:`step` as the loop calls it, for a whole batch or a part of one.

        Within it, what is no mean over images takes its divisor from the whole batch (:meth:`cross_entropy`,
        :meth:`whole_count`).
        """
        self._whole_labels = batch.whole_labels
        try:
            return self.step(batch, student, teachers, progress)
        finally:
            self._whole_labels = None

    @classmethod
    def is_relational(cls, options: MethodOptions) -> bool:
        """``relational`` under these options; to be overridden where it depends on them."""
        return cls.relational

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """Run both networks on the same pixels and weigh the terms."""
        teacher_outputs = [teacher(batch) for teacher in teachers]
        outputs = student(batch.images)
        total, terms = self.loss(outputs, teacher_outputs, batch.labels, progress)
        return make_step({"main": total}, outputs.logits, terms)

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """The loss and its unweighted terms by name."""
        raise NotImplementedError

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in float32 with the run's class weights w and label smoothing.

        Σ w_y ℓ of these images over B times the mean w_y of the whole batch, so that the losses of parts and
        processes, averaged by their numbers of images, are Σ w_y ℓ / Σ w_y of the whole batch. 0 without a
        gradient where the whole batch weighs nothing.

        Parameters
        ----------
        logits, labels:
            ``[B, K]`` and ``[B]``; a multiple of the part's images where it is seen in several views.
        """
        total = F.cross_entropy(
            at_least_float32(logits),
            labels,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="sum",
            ignore_index=UNLABELED,
        )
        whole = labels if self._whole_labels is None else self._whole_labels
        divisor = len(labels) * self.image_weights(whole).mean()
        return total / divisor.masked_fill(divisor <= 0, torch.inf)

    def image_weights(self, labels: Tensor) -> Tensor:
        """What each image ``[B]`` counts in the cross-entropy: its label's class weight, or 1; 0 without a label."""
        labeled = (labels != UNLABELED).float()
        if self.class_weights is None:
            return labeled
        return self.class_weights[labels.clamp(min=0)] * labeled

    def whole_count(self, labels: Tensor) -> int:
        """How many images the whole batch has of which these ``[B]`` are a part.

        A term that is a sum over the batch is (sum over the part) · whole_count / B.
        """
        return len(labels) if self._whole_labels is None else len(self._whole_labels)

    def transform_batch(self, batch: Batch, progress: Progress) -> Batch:
        """Change a batch before both networks see it (mixup); the default leaves it."""
        return batch

    def training_student(self, student: Classifier) -> Classifier:
        """The network that is trained (exits, a shared classifier); the default is the student itself.

        Called once, before the optimiser is built. In eval mode the network gives the logits by which an
        epoch is judged; whatever is deployed must be part of it.
        """
        return student

    def deployed_student(self, student: Classifier) -> Classifier:
        """The network that is kept, out of a trained one; the default is the trained one itself."""
        return student

    def alternatives(self, student: Classifier, images: Tensor) -> dict[str, Tensor]:
        """Other predictions ``[B, K]`` of the trained network by name (its exits), measured beside its own."""
        return {}

    def check_epochs(self, epochs: int) -> None:
        """Refuse a schedule in which the method would do nothing; the default takes every one.

        Raises
        ------
        InputError
            The training is too short for what the method does.
        """

    def notes(self, batch_size: int) -> list[str]:
        """Sentences on what of the method has no effect here, for this data and batch; the default has none."""
        return []

    def optimizer_groups(self) -> list[ParameterGroup]:
        """Parameters of the method that need an optimiser of their own."""
        return []

    def extra_parameters(self) -> list[nn.Parameter]:
        """What the method itself learns, optimised beside the student."""
        apart = {id(parameter) for group in self.optimizer_groups() for parameter in group.parameters}
        return [parameter for parameter in self.parameters() if id(parameter) not in apart]


def make_step(losses: dict[str, Tensor], logits: Tensor, terms: Terms) -> Step:
    """A step whose logits and terms are cut off from the graph."""
    return Step(losses, logits.detach(), {name: value.detach() for name, value in terms.items()})
