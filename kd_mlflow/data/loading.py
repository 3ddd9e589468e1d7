"""Batches of a store, made ready ahead of the step by a thread."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from kd_mlflow.config import AugmentationOptions, Recipe
from kd_mlflow.data.augment import augment, centre_crop
from kd_mlflow.data.batch import Batch, joined
from kd_mlflow.data.draws import permutation
from kd_mlflow.data.labels import LabeledImages
from kd_mlflow.data.placing import Lane, load, to_device
from kd_mlflow.data.store import Store

Part = TypeVar("Part")

AHEAD = 2
# Seeds of a run have 32 bits: those of its further views never meet another run's.
VIEW_SEED = 2**32


def steps_per_epoch(store: Store, batch_size: int) -> int:
    """How many batches :func:`training_batches` yields: the last, incomplete one is left out, unless it is all."""
    return max(1, len(store.splits["train"]) // batch_size)


def samples_per_epoch(store: Store, batch_size: int) -> int:
    """How many samples those batches hold."""
    return steps_per_epoch(store, batch_size) * min(batch_size, len(store.splits["train"]))


def training_batches(
    store: Store,
    options: AugmentationOptions | Recipe,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    device: torch.device,
    views: int = 1,
    share: Callable[[np.ndarray], np.ndarray] = lambda places: places,
    labeled: LabeledImages | None = None,
) -> Iterator[Batch]:
    """One epoch of the training split, shuffled and augmented: a function of (seed, epoch) alone.

    Parameters
    ----------
    batch_size:
        Images a batch; a smaller training split makes one smaller batch.
    seed, epoch:
        Decide the order and every random number.
    device:
        Where batches are put, and where they are augmented.
    views:
        How many augmentations of each image; those after the first are strong whatever ``options`` say.
    share:
        The part of a batch's places ``[B]`` that is made.
    labeled:
        Which images keep their labels; None: all.

    Yields
    ------
    Batch
        ``images [B, 3, size, size]`` float32 (uint8 without augmentation), ``labels`` and ``index`` ``[B]``; a share
        also carries the labels of the whole batch.
    """
    train = store.splits["train"]
    steps = range(steps_per_epoch(store, batch_size))
    if labeled is not None and labeled.alone:
        order, epochs = labeled.order(train, len(train), seed, epoch)
    else:
        order, epochs = train[permutation(len(train), seed, epoch)], np.full(len(train), epoch)
    parts = [slice(step * batch_size, (step + 1) * batch_size) for step in steps]

    def make(part: slice) -> Batch:
        whole, places = order[part], share(order[part])
        batch = _viewed(store, options, places, share(epochs[part]), seed=seed, device=device, views=views)
        if labeled is not None:
            batch = replace(batch, epoch=epoch, labels=to_device(_labels(store, places, labeled), device))
        if len(places) == len(whole):
            return batch
        return replace(batch, whole_labels=to_device(_labels(store, whole, labeled), device))

    yield from _ahead(parts, make, device)


def _labels(store: Store, places: np.ndarray, labeled: LabeledImages | None) -> torch.Tensor:
    return torch.from_numpy(store.labels[places] if labeled is None else labeled.labels(store.labels, places))


def _viewed(
    store: Store,
    options: AugmentationOptions | Recipe,
    places: np.ndarray,
    epochs: np.ndarray,
    *,
    seed: int,
    device: torch.device,
    views: int,
) -> Batch:
    """A batch whose images are shown as in these epochs ``[B]``, which ascend."""
    first, counts = np.unique(epochs, return_counts=True)
    shown = [
        training_view(store, options, part, seed=seed, epoch=int(epoch), device=device, views=views)
        for epoch, part in zip(first, np.split(places, np.cumsum(counts)[:-1]), strict=True)
    ]
    return shown[0] if len(shown) == 1 else joined(shown)


def training_view(
    store: Store,
    options: AugmentationOptions | Recipe,
    places: np.ndarray,
    *,
    seed: int,
    epoch: int,
    device: torch.device,
    views: int = 1,
) -> Batch:
    """The images at these places ``[B]`` of the manifest, as an epoch shows them; the rest as above."""
    raw = load(store, places, device)
    index, size = torch.from_numpy(places), store.image_size
    images = augment(raw.images, index, options, size=size, seed=seed, epoch=epoch)
    strong = options.model_copy(update={"augmentation": "strong"})
    others = tuple(
        augment(raw.images, index, strong, size=size, seed=seed + VIEW_SEED * view, epoch=epoch)
        for view in range(1, views)
    )
    return Batch(images, raw.labels, raw.index, others, epoch, index)


def evaluation_batches(
    store: Store,
    split: str,
    *,
    batch_size: int,
    device: torch.device,
    part: int = 0,
    parts: int = 1,
    labeled: LabeledImages | None = None,
) -> Iterator[Batch]:
    """A whole split in the order of the manifest: the centre of each image, uint8, nothing left out.

    Or one of several parts of it, of nearly equal size; or its images alone that keep their labels.
    """
    places = np.array_split(store.splits[split], parts)[part]
    if labeled is not None:
        places = places[labeled.mask[places]]
    chosen = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]

    def make(places: np.ndarray) -> Batch:
        raw = load(store, places, device)
        return Batch(centre_crop(raw.images, store.image_size), raw.labels, raw.index)

    yield from _ahead(chosen, make, device)


def _ahead(todo: list[Part], make: Callable[[Part], Batch], device: torch.device) -> Iterator[Batch]:
    """Each batch in order, AHEAD of them made before they are asked for.

    The thread ends with the iterator, also when that is closed early; what it raises is raised here.
    """
    lane = Lane(device)
    ready: queue.Queue[tuple[Batch, Any] | BaseException | None] = queue.Queue(AHEAD)
    stop = threading.Event()

    def put(result: tuple[Batch, Any] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(result, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for one in todo:
                if stop.is_set():
                    return
                put(lane.make(functools.partial(make, one)))
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (result := ready.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield lane.hand_over(*result)
    finally:
        stop.set()
        thread.join()
