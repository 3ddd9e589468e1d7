"""Curves reach a real store whatever becomes of the server: none lost, none twice."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.spool import Spool, send_left
from tests.conftest import ROOT
from tests.tracking.test_server import free_port, served

EPOCHS = 12


@pytest.fixture
def run(client) -> tuple[MlflowClient, str]:
    return client, client.create_run(client.create_experiment("spool")).info.run_id


def points(client: MlflowClient, run_id: str, name: str = "val/loss") -> list[tuple[int, float, int]]:
    return [(one.step, one.value, one.timestamp) for one in client.get_metric_history(run_id, name)]


def expected(epochs: int) -> list[tuple[int, float, int]]:
    return [(epoch, 1 / epoch, 1000 + epoch) for epoch in range(1, epochs + 1)]


def test_all_points_arrive_and_nothing_is_left_on_disk(run, tmp_path):
    client, run_id = run
    spool = Spool(client, run_id, tmp_path / "spool")
    for epoch, value, moment in expected(30):
        spool.metrics({"val/loss": value, "strange": math.nan if epoch == 2 else math.inf}, epoch, moment)
    assert spool.close(60)
    assert points(client, run_id) == expected(30)
    strange = [value for _, value, _ in points(client, run_id, "strange")]
    assert math.isnan(strange[1])
    assert strange[0] > 1e308
    assert list((tmp_path / "spool").iterdir()) == []


def test_points_that_are_sent_again_are_there_once(run, tmp_path):
    client, run_id = run
    for _ in range(3):
        spool = Spool(client, run_id, tmp_path / "spool")
        for epoch, value, moment in expected(5):
            spool.metrics({"val/loss": value}, epoch, moment)
        assert spool.close(60)
    assert points(client, run_id) == expected(5)


@pytest.mark.fault("SIGKILL with curves that were not sent", "the next command sends them")
def test_what_a_killed_process_left_is_sent_by_the_next(run, tmp_path):
    client, run_id = run
    script = f"""
import os, signal
from kd_mlflow.tracking.spool import Spool
class Away:
    def log_batch(self, *_, **__): raise OSError("away")
spool = Spool(Away(), "{run_id}", __import__("pathlib").Path("spool"))
for epoch in range(1, 8):
    spool.metrics({{"val/loss": 1 / epoch}}, epoch, 1000 + epoch)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert points(client, run_id) == []
    (sent,) = send_left(client, tmp_path / "spool")
    assert (sent.run_id, sent.points, sent.error) == (run_id, 7, "")
    assert points(client, run_id) == expected(7)
    assert send_left(client, tmp_path / "spool") == []


def test_a_journal_of_a_process_that_lives_is_left_to_it(run, tmp_path):
    client, run_id = run
    spool = Spool(client, run_id, tmp_path / "spool")
    spool.metrics({"val/loss": 1.0}, 1, 1001)
    assert send_left(client, tmp_path / "spool") == []
    assert spool.close(60)


def test_a_run_that_the_store_does_not_have_keeps_its_journal(client, tmp_path):
    spool = Spool(client, "0" * 32, tmp_path / "spool")
    spool.metrics({"val/loss": 1.0}, 1, 1001)
    assert not spool.close(1)
    (left,) = send_left(client, tmp_path / "spool")
    assert left.error
    assert (tmp_path / "spool" / f"{'0' * 32}.journal").is_file()


@pytest.mark.fault("the tracking server is killed and comes back", "training does not wait; every point is there once")
def test_a_server_that_is_killed_and_comes_back_has_every_point_once(empty_store: Path, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="kd_mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    port = free_port()
    options = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--host", "127.0.0.1"]
    arguments = ["server", *options, "--port", str(port), "--workers", "1"]
    told = expected(EPOCHS)
    with served(arguments, port, "/health", tmp_path) as url:
        client = connect(url)
        run_id = client.create_run(client.create_experiment("spool")).info.run_id
        spool = Spool(client, run_id, tmp_path / "spool")
        for epoch, value, moment in told[:4]:
            spool.metrics({"val/loss": value}, epoch, moment)
        assert spool.flush(60)
    for epoch, value, moment in told[4:]:
        spool.metrics({"val/loss": value}, epoch, moment)
    assert not spool.flush(1)  # nobody waited for the server
    assert "kept on disk" in caplog.text
    with served(arguments, port, "/health", tmp_path):
        assert spool.close(120)
        assert points(connect(url), run_id) == told
