"""The data sets known by name: scikit-learn's digits, and four of torchvision's."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from sklearn.datasets import load_digits
from torchvision import datasets

from kd_mlflow.data.folders import FolderSource
from kd_mlflow.data.images import read_head
from kd_mlflow.data.layout import Arrangement, Entry, Item, Split
from kd_mlflow.errors import InputError
from kd_mlflow.places import check_writable

CATALOG = ("digits", "cifar10", "cifar100", "fashionmnist", "imagenette")
_ARRAYS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "fashionmnist": datasets.FashionMNIST}


class CatalogSource:
    """A data set by name; downloaded when it is first read, never again.

    ``arrangement`` raises InputError if the download fails.
    """

    def __init__(self, name: str, downloads: Path) -> None:
        self.name = name
        self.downloads = downloads
        self.held_out = 0.2 if name == "digits" else 0.1

    def stamp(self) -> str:
        """The name: what these names stand for never changes."""
        return hashlib.sha256(f"catalog:{self.name}".encode()).hexdigest()

    def arrangement(self) -> Arrangement:
        """Items, classes and warnings, after a download if need be."""
        return self._loaded[0]

    def read(self, place: int) -> bytes | np.ndarray:
        """An item's pixels, or the bytes of its file (imagenette)."""
        arrangement, pixels = self._loaded
        entry = arrangement.items[place].entry
        return pixels[entry.offset] if pixels is not None else Path(entry.path).read_bytes()

    def head(self, index: int) -> bytes | None:
        """None where pixels are at hand, else the first bytes of an item's file."""
        arrangement, pixels = self._loaded
        return None if pixels is not None else read_head(arrangement.items[index].entry.path)

    def clutter_note(self) -> str:
        """Nothing: what is downloaded holds images only."""
        return ""

    @functools.cached_property
    def _loaded(self) -> tuple[Arrangement, np.ndarray | None]:
        if self.name == "digits":
            return _digits()
        check_writable(self.downloads, below_home=True)
        try:
            # torchvision announces its downloads on stdout, which belongs to --json.
            with FileLock(self.downloads / f"{self.name}.lock"), contextlib.redirect_stdout(sys.stderr):
                if self.name == "imagenette":
                    return _imagenette(self.downloads), None
                return _arrays(self.name, self.downloads)
        except (OSError, RuntimeError, ValueError, AssertionError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"The data set {self.name} is not in {str(self.downloads)!r} and could not be downloaded ({reason}); "
                "connect to the network once, or use --data digits or a folder of your own."
            ) from None


def _digits() -> tuple[Arrangement, np.ndarray]:
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    items = _numbered("digits", bunch.target, [str(name) for name in bunch.target_names], None, 0)
    return Arrangement(items, tuple(sorted(str(name) for name in bunch.target_names)), ()), pixels


def _arrays(name: str, downloads: Path) -> tuple[Arrangement, np.ndarray]:
    """torchvision's training and test arrays behind each other."""
    parts = {"train": _ARRAYS[name](str(downloads), train=True, download=True),
             "test": _ARRAYS[name](str(downloads), train=False, download=True)}  # fmt: skip
    names = list(parts["train"].classes)
    items: list[Item] = []
    for split, part in parts.items():
        items += _numbered(split, np.asarray(part.targets), names, split, len(items))
    pixels = np.concatenate([np.asarray(part.data) for part in parts.values()])
    items.sort(key=lambda item: item.path)
    return Arrangement(items, tuple(sorted(names)), ()), pixels


def _numbered(folder: str, targets: np.ndarray, names: Sequence[str], split: Split | None, first: int) -> list[Item]:
    return [
        Item(Entry("", 0, "", first + number), f"{folder}/{number:05d}", names[target], split)
        for number, target in enumerate(targets.tolist())
    ]


def _imagenette(downloads: Path) -> Arrangement:
    """fast.ai's folders, named by WordNet ids; what they call ``val`` is the part kept for testing."""
    root = downloads / "imagenette2-320"
    if not root.is_dir():
        # Unpacked beside and renamed: an interrupted download must not look like a whole data set.
        with tempfile.TemporaryDirectory(dir=downloads, prefix=".imagenette-") as beside:
            datasets.Imagenette(beside, size="320px", download=True)
            os.replace(Path(beside) / root.name, root)
    known = datasets.Imagenette(str(downloads), size="320px")
    readable = {ident: names[0] for ident, names in zip(known.wnids, known.classes, strict=True)}
    items = [
        Item(item.entry._replace(path=str(root / item.entry.path)), item.path, readable[item.label],
             "test" if item.split == "val" else item.split)
        for item in FolderSource(root).arrangement().items
    ]  # fmt: skip
    return Arrangement(items, tuple(sorted(readable.values())), ())
