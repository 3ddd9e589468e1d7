"""The database is there, and the artifacts that it tells of are not: gone, damaged, or out of reach for now."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from torch import Tensor

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.artifacts import ArtifactsAway, ArtifactsGone, require_listed, shown
from kd_mlflow.tracking.flavor import newest_model
from kd_mlflow.tracking.registry import champion, pull, run_model
from kd_mlflow.tracking.runs import RunWriter, read_json
from tests.tracking.helpers import TinyNet, log_run, register_run


def lose_all(data: Path) -> None:
    shutil.rmtree(data.parents[3])


def lose_weights(data: Path) -> None:
    (data / "model.safetensors").unlink()


def cut_off_description(data: Path) -> None:
    (data / "model.json").write_bytes(b"")


def lose_folder_to_file(data: Path) -> None:
    shutil.rmtree(data)
    data.write_text("a file")


@pytest.mark.fault(
    "artifacts of a registered model are gone or damaged", "one sentence that names the file or the folder, exit code 2"
)
@pytest.mark.parametrize(
    ("lose", "named"),
    [
        (lose_all, r"has no artifact data/model\.json in {location}, where it was stored"),
        (lose_weights, r"has no artifact data/model\.safetensors in {location}, where it was stored"),
        (cut_off_description, r"has a model\.json that kd-mlflow did not write"),
        (lose_folder_to_file, r"has no artifact data/model\.json in {location}, where it was stored"),
    ],
)
def test_a_model_that_is_gone_is_named_with_its_place(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor, tmp_path: Path, lose, named: str
) -> None:
    run_id = log_run(client, trained[0])
    register_run(client, run_id, trained, images)
    location = newest_model(client, run_id).artifact_location
    lose(Path(location) / "data")
    wanted = named.format(location=shown(location))
    for fetch in (lambda to: pull(client, "photos-student/1", to), lambda to: run_model(client, run_id, to)):
        with pytest.raises(ArtifactsGone, match=wanted) as caught:
            fetch(tmp_path / "pulled")
        assert caught.value.exit_code == 2
        assert str(caught.value).startswith(f"{caught.value.fact}; ")
        assert not (tmp_path / "pulled").exists()


def test_an_artifact_of_a_run_that_is_gone_or_no_json_is_gone(client: MlflowClient) -> None:
    with RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={}) as run:
        run.json("evaluation.json", {"a": 1})
    root = Path(shown(client.get_run(run.run_id).info.artifact_uri))
    (root / "evaluation.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactsGone, match=r"evaluation\.json .* is not JSON"):
        read_json(client, run.run_id, "evaluation.json")
    root.rename(root.with_name("moved"))
    with pytest.raises(ArtifactsGone, match=rf"Run {run.run_id} has no artifact evaluation\.json in {root}, where"):
        read_json(client, run.run_id, "evaluation.json")


def test_a_model_that_was_deleted_in_mlflow_is_gone(
    client: MlflowClient, trained: tuple[Path, TinyNet], tmp_path: Path
) -> None:
    run_id = log_run(client, trained[0])
    client.delete_logged_model(newest_model(client, run_id).model_id)
    with pytest.raises(ArtifactsGone, match="has no logged model"):
        run_model(client, run_id, tmp_path / "pulled")
    client.delete_run(run_id)
    with pytest.raises(InputError, match=rf"is deleted; .*`mlflow runs restore --run-id {run_id}`"):
        run_model(client, run_id, tmp_path / "pulled")


@pytest.mark.fault("the folder of an experiment's artifacts cannot be made", "refused before anything is trained")
def test_a_run_whose_artifacts_cannot_be_written_is_refused_at_once(client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "lost").write_text("a file where the folder was")
    client.create_experiment("moved", f"{tmp_path}/lost/mlruns/1")
    with pytest.raises(InputError, match=r"'moved' keeps its artifacts in .*/lost/mlruns/1, and .*/lost is no folder"):
        RunWriter.open(client, role="student", experiment="moved", run_name="kd", tags={})


@pytest.mark.parametrize("lose", ["files", "run"])
def test_a_champion_that_is_gone_gives_its_alias_to_the_next(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor, lose: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = log_run(client, trained[0]), log_run(client, trained[0])
    register_run(client, first, trained, images, accuracy=0.9)
    if lose == "files":
        lose_weights(Path(newest_model(client, first).artifact_location) / "data")
    else:
        client.delete_run(first)
    with caplog.at_level("WARNING", "kd_mlflow"):
        assert register_run(client, second, trained, images, accuracy=0.5).alias == "champion"
    assert champion(client, "photos-student").version == 2
    assert "Version 1 of photos-student is not the champion any more" in caplog.text


class _Store(http.server.BaseHTTPRequestHandler):
    """The artifact proxy of a tracking server, as far as listings go."""

    status, files = 200, ()

    def do_GET(self) -> None:
        listed = [{"path": name, "is_dir": False, "file_size": 3} for name in self.files]
        body = json.dumps({"files": listed}).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[_Store], str]]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    handler = type("Store", (_Store,), {})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield handler, f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/1/run"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.fault(
    "the artifact store answers 5xx, refuses, or not at all", "it is no loss: nothing is trained in its place, exit 1"
)
@pytest.mark.parametrize(
    ("status", "files", "expected"),
    [
        (200, ["evaluation.json"], 3),
        (200, ["other.json"], ArtifactsGone),
        (200, [], ArtifactsGone),
        (404, [], ArtifactsGone),
        (500, [], ArtifactsAway),
        (503, [], ArtifactsAway),
        (403, [], ArtifactsAway),
    ],
)
def test_what_a_store_answers_is_told_apart_from_no_answer(
    client: MlflowClient, store, status, files, expected
) -> None:
    handler, location = store
    handler.status, handler.files = status, files
    if isinstance(expected, int):
        assert require_listed(client, location, "evaluation.json", "run 1") == expected
        return
    with pytest.raises(expected) as caught:
        require_listed(client, location, "evaluation.json", "run 1")
    assert type(caught.value) is expected
    assert location in str(caught.value)


def test_a_store_that_refuses_connections_is_away(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    location = "http://me:secret@127.0.0.1:9/api/2.0/mlflow-artifacts/artifacts/1/run"
    with pytest.raises(ArtifactsAway, match="cannot be read from") as caught:
        require_listed(client, location, "evaluation.json", "run 1")
    assert caught.value.exit_code == 1
    assert "secret" not in str(caught.value)
