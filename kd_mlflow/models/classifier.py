"""An image classifier that takes pixels: normalisation inside, any architecture behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from kd_mlflow.config import Stem

if TYPE_CHECKING:
    from kd_mlflow.models.exits import ExitBranches

Share = Annotated[float, Field(gt=-10, lt=10, allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, lt=10, allow_inf_nan=False)]
Value = Annotated[int, Field(ge=-(2**31), lt=2**32)]
# Each has a row in the last layer: a description of a few bytes must not ask for all memory.
MAX_CLASSES = 2**17
Exits = Literal["none", "final", "soft", "hard", "exit1", "exit2", "exit3"]


class ModelSpec(BaseModel):
    """All that is needed to build a network again, apart from its weights; goes to JSON and back.

    Attributes
    ----------
    architecture:
        A torchvision name, ``timm:<name>``, or ``package.module:factory``.
    classes:
        The class names in the order of the logits.
    image_size:
        Side of the square input, in pixels.
    mean, std:
        Per channel (red, green, blue), of pixels scaled to 0..1.
    stem:
        ``small`` for a 3x3 stem of stride 1 without pooling.
    dropout:
        Probability before the classifier layer.
    squeeze_excitation:
        Gates on the channels of every residual branch, in torchvision's ResNets.
    exits:
        ``none``, or which answer a network with exits gives: that of its own head (``final``), the mean of
        the exits' probabilities (``soft``), their vote (``hard``), or one early exit, from the shallowest.
    value_range:
        What black and white are in images of more than 8 bits a channel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = Field(min_length=1, max_length=300)
    classes: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    image_size: int = Field(ge=1, le=1024)
    mean: tuple[Share, Share, Share]
    std: tuple[Spread, Spread, Spread]
    stem: Stem = "standard"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    squeeze_excitation: bool = False
    exits: Exits = "none"
    value_range: tuple[Value, Value] = (0, 65535)

    @model_validator(mode="after")
    def _check_range(self) -> ModelSpec:
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError("value_range must rise")
        return self


class LinearHead(nn.Linear):
    """The classifier layer: logits out of features ``[B, D]``, with dropout on its input.

    Dropout inside the layer keeps the parameter names of the plain architecture, and lets the taps see
    the features as they are without it.
    """

    dropout: float = 0.0

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(F.dropout(features, self.dropout, self.training))


class ConvHead(nn.Conv2d):
    """The classifier layer of fully convolutional networks: ``[B, D, H, W]`` to ``[B, K, H, W]``."""

    dropout: float = 0.0

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(F.dropout(features, self.dropout, self.training))


class MeanHead:
    """Several classifier layers, as the one linear layer that the mean of their answers is.

    Its input are theirs, joined: ``mean_i(W_i f_i + b_i) = [W_1 ... W_n]/n [f_1 ... f_n] + mean_i(b_i)``. It holds
    no parameters: those are the layers' own.
    """

    def __init__(self, layers: Sequence[LinearHead | ConvHead]) -> None:
        self.layers = tuple(layers)

    @property
    def in_features(self) -> int:
        """D, of all layers together."""
        return self.weight.shape[1]

    @property
    def weight(self) -> Tensor:
        """``[K, D]``."""
        return torch.cat([layer.weight.flatten(1) for layer in self.layers], dim=1) / len(self.layers)

    @property
    def bias(self) -> Tensor | None:
        """``[K]``, or None where no layer has one."""
        known = [layer.bias for layer in self.layers if layer.bias is not None]
        return torch.stack(known).sum(dim=0) / len(self.layers) if known else None

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of all layers."""
        for layer in self.layers:
            yield from layer.parameters()


class Classifier(nn.Module):
    """Pixels in, logits out.

    Attributes
    ----------
    spec:
        How the network is built.
    body:
        The architecture, on normalised images.
    exits:
        The branches of a network with exits, which give all answers for images at once; else None.
    mean, std:
        Buffers ``[1, 3, 1, 1]`` on the 0..1 scale.
    run_id:
        The run that trained it, if it was read from a folder that names one.
    frozen:
        True for a teacher: :meth:`train` leaves it in eval mode.
    """

    mean: Tensor
    std: Tensor
    exits: ExitBranches | None

    def __init__(self, spec: ModelSpec, body: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.body = body
        self.register_module("exits", None)
        self.run_id = ""
        self.frozen = False
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32).view(1, 3, 1, 1))

    @property
    def num_classes(self) -> int:
        """K, the number of logits."""
        return len(self.spec.classes)

    @property
    def heads(self) -> tuple[LinearHead | ConvHead, ...]:
        """The classifier layers; none in a person's own architecture that has no such layer."""
        return tuple(module for module in self.body.modules() if isinstance(module, (LinearHead, ConvHead)))

    @property
    def head(self) -> LinearHead | ConvHead | MeanHead | None:
        """The classifier layer, or the mean of several (one for each token in distilled transformers); None without."""
        layers = self.heads
        return MeanHead(layers) if len(layers) > 1 else next(iter(layers), None)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, K]`` of images ``[B, 3, H, W]``, uint8 or floating, in pixel units 0 to 255."""
        if self.exits is not None and self.spec.exits != "final":
            return self.exits.answer(images)
        return self.body(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std`` in the body's type, computed in float32 or wider."""
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        mean, std = self.mean.to(dtype), self.std.to(dtype)
        return torch.addcmul(-mean / std, images.to(dtype), 1 / (255 * std)).to(self.mean.dtype)

    def train(self, mode: bool = True) -> Classifier:
        """Training or eval mode; a frozen network stays in eval mode."""
        return super().train(mode and not self.frozen)

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the classifier layers, the exits and what is marked ``fresh``: new, whatever the trunk."""
        fresh = [module for module in self.body.modules() if getattr(module, "fresh", False)]
        parts = [part for part in (self.head, self.exits, *fresh) if part is not None]
        return [parameter for part in parts for parameter in part.parameters()]
