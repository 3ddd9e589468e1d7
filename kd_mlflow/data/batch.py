"""What the data layer hands to the loop."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Images with their labels and places; teacher and student see exactly these pixels.

    Attributes
    ----------
    images:
        ``[B, 3, H, W]``, uint8 or float32, in pixel units 0 to 255 (the models normalise).
    labels:
        ``[B]``, int64.
    index:
        ``[B]``, int64: each sample's place in the manifest.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
