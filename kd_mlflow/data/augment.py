"""What happens to a training batch: a function of (seed, epoch, index), whatever the batch around it."""

from __future__ import annotations

from torch import Tensor

from kd_mlflow.config import AugmentationOptions
from kd_mlflow.data.colors import erase, recolor
from kd_mlflow.data.draws import permutation, uniform
from kd_mlflow.data.geometry import distortion, operations, random_crop

__all__ = ["augment", "centre_crop", "permutation", "uniform"]


def augment(images: Tensor, index: Tensor, options: AugmentationOptions, *, size: int, seed: int, epoch: int) -> Tensor:
    """The augmented batch; a sample's pixels are the same bits in every batch of two or more.

    Parameters
    ----------
    images:
        ``[B, 3, S, S]``, uint8, on any device.
    index:
        ``[B]``, int64: the samples' places in the manifest.
    options:
        ``none`` is the centre crop; ``crop`` a random resized crop, mirrored half the time; ``strong`` adds
        one operation of TrivialAugment and random erasing.
    size:
        Side of the result, in pixels.

    Returns
    -------
    Tensor
        ``[B, 3, size, size]``, float32 from 0 to 255; uint8 for ``none``.
    """
    if options.augmentation == "none":
        return centre_crop(images, size)
    places = index.cpu().numpy()
    affine = random_crop(places, options, seed=seed, epoch=epoch)
    if options.augmentation == "crop":
        return affine.sample(images, size)
    operation, magnitude, sign = operations(places, seed=seed, epoch=epoch)
    bent = affine.after(distortion(operation, magnitude, sign)).sample(images, size)
    return erase(recolor(bent, operation, magnitude, sign), places, seed=seed, epoch=epoch)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle ``[B, 3, size, size]`` of ``[B, 3, S, S]``, pixel for pixel."""
    start = (images.shape[-1] - size) // 2
    return images[..., start : start + size, start : start + size].contiguous()
