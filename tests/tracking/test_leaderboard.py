from __future__ import annotations

import json
import math

import pytest
from mlflow import MlflowClient

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.leaderboard import leaderboard
from kd_mlflow.tracking.runs import RunWriter


@pytest.fixture
def runs(client: MlflowClient) -> dict[str, str]:
    """Run ids by name: a run in every state, one deleted, one that is not ours."""
    made = {}
    for name, role, status, metrics in [
        ("good", "student", "FINISHED", {"best/accuracy": 0.9, "val/accuracy": 0.1, "test/accuracy": 0.8}),
        ("broken", "student", "FAILED", {"val/accuracy": 0.5, "efficiency/parameters_total": 100.0}),
        ("stopped", "control", "KILLED", {"best/accuracy": math.nan, "odd": 2.0}),
        ("running", "teacher", None, {"val/accuracy": 0.7, "odd": 1.0}),
        ("deleted", "teacher", "FINISHED", {"val/accuracy": 1.0}),
    ]:
        tags = {"kd.architecture": "resnet18", "kd.method": "kd", "kd.dataset": "photos"}
        run = RunWriter.open(client, role=role, experiment=role, run_name=name, tags=tags)
        run.metrics(metrics, step=1, timestamp_ms=1)
        made[name] = run.run_id
        run._unfinished.detach()
        run.settle()
        if status:
            run.finish(status)
    client.delete_run(made["deleted"])
    client.create_run("0", run_name="foreign")
    return made


def names(rows: list[dict]) -> list[str]:
    return [row["name"] for row in rows]


def test_runs_in_all_states_best_first_and_those_without_a_figure_last(
    client: MlflowClient, runs: dict[str, str]
) -> None:
    rows = leaderboard(client)
    assert names(rows) == ["good", "running", "broken", "stopped"]
    assert [row["status"] for row in rows] == ["FINISHED", "RUNNING", "FAILED", "KILLED"]
    assert [row["val_accuracy"] for row in rows] == [0.9, 0.7, 0.5, None]
    first = rows[0]
    assert first["run_id"] == runs["good"]
    assert {key: first[key] for key in ("role", "experiment", "data", "architecture", "method", "test_accuracy")} == {
        "role": "student",
        "experiment": "student",
        "data": "photos",
        "architecture": "resnet18",
        "method": "kd",
        "test_accuracy": 0.8,
    }
    assert first["duration_s"] >= 0
    json.dumps(rows, allow_nan=False)


def test_rows_are_filtered_sorted_and_limited(client: MlflowClient, runs: dict[str, str]) -> None:
    assert names(leaderboard(client, role="student")) == ["good", "broken"]
    assert names(leaderboard(client, status="running")) == ["running"]
    assert names(leaderboard(client, experiment="control")) == ["stopped"]
    assert names(leaderboard(client, filter_string="metrics.`val/accuracy` > 0.4")) == ["running", "broken"]
    assert names(leaderboard(client, sort="val_accuracy", ascending=True)) == ["broken", "running", "good", "stopped"]
    assert names(leaderboard(client, sort="odd"))[:2] == ["stopped", "running"]
    assert names(leaderboard(client, sort="name", ascending=True, limit=2)) == ["broken", "good"]
    assert names(leaderboard(client, sort="parameters"))[0] == "broken"


def test_what_cannot_be_asked_is_refused_in_a_sentence(client: MlflowClient, runs: dict[str, str]) -> None:
    for options, sentence in (
        ({"status": "done"}, "'done' is no state of a run; choose one of RUNNING"),
        ({"experiment": "x"}, "There is no experiment 'x' in this store; it has Default"),
        ({"filter_string": "nonsense >"}, "The filter 'nonsense >' cannot be used"),
        ({"sort": "beauty"}, "No run has a metric 'beauty' to sort by; the columns are run_id"),
        ({"role": "'\""}, "both kinds of quotes"),
    ):
        with pytest.raises(InputError, match=sentence):
            leaderboard(client, **options)


def test_empty_store_is_an_empty_list(client: MlflowClient) -> None:
    assert leaderboard(client) == []
