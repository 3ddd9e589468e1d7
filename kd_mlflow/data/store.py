"""The prepared form of a data set: decoded once, memory-mapped ever after."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from kd_mlflow.config import DataOptions
from kd_mlflow.data import depth, manifest
from kd_mlflow.data.build import build, check_bad
from kd_mlflow.data.layout import SPLITS, BadFile
from kd_mlflow.data.manifest import DamagedStore, Meta, read_meta
from kd_mlflow.data.sources import Source, find_source
from kd_mlflow.data.survey import survey
from kd_mlflow.places import check_writable, make_folder

__all__ = ["BadFile", "Store", "prepare"]

# Raised when layouts or kinds of files come to be read otherwise: a request then leads anew to its store.
READING = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Store:
    """A prepared data set.

    Attributes
    ----------
    path:
        The folder it lies in.
    name:
        Short name of the data set: ``digits``, the folder's name, the tar's without its ending.
    digest:
        Hex, 32 characters, over path, class, split and SHA-256 of every usable file; the same at every size.
    classes:
        Class names, sorted; labels are places in it.
    image_size, side:
        Side in pixels of what the network sees, and of the stored squares (8/7 of it).
    images:
        ``[N, 3, side, side]`` uint8, memory-mapped, read-only.
    labels:
        ``[N]`` int64.
    splits:
        ``train``, ``val`` and ``test``, each the int64 places of its images, ascending.
    mean, std:
        Of the training split's pixels, a channel each, on the scale 0 to 1.
    bad:
        The files that were left out.
    warnings:
        What a person should know about the data.
    value_range:
        What black and white are in the images of more than 8 bits a channel; None where there are none.
    copies:
        Where ``images`` also lies, by device; None where it has not the room. Kept by :mod:`kd_mlflow.data.placing`.
    """

    path: Path
    name: str
    digest: str
    classes: tuple[str, ...]
    image_size: int
    side: int
    images: np.ndarray
    labels: np.ndarray
    splits: dict[str, np.ndarray]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bad: tuple[BadFile, ...]
    warnings: tuple[str, ...]
    value_range: tuple[int, int] | None = None
    copies: dict[torch.device, Tensor | None] = field(default_factory=dict, init=False, repr=False)

    def path_of(self, index: int) -> str:
        """The path of an image's file, relative to the root of the data set."""
        # Read where it stands: a list of all paths would grow with the data set.
        offsets = np.load(self.path / manifest.OFFSETS, mmap_mode="r")
        if not 0 <= index < len(offsets) - 1:
            raise IndexError(f"image {index} of {len(offsets) - 1}")
        with (self.path / manifest.MANIFEST).open("rb") as file:
            file.seek(int(offsets[index]))
            return json.loads(file.readline())["path"]


def prepare(
    options: DataOptions, home: Path, on_progress: Callable[[int, int], None] | None = None,
    value_range: tuple[int, int] | None = None,
) -> Store:  # fmt: skip
    """The store of a data set, built now if there is none of this content and size.

    Safe when several processes call it at once: one builds, the others wait for it.

    Parameters
    ----------
    options:
        What to prepare, and at which size.
    home:
        Stores go below ``home/stores``, downloads below ``home/downloads``.
    on_progress:
        Called with (files done, files in all) while a store is built; with images of more than 8 bits twice.
    value_range:
        What black and white are in images of more than 8 bits a channel; None takes it from the training images.

    Raises
    ------
    InputError
        The data cannot be found, read, downloaded, divided or stored, or too many files are bad.
    """
    source = find_source(options, home)
    stores = home / "stores"
    make_folder(stores / "known", below_home=True)
    pointer = stores / "known" / _request(source, options, value_range)
    found, noted, clutter = _known(stores, pointer)
    if found is None:
        check_writable(stores, below_home=True)
        surveyed = survey(source, options.image_size, options.split_seed, value_range)
        with _lock(stores / f".{surveyed.key}.lock"):
            found = _usable(stores / surveyed.key)
            if found is None:
                with _workshop(stores, surveyed.key) as folder:
                    build(source, surveyed, folder, image_size=options.image_size, split_seed=options.split_seed,
                          max_bad=options.max_bad, on_progress=on_progress, value_range=value_range)  # fmt: skip
                    _put(folder, stores / surveyed.key)
                found = read_meta(stores / surveyed.key)
        noted, clutter = surveyed.warnings, source.clutter_note() or ""
        _point(pointer, surveyed.key, noted, clutter)
    # A folder was listed just now, and what other programs have put there since changes nothing else.
    said = source.clutter_note()
    clutter = clutter if said is None else said
    store = _open(stores / found.key, found, source.name, (*noted, clutter) if clutter else noted)
    check_bad(store.bad, found.files, options.max_bad)
    return store


def _request(source: Source, options: DataOptions, value_range: tuple[int, int] | None) -> str:
    """Names what was asked for, before any file has been read."""
    asked = (
        manifest.FORMAT, depth.VERSION, READING, value_range, source.stamp(), options.image_size, options.split_seed,
    )  # fmt: skip
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:32]


def _known(stores: Path, pointer: Path) -> tuple[Meta | None, tuple[str, ...], str]:
    """The store that the same request led to the last time, if it is still whole, and what was noted then."""
    try:
        content = json.loads(pointer.read_text(encoding="ascii"))
        return _usable(stores / content["key"]), tuple(content["warnings"]), str(content["clutter"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None, (), ""


def _usable(path: Path) -> Meta | None:
    if not path.is_dir():
        return None
    try:
        meta = read_meta(path)
        if meta.key != path.name:
            raise DamagedStore(f"it was written as {meta.key}")
    except DamagedStore as damage:
        logger.warning("The store %s is damaged (%s) and is built again.", path, damage)
        return None
    return meta


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Only one process builds a store; the system frees the lock of a process that dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("Another process is preparing this data set; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _workshop(stores: Path, key: str) -> Iterator[Path]:
    """An empty folder to build in, beside the store; what an interrupted build left is cleared away."""
    for left in stores.glob(f".build-{key}-*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = stores / f".build-{key}-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(folder: Path, target: Path) -> None:
    """Give a finished store its name; a damaged one of that name goes."""
    if target.exists():
        damaged = folder.with_name(f"{folder.name}-damaged")
        os.replace(target, damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    os.replace(folder, target)


def _point(pointer: Path, key: str, noted: tuple[str, ...], clutter: str) -> None:
    """Remember where a request led; without it the files are hashed once more, no worse."""
    beside = pointer.with_name(f"{pointer.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps({"key": key, "warnings": noted, "clutter": clutter}), encoding="ascii")
        os.replace(beside, pointer)
    except OSError as error:
        logger.info("%s cannot be written: %s", pointer, error)


def _open(path: Path, meta: Meta, name: str, noted: tuple[str, ...]) -> Store:
    shape = (meta.count, 3, meta.side, meta.side)
    codes = np.load(path / manifest.SPLIT_CODES)
    return Store(
        path=path, name=name, digest=meta.digest, classes=tuple(meta.classes), image_size=meta.image_size,
        side=meta.side, images=np.memmap(path / manifest.IMAGES, dtype=np.uint8, mode="r", shape=shape),
        labels=np.load(path / manifest.LABELS),
        splits={split: np.flatnonzero(codes == code) for code, split in enumerate(SPLITS)},
        mean=tuple(meta.mean), std=tuple(meta.std), bad=tuple(BadFile(*one) for one in meta.bad),
        warnings=(*noted, *meta.warnings), value_range=tuple(meta.value_range) if meta.value_range else None,
    )  # fmt: skip
