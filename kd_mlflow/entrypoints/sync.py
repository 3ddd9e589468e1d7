"""`sync`: send what earlier commands could not, and what was done offline."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import load_model
from kd_mlflow.places import SPOOL, checkpointed_model, home, home_folder, offline_store, offline_uri
from kd_mlflow.tracking.artifacts import ArtifactsGone
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.copying import Copied, copies_by_origin, copy_runs, translated
from kd_mlflow.tracking.fetch import holds
from kd_mlflow.tracking.registry import ModelVersionInfo, Registered, all_versions, pull, register
from kd_mlflow.tracking.spool import Sent, send_left

CHECK_IMAGES = 8
# What the registry of the other store says of a version anew.
OWN_TAGS = ("kd.model_id", "kd.settled", "kd.run_id", "kd.digest.")


def sync(tracking_uri: str = "") -> dict[str, Any]:
    """Send what waits on this machine to the store: records of its runs, and runs that were made with --offline.

    Raises
    ------
    InputError
        The store cannot be reached, or is the one that offline runs are kept in.
    """
    if (tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")) == offline_uri():
        raise InputError("That is where offline runs are kept; name the store that they are sent to.")
    spool = home_folder(SPOOL)
    client = connect(tracking_uri)
    source = connect(offline_store()) if (home() / "offline" / "mlflow.db").is_file() else None
    if source is not None:
        send_left(source, spool)
    found = send_left(client, spool)
    result: dict[str, Any] = {
        "sent": [asdict(one) for one in found if not one.error],
        "kept": [asdict(one) for one in found if one.error],
        "runs": [],
        "models": [],
    }
    if source is not None:
        for copied in copy_runs(source, client):
            if copied.error:
                result["kept"].append(asdict(Sent(copied.origin, 0, copied.error)))
            else:
                result["runs"].append(_plain(copied))
        _register(source, client, result)
    return result


def _plain(copied: Copied) -> dict[str, Any]:
    return {name: value for name, value in asdict(copied).items() if name != "error"}


def _register(source: Any, target: Any, result: dict[str, Any]) -> None:
    """The versions of the registry whose runs were copied, each seen to work before it gets its alias."""
    ids = copies_by_origin(source)
    for version in all_versions(source):
        if version.run_id not in ids or "kd.synced" in version.tags:
            continue
        try:
            result["models"].append(asdict(_registered(source, target, version, ids)))
        except ArtifactsGone as gone:
            reason = f"{gone.fact}; put the artifacts back and sync again, or delete the version."
            result["kept"].append(asdict(Sent(version.run_id, 0, reason)))


def _files_of(source: Any, version: ModelVersionInfo, scratch: Path) -> Path:
    """The model's files from the store, or from this machine's checkpoints if their digests are the same."""
    try:
        return pull(source, f"models:/{version.name}/{version.version}", scratch)
    except ArtifactsGone:
        folder = checkpointed_model(version.run_id)
        if not holds(folder, version.tags):
            raise
        return folder


def _registered(source: Any, target: Any, version: ModelVersionInfo, ids: dict[str, str]) -> Registered:
    with TemporaryDirectory() as scratch:
        folder = _files_of(source, version, Path(scratch) / "model")
        model = load_model(folder).eval()
        size = model.spec.image_size
        images = np.random.default_rng(0).integers(0, 256, (CHECK_IMAGES, 3, size, size), dtype=np.uint8)
        with torch.inference_mode():
            logits = model(torch.from_numpy(images)).numpy()
        tags = {key: value for key, value in version.tags.items() if not key.startswith(OWN_TAGS)}
        registered = register(
            target, run_id=ids[version.run_id], name=version.name, folder=folder, tags=translated(tags, ids),
            check_images=images, check_logits=logits,
        )  # fmt: skip
    source.set_model_version_tag(version.name, str(version.version), "kd.synced", "true")
    return registered
