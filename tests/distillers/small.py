"""A small family with all that methods ask for: stages that end in BatchNorm and ReLU, a mean, a linear classifier."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Small(nn.Module):
    """A stem, four stages that halve the resolution, a linear classifier on the mean of the last map."""

    def __init__(self, num_classes: int, blocks: int) -> None:
        super().__init__()
        widths = (16, 24, 32, 48, 64)
        stages = [_stage(*pair, blocks) for pair in pairwise(widths)]
        self.features = nn.Sequential(_unit(3, widths[0], 1), *stages)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def deep(num_classes: int) -> nn.Module:
    """Two convolutions a stage."""
    return Small(num_classes, 2)


def shallow(num_classes: int) -> nn.Module:
    """One convolution a stage."""
    return Small(num_classes, 1)


def _stage(channels: int, width: int, blocks: int) -> nn.Sequential:
    units = [_unit(width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_unit(channels, width, 2), *units)


def _unit(channels: int, width: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
