"""A finished run as the reports want it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunView:
    """A run, flattened.

    Attributes
    ----------
    history:
        For each per-epoch metric its points (epoch, value).
    metrics:
        Final figures under flat names: ``val/…`` at the selected epoch, ``test/…``, ``efficiency/…``.
    missing:
        For each figure that could not be measured, why.
    split:
        What ``per_class``, ``confusion`` and ``reliability`` were measured on.
    """

    role: str
    run_id: str
    name: str
    architecture: str
    params: dict[str, str]
    history: dict[str, list[tuple[int, float]]]
    metrics: dict[str, float]
    missing: dict[str, str]
    per_class: list[dict[str, Any]]
    confusion: list[list[int]]
    reliability: list[dict[str, Any]]
    split: str = "test"
