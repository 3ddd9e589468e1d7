"""What timm itself calls the features of a network."""

from __future__ import annotations

import logging

from torch import Tensor, nn

log = logging.getLogger(__name__)


def is_timm(body: nn.Module) -> bool:
    """Whether a network, or a class that it extends, is one of timm's."""
    return any(base.__module__.startswith("timm.") for base in type(body).__mro__)


def library_maps(body: nn.Module, images: Tensor) -> list[Tensor]:
    """Feature maps ``[B, C, H, W]`` of one of timm's networks, shallow to deep, square ones only.

    These are its ``forward_intermediates``; a last convolution of another width that ``forward_features`` adds before
    the global pooling takes the place of the deepest. Empty for other networks, and where timm knows none.

    Parameters
    ----------
    images:
        Normalised, ``[B, 3, H, W]``.
    """
    if not is_timm(body) or not hasattr(body, "forward_intermediates"):
        return []
    try:
        told = body.forward_intermediates(images, intermediates_only=True)
        last = body.forward_features(images)
    except Exception as error:  # some families take fewer sizes this way, or know their features by halves
        log.debug("timm tells no features of %s: %s", type(body).__name__, error)
        return []
    maps = [features for features in told if _is_square_map(features)]
    if maps and _is_square_map(last) and last.shape[2] == maps[-1].shape[2] and last.shape[1] != maps[-1].shape[1]:
        maps.append(last)
    return maps


def _is_square_map(features: object) -> bool:
    return isinstance(features, Tensor) and features.dim() == 4 and features.shape[2] == features.shape[3]
