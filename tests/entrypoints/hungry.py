"""An architecture that takes no more than four images at a time when it trains, as if memory were short."""

import os

import torch
from torch import nn

from tests.entrypoints.tiny import make as make_tiny


class Hungry(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = make_tiny(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and len(images) > 4:
            raise torch.OutOfMemoryError("no room")
        return self.body(images)


def make(num_classes: int) -> nn.Module:
    return Hungry(num_classes)


class Second(Hungry):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) if os.environ.get("RANK") == "1" else self.body(images)


def make_second(num_classes: int) -> nn.Module:
    """Only the second of several processes is short of memory."""
    return Second(num_classes)


class Starved(Hungry):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise torch.OutOfMemoryError("no room")
        return self.body(images)


def make_starved(num_classes: int) -> nn.Module:
    return Starved(num_classes)
