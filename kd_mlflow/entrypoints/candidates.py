"""The ways in which a network from elsewhere may want its pixels and name its classes, measured on validation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.datasets import FashionMNIST

from kd_mlflow.data.augment import centre_crop
from kd_mlflow.data.placing import load
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.zoo import NORMALIZATIONS, Triple
from kd_mlflow.training.device import autocast

# Validation images that are looked at, and after how many a candidate that is far behind is looked at no more.
IMAGES, STAGE, BATCH = 512, 128, 64
# Standard errors: what is clearly ahead, and what is so with some room (several are compared at once).
CLEARLY, SURELY = 2.0, 3.0
# Above it a matrix of classes by classes is too large to look for another order in.
MOST_CLASSES = 2000
AS_IT_IS = ""


@dataclass(eq=False)
class Candidate:
    """One way to prepare pixels, and what the network then said.

    Attributes
    ----------
    name:
        What messages call the normalization.
    mean, std:
        On the 0..1 scale, for red, green, blue.
    reversed_channels:
        Whether the network sees blue, green, red.
    predicted:
        ``[n]``, the row of the largest logit of each image; -1 where the logits are not finite.
    """

    name: str
    mean: Triple
    std: Triple
    reversed_channels: bool
    predicted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def view(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` uint8 as the network sees them, float32."""
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        pixels = (images.float() / 255 - mean) / std
        return pixels.flip(1) if self.reversed_channels else pixels

    @property
    def title(self) -> str:
        """Normalization and channels, as messages name them."""
        return f"{self.name}, blue-green-red" if self.reversed_channels else self.name


def normalization_candidates(data: tuple[Triple, Triple]) -> list[tuple[str, Triple, Triple]]:
    """Mean and std by name: those of the data and the usual ones, the same on pixels of 0..255, and means alone."""
    usual = {"data": data, **{name: NORMALIZATIONS[name] for name in ("imagenet", "unit", "symmetric")}}
    plain = [(name, mean, std) for name, (mean, std) in usual.items()]
    on_bytes = [
        ("bytes" if name == "unit" else f"{name} on pixels of 0..255", _scaled(mean), _scaled(std))
        for name, mean, std in plain
    ]
    return [*plain, *on_bytes, ("imagenet's mean on pixels of 0..255", NORMALIZATIONS["imagenet"][0], (1 / 255,) * 3)]


def _scaled(values: Triple) -> Triple:
    return tuple(value / 255 for value in values)  # type: ignore[return-value]


