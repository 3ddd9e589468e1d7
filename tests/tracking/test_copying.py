"""Runs that are copied into another store although some of what they hold, or the experiment, is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kd_mlflow.tracking.artifacts import shown
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.copying import copy_runs
from kd_mlflow.tracking.flavor import newest_model
from kd_mlflow.tracking.runs import RunWriter, find_runs, read_run
from tests.tracking.helpers import CLASSES, SIZE, TinyNet


@pytest.fixture
def target(empty_store: Path, tmp_path: Path, client: MlflowClient) -> MlflowClient:
    (tmp_path / "target").mkdir()
    shutil.copy(empty_store, tmp_path / "target" / "mlflow.db")
    return connect(f"sqlite:///{tmp_path}/target/mlflow.db")


def make_run(client: MlflowClient, experiment: str, model: Path | None = None) -> str:
    with RunWriter.open(client, role="student", experiment=experiment, run_name="kd", tags={}) as run:
        run.text("config.yaml", "epochs: 1\n")
        run.final_metrics({"test/accuracy": 0.5})
        if model is not None:
            run.model(model, CLASSES, SIZE, {})
    return run.run_id


@pytest.mark.fault(
    "artifacts of runs that are to be sent are gone", "the others are sent; the next sync sends what was put back"
)
def test_a_run_without_its_artifacts_keeps_no_other_from_being_copied(
    client: MlflowClient, target: MlflowClient, trained: tuple[Path, TinyNet], tmp_path: Path
) -> None:
    client.create_experiment("here", str(tmp_path / "here"))
    target.create_experiment("here", str(tmp_path / "there"))
    bare, modelless, whole = make_run(client, "here"), make_run(client, "here", trained[0]), make_run(client, "here")
    data = Path(shown(newest_model(client, modelless).artifact_location)) / "data"
    shutil.move(tmp_path / "here" / bare, tmp_path / "bare")
    shutil.move(data, tmp_path / "data")
    errors = {one.origin: one.error for one in copy_runs(client, target)}
    assert errors.keys() == {bare, modelless, whole}
    assert errors[whole] == ""
    assert f"Run {bare} has no artifact config.yaml in {tmp_path}/here/{bare}/artifacts" in errors[bare]
    assert "has no artifact data/model.json" in errors[modelless]
    copies = {run.tags["kd.offline_run_id"]: run for run in find_runs(target, tags={})}
    assert {run.status for run in copies.values()} == {"FINISHED"}
    assert copies[bare].metrics == {"test/accuracy": 0.5}
    shutil.move(tmp_path / "bare", tmp_path / "here" / bare)
    shutil.copytree(trained[0], Path("kd-home/checkpoints") / modelless / "model")
    assert {one.origin: one.error for one in copy_runs(client, target)} == {bare: "", modelless: ""}
    assert newest_model(target, copies[modelless].run_id) is not None
    assert copy_runs(client, target) == []


def test_runs_of_an_experiment_that_is_deleted_there_stay_here_and_say_why(
    client: MlflowClient, target: MlflowClient, tmp_path: Path
) -> None:
    first, second = make_run(client, "photos"), make_run(client, "other")
    target.create_experiment("other", str(tmp_path / "there"))
    target.delete_experiment(target.create_experiment("photos"))
    errors = {one.origin: one.error for one in copy_runs(client, target)}
    assert "The experiment 'photos' is deleted" in errors[first]
    assert errors[second] == ""
    (copy,) = find_runs(target, tags={})
    target.delete_run(copy.run_id)
    client.set_terminated(second, "FINISHED", read_run(client, second).end_time + 1)
    (again,) = [one for one in copy_runs(client, target) if not one.error]
    assert again.origin == second
    assert again.run_id != copy.run_id
