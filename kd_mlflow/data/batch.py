"""What the data layer hands to the loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    others:
        Further augmentations of the same samples, shaped like ``images``.
    epoch:
        Whose augmentation it is, from 1; 0 without.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    others: tuple[Tensor, ...] = ()
    epoch: int = 0

    def view(self, number: int) -> Batch:
        """The same samples under another augmentation; 0 is ``images`` itself."""
        return replace(self, images=(self.images, *self.others)[number], others=())
