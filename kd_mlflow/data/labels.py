"""Training images that a student sees with their labels, where it shall have only some of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kd_mlflow.config import Recipe
from kd_mlflow.data.draws import keyed, permutation
from kd_mlflow.data.store import Store

# The label of an image whose label is kept from the student; a loss leaves it out.
UNLABELED = -1
_DRAW = 0x6C61626C


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Which images keep their labels, and whether a method learns from the rest.

    Attributes
    ----------
    mask:
        ``[N]``, bool, over the manifest: the training images whose labels the student has.
    alone:
        Whether batches hold these images alone, each several times an epoch, so that a method which cannot learn
        without labels takes as many steps as one that can.
    """

    mask: np.ndarray
    alone: bool

    def labels(self, labels: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The labels ``[B]`` of the images at these places of the manifest; UNLABELED where they are kept back."""
        return np.where(self.mask[places], labels[places], UNLABELED)

    def order(self, train: np.ndarray, count: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Places ``[count]`` of labeled images, shuffled anew in each round through them, and the round of each.

        Rounds are numbered on through the epochs: they take the place of the epoch in the augmentation, so that an
        image which comes several times in an epoch comes with several crops.
        """
        labeled = train[self.mask[train]]
        count_of_rounds = -(-count // len(labeled))
        rounds = range((epoch - 1) * count_of_rounds + 1, epoch * count_of_rounds + 1)
        places = np.concatenate([labeled[permutation(len(labeled), seed, number)] for number in rounds])
        return places[:count], np.repeat(np.array(rounds), len(labeled))[:count]


def label_mask(store: Store, recipe: Recipe) -> np.ndarray | None:
    """The images ``[N]``, bool, whose labels the recipe's network has; None where it has all."""
    if recipe.label_share == 1:
        return None
    return labeled_mask(store.labels, store.splits["train"], recipe.label_share, recipe.seed)


def labeled_mask(labels: np.ndarray, train: np.ndarray, share: float, seed: int) -> np.ndarray:
    """``[N]`` bool: a share of each class's training images, at least one, drawn by the seed.

    A larger share holds all images of a smaller one.

    Parameters
    ----------
    labels:
        ``[N]``, of the whole manifest.
    train:
        Places of the training split in the manifest.
    share:
        Above 0, at most 1.
    """
    mask = np.zeros(len(labels), dtype=bool)
    ranks = keyed(train, seed, _DRAW)
    for label in np.unique(labels[train]):
        members = np.flatnonzero(labels[train] == label)
        kept = max(1, round(share * len(members)))
        mask[train[members[np.argsort(ranks[members], kind="stable")[:kept]]]] = True
    return mask
