"""Interactive knowledge distillation by swapped blocks (Fu et al., Neurocomputing 2021, arXiv 2007.01476)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor, nn

from kd_mlflow.data.batch import Batch
from kd_mlflow.data.draws import uniform
from kd_mlflow.distillers.base import Context, Distiller, Progress, Step, StudentModel, TeacherSource, make_step
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.stages import eval_mode, noise

_DRAW = 0x6961


@dataclass(frozen=True)
class Pair:
    """Consecutive blocks of the student, and those of the teacher that can stand in for them."""

    student: tuple[nn.Module, ...]
    teacher: tuple[nn.Module, ...]


def student_probability(
    schedule: str, start: float, done: float, phases: Sequence[float] = (0.0, 1 / 3, 2 / 3)
) -> float:
    """The probability p that the *student's* block is used.

    Parameters
    ----------
    schedule:
        ``uniform``: p₀ throughout; ``linear``: min(1, p₀ + (1 − p₀) t / t_max); ``review``: the same anew in
        each phase.
    start:
        p₀.
    done:
        The share of the swapping steps already taken, 0 to 1.
    phases:
        Where the phases of ``review`` begin, as shares.
    """
    if schedule == "uniform":
        return start
    if schedule == "review":
        begun = [place for place in phases if place <= done]
        begin = begun[-1] if begun else 0.0
        end = next((place for place in phases if place > done), 1.0)
        done = (done - begin) / (end - begin) if end > begin else 1.0
    return min(1.0, start + (1 - start) * done)


class IAKDOptions(MethodOptions):
    """Options of IAKD."""

    schedule: Literal["uniform", "linear", "review"] = setting(
        "linear", "How the probability of the student's own block goes: constant, growing, growing in each phase."
    )
    start: float = setting(0.5, "Probability of the student's own block at the start.", ge=0, le=1)
    phase_epochs: tuple[int, ...] = setting(
        (), "Epochs at which a phase of review begins, ascending, as the learning rate falls; empty: thirds."
    )
    final_share: float = setting(
        0.1,
        "Share of the epochs, at the end, without swaps: the student's BatchNorm must see its own maps.",
        ge=0,
        le=1,
    )
    kd_weight: float = setting(0.0, "Weight of softened targets from a full pass of the teacher; 0 for none.", ge=0)
    temperature: float = setting(4.0, "Temperature of those targets.", gt=0)

    @field_validator("phase_epochs")
    @classmethod
    def _ascending(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if list(epochs) != sorted(set(epochs)) or any(epoch < 1 for epoch in epochs):
            raise ValueError("epochs must be positive and ascend, as in 30,60")
        return epochs


class IAKD(Distiller):
    """Blocks of the frozen teacher stand in for the student's at random; the labels teach through them."""

    source = Source(
        "Fu, Li, Liu, Yang: Interactive Knowledge Distillation, Neurocomputing", 2021, "reconstruction", "2007.01476"
    )
    Options = IAKDOptions
    built_on = frozenset({"stages"})
    limits = (
        "Student and teacher need the same number of stages with blocks of equal shapes at the ends "
        "(ResNet34 → ResNet18); the operation is the paper's, the schedules are reconstructed."
    )

    def __init__(self, context: Context, options: IAKDOptions) -> None:
        super().__init__(context, options)
        if context.student is None or not context.teachers:
            raise InputError("The method 'iakd' swaps blocks between student and teacher, which are not known.")
        self.schedule, self.start, self.final_share = options.schedule, options.start, options.final_share
        self.phase_epochs, self.kd_weight, self.temperature = (
            options.phase_epochs,
            options.kd_weight,
            options.temperature,
        )
        self.seed = context.seed
        # A tuple of plain records: the networks' weights are not the method's own.
        self.pairs = pair_blocks(context.student, context.teachers[0])

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """Cross-entropy of the hybrid; what was swapped out gets no gradient, and so no update."""
        probability = self.probability(progress)
        with swapped(self.pairs, self.own_blocks(progress, probability)):
            outputs = student(batch.images)
        entropy = self.cross_entropy(outputs.logits, batch.labels)
        total, terms = entropy, {"cross_entropy": entropy, "own_block_probability": torch.tensor(probability)}
        if self.kd_weight:
            terms["kd"] = kd_loss(outputs.logits, teachers[0](batch).logits, self.temperature)
            total = total + self.kd_weight * terms["kd"]
        return make_step({"main": total}, outputs.logits, terms)

    def check_epochs(self, epochs: int) -> None:
        """Refuse a schedule in which no block is ever swapped, or a phase never begins."""
        swapping = self.swapping_epochs(epochs)
        if swapping < 1:
            raise InputError(
                f"The method 'iakd' swaps no block in {epochs} epochs, since its final share of {self.final_share:g} "
                "takes them all; set more --epochs or a smaller --iakd-final-share."
            )
        late = [epoch for epoch in self.phase_epochs if epoch >= swapping]
        if late and self.schedule == "review":
            raise InputError(
                f"--iakd-phase-epochs {late[0]} never begins: blocks are swapped in the first {swapping} of {epochs} "
                "epochs; name earlier epochs."
            )

    def swapping_epochs(self, epochs: int) -> int:
        """How many of the epochs, from the first on, swap blocks."""
        return epochs - math.ceil(self.final_share * epochs)

    def probability(self, progress: Progress) -> float:
        """p at this step; 1 in the final epochs."""
        swapping = self.swapping_epochs(progress.epochs)
        if progress.epoch > swapping:
            return 1.0
        phases = [0.0, *[epoch / swapping for epoch in self.phase_epochs]] if self.phase_epochs else (0.0, 1 / 3, 2 / 3)
        return student_probability(
            self.schedule, self.start, progress.step / (swapping * progress.steps_per_epoch), phases
        )

    def own_blocks(self, progress: Progress, probability: float) -> list[bool]:
        """For every pair whether the student's own blocks are used: a function of (seed, step), on all processes."""
        draws = uniform(self.seed, progress.step, np.arange(len(self.pairs)), _DRAW)
        return [bool(draw < probability) for draw in draws]


