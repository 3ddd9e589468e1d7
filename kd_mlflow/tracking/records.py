"""Reading runs back: one run, its curves, its artifacts, and all runs of a kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.artifacts import ArtifactsGone, reading, require_listed
from kd_mlflow.tracking.client import active_experiments

PAGE = 1000
SYSTEM = "system/"


@dataclass(frozen=True)
class RunRecord:
    """A run as it stands in the store.

    Attributes
    ----------
    role:
        Its tag ``kd.role``; empty for a run that is not ours.
    status:
        RUNNING, SCHEDULED, FINISHED, FAILED or KILLED.
    metrics:
        The last value of each.
    start_time, end_time:
        Milliseconds since 1970; ``end_time`` is None while the run is not over.
    deleted:
        Whether it was deleted, alone or with its experiment; such a run is read by its id only.
    """

    run_id: str
    experiment_id: str
    role: str
    status: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    start_time: int
    end_time: int | None
    deleted: bool = False


def read_run(client: MlflowClient, run_id: str) -> RunRecord:
    """The run with this id.

    Raises
    ------
    InputError
        The store has no such run.
    """
    return record_of(get_run(client, run_id))


def get_run(client: MlflowClient, run_id: str) -> Run:
    """MLflow's own object of a run that must exist."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(f"There is no run {run_id} in this store; `kd-mlflow runs` lists those there are.") from None


def is_deleted(client: MlflowClient, run_id: str) -> bool:
    """Whether a run was deleted, for good or so that it can be restored; one that may not be read was not."""
    try:
        return client.get_run(run_id).info.lifecycle_stage == "deleted"
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        return error.error_code == "RESOURCE_DOES_NOT_EXIST"


def record_of(run: Run) -> RunRecord:
    """MLflow's object as a plain record."""
    info, tags = run.info, dict(run.data.tags)
    over = RunStatus.is_terminated(RunStatus.from_string(info.status))
    return RunRecord(
        run_id=info.run_id,
        experiment_id=info.experiment_id,
        role=tags.get("kd.role", ""),
        status=info.status,
        name=info.run_name or tags.get("mlflow.runName", ""),
        tags=tags,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        start_time=info.start_time,
        end_time=info.end_time if over else None,  # a run that was taken up again keeps its old end
        deleted=info.lifecycle_stage == "deleted",
    )


def history(
    client: MlflowClient, run_id: str, names: Sequence[str] | None = None
) -> dict[str, list[tuple[int, float]]]:
    """Curves: for each metric its points (step, value) by step; of two at one step the later sent.

    Parameters
    ----------
    names:
        Metrics to read; None for all but those of the system.
    """
    if names is None:
        names = [name for name in get_run(client, run_id).data.metrics if not name.startswith(SYSTEM)]
    curves = {}
    for name in names:
        points = sorted(client.get_metric_history(run_id, name), key=lambda point: (point.step, point.timestamp))
        curves[name] = list({point.step: point.value for point in points}.items())
    return curves


def download(client: MlflowClient, run_id: str, path: str, dest: Path) -> Path:
    """Fetch an artifact (a file or a folder) of a run into the folder ``dest``; returns where it lies.

    Raises
    ------
    ArtifactsGone
        The run has no such artifact.
    ArtifactsAway
        The artifact store does not answer.
    """
    location, what = get_run(client, run_id).info.artifact_uri, f"run {run_id}"
    if path:
        require_listed(client, location, path, what)
    dest.mkdir(parents=True, exist_ok=True)
    with reading(location, path, what):
        return Path(client.download_artifacts(run_id, path, str(dest)))


def read_json(client: MlflowClient, run_id: str, path: str) -> Any:
    """The content of a JSON artifact.

    Raises
    ------
    ArtifactsGone
        The run has no such artifact, or it is damaged: not JSON.
    ArtifactsAway
        The artifact store does not answer.
    """
    with TemporaryDirectory() as folder:
        try:
            return json.loads(download(client, run_id, path, Path(folder)).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            fact = f"The artifact {path} of run {run_id} is not JSON, so it was damaged in the store"
            raise ArtifactsGone(fact, "restore it, or name another run") from None


def find_runs(
    client: MlflowClient, *, tags: Mapping[str, str], role: str | None = None, status: str | None = None
) -> list[RunRecord]:
    """Runs that carry all these tags, newest first, over all experiments; deleted ones are left out."""
    wanted = [f"tags.`{key}` = {quote(value)}" for key, value in tags.items()]
    if role:
        wanted.append(f"tags.`kd.role` = {quote(role)}")
    if status:
        wanted.append(f"attributes.status = {quote(status)}")
    return search(client, " and ".join(wanted), list(active_experiments(client)))


def search(client: MlflowClient, filter_string: str, experiment_ids: Sequence[str]) -> list[RunRecord]:
    """All runs that an MLflow filter finds in these experiments, newest first."""
    found: list[RunRecord] = []
    token = None
    while experiment_ids:
        page = client.search_runs(
            list(experiment_ids),
            filter_string,
            max_results=PAGE,
            page_token=token,
            order_by=["attributes.start_time DESC"],
        )
        found += [record_of(run) for run in page]
        token = page.token
        if not token:
            break
    return found


def quote(value: str) -> str:
    """A value inside an MLflow filter.

    Raises
    ------
    InputError
        It holds both kinds of quotes, for which the filter language has no escape.
    """
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value:
        return f'"{value}"'
    raise InputError(f"The value {value} holds both kinds of quotes, which MLflow cannot search for.")
