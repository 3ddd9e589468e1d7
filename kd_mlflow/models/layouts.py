"""How what a module returns is laid out, and how it becomes a map ``[B, C, H, W]``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

# Class, distillation and register tokens before those of the image.
MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Layout:
    """One arrangement of a map's values.

    Attributes
    ----------
    kind:
        ``channels first`` [B, C, H, W], ``channels last`` [B, H, W, C], ``tokens`` [B, P + H·W, C], or ``windows``:
        [B, ..., C] with the positions in another order.
    prefix:
        P, the tokens before those of the image.
    order:
        For windows: ``[H·W]``, where in the returned order each position of the map stands, row by row.
    """

    kind: Literal["channels first", "channels last", "tokens", "windows"] = "channels first"
    prefix: int = 0
    order: Tensor | None = field(default=None, compare=False, repr=False)

    def fits(self, shape: torch.Size) -> bool:
        """Whether values of this shape can be laid out so, as a square map."""
        if self.kind == "channels first":
            return len(shape) == 4 and shape[2] == shape[3]
        if self.kind == "channels last":
            return len(shape) == 4 and shape[1] == shape[2]
        if self.kind == "tokens":
            return len(shape) == 3 and shape[1] > self.prefix and _is_square(shape[1] - self.prefix)
        return self.order is not None and math.prod(shape[1:-1]) == len(self.order)

    def map_of(self, values: Tensor) -> Tensor:
        """The map ``[B, C, H, W]`` of what the module returned; a view where that is possible."""
        if self.kind == "channels first":
            return values
        if self.kind == "channels last":
            return values.permute(0, 3, 1, 2)
        rows = values[:, self.prefix :]
        if self.kind == "windows":
            rows = values.flatten(1, -2)[:, self.order.to(values.device, non_blocking=True)]
        return rows.unflatten(1, (math.isqrt(rows.shape[1]), -1)).permute(0, 3, 1, 2)


CHANNELS_FIRST = Layout()
CHANNELS_LAST = Layout("channels last")


def layout_of(values: Tensor, target: Tensor) -> Layout | None:
    """The layout in which ``values`` are the square map ``target`` ``[1, C, H, W]``; None if in none."""
    plain = [CHANNELS_FIRST, CHANNELS_LAST]
    if values.dim() == 3:
        prefix = values.shape[1] - target[0, 0].numel()
        plain = [Layout("tokens", prefix)] if 0 <= prefix <= MOST_PREFIX_TOKENS else []
    for layout in plain:
        if layout.fits(values.shape) and _same(layout.map_of(values), target):
            return layout
    return _windows(values, target)


def token_layout(shape: torch.Size) -> Layout | None:
    """The layout of tokens ``[B, N, C]`` of a square image, as few of them as can be before the image's own."""
    if len(shape) != 3 or shape[1] < 2:
        return None
    prefix = shape[1] - math.isqrt(shape[1]) ** 2
    return Layout("tokens", prefix) if prefix <= MOST_PREFIX_TOKENS else None


def _windows(values: Tensor, target: Tensor) -> Layout | None:
    """The order in which the same positions stand, found by what they hold."""
    positions = target.shape[2] * target.shape[3]
    alike = values.dim() > 2 and (len(values), values.shape[-1]) == (1, target.shape[1])
    if not alike or values.numel() != target.numel() or positions < 2:
        return None
    rows, wanted = values.flatten(1, -2)[0], target[0].flatten(1).T
    order = torch.empty(positions, dtype=torch.long, device=rows.device)
    order[_ranking(wanted)] = _ranking(rows)
    return Layout("windows", order=order.cpu()) if _same(rows[order], wanted) else None


def _ranking(rows: Tensor) -> Tensor:
    """The order of rows ``[N, C]`` by one number for each that tells them apart."""
    weights = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (rows.double() @ weights.to(rows.device)).argsort()


def _same(values: Tensor, target: Tensor) -> bool:
    return values.shape == target.shape and torch.allclose(values, target, rtol=1e-6, atol=1e-9)


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count
