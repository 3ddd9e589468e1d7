"""Credentials that commands are given stand nowhere: not in the store, the files, the output, the process list."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kd_mlflow.entrypoints.checkpoints import CHECKPOINTS_VARIABLE, Checkpoints, checkpoint_place
from kd_mlflow.errors import InputError
from tests.conftest import QUICK, Place
from tests.search.postgres import Postgres
from tests.tracking.test_server import free_port, served

SECRET = "hunter2"


def holding(folder: Path) -> list[str]:
    """The files below a folder in which the secret stands."""
    return [str(file) for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


def watched(process: subprocess.Popen[str]) -> set[str]:
    """Every command line that the process and those below it had until it ended."""
    lines = set()
    above = psutil.Process(process.pid)
    while process.poll() is None:
        for one in [above, *above.children(recursive=True)]:
            try:
                lines.add(" ".join(one.cmdline()[1:]))
            except psutil.Error:
                continue
        time.sleep(0.05)
    return lines


@pytest.mark.fault(
    "passwords in the tracking URI, the storage, the checkpoints' URL and the environment of a search",
    "in no file, row, log, message or command line that it writes",
)
@pytest.mark.slow
def test_a_search_writes_no_secret_anywhere(place: Place, photos: Path, tmp_path: Path):
    postgres = Postgres(password=SECRET)
    served_in = tmp_path / "server"
    served_in.mkdir()
    (served_in / "mlflow.db").write_bytes((place.path / "mlflow.db").read_bytes())
    port = free_port()
    arguments = [
        "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{served_in}/mlflow.db", "--artifacts-destination", str(served_in / "art"),
    ]  # fmt: skip
    secrets = {name: SECRET for name in ("MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN")}
    command = [
        sys.executable, "-m", "kd_mlflow", "-v", "search", "--data", str(photos), *QUICK, "--epochs", "1",
        "--trials", "2", "--workers", "2", "--final-seeds", "1", "--heartbeat", "2", "--json",
    ]  # fmt: skip
    places = {
        "MLFLOW_TRACKING_URI": f"http://me:{SECRET}@127.0.0.1:{port}",
        "KD_MLFLOW_STORAGE": postgres.url,
        CHECKPOINTS_VARIABLE: f"memory://key:{SECRET}@host/checkpoints",
    }
    try:
        with served(arguments, port, "/health", served_in), (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(
                command, cwd=place.path, env=place.environment | secrets | places, text=True, stdout=said, stderr=said
            )
            lines = watched(process)
            assert process.returncode == 0, (tmp_path / "said").read_text()
            rows = postgres.rows("SELECT key, value_json FROM study_user_attributes")
            rows += postgres.rows("SELECT key, value_json FROM trial_user_attributes")
    finally:
        postgres.close()
    assert any("search-worker" in line for line in lines)
    assert not [line for line in lines if SECRET in line]
    assert rows
    assert SECRET not in repr(rows)
    assert holding(place.path) == holding(served_in) == holding(tmp_path) == []


def test_the_place_of_checkpoints_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv(CHECKPOINTS_VARIABLE, "s3://bucket/shared")
    assert checkpoint_place("") == "s3://bucket/shared"
    assert checkpoint_place("/mine") == "/mine"


@pytest.mark.fault("--checkpoints with a password that cannot be used", "one sentence without the password")
@pytest.mark.parametrize("place", [f"nonsense://me:{SECRET}@host/x", f"ftp://me:{SECRET}@127.0.0.1:1/x"])
def test_a_place_of_checkpoints_that_cannot_be_used_is_named_without_its_password(place):
    with pytest.raises(InputError, match="cannot be used") as caught:
        Checkpoints.open(None, place)
    assert SECRET not in str(caught.value)


def test_of_a_shared_place_only_checkpoints_are_taken(tmp_path: Path):
    class Session:
        @staticmethod
        def checkpoints(run_id: str) -> Path:
            return tmp_path / "here" / run_id

    theirs = tmp_path / "shared" / "run1"
    theirs.mkdir(parents=True)
    for name in ("checkpoint-00001.json", "best-00001.safetensors", "fingerprint", "lock", "sitecustomize.py"):
        (theirs / name).write_text("x")
    shared = Checkpoints.open(Session(), f"file://{tmp_path}/shared")
    shared.continue_from(None, "run1", "x")
    taken = sorted(os.listdir(tmp_path / "here" / "run1"))
    assert taken == ["best-00001.safetensors", "checkpoint-00001.json", "fingerprint"]
