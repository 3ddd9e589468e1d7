"""Real servers of other versions of MLflow, each in an environment of its own that the test makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import find_runs
from tests.conftest import QUICK, Place, make_photos
from tests.tracking.test_server import free_port, served

# MLflow 2.22 and 3.0 allow an SQLAlchemy that came after them, and do not start with it.
WITH = "sqlalchemy<2.1"
# What uv and pip say without a network.
UNREACHED = ("dns error", "error sending request", "Failed to establish a new connection")


def environment(folder: Path, version: str) -> str:
    """The Python of a fresh environment with this MLflow."""
    if uv := shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent)):
        made = [[uv, "venv", "-q", "--python", sys.executable, str(folder)]]
        installed = [uv, "pip", "install", "-q", "--python", f"{folder}/bin/python"]
    else:
        made = [[sys.executable, "-m", "venv", str(folder)]]
        installed = [f"{folder}/bin/python", "-m", "pip", "install", "-q"]
    for command in (*made, [*installed, f"mlflow=={version}", WITH]):
        done = subprocess.run(command, capture_output=True, text=True)
        if any(sign in done.stderr for sign in UNREACHED):
            pytest.skip(f"no package index is reached: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr
    return f"{folder}/bin/python"


def arguments(folder: Path, port: int) -> list[str]:
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    return ["server", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


@pytest.mark.slow
@pytest.mark.fault(
    "a real server of MLflow 2.22", "doctor, distill and sync say so in a sentence; nothing is trained or sent"
)
def test_a_real_server_of_mlflow_2_22_is_refused_by_doctor_distill_and_sync(place: Place, tmp_path: Path) -> None:
    python = environment(tmp_path / "old", "2.22.*")
    photos, port = make_photos(tmp_path / "photos"), free_port()
    (tmp_path / "server").mkdir()
    with served(arguments(tmp_path / "server", port), port, "/health", tmp_path, python) as url:
        said = "and 3.0 is the oldest that can be used"
        process = place.start("doctor", "--json", "--tracking-uri", url)
        out, err = process.communicate(timeout=100)
        assert process.returncode == 1, err
        checks = {check["name"]: check for check in json.loads(out)["checks"]}
        assert checks["tracking"]["state"] == "problem"
        assert said in checks["tracking"]["found"]
        assert "runs MLflow 2.22." in checks["tracking"]["found"]
        assert said in place.run("distill", "--data", str(photos), *QUICK, "--tracking-uri", url, code=2)
        assert said in place.run("sync", "--tracking-uri", url, code=2)
        assert find_runs(connect(url, any_version=True), tags={}) == []
    assert not list(place.home.glob("checkpoints/*"))


@pytest.mark.slow
def test_a_real_server_of_mlflow_3_0_takes_a_whole_distillation(place: Place, tmp_path: Path) -> None:
    python = environment(tmp_path / "oldest", "3.0.0")
    photos, port = make_photos(tmp_path / "photos"), free_port()
    (tmp_path / "server").mkdir()
    with served(arguments(tmp_path / "server", port), port, "/health", tmp_path, python) as url:
        where = ["--tracking-uri", url]
        result = json.loads(place.run("distill", "--data", str(photos), *QUICK, "--epochs", "1", "--json", *where))
        assert result["registered"]["name"] == "photos-student"
        place.run("pull", "photos-student@champion", "model", *where)
        assert (place.path / "model" / "model.safetensors").is_file()
        assert place.run("sync", *where).strip() == "Nothing waits to be sent."
