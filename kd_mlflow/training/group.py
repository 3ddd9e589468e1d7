"""Processes that train one network together, each on its share of every batch.

The batch, the learning rate and the schedule are those of the whole: a share's gradients are averaged over the
processes. BatchNorm sees a process's own share. Process 0 leads: it alone writes, and decides what goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import Distiller, Progress, Step, TeacherSource
from kd_mlflow.errors import InputError
from kd_mlflow.models.taps import Tapped

Forward = Callable[[Batch, Sequence[TeacherSource], Progress], Step]


class Ended(Exception):
    """The leader ended the training; the others wait for what comes next."""


@dataclass
class Group:
    """A process's place among those that train together; without arguments a process that trains alone.

    Attributes
    ----------
    agreed:
        Whether all processes know that the training is over.
    """

    rank: int = 0
    size: int = 1
    agreed: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def check(self, batch_size: int, smallest: int) -> None:
        """Raise an InputError unless a batch of so many images has equal shares of ``smallest`` or more for all."""
        if batch_size % self.size or (self.size > 1 and batch_size < smallest * self.size):
            least = "two images or more each" if smallest > 1 else "an image or more each"
            raise InputError(
                f"A batch of {batch_size} images cannot be shared equally by {self.size} processes, {least}; choose a "
                f"--batch-size that is a multiple of {self.size}, {smallest * self.size} or more."
            )

    def share(self, places: np.ndarray) -> np.ndarray:
        """This process's part ``[B / size]`` of a batch's places ``[B]``."""
        each = len(places) // self.size
        return places[self.rank * each : (self.rank + 1) * each]

    def forward(self, tapped: Tapped, distiller: Distiller) -> Forward:
        """The method's step; after its backward every process has the mean of all gradients."""
        if self.size == 1:
            return lambda batch, teachers, progress: distiller(batch, tapped, teachers, progress)
        # Buffers are averaged once an epoch; some methods leave parameters out of some steps.
        return DistributedDataParallel(
            _Step(tapped, distiller),
            broadcast_buffers=False,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )

    def without_exchange(self, forward: Forward) -> AbstractContextManager[None]:
        """Gradients of the parts of a batch before its last stay with the process."""
        return nullcontext() if self.size == 1 else forward.no_sync()

    def sums(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Sums over all processes, in double precision."""
        packed = torch.stack([torch.as_tensor(value, dtype=torch.float64, device="cpu") for value in values.values()])
        if self.size > 1:
            dist.all_reduce(packed)
        return dict(zip(values, packed.tolist(), strict=True))

    def rows(self, values: Tensor) -> Tensor:
        """The rows of all processes ``[N, …]``, on the CPU; each may have another number of them."""
        if self.size == 1:
            return values
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(values)]))
        most = max(int(count) for count in counts)
        padded = torch.zeros(most, *values.shape[1:], dtype=values.dtype)
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    @torch.no_grad()
    def average_buffers(self, *modules: nn.Module) -> None:
        """Running statistics become the mean over the processes; counters stay."""
        if self.size == 1:
            return
        for module in modules:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.size

    @contextmanager
    def led(self) -> Iterator[None]:
        """What the leader does within decides for all: the others go on, or end, when it has.

        Raises
        ------
        Ended
            In the others, if the leader raised.
        """
        if self.size == 1:
            yield
            return
        going = torch.ones(1, dtype=torch.int64)
        try:
            yield
        except BaseException:
            going.zero_()
            self.agreed = True
            raise
        finally:
            dist.broadcast(going, src=0)
        if not int(going):
            raise Ended


class _Step(nn.Module):
    """A method's step as a forward pass, with all that learns in it as parts."""

    def __init__(self, tapped: Tapped, distiller: Distiller) -> None:
        super().__init__()
        self.tapped = tapped
        self.student = tapped.model
        self.distiller = distiller

    def forward(self, batch: Batch, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        return self.distiller(batch, self.tapped, teachers, progress)
