"""What the data layer hands to the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def part_count(samples: int, parts: int, smallest: int) -> int:
    """How many parts of at least ``smallest`` samples a batch is cut into when ``parts`` are asked for; 1 or more."""
    return max(1, min(parts, samples // smallest))


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch out of several, in their order; its epoch is the first's."""
    first = batches[0]
    return Batch(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.index for batch in batches]),
        tuple(torch.cat(views) for views in zip(*(batch.others for batch in batches), strict=True)),
        first.epoch,
        None if first.host_index is None else torch.cat([batch.host_index for batch in batches]),
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Images with their labels and places; teacher and student see exactly these pixels.

    Attributes
    ----------
    images:
        ``[B, 3, H, W]``, uint8 or float32, in pixel units 0 to 255 (the models normalise).
    labels:
        ``[B]``, int64; :data:`kd_mlflow.data.labels.UNLABELED` where a label is kept back.
    index:
        ``[B]``, int64: each sample's place in the manifest.
    others:
        Further augmentations of the same samples, shaped like ``images``.
    epoch:
        Whose augmentation it is, from 1; 0 without.
    host_index:
        ``index`` on the CPU, for whoever looks something up there without waiting for a GPU.
    whole_labels:
        ``[N]``, int64: the labels of the whole batch of which this is a part, a process's share or a part of such a
        share; None where this is the whole batch.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    others: tuple[Tensor, ...] = ()
    epoch: int = 0
    host_index: Tensor | None = None
    whole_labels: Tensor | None = None

    def split(self, parts: int, smallest: int = 1) -> list[Batch]:
        """The batch in so many parts of nearly equal size, as far as it has ``smallest`` samples for each."""
        parts = part_count(len(self.index), parts, smallest)
        if parts == 1:
            return [self]
        sizes = [len(part) for part in self.index.tensor_split(parts)]
        cut = zip(*(one.split(sizes) for one in (self.images, self.labels, self.index, *self.others)), strict=True)
        whole = self.labels if self.whole_labels is None else self.whole_labels
        hosts = [None] * len(sizes) if self.host_index is None else self.host_index.split(sizes)
        return [
            Batch(images, labels, index, tuple(others), self.epoch, host, whole)
            for (images, labels, index, *others), host in zip(cut, hosts, strict=True)
        ]

    def places(self) -> np.ndarray:
        """``index`` as numpy has it ``[B]``."""
        return (self.index.cpu() if self.host_index is None else self.host_index).numpy()

    def view(self, number: int) -> Batch:
        """The same samples under another augmentation; 0 is ``images`` itself."""
        return replace(self, images=(self.images, *self.others)[number], others=())
