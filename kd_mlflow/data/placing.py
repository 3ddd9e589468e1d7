"""Pixels on their way to the device that trains."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kd_mlflow.data.batch import Batch
from kd_mlflow.data.store import Store

# How much of a GPU's free memory a data set may take.
SHARE = 0.25
CHUNK = 1024


def load(store: Store, places: np.ndarray, device: torch.device) -> Batch:
    """The stored squares ``[B, 3, S, S]`` uint8 at these places of the manifest, on the device."""
    index, labels = (to_device(torch.from_numpy(part), device) for part in (places, store.labels[places]))
    pixels = resident(store, device)
    images = to_device(torch.from_numpy(store.images[places]), device) if pixels is None else pixels[index]
    return Batch(images, labels, index)


def resident(store: Store, device: torch.device) -> Tensor | None:
    """Every square of a store ``[N, 3, S, S]`` on a GPU, put there once; None where it has not the room for them."""
    if device not in store.copies:
        fits = store.images.nbytes <= SHARE * _free(device)
        store.copies[device] = _copy(store, device) if fits else None
    return store.copies[device]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; the host does not wait for the copy."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


class Lane:
    """A GPU's own stream for batches: they are made while it works at the step before. Elsewhere it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self.stream = _stream(device) if device.type == "cuda" else None

    def make(self, work: Callable[[], Batch]) -> tuple[Batch, torch.cuda.Event | None]:
        """What ``work`` makes, and what has to be over before anybody reads it."""
        if self.stream is None:
            return work(), None
        with torch.cuda.stream(self.stream):
            return work(), self.stream.record_event()

    def hand_over(self, batch: Batch, made: torch.cuda.Event | None) -> Batch:
        """The batch, for the stream of the caller: it waits for the batch, and the batch's memory waits for it."""
        if made is not None:
            current = torch.cuda.current_stream(batch.images.device)
            current.wait_event(made)
            whole = () if batch.whole_labels is None else (batch.whole_labels,)
            for tensor in (batch.images, batch.labels, batch.index, *batch.others, *whole):
                tensor.record_stream(current)
        return batch


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    # One for all batches: PyTorch keeps freed memory apart by stream.
    return torch.cuda.Stream(device)


def _free(device: torch.device) -> int:
    """Bytes of a GPU that nobody has; 0 elsewhere, where a store is mapped and takes no copy."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _copy(store: Store, device: torch.device) -> Tensor | None:
    try:
        pixels = torch.empty(store.images.shape, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:  # somebody else has taken the room meanwhile
        return None
    for start in range(0, len(pixels), CHUNK):
        some = np.array(store.images[start : start + CHUNK])
        pixels[start : start + CHUNK].copy_(to_device(torch.from_numpy(some), device))
    if device.type == "cuda":  # whatever stream reads it later need not wait for this one
        torch.cuda.current_stream(device).synchronize()
    return pixels
