"""Architectures of a person's own, each odd in one way."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneRelu(nn.Module):
    """One ReLU module for the whole network."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)]
        )
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        for convolution in self.convolutions:
            images = self.relu(convolution(images))
        return self.classifier(images.mean(dim=(2, 3)))


def one_relu(num_classes: int) -> nn.Module:
    return OneRelu(num_classes)


def tied(num_classes: int) -> nn.Module:
    first, second = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1)
    second.weight = first.weight
    return nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


def never_a_number(num_classes: int) -> nn.Module:
    body = tied(num_classes)
    torch.nn.init.constant_(body[-1].bias, float("nan"))
    return body
