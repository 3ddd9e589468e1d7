"""The experiment and the run that MLflow's environment variables name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from kd_mlflow.config import TeacherConfig
from kd_mlflow.entrypoints.train import train_teacher
from kd_mlflow.errors import InputError
from kd_mlflow.places import offline_uri
from kd_mlflow.tracking.existing import check_adoptable
from kd_mlflow.tracking.experiments import experiment_name

NAME, ID, RUN = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NAME, ID, RUN):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two(client: MlflowClient) -> tuple[str, str]:
    return client.create_experiment("photos"), client.create_experiment("drawings")


def test_experiment_is_the_option_then_the_name_then_the_id_then_the_package_s(client, two, monkeypatch) -> None:
    assert experiment_name(client) == "kd-mlflow"
    monkeypatch.setenv(ID, two[0])
    assert experiment_name(client) == "photos"
    monkeypatch.setenv(ID, f" {two[0]} ")
    assert experiment_name(client) == "photos"
    monkeypatch.setenv(NAME, "photos")
    assert experiment_name(client) == "photos"
    monkeypatch.setenv(NAME, "new")  # MLflow makes it, whatever the id
    assert experiment_name(client) == "new"
    assert experiment_name(client, "asked") == "asked"
    monkeypatch.setenv(ID, "77")
    assert experiment_name(client, "asked") == "asked"


def test_empty_variables_are_not_set(client, monkeypatch) -> None:
    monkeypatch.setenv(ID, "")
    monkeypatch.setenv(NAME, "")
    assert experiment_name(client) == "kd-mlflow"


@pytest.mark.fault("MLFLOW_EXPERIMENT_ID names no experiment of the store", "one sentence before data and training")
@pytest.mark.parametrize("number", ["77", "-1", "photos", "1.0", "9" * 30, "0'; --"])
def test_an_id_that_is_not_there_is_named(number: str, client, monkeypatch) -> None:
    monkeypatch.setenv(ID, number)
    with pytest.raises(InputError) as error:
        train_teacher(TeacherConfig(data="missing/", tracking_uri=client.tracking_uri))
    assert str(error.value) == (
        f"There is no experiment with the id {number}, which {ID} names, in {client.tracking_uri}; unset that "
        "variable, or name the experiment with --experiment."
    )


def test_a_name_and_an_id_of_two_experiments_are_refused_as_by_mlflow(client, two, monkeypatch) -> None:
    monkeypatch.setenv(NAME, "photos")
    monkeypatch.setenv(ID, two[1])
    with pytest.raises(InputError, match=f"'photos' has the id {two[0]}, not {two[1]}"):
        experiment_name(client)


def test_the_run_of_mlflow_run_has_its_experiment_whatever_the_variables(client, two, monkeypatch) -> None:
    monkeypatch.setenv(RUN, client.create_run(two[1]).info.run_id)
    monkeypatch.setenv(NAME, "photos")
    monkeypatch.setenv(ID, two[1])
    assert experiment_name(client) == "photos"


def test_an_id_of_a_server_says_nothing_offline(client, two, monkeypatch) -> None:
    monkeypatch.setenv(ID, two[0])
    offline = SimpleNamespace(tracking_uri=offline_uri())  # it is not asked
    with pytest.raises(InputError, match="--offline does not ask; name the experiment with --experiment"):
        experiment_name(offline)
    assert experiment_name(offline, "photos") == "photos"
    monkeypatch.setenv(NAME, "photos")
    assert experiment_name(offline) == "photos"


def _stale(client: MlflowClient, experiment: str) -> dict[str, tuple[str, str]]:
    deleted = client.create_run(experiment).info.run_id
    client.delete_run(deleted)
    finished = client.create_run(experiment, tags={"kd.role": "student"}).info.run_id
    client.set_terminated(finished)
    there = f"is not in the tracking store {client.tracking_uri}"
    return {
        "of another store": ("0" * 32, there),
        "no id": ("../x y", there),
        "deleted": (deleted, "is deleted"),
        "of a training that is over": (finished, "is the finished run of another command (student)"),
    }


@pytest.mark.fault(
    "MLFLOW_RUN_ID was left in the shell", "one sentence that names the variable, before data and training"
)
@pytest.mark.parametrize("kind", ["of another store", "no id", "deleted", "of a training that is over"])
def test_a_stale_run_id_is_said_to_come_from_the_environment(kind: str, client, two, monkeypatch) -> None:
    run_id, what = _stale(client, two[0])[kind]
    monkeypatch.setenv(RUN, run_id)
    with pytest.raises(InputError) as error:
        train_teacher(TeacherConfig(data="missing/", tracking_uri=client.tracking_uri))
    assert str(error.value) == (
        f"The run {run_id}, which the environment variable {RUN} names, {what}; unset {RUN} to make a new run."
    )


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_a_run_that_is_not_over_or_was_cut_off_is_gone_on_with(status: str, client, two, monkeypatch) -> None:
    run_id = client.create_run(two[0], tags={"kd.role": "student"}).info.run_id
    client.update_run(run_id, status=status)
    monkeypatch.setenv(RUN, run_id)
    check_adoptable(client)


def test_commands_of_one_project_may_share_a_run(client, two, monkeypatch) -> None:
    run_id = client.create_run(two[0], tags={"kd.role": "prepare"}).info.run_id
    client.set_terminated(run_id)
    monkeypatch.setenv(RUN, run_id)
    check_adoptable(client)
