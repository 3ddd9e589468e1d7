"""The colour operations of TrivialAugment and random erasing, on whole groups of samples.

Pixels are float32 from 0 to 255. Sums run over whole numbers, so that no result depends on the order of
the summation, and with it on the batch a sample stands in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kd_mlflow.data.draws import uniform
from kd_mlflow.data.geometry import BINS, Draw, Operation

ERASE_SHARE = 0.25
_ENHANCEMENT = np.linspace(0.0, 0.99, BINS)
_BITS = 8 - np.rint(np.arange(BINS) / ((BINS - 1) / 6))
_THRESHOLDS = np.linspace(255.0, 0.0, BINS)
_ERASE_ASPECTS = np.exp(np.linspace(np.log(0.3), np.log(3.3), 1024))


def recolor(images: Tensor, operation: np.ndarray, magnitude: np.ndarray, sign: np.ndarray) -> Tensor:
    """Each sample's colour operation, ``[B, 3, H, W]`` to the same; others are left as they are."""
    result = images.clone()
    for kind, function in _FUNCTIONS.items():
        members = np.flatnonzero(operation == kind)
        if len(members):
            # A group of one may take another path through torch's kernels than the same sample among others.
            places = torch.from_numpy(members).to(images.device)
            strength = _strength(kind, magnitude[members], sign[members])
            level = torch.from_numpy(strength).float().to(images.device).view(-1, 1, 1, 1)
            result[places] = function(images[places], level)
    return result


def erase(images: Tensor, index: np.ndarray, *, seed: int, epoch: int) -> Tensor:
    """A quarter of the samples lose a rectangle of 2 to 33 % to their own mean colour (Zhong et al., 2020)."""
    size = images.shape[-1]
    area = 0.02 + (0.33 - 0.02) * uniform(seed, epoch, index, Draw.ERASE_AREA)
    aspect = _ERASE_ASPECTS[(uniform(seed, epoch, index, Draw.ERASE_ASPECT) * len(_ERASE_ASPECTS)).astype(np.int64)]
    height, width = np.minimum(np.sqrt(area * aspect), 1), np.minimum(np.sqrt(area / aspect), 1)
    top = uniform(seed, epoch, index, Draw.ERASE_TOP) * (1 - height)
    left = uniform(seed, epoch, index, Draw.ERASE_LEFT) * (1 - width)
    chosen = uniform(seed, epoch, index, Draw.ERASE) < ERASE_SHARE
    rows = _between(top, top + height, size) & chosen[:, None]
    columns = _between(left, left + width, size)
    mask = torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    mean = images.round().long().sum((2, 3), keepdim=True) / (size * size)
    return torch.where(mask, mean.to(images.dtype), images)


def _between(start: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """Which of ``size`` pixels lie between two shares of the side, ``[B, size]``."""
    centres = (np.arange(size) + 0.5) / size
    return (centres >= start[:, None]) & (centres < end[:, None])


def _strength(kind: Operation, magnitude: np.ndarray, sign: np.ndarray) -> np.ndarray:
    if kind == Operation.POSTERIZE:
        return 2.0 ** (8 - _BITS)[magnitude]
    if kind == Operation.SOLARIZE:
        return _THRESHOLDS[magnitude]
    return 1 + sign * _ENHANCEMENT[magnitude]


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 255)


def _color(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images), factor)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(images).round().long()
    mean = grey.sum((1, 2, 3), keepdim=True) / (grey.shape[-1] * grey.shape[-2])
    return _blend(images, mean.to(images.dtype), factor)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    soft = images.clone()
    height, width = images.shape[-2:]
    total = images[..., 1:-1, 1:-1] * 4
    for down in range(3):
        for right in range(3):
            total = total + images[..., down : height - 2 + down, right : width - 2 + right]
    soft[..., 1:-1, 1:-1] = total / 13
    return _blend(images, soft, factor)


def _posterize(images: Tensor, step: Tensor) -> Tensor:
    return (images.round() / step).floor() * step


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold, 255 - images, images)


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    return torch.where(flat, images, (images - low) * (255 / torch.where(flat, 255, high - low)))


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Histogram equalisation of each channel, as Pillow does it."""
    levels = images.round().long().clamp(0, 255).flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    total = counts.cumsum(2)
    last = levels.amax(2, keepdim=True)
    step = (levels.shape[2] - counts.gather(2, last)) // 255
    table = ((total - counts + step // 2) // step.clamp(min=1)).clamp(0, 255)
    equal = table.gather(2, levels).view_as(images).to(images.dtype)
    return torch.where((step == 0).unsqueeze(-1), images, equal)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * 0.299 + green * 0.587 + blue * 0.114).unsqueeze(1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (images * factor + other * (1 - factor)).clamp(0, 255)


_FUNCTIONS: dict[Operation, Callable[[Tensor, Tensor], Tensor]] = {
    Operation.BRIGHTNESS: _brightness,
    Operation.COLOR: _color,
    Operation.CONTRAST: _contrast,
    Operation.SHARPNESS: _sharpness,
    Operation.POSTERIZE: _posterize,
    Operation.SOLARIZE: _solarize,
    Operation.AUTO_CONTRAST: _auto_contrast,
    Operation.EQUALIZE: _equalize,
}