def pair_blocks(student: Classifier, teacher: Classifier) -> tuple[Pair, ...]:
    """The groups of blocks of both networks in their order, whose maps must have equal shapes at the ends.

    Raises
    ------
    InputError
        The stages differ in number or in the shapes at their ends.
    """
    names = f"'{teacher.spec.architecture}' and '{student.spec.architecture}'"
    ours, theirs = _groups(student), _groups(teacher)
    if not ours or len(ours) != len(theirs):
        raise InputError(f"The method 'iakd' cannot swap blocks between {names}: their stages do not correspond.")
    pairs = [Pair(own, other) for own, other in zip(ours, theirs, strict=True)]
    own_shapes, other_shapes = _ends(student, [p.student for p in pairs]), _ends(teacher, [p.teacher for p in pairs])
    for own, other in zip(own_shapes, other_shapes, strict=True):
        if own != other:
            raise InputError(
                f"The method 'iakd' cannot swap blocks between {names}: where the student's go from {own[0]} to "
                f"{own[1]} (channels, height, width), the teacher's go from {other[0]} to {other[1]}."
            )
    return tuple(pairs)


@contextmanager
def swapped(pairs: Sequence[Pair], own: Sequence[bool]) -> Iterator[None]:
    """For a while the teacher's blocks run in the place of the student's wherever ``own`` is False.

    Gradients pass through the teacher's blocks to what lies before them.
    """
    taken: list[nn.Module] = []
    try:
        for pair, keep in zip(pairs, own, strict=True):
            if keep:
                continue
            first, *rest = pair.student
            stand_in = nn.Sequential(*pair.teacher)
            first.forward = stand_in.forward
            taken.append(first)
            for module in rest:
                module.forward = _unchanged
                taken.append(module)
        yield
    finally:
        for module in taken:
            del module.forward


def _unchanged(images: Tensor) -> Tensor:
    return images


def _groups(model: Classifier) -> list[tuple[nn.Module, ...]]:
    """Without the stem: each layer of a ResNet in two contiguous groups, or a body's features by resolution.

    The first group of a layer, which changes the resolution, is the smaller.
    """
    layers = [getattr(model.body, f"layer{number}", None) for number in range(1, 5)]
    if all(isinstance(layer, nn.Sequential) for layer in layers):
        cuts = [(list(layer), len(layer) // 2) for layer in layers]
        return [tuple(group) for blocks, cut in cuts for group in (blocks[:cut], blocks[cut:]) if group]
    features = getattr(model.body, "features", None)
    if not isinstance(features, nn.Sequential):
        return []
    blocks = list(features)[1:]
    by_side: dict[int, list[nn.Module]] = {}
    for block, (_, end) in zip(blocks, _ends(model, [(block,) for block in blocks]), strict=True):
        by_side.setdefault(end[1], []).append(block)
    return [tuple(group) for group in by_side.values()]


def _ends(model: Classifier, groups: Sequence[Sequence[nn.Module]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes (C, H, W) of what goes into each group and comes out of it."""
    seen: dict[nn.Module, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output: seen.__setitem__(module, (inputs[0].shape[1:], output.shape[1:]))
        )
        for group in groups
        for module in (group[0], group[-1])
    ]
    try:
        with eval_mode(model):
            model(noise(model, model.spec.image_size))
    finally:
        for hook in hooks:
            hook.remove()
    return [(tuple(seen[group[0]][0]), tuple(seen[group[-1]][1])) for group in groups]
