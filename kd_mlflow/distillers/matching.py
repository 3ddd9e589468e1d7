"""Stages of two networks side by side: which belong together, their shapes, and what brings one to the other's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.distillers.base import Context
from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.stages import find_stages
from kd_mlflow.models.taps import Tapped

Shape = tuple[int, int, int]
STAGES = frozenset({"logits", "stages"})


@dataclass(frozen=True)
class StagePair:
    """One stage of the student and the teacher's at the same depth from the end, with their shapes (C, H, W).

    ``student`` and ``teacher`` are places in the lists of maps, counted from the end: −1 is the deepest.
    """

    place: int
    student: Shape
    teacher: Shape


def networks_of(context: Context, method: str) -> tuple[Classifier, Classifier]:
    """Student and first teacher.

    Raises
    ------
    InputError
        They are not known.
    """
    if context.student is None or not context.teachers:
        raise InputError(f"The method '{method}' depends on the shapes of student and teacher, which are not known.")
    return context.student, context.teachers[0]


def paired_stages(student: Classifier, teacher: Classifier, deepest: int = 4) -> list[StagePair]:
    """The deepest stages of both, from shallow to deep; as many as both have, at most ``deepest``."""
    own = Tapped(student, STAGES).widths.stages
    other = Tapped(teacher, STAGES).widths.stages
    count = min(len(own), len(other), deepest)
    return [StagePair(-n, own[-n], other[-n]) for n in range(count, 0, -1)]


def rectified(model: Classifier, place: int) -> bool:
    """Whether a stage's map comes out of a rectifier and so has no negative values; ``place`` as in StagePair."""
    return find_stages(model)[place].rectified


def unit_scale(maps: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Maps over their largest magnitude along ``dim``, which gets no gradient; maps of zeros stay.

    For what is normalized afterwards, so that it does not depend on the scale: powers of the maps then
    neither overflow nor vanish, and the gradient is the same.
    """
    largest = maps.detach().abs().amax(dim=dim, keepdim=True)
    return maps / torch.where(largest > 0, largest, 1)


def resized(maps: Tensor, side: tuple[int, int]) -> Tensor:
    """Maps ``[B, C, H, W]`` at another size: averaged when it is smaller, bilinear when it is larger."""
    if tuple(maps.shape[2:]) == tuple(side):
        return maps
    if side[0] <= maps.shape[2] and side[1] <= maps.shape[3]:
        return F.adaptive_avg_pool2d(maps, side)
    return F.interpolate(maps, size=side, mode="bilinear", align_corners=False)


def connector(channels: int, target: int, *, rectified: bool = False) -> nn.Sequential:
    """1×1 convolution and BatchNorm from the student's width to the teacher's, with a ReLU if asked."""
    layers: list[nn.Module] = [nn.Conv2d(channels, target, 1, bias=False), nn.BatchNorm2d(target)]
    return nn.Sequential(*layers, *([nn.ReLU()] if rectified else []))
