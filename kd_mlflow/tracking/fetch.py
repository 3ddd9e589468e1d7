"""A logged model's own files from the store into a folder, verified, whole or not at all."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import DESCRIPTION_BYTES
from kd_mlflow.places import check_writable
from kd_mlflow.tracking.artifacts import ArtifactsGone, reading, require_listed, shown
from kd_mlflow.tracking.flavor import DIGEST, MODEL_FILES, file_digests

ATTEMPTS = 5
RESTORE = "restore it, or use another version"

logger = logging.getLogger(__name__)


def fetch(client: MlflowClient, location: str, tags: Mapping[str, str], dest: Path, what: str) -> Path:
    """The model files below ``location`` as the folder ``dest``; returns ``dest``.

    A folder that holds just these files already is left as it is.

    Parameters
    ----------
    tags:
        The version's or model's tags, which hold the digests its files had when it was written.
    what:
        How messages call the model.

    Raises
    ------
    InputError
        ``dest`` holds something else, or the model was not written by this package.
    ArtifactsGone
        A file is missing, or its digest differs.
    ArtifactsAway
        The artifact store does not answer.
    """
    _refuse_foreign(dest)
    recorded = recorded_digests(tags)
    if holds(dest, tags):
        return dest
    if not recorded:
        logger.warning("%s carries no digests in its tags; only those in its model.json are checked.", what)
    check_writable(dest.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", suffix=".part", dir=dest.parent))
    try:
        new = scratch / "new"
        new.mkdir()
        _download(client, location, new, what)
        verify(new, recorded, what)
        _swap(new, dest, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return dest


def recorded_digests(tags: Mapping[str, str]) -> dict[str, str]:
    """The digests that a model's or version's tags hold of its files."""
    return {name: value for name, value in tags.items() if name.startswith(DIGEST)}


def holds(folder: Path, tags: Mapping[str, str]) -> bool:
    """Whether a folder of this machine holds the very files whose digests a model's or version's tags name."""
    recorded = recorded_digests(tags)
    return bool(recorded) and folder.is_dir() and file_digests(folder) == recorded


def verify(folder: Path, recorded: Mapping[str, str], what: str) -> None:
    """Hold a folder's files against the digests in its model.json and against those recorded elsewhere.

    Raises
    ------
    InputError
        Names the file that differs; an ArtifactsGone, since what was stored is no longer there.
    """
    expected = {DIGEST + name: digest for name, digest in _named_files(folder, what).items()}
    found = file_digests(folder)
    for source, digests in (("model.json", expected), ("the registry", recorded)):
        for name, digest in digests.items():
            if found.get(name) != digest:
                file = name.removeprefix(DIGEST)
                fact = f"{file} of {what} differs from its digest in {source}: it was damaged or altered in the store"
                raise ArtifactsGone(fact, RESTORE)


def _download(client: MlflowClient, location: str, folder: Path, what: str) -> None:
    """Fetch by names known beforehand, so that no name from the store can lead elsewhere."""
    names = ["model.json"]
    while names:
        name = names.pop()
        size = require_listed(client, location, f"data/{name}", what)
        room = DESCRIPTION_BYTES if name == "model.json" else shutil.disk_usage(folder).free
        if size > room:
            sizes = f"{size / 1e6:.0f} MB, and there is room for {room / 1e6:.0f} MB"
            fact = f"{name} of {what} in {shown(location)} has {sizes}"
            if name == "model.json":  # so large it is not what was written
                raise ArtifactsGone(fact, RESTORE)
            raise InputError(f"{fact}; make room in {folder.parent.parent}, or use another version.")
        with reading(location, f"data/{name}", what):
            download_artifacts(
                artifact_uri=f"{location.rstrip('/')}/data/{name}",
                dst_path=str(folder),
                tracking_uri=client.tracking_uri,
            )
        if name == "model.json":
            names += _named_files(folder, what)


def _named_files(folder: Path, what: str) -> dict[str, str]:
    try:
        digests = json.loads((folder / "model.json").read_text(encoding="utf-8"))["digests"]
        if not all(isinstance(digest, str) for digest in digests.values()):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtifactsGone(f"{what} has a model.json that kd-mlflow did not write", RESTORE) from None
    strange = sorted(set(digests) - set(MODEL_FILES[1:]))
    if strange or "model.safetensors" not in digests:
        named = ", ".join(map(repr, strange[:5])) or "none"
        raise ArtifactsGone(f"{what} has a model.json that names other files than a model's: {named}", RESTORE)
    return digests


def _is_model_folder(folder: Path) -> bool:
    names = {entry.name for entry in folder.iterdir()}
    return not names or ("model.json" in names and names <= set(MODEL_FILES))


def _refuse_foreign(dest: Path) -> None:
    if dest.exists() and not (dest.is_dir() and _is_model_folder(dest)):
        raise InputError(f"{dest} exists and is no pulled model; name another folder, or remove it first.")


def _swap(new: Path, dest: Path, scratch: Path) -> None:
    """Put ``new`` in the place of ``dest``; of two doing so at once, one after the other wins."""
    if dest.is_symlink():
        dest = dest.resolve()
    for attempt in range(ATTEMPTS):
        try:
            return os.rename(new, dest)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _refuse_foreign(dest)
        try:
            os.rename(dest, scratch / f"old{attempt}")
        except FileNotFoundError:
            continue
    raise InputError(f"{dest} is being written by other processes; name another folder.")
