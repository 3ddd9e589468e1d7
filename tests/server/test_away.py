"""What the team's server itself needs goes away while a run is written: its database, its object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kd_mlflow.errors import KdMlflowError
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import RunWriter, read_run
from tests.server.stack import Team
from tests.tracking.helpers import write_model
from tests.tracking.test_spool import check_all, write_all


@contextmanager
def without_object_store(team: Team) -> Iterator[None]:
    team.stop_store()
    try:
        yield
    finally:
        team.start_store()


@contextmanager
def without_database(team: Team) -> Iterator[None]:
    team.postgres.stop()
    try:
        yield
    finally:
        team.postgres.start()


@pytest.mark.slow
@pytest.mark.fault(
    "the server's object store, or its database, is away while a run is written",
    "the run goes on; all of it is there once",
)
@pytest.mark.parametrize("away", [without_object_store, without_database])
def test_a_run_outlives_what_its_server_needs(team: Team, away: Callable, tmp_path, monkeypatch):
    for name, value in team.client_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("KD_MLFLOW_HOME", str(tmp_path / "kd-home"))
    write_model(tmp_path / "model")
    client = connect()
    writer = RunWriter.open(client, role="student", experiment=away.__name__, run_name="kd", tags={})
    writer.settle(60)
    with away(team):
        write_all(writer, tmp_path / "model", range(1, 8))
        with pytest.raises(KdMlflowError, match="kept on disk"):
            writer.settle(5)
    writer.finish("FINISHED")
    check_all(client, writer.run_id, tmp_path, 7)
    assert read_run(client, writer.run_id).status == "FINISHED"
    assert list((tmp_path / "kd-home" / "spool").iterdir()) == []
