"""Tracking URIs that mean a folder of files, or miss a part: the sentence holds the way out, and it works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.kinds import SQLITE_HEADER, check_kind


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.parametrize("form", ["mlruns", "./mlruns", "{here}/mlruns", "file:mlruns", "file://{here}/mlruns"])
def test_every_way_to_write_a_folder_of_files_names_the_command_that_moves_it(form: str, folder: Path) -> None:
    (folder / "mlruns" / "0").mkdir(parents=True)
    uri = form.format(here=folder)
    with pytest.raises(InputError) as error:
        connect(uri)
    target = f"sqlite:///{folder}/mlflow.db"
    assert str(error.value) == (
        f"The store {uri} means a folder of files, a kind that MLflow has given up; copy its runs with `mlflow "
        f"migrate-filestore --source {folder}/mlruns --target {target}`, and then give --tracking-uri {target}."
    )
    assert sorted(path.name for path in folder.iterdir()) == ["mlruns"]


def test_the_command_never_names_a_database_that_is_there(folder: Path) -> None:
    (folder / "my runs" / "0").mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(b"")
    with pytest.raises(InputError, match=f"--target '?sqlite:///{folder}/my runs.db"):
        check_kind("my runs")


@pytest.mark.parametrize("uri", ["mlruns", "file:///nowhere/mlruns"])
def test_a_folder_without_runs_is_answered_by_the_uri_of_a_database(uri: str, folder: Path) -> None:
    with pytest.raises(InputError, match=r"give --tracking-uri sqlite:///mlflow.db for a database in one file"):
        check_kind(uri)


def test_a_database_that_is_named_by_its_path_is_answered_by_its_uri(folder: Path) -> None:
    (folder / "team.db").write_bytes(SQLITE_HEADER)
    with pytest.raises(InputError, match=f"give --tracking-uri sqlite:///{folder}/team.db"):
        check_kind("team.db")


@pytest.mark.parametrize("uri", ["127.0.0.1:5000", "mlflow.example:5000/team", "localhost:80"])
def test_an_address_without_scheme_is_answered_by_one_with(uri: str, folder: Path) -> None:
    with pytest.raises(InputError, match=f"give --tracking-uri http://{uri}"):
        check_kind(uri)


def test_an_sqlite_uri_without_slashes_is_answered_by_the_right_form(folder: Path) -> None:
    with pytest.raises(InputError, match="write sqlite:///FILE"):
        connect("sqlite:team.db")


def test_a_registry_in_a_folder_of_files_is_refused_before_anything_is_trained(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "./mlruns")
    with pytest.raises(InputError, match=r"set MLFLOW_REGISTRY_URI to sqlite:///mlflow.db"):
        connect("sqlite:///mlflow.db")
    assert list(folder.iterdir()) == []


def test_other_kinds_of_stores_are_left_to_mlflow(folder: Path, monkeypatch) -> None:
    for uri in ("sqlite:///mlflow.db", "postgresql://host/db", "databricks", "nonsense://x"):
        check_kind(uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_kind("mlruns")


@pytest.mark.slow
@pytest.mark.fault("the tracking URI is a folder of files", "the command in the sentence moves every run")
def test_the_command_in_the_sentence_moves_the_runs(folder: Path) -> None:
    script = (
        "from mlflow import MlflowClient; c = MlflowClient('mlruns'); e = c.create_experiment('photos'); "
        "r = c.create_run(e).info.run_id; c.log_metric(r, 'val/loss', 0.5); c.set_terminated(r)"
    )
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    allowed = environment | {"MLFLOW_ALLOW_FILE_STORE": "true"}
    subprocess.run([sys.executable, "-c", script], check=True, env=allowed, cwd=folder)
    with pytest.raises(InputError) as error:
        connect("mlruns")
    command = re.search(r"`(mlflow [^`]+)`", str(error.value))[1]
    subprocess.run(shlex.split(command), check=True, env=environment, cwd=folder, capture_output=True)
    client = connect(re.search(r"--tracking-uri (\S+)\.$", str(error.value))[1])
    (run,) = client.search_runs([client.get_experiment_by_name("photos").experiment_id])
    assert run.data.metrics == {"val/loss": 0.5}
