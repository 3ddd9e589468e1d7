"""Runs that are made without a server, and sent to one later: all that they hold, once."""

from __future__ import annotations

import json

import pytest

from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import find_runs, history, read_json
from tests.conftest import QUICK


def everything(client, run):
    """What a copy must have in common with its original."""
    curves = history(client, run.run_id)
    inputs = client.get_run(run.run_id).inputs.dataset_inputs
    return {
        "status": run.status,
        "times": (run.start_time, run.end_time),
        "name": run.name,
        "params": run.params,
        "curves": {name: points for name, points in curves.items()},
        "data": [(one.dataset.name, one.dataset.digest) for one in inputs],
        "evaluation": read_json(client, run.run_id, "evaluation.json"),
        "artifacts": sorted(found.path for found in client.list_artifacts(run.run_id)),
        "models": len(client.get_run(run.run_id).outputs.model_outputs),
    }


@pytest.mark.fault(
    "there is no tracking server", "--offline keeps the run here; sync puts all of it into a store, once"
)
def test_a_distillation_without_a_server_is_sent_later_whole(place, photos):
    client = connect(place.uri)
    options = ["--data", str(photos), *QUICK, "--epochs", "2", "--offline", "--json"]
    said = json.loads(place.run("distill", *options))
    assert find_runs(client, tags={}) == []
    sent = json.loads(place.run("sync", "--json"))
    assert [one["role"] for one in sent["runs"]] == ["student", "teacher", "control"]
    assert {(one["version"], one["alias"]) for one in sent["models"]} == {(1, "champion")}
    assert len(sent["models"]) == 2
    offline = connect(f"sqlite:///{place.home}/offline/mlflow.db")
    originals = {run.run_id: run for run in find_runs(offline, tags={})}
    copies = {run.tags["kd.offline_run_id"]: run for run in find_runs(client, tags={})}
    assert copies.keys() == originals.keys()
    for run_id, copy in copies.items():
        assert everything(client, copy) == everything(offline, originals[run_id])
    first = said["student"]["run_id"]
    teacher = copies[originals[first].tags["kd.teacher_run_id"]]
    assert copies[first].tags["kd.teacher_run_id"] == teacher.run_id
    assert json.loads(place.run("sync", "--json")) == {"sent": [], "kept": [], "runs": [], "models": []}
    assert len(find_runs(client, tags={})) == 3
    # The copy is as good as a run that was made there: it is found, pulled and taken over.
    place.run("pull", f"{photos.name}-student@champion", str(place.path / "pulled"))
    assert (place.path / "pulled" / "model.safetensors").is_file()


def test_offline_and_a_tracking_uri_contradict_each_other(place, photos):
    said = place.run("student", "--data", str(photos), "--offline", "--tracking-uri", place.uri, code=2)
    assert "leave --tracking-uri away" in said
    assert "name the store that they are sent to" in place.run(
        "sync", "--tracking-uri", f"sqlite:///{place.home}/offline/mlflow.db", code=2
    )


@pytest.mark.fault("the tracking server does not answer at the start", "one sentence that names --offline, exit code 2")
def test_a_server_that_is_not_there_is_said_with_the_way_out(place, photos):
    said = place.run("student", "--data", str(photos), "--tracking-uri", "http://127.0.0.1:9", code=2)
    assert "--offline" in said
    assert len(said.strip().splitlines()) == 1, said