def known_orders(classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Orders that class names are often put in, where they differ from these: for each row the class it means."""
    listed = list(classes)
    orders = {
        AS_IT_IS: listed,
        "natural order (2 before 10)": sorted(listed, key=_natural),
        "order without regard to case": sorted(listed, key=lambda name: (name.casefold(), name)),
        "natural order without regard to case": sorted(listed, key=lambda name: _natural(name.casefold())),
        "reversed order": listed[::-1],
    }
    if set(listed) == set(FashionMNIST.classes):
        orders["the order of the published labels"] = list(FashionMNIST.classes)
    places = {name: place for place, name in enumerate(listed)}
    rows: dict[str, tuple[int, ...]] = {}
    for title, names in orders.items():
        meant = tuple(places[name] for name in names)
        if meant not in rows.values():
            rows[title] = meant
    return rows


def _natural(name: str) -> list[tuple[bool, int | str]]:
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name) if part]


@dataclass(frozen=True)
class Reading:
    """A candidate with an order of classes, and which images it is right about ``[n]``."""

    candidate: Candidate
    order: str
    right: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


@dataclass(frozen=True)
class Measured:
    """What was seen on validation.

    Attributes
    ----------
    labels:
        ``[n]``
    alive:
        The candidates that were looked at to the end.
    readings:
        These, with every known order of the classes.
    """

    candidates: list[Candidate]
    alive: list[Candidate]
    labels: np.ndarray
    orders: dict[str, tuple[int, ...]]

    @property
    def readings(self) -> list[Reading]:
        return [
            Reading(one, order, right(one, self.labels, meant))
            for order, meant in self.orders.items()
            for one in self.alive
        ]

    @property
    def table(self) -> list[dict[str, object]]:
        """A row a candidate and order; fewer images where it was far behind."""
        return [
            {
                "normalization": one.name,
                "mean": list(one.mean),
                "std": list(one.std),
                "channels": "bgr" if one.reversed_channels else "rgb",
                "class_order": order or "as the data's",
                "accuracy": float(right(one, self.labels, meant).mean()),
                "images": len(one.predicted),
            }
            for one in self.candidates
            for order, meant in self.orders.items()
        ]


@torch.inference_mode()
def measure(
    session: Session, model: Classifier, candidates: list[Candidate], orders: dict[str, tuple[int, ...]]
) -> Measured:
    """Race the candidates over validation images: one that falls far behind the first is looked at no more.

    The images lie evenly in the split. Classes are the rows of the network's last layer.
    """
    val = session.store.splits["val"]
    places = val[np.linspace(0, len(val) - 1, min(len(val), IMAGES)).astype(np.int64)]
    stages = [places[first :: -(-len(places) // STAGE)] for first in range(-(-len(places) // STAGE))]
    body, labels, alive = model.body.to(session.device).eval(), np.zeros(0, np.int64), candidates
    for stage in stages:
        labels = np.concatenate([labels, session.store.labels[stage]])
        for start in range(0, len(stage), BATCH):
            batch = load(session.store, stage[start : start + BATCH], session.device)
            images = centre_crop(batch.images, session.store.image_size)
            with autocast(session.device, session.precision):
                for one in alive:
                    one.predicted = np.concatenate([one.predicted, _rows(body(one.view(images)))])
        best = [max((right(one, labels, meant) for meant in orders.values()), key=np.sum) for one in alive]
        first = max(best, key=np.sum)
        alive = [one for one, its in zip(alive, best, strict=True) if not ahead(first, its, SURELY)]
    return Measured(candidates, alive, labels, orders)


def _rows(logits: Tensor) -> np.ndarray:
    finite = logits.float().isfinite().all(dim=1)
    return torch.where(finite, logits.float().argmax(dim=1), -1).cpu().numpy()


def right(candidate: Candidate, labels: np.ndarray, meant: Sequence[int]) -> np.ndarray:
    """``[n]`` whether each image is named rightly, if row j means class ``meant[j]``; -1 is never right."""
    predicted = candidate.predicted
    return np.append(meant, -1)[predicted] == labels[: len(predicted)]


def ahead(first: np.ndarray, second: np.ndarray, errors: float) -> bool:
    """Whether one reading is right so much more often than another on the same images ``[n]``.

    By McNemar (1947): of the images on which they differ, wins minus losses exceed so many standard errors
    of that difference, the square root of their number.
    """
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    return wins - losses > errors * math.sqrt(wins + losses)


def above_chance(right_ones: np.ndarray, labels: np.ndarray, errors: float = CLEARLY) -> bool:
    """Whether it is right so much more often than who always names the most frequent class."""
    return float(right_ones.mean()) > chance_bound(labels, errors)


def chance_bound(labels: np.ndarray, errors: float = CLEARLY) -> float:
    """The share of the most frequent class among labels ``[n]``, and so many binomial standard errors more."""
    share = float(np.bincount(labels).max()) / len(labels)
    return share + errors * math.sqrt(share * (1 - share) / len(labels))


def other_order(measured: Measured, beside: np.ndarray, classes: int) -> tuple[np.ndarray, list[int]] | None:
    """The order of classes that the confusion matrix speaks for, if it is surely better than what is used ``[n]``.

    An assignment of rows to classes is found on one half of the images and tried on the other, both ways
    round: on the images that it was made for, any assignment looks good.

    Returns
    -------
    tuple
        Which images it is then right about ``[n]``, and for every row the class it means.
    """
    if classes > MOST_CLASSES or len(measured.labels) < 4:
        return None
    half = np.arange(len(measured.labels)) % 2 == 0
    tried = []
    for one in measured.alive:
        held = np.zeros(len(measured.labels), bool)
        for part in (half, ~half):
            meant = _assignment(one.predicted[part], measured.labels[part], classes)
            held |= ~part & right(one, measured.labels, meant)
        tried.append((held, one))
    held, best = max(tried, key=lambda pair: pair[0].sum())
    if not (ahead(held[: len(beside)], beside, SURELY) and above_chance(held, measured.labels, SURELY)):
        return None
    return held, _assignment(best.predicted, measured.labels, classes)


def _assignment(predicted: np.ndarray, labels: np.ndarray, classes: int) -> list[int]:
    """For every row the class that it means, so that most images are right; without evidence its own."""
    counts = np.zeros((classes, classes))
    known = predicted >= 0
    np.add.at(counts, (predicted[known], labels[known]), 1)
    rows, meant = linear_sum_assignment(counts + 1e-3 * np.eye(classes), maximize=True)
    return [int(meant[row]) for row in np.argsort(rows)]
