from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.flavor import newest_model
from kd_mlflow.tracking.leaderboard import leaderboard
from kd_mlflow.tracking.registry import champion, pull
from kd_mlflow.tracking.runs import RunWriter, history, read_json, read_run
from tests.tracking.helpers import CLASSES, SIZE, TinyNet, image_file, log_run, register_run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(arguments: list[str], port: int, path: str, folder: Path, python: str = sys.executable) -> Iterator[str]:
    """An mlflow command of a Python's environment, as a server of its own process group that is ended by its id."""
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [python, "-m", "mlflow", *arguments],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(url + path, timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="module")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    port = free_port()
    arguments = [
        "server",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with served(arguments, port, "/health", folder) as url:
        yield url


@pytest.fixture
def remote(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.chdir(tmp_path)
    return connect(server)


def test_run_is_recorded_on_a_server(remote: MlflowClient, tmp_path: Path) -> None:
    with RunWriter.open(remote, role="teacher", experiment="photos", run_name="t", tags={"kd.method": "kd"}) as run:
        run.params({"empty": "", "epochs": 3})
        for _ in range(2):
            run.metrics({"val/accuracy": 0.5, "val/nan": float("nan")}, step=1, timestamp_ms=1000)
            run.dataset("photos", "abc", {"train": 3}, "photos/", "training")
        run.table("tables/per_class", [{"class": "cat", "f1": 0.5}])
    record = read_run(remote, run.run_id)
    assert (record.status, record.params) == ("FINISHED", {"cfg.empty": "", "cfg.epochs": "3"})
    assert len(remote.get_metric_history(run.run_id, "val/accuracy")) == 1
    assert history(remote, run.run_id)["val/accuracy"] == [(1, 0.5)]
    assert len(remote.get_run(run.run_id).inputs.dataset_inputs) == 1
    assert read_json(remote, run.run_id, "tables/per_class.json")["data"] == [["cat", 0.5]]
    assert run.run_id in [row["run_id"] for row in leaderboard(remote, role="teacher")]
    assert not (tmp_path / "mlruns").exists()


def test_model_is_registered_loaded_and_pulled_through_a_server(
    remote: MlflowClient,
    trained: tuple[Path, TinyNet],
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = {"val/accuracy": 0.5}
    run_id = log_run(remote, trained[0], metrics)
    (linked,) = newest_model(remote, run_id).metrics
    assert (linked.key, linked.value, linked.dataset_name) == ("val/accuracy", 0.5, "photos")
    register_run(remote, run_id, trained, images)
    found = champion(remote, "photos-student")
    assert (found.version, found.run_id) == (1, run_id)
    folder = pull(remote, "photos-student@champion", tmp_path / "pulled")
    assert (folder / "model.pt2").read_bytes() == (trained[0] / "model.pt2").read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", remote.tracking_uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    program = mlflow.pytorch.load_model("models:/photos-student@champion")
    with torch.inference_mode():
        torch.testing.assert_close(program(images), trained[1](images))
    table = mlflow.pyfunc.load_model("models:/photos-student/1").predict(images.numpy())
    assert set(table["class"]) <= set(CLASSES)


@pytest.mark.slow
def test_stored_model_is_served_over_rest(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor, tmp_path: Path
) -> None:
    location = newest_model(client, log_run(client, trained[0])).artifact_location
    port = free_port()
    arguments = ["models", "serve", "-m", location, "--env-manager", "local", "--host", "127.0.0.1", "-p", str(port)]
    text = b64encode(image_file(2 * SIZE, SIZE)).decode()
    requests = [
        {"dataframe_split": {"columns": ["image"], "data": [[text], [text]]}},
        {"dataframe_records": [{"image": text}]},
        {"inputs": images[:2].tolist()},
        {"instances": images[:1].tolist()},
        {"inputs": {"image": [text]}},
    ]
    file = tmp_path / "secret.png"
    file.write_bytes(image_file(2 * SIZE, SIZE))
    refused = [
        {"dataframe_split": {"columns": ["image"], "data": [[str(file)]]}},
        {"dataframe_records": [{"image": file.as_uri()}]},
        {"inputs": [str(file)]},
        {"inputs": {"image": ["secret.png"]}},
        {"instances": [{"image": str(file)}]},
    ]
    with served(arguments, port, "/ping", tmp_path) as url:
        for content in refused:
            request = urllib.request.Request(
                url + "/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
            )
            with pytest.raises(urllib.error.HTTPError) as answer:
                urllib.request.urlopen(request, timeout=60)
            assert b"the text is not base64" in answer.value.read()
        for content, count in zip(requests, (2, 1, 2, 1, 1), strict=True):
            request = urllib.request.Request(
                url + "/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                predictions = json.load(answer)["predictions"]
            assert len(predictions) == count
            assert predictions[0]["class"] in CLASSES
            assert sum(predictions[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
