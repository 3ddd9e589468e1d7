"""What ``--data`` can name, brought to one form: a list of items that can be read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from kd_mlflow.config import DataOptions
from kd_mlflow.data.archives import TarSource
from kd_mlflow.data.catalog import CATALOG, CatalogSource
from kd_mlflow.data.folders import FolderSource
from kd_mlflow.data.layout import Arrangement
from kd_mlflow.errors import InputError


class Source(Protocol):
    """A data set before preparation.

    Attributes
    ----------
    name:
        Short name of the data set.
    held_out:
        Share of the images for each split that has to be cut.
    """

    name: str
    held_out: float

    def stamp(self) -> str:
        """A cheap mark that changes whenever the content may have changed."""
        ...

    def arrangement(self) -> Arrangement:
        """Items, classes and warnings; the first call may download."""
        ...

    def read(self, place: int) -> bytes | np.ndarray:
        """The bytes of an item's file, or its pixels ``[H, W]`` or ``[H, W, 3]``; OSError if it cannot be read."""
        ...


def find_source(options: DataOptions, home: Path) -> Source:
    """The source that ``options.data`` names.

    Raises
    ------
    InputError
        Neither a known name nor an existing folder or ``.tar``, or one that is refused.
    """
    if options.data in CATALOG:
        return CatalogSource(options.data, home / "downloads")
    try:
        path = Path(options.data).expanduser()
        if path.is_dir():
            return FolderSource(path.resolve())
        if path.is_file():
            return TarSource(path.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--data {options.data!r} cannot be read: {error}") from None
    names = ", ".join(CATALOG)
    raise InputError(f"--data {options.data!r} is neither a folder nor a .tar, nor one of {names}; check the path.")


def content_digest(content: bytes | np.ndarray) -> bytes:
    """SHA-256 of a file's bytes, or of an array's shape and pixels."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    return hashlib.sha256(f"{content.shape}".encode() + np.ascontiguousarray(content).tobytes()).digest()
