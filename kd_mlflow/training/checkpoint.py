"""Checkpoints: tensors in safetensors, the rest in JSON, written so that a torn one is noticed.

A folder holds the last two checkpoints and the best weights. The JSON of a checkpoint carries the
checksum of its tensors and is written last: a checkpoint without a matching JSON does not exist.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kd_mlflow.errors import KdMlflowError
from kd_mlflow.places import make_folder, unusable

log = logging.getLogger(__name__)

KEPT = 2
BEST = re.compile(r"best-\d+\.safetensors")


@dataclass(frozen=True, slots=True)
class EpochRow:
    """What one epoch reported, with the moment it did (milliseconds since 1970)."""

    epoch: int
    timestamp_ms: int
    metrics: dict[str, float]


@dataclass(slots=True)
class Meta:
    """Everything about a checkpoint that is not a tensor."""

    epoch: int = 0
    best_epoch: int = 0
    best_file: str = ""
    best_sha256: str = ""
    history: list[EpochRow] = field(default_factory=list)
    finished: bool = False
    sha256: str = ""


class Checkpoints(Protocol):
    """Where a training finds what it goes on from, and leaves what it has."""

    def load(self) -> tuple[dict[str, Tensor], Meta] | None: ...
    def save(self, tensors: dict[str, Tensor], best: dict[str, Tensor] | None, meta: Meta) -> Path: ...
    def best(self, meta: Meta) -> dict[str, Tensor]: ...


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path)

    def save(self, tensors: dict[str, Tensor], best: dict[str, Tensor] | None, meta: Meta) -> Path:
        """Write the checkpoint of ``meta.epoch``; ``best`` is given when this epoch is the best so far.

        Raises
        ------
        KdMlflowError
            The disk is full; the checkpoint before is left whole.
        """
        if best is not None:
            meta.best_file = f"best-{meta.epoch:05d}.safetensors"
            meta.best_sha256 = self._write(meta.best_file, lambda path: save_file(best, path))
        name = f"checkpoint-{meta.epoch:05d}"
        meta.sha256 = self._write(f"{name}.safetensors", lambda path: save_file(tensors, path))
        self._write(f"{name}.json", lambda path: path.write_text(json.dumps(asdict(meta))))
        self._prune(meta)
        return self.path / f"{name}.safetensors"

    def load(self) -> tuple[dict[str, Tensor], Meta] | None:
        """The newest whole checkpoint, or None; a torn or altered one is passed over with a warning."""
        for file in sorted(self.path.glob("checkpoint-*.json"), reverse=True):
            tensors = file.with_suffix(".safetensors")
            try:
                content = json.loads(file.read_text())
                content["history"] = [EpochRow(**row) for row in content["history"]]
                meta = Meta(**content)
                if not BEST.fullmatch(meta.best_file):
                    raise ValueError("it names no file of its folder")
                if file_sha256(tensors) != meta.sha256:
                    raise ValueError("its checksum does not match")
                if file_sha256(self.path / meta.best_file) != meta.best_sha256:
                    raise ValueError("the checksum of its best weights does not match")
                return load_file(tensors), meta
            except (OSError, ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
                log.warning("The checkpoint %s cannot be used (%s); trying the one before.", tensors.name, error)
        return None

    def best(self, meta: Meta) -> dict[str, Tensor]:
        """The weights of the best epoch."""
        return load_file(self.path / meta.best_file)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the folder for one process; yields False when another one that lives has it."""
        lock = FileLock(self.path / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        except OSError as error:
            raise unusable(self.path, error) from None
        try:
            yield True
        finally:
            lock.release()

    def _write(self, name: str, write: Callable[[Path], object]) -> str:
        target = self.path / name
        partial = self.path / f".{name}.part"
        try:
            write(partial)
            with partial.open("rb+") as handle:
                os.fsync(handle.fileno())
            digest = file_sha256(partial)
            os.replace(partial, target)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                raise KdMlflowError(
                    f"The disk that holds {self.path} is full; the checkpoint before this one is whole. "
                    "Free some space and go on with --resume."
                ) from None
            raise
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return digest

    def _prune(self, meta: Meta) -> None:
        kept = sorted(self.path.glob("checkpoint-*.json"), reverse=True)[:KEPT]
        wanted = {meta.best_file}
        for file in kept:
            wanted |= {file.name, file.with_suffix(".safetensors").name}
            with contextlib.suppress(OSError, ValueError, KeyError):
                wanted.add(json.loads(file.read_text())["best_file"])
        for pattern in ("checkpoint-*", "best-*", ".*.part"):
            for file in self.path.glob(pattern):
                if file.name not in wanted:
                    file.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
