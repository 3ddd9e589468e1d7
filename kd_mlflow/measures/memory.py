"""What one pass through a network holds in memory: by the allocator on a GPU, by the tensors alive elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def pass_bytes(model: nn.Module, image: Tensor, batch_size: int, device: torch.device) -> int:
    """The most that a pass holds besides weights and buffers, its images among it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        model(image.expand(batch_size, -1, -1, -1).contiguous())
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Out of inference mode, in which fused operations hide what they are made of.
    with torch.inference_mode(False), torch.no_grad(), _LiveTensors() as live:
        model(torch.zeros(batch_size, *image.shape[1:], dtype=torch.uint8, device=device))
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations make for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            place, size = storage.data_ptr(), storage.nbytes()
            if size and place not in given and place not in self._alive:
                self._alive.add(place)
                self.now += size
                weakref.finalize(storage, self._gone, place, size)
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self.now -= size


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from _tensors(value)
    elif isinstance(nested, (list, tuple)):
        for value in nested:
            yield from _tensors(value)
