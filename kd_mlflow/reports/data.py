"""A finished run as the reports want it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """What a network said of one split, in the order of the manifest.

    Attributes
    ----------
    index:
        ``[N]``: places in the manifest, rising.
    label, predicted:
        ``[N]``: the class that is right, and the one that was named.
    """

    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Predictions:
        """Out of the lists ``index``, ``label`` and ``predicted`` of ``predictions.json``."""
        order = np.argsort(np.asarray(recorded["index"]), kind="stable")
        return cls(*[np.asarray(recorded[name])[order] for name in ("index", "label", "predicted")])

    @property
    def right(self) -> np.ndarray:
        """``[N]``: whether each image was named rightly."""
        return self.predicted == self.label


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
    predictions:
        What was said of each image, by split; empty for a run that kept none.
    shared:
        The machine's load by what was timed on it (training, inference, in_turn) while other work shared it.
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
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
