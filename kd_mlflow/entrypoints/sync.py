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
from kd_mlflow.places import SPOOL, home, home_folder, offline_store, offline_uri
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.copying import copies_by_origin, copy_runs, translated
from kd_mlflow.tracking.registry import ModelVersionInfo, Registered, all_versions, pull, register
from kd_mlflow.tracking.spool import send_left

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
        result["runs"] = [asdict(one) for one in copy_runs(source, client)]
        result["models"] = [asdict(one) for one in _register(source, client)]
    return result


def _register(source: Any, target: Any) -> list[Registered]:
    """The versions of the registry whose runs were copied, each seen to work before it gets its alias."""
    ids = copies_by_origin(source)
    return [
        _registered(source, target, version, ids)
        for version in all_versions(source)
        if version.run_id in ids and "kd.synced" not in version.tags
    ]


def _registered(source: Any, target: Any, version: ModelVersionInfo, ids: dict[str, str]) -> Registered:
    with TemporaryDirectory() as scratch:
        folder = pull(source, f"models:/{version.name}/{version.version}", Path(scratch) / "model")
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
