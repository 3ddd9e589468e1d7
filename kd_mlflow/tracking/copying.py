"""Runs that were kept on this machine, put into another store: all that they hold, under new ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric, Param, Run, RunTag

from kd_mlflow.errors import InputError
from kd_mlflow.places import checkpointed_model
from kd_mlflow.tracking import flavor
from kd_mlflow.tracking.artifacts import ArtifactsGone, require_listed
from kd_mlflow.tracking.client import experiment_id
from kd_mlflow.tracking.fetch import holds
from kd_mlflow.tracking.records import RunRecord, find_runs, is_deleted
from kd_mlflow.tracking.registry import run_model
from kd_mlflow.tracking.sending import ENTRIES_A_BATCH, POINTS_A_BATCH

# Of the copy: the run that it was made from. Of the original: its copy, and its end when that was made.
ORIGIN, COPY = "kd.offline_run_id", "kd.synced_as"
# Whose runs hold their config.yaml once they are finished.
RECORDED = ("teacher", "control", "student", "compare", "search", "evaluate")
RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")


@dataclass(frozen=True)
class Copied:
    """A run that is now in the other store.

    Attributes
    ----------
    error:
        Why it is not, or not whole; it is tried again the next time.
    """

    origin: str
    run_id: str
    role: str
    name: str
    error: str = ""


def copy_runs(source: MlflowClient, target: MlflowClient) -> list[Copied]:
    """Copy every run that is over; those that were copied as they are now are left out.

    Copying again after a failure goes on where it was: a copy is known by its tag, and all that it is given may be
    given twice. Ids of copied runs in tags become those of the copies. A run that is refused, or whose artifacts are
    gone, does not keep the others here.
    """
    runs = sorted(find_runs(source, tags={}), key=lambda run: run.start_time)
    ids = copies_by_origin(source)
    todo = [run for run in runs if run.end_time and run.tags.get(COPY, "").partition(" ")[2] != str(run.end_time)]
    errors: dict[str, str] = {}
    for run in todo:  # all of them first, since their tags name each other
        try:
            if run.run_id not in ids or is_deleted(target, ids[run.run_id]):
                ids[run.run_id] = _copy_of(source, target, run)
        except InputError as error:
            errors[run.run_id] = str(error)
            ids.pop(run.run_id, None)
    for run in todo:
        if run.run_id in ids:
            errors[run.run_id] = _copy(source, target, run, ids)
    return [Copied(run.run_id, ids.get(run.run_id, ""), run.role, run.name, errors[run.run_id]) for run in todo]


def _copy(source: MlflowClient, target: MlflowClient, run: RunRecord, ids: Mapping[str, str]) -> str:
    """Fill a run's copy; why it is not whole, or nothing."""
    try:
        _fill(source, target, source.get_run(run.run_id), ids)
    except ArtifactsGone as gone:
        return f"{gone.fact}; put the artifacts back and sync again, or delete the run with `kd-mlflow delete`."
    source.set_tag(run.run_id, COPY, f"{ids[run.run_id]} {run.end_time}")
    return ""


def translated(tags: Mapping[str, str], ids: Mapping[str, str]) -> dict[str, str]:
    """Tags in which the ids of runs are those of their copies."""
    return {key: RUN_ID.sub(lambda found: ids.get(found[0], found[0]), value) for key, value in tags.items()}


def _copy_of(source: MlflowClient, target: MlflowClient, run: RunRecord) -> str:
    """The copy that an earlier attempt began, or a new one."""
    for known in find_runs(target, tags={ORIGIN: run.run_id}):
        return known.run_id
    experiment = source.get_experiment(run.experiment_id).name
    created = target.create_run(
        experiment_id(target, experiment), run.start_time, {ORIGIN: run.run_id}, run.name or None
    )
    return created.info.run_id


def _fill(source: MlflowClient, target: MlflowClient, run: Run, ids: Mapping[str, str]) -> None:
    new = ids[run.info.run_id]
    tags = {key: value for key, value in run.data.tags.items() if key not in (COPY, "kd.process")}
    entries = [RunTag(key, value) for key, value in translated(tags, ids).items()]
    for first in range(0, len(entries), ENTRIES_A_BATCH):
        target.log_batch(new, tags=entries[first : first + ENTRIES_A_BATCH])
    _values(source, target, run, new)
    try:
        _files(source, target, run, new)
    except ArtifactsGone:
        target.set_terminated(new, run.info.status, run.info.end_time)
        raise
    target.set_terminated(new, run.info.status, run.info.end_time)


def _values(source: MlflowClient, target: MlflowClient, run: Run, new: str) -> None:
    """Parameters, every point of every curve with its own moment, data sets."""
    params = [Param(name, value) for name, value in run.data.params.items()]
    for first in range(0, len(params), ENTRIES_A_BATCH):
        target.log_batch(new, params=params[first : first + ENTRIES_A_BATCH])
    for name in run.data.metrics:
        points = [
            Metric(name, point.value, point.timestamp, point.step)
            for point in source.get_metric_history(run.info.run_id, name)
        ]
        for first in range(0, len(points), POINTS_A_BATCH):
            target.log_batch(new, metrics=points[first : first + POINTS_A_BATCH])
    if run.inputs and run.inputs.dataset_inputs:
        target.log_inputs(new, run.inputs.dataset_inputs)


def _files(source: MlflowClient, target: MlflowClient, run: Run, new: str) -> None:
    """Artifacts, and the model if the run has one.

    Raises
    ------
    ArtifactsGone
        The run finished, and the store has its artifacts or its model no more; what there is is copied.
    """
    with TemporaryDirectory() as scratch:
        artifacts = Path(scratch) / "artifacts"
        artifacts.mkdir()
        for found in source.list_artifacts(run.info.run_id):
            source.download_artifacts(run.info.run_id, found.path, str(artifacts))
        if any(artifacts.iterdir()):
            target.log_artifacts(new, str(artifacts))
        if (model := flavor.newest_model(source, run.info.run_id)) is not None:
            _model(source, target, model, new, Path(scratch) / "model")
    if run.info.status == "FINISHED" and run.data.tags.get("kd.role") in RECORDED:
        require_listed(source, run.info.artifact_uri, "config.yaml", f"run {run.info.run_id}")


def _model(source: MlflowClient, target: MlflowClient, model: LoggedModel, new: str, scratch: Path) -> None:
    try:
        folder = run_model(source, model.source_run_id, scratch)
    except ArtifactsGone:
        folder = checkpointed_model(model.source_run_id)
        if not holds(folder, model.tags):
            raise
    metrics = {metric.key: metric.value for metric in model.metrics or ()}
    classes = [str(number) for number in range(int(model.params["classes"]))]
    flavor.log_model(target, new, folder, classes, int(model.params["image_size"]), metrics)


def copies_by_origin(source: MlflowClient) -> dict[str, str]:
    """The copies of the runs of a store, by the id of the original."""
    return {run.run_id: run.tags[COPY].partition(" ")[0] for run in find_runs(source, tags={}) if COPY in run.tags}
