"""Batches of several processes seen as one, for losses that compare samples with each other."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(values: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks; without a process group the values themselves.

    Only this process's rows carry a gradient, times the number of processes: averaged over them, as DDP
    does, the gradient is that of the loss of the whole batch.

    Parameters
    ----------
    values:
        ``[B, …]``, of the same shape in every process.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.detach().contiguous())
    if values.requires_grad:
        parts[dist.get_rank()] = _Scaled.apply(values, len(parts))
    return torch.cat(parts)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(context, values, factor):
        context.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(context, gradient):
        return gradient * context.factor, None
