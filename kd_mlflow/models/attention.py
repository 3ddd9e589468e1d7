"""Squeeze-and-excitation inside residual blocks, started so that the network stays what it was."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from kd_mlflow.errors import InputError

REDUCTION = 16
# sigmoid(4) = 0.982: open enough to leave pretrained weights their function, and not yet saturated.
OPEN = 4.0


class SqueezeExcitation(nn.Module):
    """Scale each channel of a map ``[B, C, H, W]`` by a gate between 0 and 1 (Hu et al. 2018, eq. 2-4).

    The last layer starts with zero weights, so that every gate is sigmoid(4) whatever comes in.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, max(1, channels // REDUCTION))
        self.relu = nn.ReLU(inplace=True)
        self.expand = nn.Linear(self.reduce.out_features, channels)
        nn.init.zeros_(self.expand.weight)
        nn.init.constant_(self.expand.bias, OPEN)

    def forward(self, maps: Tensor) -> Tensor:
        gates = self.expand(self.relu(self.reduce(maps.mean(dim=(2, 3))))).sigmoid()
        return maps * gates[:, :, None, None]


class GatedBatchNorm2d(nn.BatchNorm2d):
    """A block's last norm together with the gate on its output.

    The gate inside the norm keeps the parameter names of the plain architecture.
    """

    def __init__(self, plain: nn.BatchNorm2d) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
        self.load_state_dict(plain.state_dict())
        self.gate = SqueezeExcitation(plain.num_features)
        self.train(plain.training)

    def forward(self, maps: Tensor) -> Tensor:
        return self.gate(super().forward(maps))


def add_gates(body: nn.Module, architecture: str) -> None:
    """Gate every residual branch of a torchvision ResNet before its addition.

    Raises
    ------
    InputError
        The body has no such branches, or they do not end in a BatchNorm2d.
    """
    last_norms = list(_last_norms(body))
    if not last_norms or any(type(getattr(block, name)) is not nn.BatchNorm2d for block, name in last_norms):
        raise InputError(
            f"Squeeze-and-excitation is not defined for '{architecture}'; leave it off, or use one of torchvision's "
            "families resnet, resnext, wide_resnet."
        )
    for block, name in last_norms:
        setattr(block, name, GatedBatchNorm2d(getattr(block, name)))


def gate_names(body: nn.Module) -> set[str]:
    """The parameters of the gates, which weights of the plain architecture lack."""
    return {
        f"{name}.{own}"
        for name, module in body.named_modules()
        if isinstance(module, SqueezeExcitation)
        for own in module.state_dict()
    }


def _last_norms(body: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in body.modules():
        if isinstance(module, Bottleneck):
            yield module, "bn3"
        elif isinstance(module, BasicBlock):
            yield module, "bn2"
