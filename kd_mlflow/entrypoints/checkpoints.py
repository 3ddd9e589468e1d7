"""Checkpoints of trials: on this machine, in a folder that many share, or mirrored to an fsspec URL."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from kd_mlflow.entrypoints.session import Session
from kd_mlflow.errors import InputError
from kd_mlflow.places import check_writable, make_folder
from kd_mlflow.tracking.client import one_line, redact
from kd_mlflow.training.observer import Observer, Silent

log = logging.getLogger(__name__)

CHECKPOINTS_VARIABLE = "KD_MLFLOW_CHECKPOINTS"
PATTERNS = ("checkpoint-*", "best-*")
FINGERPRINT = "fingerprint"


def checkpoint_place(asked: str) -> str:
    """The folder or URL that was asked for, or that of KD_MLFLOW_CHECKPOINTS; empty for none."""
    return asked or os.environ.get(CHECKPOINTS_VARIABLE, "")


@dataclass
class Checkpoints:
    """The checkpoints of a search's trials.

    Attributes
    ----------
    remote:
        An fsspec file system and a path on it that every worker reaches; None where the session's own
        folder is all there is, or is shared itself.
    """

    session: Session
    remote: tuple[Any, str] | None = None

    @classmethod
    def open(cls, session: Session, place: str) -> Checkpoints:
        """For ``--checkpoints``, else KD_MLFLOW_CHECKPOINTS; a plain folder becomes the session's own.

        Raises
        ------
        InputError
            The place cannot be reached or written to.
        """
        place = checkpoint_place(place)
        if not place:
            check_writable(session.checkpoint_root)
            return cls(session)
        try:
            if "://" in place:
                files, path = url_to_fs(place)
                files.makedirs(path, exist_ok=True)
                return cls(session, (files, path.rstrip("/")))
            folder = Path(place).expanduser().resolve()
            check_writable(folder)
        except (OSError, ValueError, ImportError, InputError) as error:
            raise InputError(f"--checkpoints {redact(place)} cannot be used: {one_line(error)}") from None
        session.checkpoint_root = folder
        return cls(session)

    def continue_from(self, earlier: str | None, run_id: str, fingerprint: str) -> None:
        """Bring the checkpoints of an earlier attempt, or this run's own from elsewhere, to where this run looks.

        Those of another training are not used: code or data may have changed since.
        """
        own = self.session.checkpoints(run_id)
        make_folder(own)
        for source in filter(None, (earlier, run_id)):
            self._fetch(source, own)
        mark = own / FINGERPRINT
        if not mark.is_file() or mark.read_text(encoding="utf-8") != fingerprint:
            for file in _files(own):
                file.unlink()
            mark.write_text(fingerprint, encoding="utf-8")

    def mirror(self, run_id: str) -> Observer:
        """Copies every checkpoint to where the other workers see it."""
        return _Mirror(self, run_id) if self.remote else Silent()

    def remove(self, run_id: str) -> None:
        """Of a trial that is over nothing is kept."""
        shutil.rmtree(self.session.checkpoints(run_id), ignore_errors=True)
        if self.remote:
            files, path = self.remote
            try:
                files.rm(f"{path}/{run_id}", recursive=True)
            except (OSError, ValueError):
                log.info("There was nothing of run %s to remove.", run_id)

    def send(self, run_id: str) -> None:
        """Make the remote folder like the local one: tensors first, what names them last."""
        files, path = self.remote
        local = {file.name: file for file in _files(self.session.checkpoints(run_id))}
        theirs = f"{path}/{run_id}"
        files.makedirs(theirs, exist_ok=True)
        there = {Path(name).name: size for name, size in self._sizes(theirs).items()}
        for name in sorted(local, key=lambda name: (name.endswith(".json"), name)):
            if there.get(name) != local[name].stat().st_size or name == FINGERPRINT:
                files.put_file(str(local[name]), f"{theirs}/{name}")
        for name in there.keys() - local.keys():
            files.rm_file(f"{theirs}/{name}")

    def _fetch(self, run_id: str, own: Path) -> None:
        folder = self.session.checkpoints(run_id)
        if folder.is_dir() and folder != own:
            for file in _files(folder):
                shutil.copy2(file, own / file.name)
        elif self.remote and not _files(own):
            files, path = self.remote
            for name in self._sizes(f"{path}/{run_id}"):
                if _is_own(Path(name).name):
                    files.get_file(name, str(own / Path(name).name))

    def _sizes(self, folder: str) -> dict[str, int]:
        files = self.remote[0]
        files.invalidate_cache()
        return {one["name"]: one["size"] for one in files.ls(folder, detail=True)} if files.exists(folder) else {}


class _Mirror(Silent):
    """A copy that fails costs the others a resume, not this worker its training."""

    def __init__(self, checkpoints: Checkpoints, run_id: str) -> None:
        self.checkpoints = checkpoints
        self.run_id = run_id

    def on_checkpoint(self, path: Path) -> None:
        try:
            self.checkpoints.send(self.run_id)
        except Exception as error:
            log.warning("The checkpoint %s could not be copied to --checkpoints: %s", path.name, one_line(error))


def _is_own(name: str) -> bool:
    """Whether a file of that name is one that a worker leaves; nothing else of a shared place is taken."""
    return name == FINGERPRINT or any(fnmatch(name, pattern) for pattern in PATTERNS)


def _files(folder: Path) -> list[Path]:
    names = [file for pattern in PATTERNS for file in sorted(folder.glob(pattern))]
    return [*names, *folder.glob(FINGERPRINT)]
