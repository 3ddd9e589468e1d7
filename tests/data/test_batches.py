from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_mlflow.config import AugmentationOptions
from kd_mlflow.data import placing
from kd_mlflow.data.augment import augment
from kd_mlflow.data.loading import evaluation_batches, steps_per_epoch, training_batches
from kd_mlflow.data.placing import resident
from kd_mlflow.data.store import Store

CPU = torch.device("cpu")
CROP = AugmentationOptions(augmentation="crop")


@pytest.fixture
def store(tmp_path: Path, fill, prepared) -> Store:
    counts = {f"{split}/{label}": 5 for split in ("val", "test") for label in ("cat", "dog")}
    return prepared(fill(tmp_path / "pets", {"train/cat": 21, "train/dog": 21, **counts}))


def loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def epoch_of(store: Store, options: AugmentationOptions = CROP, batch_size: int = 8, seed: int = 0, epoch: int = 1):
    return list(training_batches(store, options, batch_size=batch_size, seed=seed, epoch=epoch, device=CPU))


def test_epoch_is_shuffled_without_repetition_and_drops_the_rest(store: Store):
    batches = epoch_of(store)
    assert len(batches) == steps_per_epoch(store, 8) == 5
    index = torch.cat([batch.index for batch in batches]).numpy()
    assert len(set(index.tolist())) == 40
    assert set(index.tolist()) <= set(store.splits["train"].tolist())
    assert index.tolist() != sorted(index.tolist())
    for batch in batches:
        assert batch.images.shape == (8, 3, 16, 16)
        assert batch.images.dtype == torch.float32
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert np.array_equal(batch.labels.numpy(), store.labels[batch.index.numpy()])


def test_batches_hold_the_augmented_pixels_of_their_index(store: Store):
    for kind in ("none", "crop", "strong"):
        options = AugmentationOptions(augmentation=kind)
        batch = epoch_of(store, options)[2]
        stored = torch.from_numpy(store.images[batch.index.numpy()])
        assert torch.equal(batch.images, augment(stored, batch.index, options, size=16, seed=0, epoch=1))


def test_epoch_is_a_function_of_seed_and_epoch(store: Store):
    first, again = epoch_of(store), epoch_of(store)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.index, two.index)
    assert not torch.equal(first[0].index, epoch_of(store, epoch=2)[0].index)
    assert not torch.equal(first[0].index, epoch_of(store, seed=1)[0].index)


def test_sample_looks_the_same_at_every_batch_size(store: Store):
    small = {
        int(i): image
        for batch in epoch_of(store, batch_size=3)
        for i, image in zip(batch.index, batch.images, strict=True)
    }
    for batch in epoch_of(store, batch_size=14):
        assert all(torch.equal(image, small[int(i)]) for i, image in zip(batch.index, batch.images, strict=True))


def test_training_split_smaller_than_a_batch_is_one_batch(store: Store):
    (batch,) = epoch_of(store, batch_size=64)
    assert len(batch.index) == 42
    assert steps_per_epoch(store, 64) == 1
    assert steps_per_epoch(store, 42) == 1
    assert steps_per_epoch(store, 21) == 2


def test_evaluation_is_the_whole_split_in_order_and_centre_cropped(store: Store):
    for split in ("train", "val", "test"):
        batches = list(evaluation_batches(store, split, batch_size=4, device=CPU))
        index = torch.cat([batch.index for batch in batches]).numpy()
        assert np.array_equal(index, store.splits[split])
        assert np.array_equal(torch.cat([batch.labels for batch in batches]).numpy(), store.labels[index])
        images = torch.cat([batch.images for batch in batches])
        assert images.dtype == torch.uint8
        assert np.array_equal(images.numpy(), store.images[index][:, :, 1:17, 1:17])


def test_thread_ends_with_the_epoch_and_when_it_is_left_early(store: Store):
    epoch_of(store)
    assert loaders() == []
    batches = training_batches(store, CROP, batch_size=2, seed=0, epoch=1, device=CPU)
    next(batches)
    assert len(loaders()) == 1
    batches.close()
    assert loaders() == []
    for _ in evaluation_batches(store, "val", batch_size=1, device=CPU):
        break
    assert loaders() == []


def test_iterator_that_was_never_begun_starts_no_thread(store: Store):
    batches = training_batches(store, CROP, batch_size=2, seed=0, epoch=1, device=CPU)
    assert loaders() == []
    del batches


def test_error_in_the_thread_reaches_the_loop(store: Store):
    cut = replace(store, images=store.images[:10])
    with pytest.raises(IndexError, match="out of bounds"):
        epoch_of(cut)
    assert loaders() == []


def test_a_store_that_stays_on_the_device_gives_the_same_batches(store: Store, monkeypatch):
    plain = epoch_of(store, AugmentationOptions(augmentation="strong"))
    judged = list(evaluation_batches(store, "val", batch_size=4, device=CPU))
    assert resident(store, CPU) is None  # a mapped file needs no copy
    again = replace(store)
    monkeypatch.setattr(placing, "_free", lambda device: 4 * store.images.nbytes)
    monkeypatch.setattr(placing, "CHUNK", 5)
    kept = resident(again, CPU)
    assert kept is resident(again, CPU)
    assert np.array_equal(kept.numpy(), store.images)
    # What is not read any more may be gone.
    object.__setattr__(again, "images", np.zeros_like(store.images))
    for one, two in zip(epoch_of(again, AugmentationOptions(augmentation="strong")), plain, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert torch.equal(one.index, two.index)
    for one, two in zip(evaluation_batches(again, "val", batch_size=4, device=CPU), judged, strict=True):
        assert torch.equal(one.images, two.images)


def test_a_store_that_does_not_fit_is_read_batch_by_batch(store: Store, monkeypatch):
    monkeypatch.setattr(placing, "_free", lambda device: 4 * store.images.nbytes - 1)
    assert resident(store, CPU) is None
