"""The model registry: versions that were seen to work, the alias champion, and fetching them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.tracking.artifacts import ArtifactsAway, ArtifactsGone, reading, require_listed
from kd_mlflow.tracking.client import one_line
from kd_mlflow.tracking.fetch import fetch, recorded_digests, verify
from kd_mlflow.tracking.flavor import DIGEST, MODEL_FILES, check_code, file_digests, newest_model
from kd_mlflow.tracking.records import is_deleted, read_run
from kd_mlflow.tracking.versions import (
    CHAMPION,
    ModelVersionInfo,
    all_versions,
    champion,
    info_of,
    model_or_none,
    resolve,
    versions_of,
)

__all__ = ["ModelVersionInfo", "Registered", "all_versions", "champion", "pull", "register", "resolve", "run_model"]

CHALLENGER = "challenger"
# Set when a version's place is settled; until then whoever settles another one takes it into account.
SETTLED = "kd.settled"
TOLERANCE = 1e-4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """A version in the registry and the alias it got."""

    name: str
    version: int
    alias: Literal["champion", "challenger"]


def register(
    client: MlflowClient,
    *,
    run_id: str,
    name: str,
    folder: Path,
    tags: Mapping[str, str],
    check_images: np.ndarray,
    check_logits: np.ndarray,
) -> Registered:
    """Register the model that a run logged, once the store's copy was seen to work.

    The copy in the store is loaded through both flavors and must give the same logits. The alias
    ``champion`` moves only to a version with a higher ``kd.val_accuracy`` on the same
    ``kd.dataset_digest`` (a tie goes to fewer ``kd.parameters``, an equal tie stays); any other gets
    ``challenger``. A model that is registered already under this name keeps its version.

    Parameters
    ----------
    folder:
        The model folder that was logged.
    tags:
        Of the version, the above among them; the digests of the files are added.
    check_images, check_logits:
        uint8 ``[B, 3, S, S]``, and float ``[B, K]``: what the trained network says of them on the CPU.

    Raises
    ------
    InputError
        The run has no whole model, or the registry refuses the name.
    KdMlflowError
        The copy in the store differs from ``folder``, or gives other logits.
    """
    model = newest_model(client, run_id)
    if model is None:
        raise InputError(f"Run {run_id} has no logged model that is READY; nothing can be registered.")
    digests = file_digests(folder)
    with TemporaryDirectory() as scratch:
        _check_copy(_downloaded(client, model, Path(scratch)), digests, check_images, check_logits)
    tags = {**tags, "kd.run_id": run_id, "kd.model_id": model.model_id, **digests}
    version = _create_version(client, name, model, run_id, {key: str(value)[:5000] for key, value in tags.items()})
    return _settle(client, name, version)


def pull(client: MlflowClient, uri: str, dest: Path) -> Path:
    """Fetch a registered model's files into the folder ``dest``, verified; returns ``dest``.

    The folder appears whole or not at all. One that was pulled before is replaced, anything else that
    stands there is left alone. ``kd_mlflow.load_model`` reads it.

    Raises
    ------
    InputError
        There is no such version, ``dest`` holds something else, or a digest differs.
    """
    found = resolve(client, uri)
    location = client.get_model_version_download_uri(found.name, str(found.version))
    return fetch(client, location, found.tags, dest, f"models:/{found.name}/{found.version}")


def run_model(client: MlflowClient, run_id: str, dest: Path) -> Path:
    """Fetch the files of the model that a run logged, as :func:`pull` does.

    Raises
    ------
    InputError
        The run does not exist or has no whole model, or as for :func:`pull`.
    """
    if read_run(client, run_id).deleted:
        raise InputError(
            f"Run {run_id} is deleted; bring it back with `mlflow runs restore --run-id {run_id}`, or name another."
        )
    model = newest_model(client, run_id)
    if model is None:
        raise ArtifactsGone(f"Run {run_id} has no logged model", "name a run that finished its training")
    return fetch(client, model.artifact_location, model.tags, dest, f"the model of run {run_id}")


def check_model(client: MlflowClient, run_id: str) -> None:
    """Whether the model that a run logged is whole in the store, where the registry takes it from.

    Raises
    ------
    ArtifactsGone
        A file is missing or damaged.
    InputError
        As for :func:`run_model`.
    """
    with TemporaryDirectory() as scratch:
        run_model(client, run_id, Path(scratch) / "model")


def _downloaded(client: MlflowClient, model: LoggedModel, scratch: Path) -> Path:
    what = f"the model of run {model.source_run_id}"
    for name in MODEL_FILES:
        require_listed(client, model.artifact_location, f"data/{name}", what)
    with reading(model.artifact_location, "data", what):
        return Path(
            download_artifacts(
                artifact_uri=model.artifact_location, dst_path=str(scratch), tracking_uri=client.tracking_uri
            )
        )


def _check_copy(copy: Path, digests: Mapping[str, str], images: np.ndarray, logits: np.ndarray) -> None:
    try:
        verify(copy / "data", digests, "the stored model")
        check_code(copy)
    except InputError as error:
        raise KdMlflowError(f"The model is not registered: {error}") from None
    program = mlflow.pytorch.load_model(str(copy))
    with torch.inference_mode():
        said = program(torch.from_numpy(np.ascontiguousarray(images))).float().numpy()
    difference = float(np.abs(said - logits).max()) if said.shape == logits.shape else float("inf")
    if not difference <= TOLERANCE:  # NaN is no agreement either
        raise KdMlflowError(
            f"The model is not registered: loaded back from the store its logits differ by {difference:.3g} "
            f"(at most {TOLERANCE} is allowed)."
        )
    table = mlflow.pyfunc.load_model(str(copy)).predict(np.asarray(images))
    expected = torch.from_numpy(logits).float().softmax(dim=1).numpy()
    if not np.allclose(np.stack(table["probabilities"]), expected, atol=TOLERANCE):
        raise KdMlflowError("The model is not registered: loaded as a python_function it gives other probabilities.")


def _create_version(
    client: MlflowClient, name: str, model: LoggedModel, run_id: str, tags: dict[str, str]
) -> ModelVersionInfo:
    try:
        if model_or_none(client, name) is None:
            _create_model(client, name)
        for known in versions_of(client, name):
            if known.tags.get("kd.model_id") == model.model_id:
                return known
        made = client.create_model_version(
            name, model.artifact_location, run_id=run_id, tags=tags, model_id=model.model_id
        )
    except MlflowException as error:
        raise InputError(f"The registry refuses the model '{name}': {one_line(error)}") from None
    return info_of(made)


def _create_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _settle(client: MlflowClient, name: str, own: ModelVersionInfo) -> Registered:
    """Give the version its alias, such that of several being registered at once the best ends as champion.

    No lock spans machines. Instead each process reads the rivals *before* the champion, counts as
    rivals all that are not settled or came later, and looks again after it moved the alias, so that
    whoever moves it last has seen everybody.
    """
    if SETTLED in own.tags:
        holder = champion(client, name)
        return Registered(name, own.version, CHAMPION if holder and holder.version == own.version else CHALLENGER)
    rivals = {own.version: own}
    while True:
        for found in versions_of(client, name):
            if SETTLED not in found.tags or found.version > own.version:
                rivals[found.version] = found
        holder = champion(client, name)
        best = holder if holder is not None and _stands(client, holder) else None
        for _, rival in sorted(rivals.items()):
            if best is None or _beats(rival, best):
                best = rival
        if holder is not None and best.version == holder.version:
            break
        client.set_registered_model_alias(name, CHAMPION, str(best.version))
    alias = CHAMPION if best.version == own.version else CHALLENGER
    if alias == CHALLENGER:
        client.set_registered_model_alias(name, CHALLENGER, str(own.version))
        if best.tags.get("kd.dataset_digest") != own.tags.get("kd.dataset_digest"):
            logger.warning(
                "The champion of %s, version %d, was trained on other data; version %d cannot be compared with it and "
                "becomes the challenger.",
                name,
                best.version,
                own.version,
            )
    client.set_model_version_tag(name, str(own.version), SETTLED, "true")
    return Registered(name, own.version, alias)


def _stands(client: MlflowClient, version: ModelVersionInfo) -> bool:
    """Whether a champion still is one: its run was not deleted, its files are in the store, as far as is known.

    Of a version that somebody else registered nobody knows which files it has.
    """
    why = "its run was deleted" if version.run_id and is_deleted(client, version.run_id) else ""
    try:
        location = client.get_model_version_download_uri(version.name, str(version.version))
        for name in recorded_digests(version.tags):
            file = f"data/{name.removeprefix(DIGEST)}"
            require_listed(client, location, file, f"models:/{version.name}/{version.version}")
    except ArtifactsGone as gone:
        why = why or gone.fact
    except ArtifactsAway:
        pass
    if why:
        logger.warning("Version %d of %s is not the champion any more: %s.", version.version, version.name, why)
    return not why


def _beats(new: ModelVersionInfo, old: ModelVersionInfo) -> bool:
    if new.tags.get("kd.dataset_digest") != old.tags.get("kd.dataset_digest"):
        return False
    accuracy, than = (_number(one, "kd.val_accuracy", float("-inf")) for one in (new, old))
    if accuracy != than:
        return accuracy > than
    return _number(new, "kd.parameters", float("inf")) < _number(old, "kd.parameters", float("inf"))


def _number(version: ModelVersionInfo, tag: str, otherwise: float) -> float:
    try:
        value = float(version.tags[tag])
    except (KeyError, ValueError):
        return otherwise
    return otherwise if np.isnan(value) else value
