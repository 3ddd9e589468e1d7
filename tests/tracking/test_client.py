from __future__ import annotations

import http.server
import multiprocessing
import socket
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import connect, describe_store, experiment_id, redact
from kd_mlflow.tracking.leaderboard import leaderboard
from kd_mlflow.tracking.runs import RunWriter, find_runs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg://me:p@ss@host/db failed", "postgresql+psycopg://***@host/db failed"),
        ("postgresql://host/db?user=me&password=pw&sslmode=on", "postgresql://host/db?user=me&password=***&sslmode=on"),
        ("https://host/x?access_TOKEN=abc", "https://host/x?access_TOKEN=***"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("postgresql://me:pa/ss@host/db", "postgresql://***@host/db"),
        # A path with an at could be the end of a password with a slash: rather too much than too little.
        ("mail me@host about http://host/a@b", "mail me@host about http://***@b"),
    ],
)
def test_credentials_are_taken_out_of_uris(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_empty_uri_is_that_of_the_environment_else_a_database_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert connect("").tracking_uri == "sqlite:///mlflow.db"
    assert (tmp_path / "mlflow.db").is_file()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    (tmp_path / "other.db").write_bytes((tmp_path / "mlflow.db").read_bytes())
    client = connect("")
    assert client.tracking_uri.endswith("other.db")
    assert "experiments: 1, registered models: 0" in describe_store(client)


def _create(uri: str) -> None:
    client = connect(uri)
    experiment_id(client, "photos")


@pytest.mark.fault("several processes create one sqlite store at once", "all succeed")
def test_processes_that_create_a_store_at_once_all_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_create, args=(uri,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    names = [experiment.name for experiment in connect(uri).search_experiments()]
    assert sorted(names) == ["Default", "photos"]


def test_experiment_is_created_and_found(client: MlflowClient) -> None:
    first = experiment_id(client, "photos")
    assert experiment_id(client, "photos") == first
    assert client.get_experiment(first).name == "photos"


@pytest.mark.fault("the experiment was deleted", "one sentence with both ways out; its runs stay deleted")
def test_a_deleted_experiment_is_refused_and_its_runs_stay_deleted(client: MlflowClient) -> None:
    run = RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={"kd.fingerprint": "f"})
    run.finish("FINISHED")
    number = client.get_run(run.run_id).info.experiment_id
    client.delete_experiment(number)
    ways = rf"'photos' is deleted; .*--experiment.* `mlflow experiments restore --experiment-id {number}`\.$"
    with pytest.raises(InputError, match=ways):
        RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={})
    with pytest.raises(InputError, match=ways):
        leaderboard(client, experiment="photos")
    with pytest.raises(InputError, match=rf"is deleted with its experiment 'photos'.*--experiment-id {number}`"):
        RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={}, run_id=run.run_id)
    assert client.get_experiment(number).lifecycle_stage == "deleted"
    assert find_runs(client, tags={"kd.fingerprint": "f"}) == []
    assert leaderboard(client) == []


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("my notes, not a database")
    with pytest.raises(InputError, match=r"notes.db is not an sqlite database"):
        connect(f"sqlite:///{tmp_path}/notes.db")
    assert (tmp_path / "notes.db").read_text() == "my notes, not a database"


def test_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        connect(f"sqlite:///{tmp_path}/missing/mlflow.db")


@pytest.mark.fault("the store does not answer, its URL holds a password", "one sentence without the password")
@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_store_that_does_not_answer_is_named_without_credentials(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="does not answer") as error:
            connect(f"{scheme}://me:secret@127.0.0.1:{port}/db")
    assert "secret" not in str(error.value)
    assert f"***@127.0.0.1:{port}" in str(error.value)


class _Refuses(http.server.BaseHTTPRequestHandler):
    status = 401

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class _IsSomethingElse(_Refuses):
    status = 200


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [(_Refuses, r"refuses access \(status 401\)"), (_IsSomethingElse, "not as an MLflow server")],
)
def test_server_that_refuses_or_is_none_is_named(
    handler: type[http.server.BaseHTTPRequestHandler], sentence: str
) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(InputError, match=sentence) as error:
                connect(f"http://me:secret@127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert "secret" not in str(error.value)


def test_unknown_kind_of_store_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="The tracking store nonsense://x cannot be used"):
        connect("nonsense://x")
