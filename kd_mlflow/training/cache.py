"""What a teacher says of every view of every image, kept on disk for all trainings that see the same views.

A view is a function of (seed, epoch, sample), so that one training's teacher outputs serve the next: other
temperatures, other students, other methods. A folder belongs to one teacher on one data set under one
augmentation and seed; it holds a file of fixed records an epoch, in the order of the training split.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from kd_mlflow.errors import GuardError, KdMlflowError
from kd_mlflow.training.records import Codec, is_finite

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheFolder:
    """The files of one teacher's outputs under one stream of views.

    Attributes
    ----------
    path:
        Named by a hash over ``facts``.
    facts:
        All that decides the outputs, as plain values; kept in ``facts.json`` for people.
    rows:
        Samples of the training split, a record each.
    limit:
        Bytes that all files below the parent folder may have together.
    """

    path: Path
    facts: dict[str, Any]
    codec: Codec
    rows: int
    limit: int

    @classmethod
    def of(cls, root: Path, facts: dict[str, Any], codec: Codec, rows: int, limit: int) -> CacheFolder:
        """The folder for these facts below ``root``; nothing is made yet."""
        whole = facts | {"classes": codec.classes, "pooled": codec.pooled, "precision": codec.precision, "rows": rows}
        name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
        return cls(root / name, whole, codec, rows, limit)

    @property
    def bytes_an_epoch(self) -> int:
        """Size of one epoch's file."""
        return self.rows * self.codec.dtype.itemsize

    def read(self, epoch: int) -> np.ndarray | None:
        """The records ``[rows]`` of an epoch, memory-mapped; None if there are none that are whole."""
        file = self.file(epoch)
        try:
            whole = json.loads(file.with_suffix(".json").read_text())["crc32"]
            records = np.memmap(file, dtype=self.codec.dtype, mode="r", shape=(self.rows,))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            log.warning("The teacher cache %s cannot be read (%s); the teacher is asked instead.", file, error)
            return None
        if whole != zlib.crc32(records) or not self.codec.fits(records):
            log.warning("The teacher cache %s is damaged; the teacher is asked instead.", file)
            return None
        return records

    def begin(self, epoch: int) -> EpochWriter | None:
        """A writer for whoever comes first and finds room; None for everybody else."""
        lock = FileLock(self.path / f"epoch-{epoch:05d}.lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            return None
        except OSError as error:
            log.warning("The teacher cache cannot be written (%s); the training goes on without.", error)
            return None
        try:
            if self.bytes_an_epoch + _bytes_below(self.path.parent) > self.limit:
                log.warning("The teacher cache is full (--cache-gb); from epoch %d on the teacher is asked.", epoch)
                lock.release()
                return None
            _replace(self.path / "facts.json", json.dumps(self.facts, indent=1).encode())
            return EpochWriter(self.file(epoch), self.rows, self.codec, lock)
        except OSError as error:
            lock.release()
            log.warning("The teacher cache cannot be written (%s); the training goes on without.", error)
            return None

    def file(self, epoch: int) -> Path:
        """Where an epoch's records lie."""
        return self.path / f"epoch-{epoch:05d}.bin"


class EpochWriter:
    """Collects an epoch's records beside its file; nothing is there for others before :meth:`commit`."""

    def __init__(self, file: Path, rows: int, codec: Codec, lock: FileLock) -> None:
        self.file = file
        self.lock = lock
        for left in file.parent.glob(f".{file.name}.*"):
            left.unlink(missing_ok=True)
        self.beside = file.with_name(f".{file.name}.{os.getpid()}")
        size = rows * codec.dtype.itemsize
        with self.beside.open("wb") as handle:
            handle.truncate(size)
            if hasattr(os, "posix_fallocate"):  # a full disk is noticed here, and not as a signal at some write
                os.posix_fallocate(handle.fileno(), 0, size)
        # Mapped: its pages are the file's, and the process does not grow with the data set.
        self.records = np.memmap(self.beside, dtype=codec.dtype, mode="r+", shape=(rows,))
        self.seen = np.zeros(rows, bool)

    def put(self, rows: np.ndarray, records: np.ndarray) -> None:
        """Records of some rows of the training split."""
        self.records[rows] = records
        self.seen[rows] = True

    @property
    def missing(self) -> np.ndarray:
        """The rows that no record was put for."""
        return np.flatnonzero(~self.seen)

    def commit(self) -> None:
        """Make the file, whole or not at all; a disk that fails costs the cache, not the training."""
        try:
            self.records.flush()
            said = {"crc32": zlib.crc32(self.records), "torch": torch.__version__}
            os.replace(self.beside, self.file)
            _replace(self.file.with_suffix(".json"), json.dumps(said).encode())
        except OSError as error:
            log.warning("The teacher cache cannot be written (%s); the training goes on without.", error)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave it to somebody else."""
        self.beside.unlink(missing_ok=True)
        self.lock.release()


def check_records(records: np.ndarray) -> None:
    """Refuse what does not fit into the records' precision.

    Raises
    ------
    GuardError
        A number is not finite.
    """
    if not is_finite(records):
        raise GuardError(
            "The teacher's outputs do not fit into float16 or are not finite; use --cache-precision float32, "
            "or --teacher-cache off."
        )


def check_same(live: np.ndarray, kept: np.ndarray, file: Path, index: np.ndarray) -> None:
    """Hold records against those of a live forward pass of the same images.

    Raises
    ------
    KdMlflowError
        They differ by more than rounding; names the image that differs most, and what could be the cause.
    """
    wide, held = live["logits"].astype(np.float64), kept["logits"].astype(np.float64)
    if "places" in live.dtype.names:  # of equal logits either may come first
        wide, held = np.sort(wide, axis=1), np.sort(held, axis=1)
    apart = np.abs(wide - held).max(axis=1)
    if apart.max() <= 0.02 * max(1.0, np.abs(wide).max()):
        return
    written = json.loads(file.with_suffix(".json").read_text()).get("torch")
    cause = "its file was changed, or the images were changed in place"
    if written != torch.__version__:
        cause = f"it was written by torch {written}, and this is {torch.__version__}"
    raise KdMlflowError(
        f"The teacher cache {file} is not what the teacher gives: of image {int(index[apart.argmax()])} a logit "
        f"differs by {apart.max():.2g}. Most likely {cause}. Remove the folder {file.parent}, or use "
        "--teacher-cache off."
    )


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/epoch-*.bin"))


def _replace(target: Path, content: Any) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
