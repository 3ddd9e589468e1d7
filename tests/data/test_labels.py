"""A student that has only some of the labels: which, and what its batches hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kd_mlflow.config import AugmentationOptions, PrepareConfig
from kd_mlflow.data.labels import UNLABELED, LabeledImages, labeled_mask
from kd_mlflow.data.loading import steps_per_epoch, training_batches
from kd_mlflow.data.store import Store, prepare

CPU = torch.device("cpu")
CROP = AugmentationOptions(augmentation="crop", flip=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare(PrepareConfig(data="digits", image_size=16), tmp_path_factory.mktemp("home"))


def batches(store: Store, labeled: LabeledImages | None, epoch: int = 1, **more):
    return list(training_batches(store, CROP, batch_size=64, seed=3, epoch=epoch, device=CPU, labeled=labeled, **more))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_every_class_keeps_its_share_of_labels_and_at_least_one(store: Store, share: float):
    train = store.splits["train"]
    mask = labeled_mask(store.labels, train, share, seed=0)
    assert not mask[np.setdiff1d(np.arange(len(store.labels)), train)].any()
    counts, kept = np.bincount(store.labels[train]), np.bincount(store.labels[mask], minlength=10)
    assert kept.tolist() == [max(1, round(share * int(count))) for count in counts]


def test_a_larger_share_holds_the_smaller_and_another_seed_draws_others(store: Store):
    train = store.splits["train"]
    small, large = (labeled_mask(store.labels, train, share, seed=0) for share in (0.1, 0.3))
    assert (large | ~small).all()
    assert (labeled_mask(store.labels, train, 0.1, seed=1) != small).any()
    assert (labeled_mask(store.labels, train, 0.1, seed=0) == small).all()


def test_a_method_that_learns_from_all_sees_the_same_images_without_some_labels(store: Store):
    mask = labeled_mask(store.labels, store.splits["train"], 0.1, seed=0)
    whole, partly = batches(store, None), batches(store, LabeledImages(mask, alone=False))
    assert len(whole) == len(partly) == steps_per_epoch(store, 64)
    for full, part in zip(whole, partly, strict=True):
        assert torch.equal(full.images, part.images)
        assert torch.equal(full.index, part.index)
        known = torch.from_numpy(mask[part.index.numpy()])
        assert torch.equal(part.labels, torch.where(known, full.labels, UNLABELED))


def test_a_method_that_needs_labels_sees_labeled_images_alone_as_often_and_with_other_crops(store: Store):
    mask = labeled_mask(store.labels, store.splits["train"], 0.1, seed=0)
    made = batches(store, LabeledImages(mask, alone=True))
    assert len(made) == steps_per_epoch(store, 64)
    index, images = torch.cat([batch.index for batch in made]), torch.cat([batch.images for batch in made])
    assert mask[index.numpy()].all()
    assert torch.equal(torch.cat([batch.labels for batch in made]), torch.from_numpy(store.labels[index.numpy()]))
    times = np.bincount(index.numpy(), minlength=len(mask))[mask]
    assert times.max() - times.min() <= 1
    first = int(index[0])
    crops = {images[place].numpy().tobytes() for place in torch.nonzero(index == first).flatten()}
    assert len(crops) == times[np.flatnonzero(mask) == first][0]


def test_epochs_of_labeled_images_differ_and_are_a_function_of_the_epoch(store: Store):
    labeled = LabeledImages(labeled_mask(store.labels, store.splits["train"], 0.2, seed=0), alone=True)
    first, again, second = batches(store, labeled), batches(store, labeled), batches(store, labeled, epoch=2)
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("alone", [True, False])
def test_processes_together_see_the_batches_of_one(store: Store, alone: bool):
    labeled = LabeledImages(labeled_mask(store.labels, store.splits["train"], 0.1, seed=0), alone)
    whole = batches(store, labeled)[1]
    shares = [batches(store, labeled, share=lambda rows, n=n: np.array_split(rows, 2)[n])[1] for n in (0, 1)]
    assert torch.equal(torch.cat([share.index for share in shares]), whole.index)
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert all(torch.equal(share.whole_labels, whole.labels) for share in shares)
