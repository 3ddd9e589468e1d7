"""A trained network put to channels or classes in another order, where that is exact."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kd_mlflow.models.classifier import Classifier


@torch.no_grad()
def turn_channels(model: Classifier, *, back: bool = False) -> bool:
    """Fold the change from red-green-blue to blue-green-red into the first convolution, if that is exact.

    Parameters
    ----------
    back:
        Only try, and leave the network as it was.
    """
    first = next((part for part in model.body.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        return False
    images = _noise(model)
    before = _answers(model, images.flip(1))
    first.weight.copy_(first.weight.flip(1).clone())
    exact = _close(before, _answers(model, images))
    if back or not exact:
        first.weight.copy_(first.weight.flip(1).clone())
    return exact


@torch.no_grad()
def sort_head(model: Classifier, rows: Sequence[int]) -> bool:
    """Put the rows of the last layer into another order, if that alone orders the logits."""
    if model.head is None:
        return False
    head, images, places = model.head, _noise(model), torch.as_tensor(rows)
    # Turned end for end, to see that nothing comes after it.
    before = _answers(model, images)
    _place_rows(head, torch.arange(len(rows) - 1, -1, -1))
    exact = _close(before.flip(1), _answers(model, images))
    _place_rows(head, torch.arange(len(rows) - 1, -1, -1))
    if exact:
        _place_rows(head, places)
    return exact


def _place_rows(head: nn.Module, rows: torch.Tensor) -> None:
    rows = rows.to(head.weight.device)
    head.weight.copy_(head.weight[rows].clone())
    if head.bias is not None:
        head.bias.copy_(head.bias[rows].clone())


def _noise(model: Classifier) -> torch.Tensor:
    size, generator = model.spec.image_size, torch.Generator().manual_seed(0)
    return torch.randn(4, 3, size, size, generator=generator)


def _answers(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    mode, device = model.body.training, next(model.body.parameters()).device
    answers = model.body.eval()(images.to(device)).float().cpu()
    model.body.train(mode)
    return answers


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
