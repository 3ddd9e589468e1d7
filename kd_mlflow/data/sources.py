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

    def head(self, index: int) -> bytes | None:
        """The first bytes of an item's file, none if it cannot be read; None where its pixels are at hand."""
        ...

    def clutter_note(self) -> str | None:
        """Say what of other programs is left out; empty if there is nothing, None where it is not known yet."""
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
            return FolderSource(path.resolve(), follow_links=options.follow_links)
        if path.is_file():
            return TarSource(path.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--data {options.data!r} cannot be read: {error}") from None
    raise InputError(_nothing_there(options.data))


def _nothing_there(data: str) -> str:
    """Why a name leads to no data: which path was tried, and from where."""
    scheme, address, _ = data.partition("://")
    if address:
        return f"--data is an address ({scheme}://…), not a path; fetch what it leads to and name the folder or .tar."
    wrong = f"--data {data!r} is neither a folder nor a .tar, nor one of {', '.join(CATALOG)}"
    path = Path(data).expanduser()
    if path.is_absolute():
        return f"{wrong}; check the path."
    tried = str(Path.cwd() / path)
    return (f"{wrong}; {tried!r} was tried, because a relative path starts in the working directory, which under "
            "`mlflow run` is the project's: give the absolute path.")  # fmt: skip


def content_digest(content: bytes | np.ndarray) -> bytes:
    """SHA-256 of a file's bytes, or of an array's shape and pixels."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).digest()
    return hashlib.sha256(f"{content.shape}".encode() + np.ascontiguousarray(content).tobytes()).digest()
