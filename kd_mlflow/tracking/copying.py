"""Runs that were kept on this machine, put into another store: all that they hold, under new ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric, Param, Run, RunTag

from kd_mlflow.tracking import flavor
from kd_mlflow.tracking.client import experiment_id
from kd_mlflow.tracking.records import RunRecord, find_runs
from kd_mlflow.tracking.registry import run_model
from kd_mlflow.tracking.sending import ENTRIES_A_BATCH, POINTS_A_BATCH

# Of the copy: the run that it was made from. Of the original: its copy, and its end when that was made.
ORIGIN, COPY = "kd.offline_run_id", "kd.synced_as"
RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")


@dataclass(frozen=True)
class Copied:
    """A run that is now in the other store."""

    origin: str
    run_id: str
    role: str
    name: str


def copy_runs(source: MlflowClient, target: MlflowClient) -> list[Copied]:
    """Copy every run that is over; those that were copied as they are now are left out.

    Copying again after a failure goes on where it was: a copy is known by its tag, and all that it is given may be
    given twice. Ids of copied runs in tags become those of the copies.
    """
    runs = sorted(find_runs(source, tags={}), key=lambda run: run.start_time)
    ids = copies_by_origin(source)
    todo = [run for run in runs if run.end_time and run.tags.get(COPY, "").partition(" ")[2] != str(run.end_time)]
    for run in todo:  # all of them first, since their tags name each other
        ids[run.run_id] = ids.get(run.run_id) or _copy_of(source, target, run)
    copied = []
    for run in todo:
        new = ids[run.run_id]
        _fill(source, target, source.get_run(run.run_id), ids)
        source.set_tag(run.run_id, COPY, f"{new} {run.end_time}")
        copied.append(Copied(run.run_id, new, run.role, run.name))
    return copied


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
    _files(source, target, run, new)
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
    """Artifacts, and the model if the run has one."""
    with TemporaryDirectory() as scratch:
        artifacts = Path(scratch) / "artifacts"
        artifacts.mkdir()
        for found in source.list_artifacts(run.info.run_id):
            source.download_artifacts(run.info.run_id, found.path, str(artifacts))
        if any(artifacts.iterdir()):
            target.log_artifacts(new, str(artifacts))
        if (model := flavor.newest_model(source, run.info.run_id)) is not None:
            _model(source, target, model, new, Path(scratch) / "model")


def _model(source: MlflowClient, target: MlflowClient, model: LoggedModel, new: str, scratch: Path) -> None:
    folder = run_model(source, model.source_run_id, scratch)
    metrics = {metric.key: metric.value for metric in model.metrics or ()}
    classes = [str(number) for number in range(int(model.params["classes"]))]
    flavor.log_model(target, new, folder, classes, int(model.params["image_size"]), metrics)


def copies_by_origin(source: MlflowClient) -> dict[str, str]:
    """The copies of the runs of a store, by the id of the original."""
    return {run.run_id: run.tags[COPY].partition(" ")[0] for run in find_runs(source, tags={}) if COPY in run.tags}
