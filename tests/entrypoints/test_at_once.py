"""Two identical commands at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.registry import all_versions, champion
from kd_mlflow.tracking.runs import find_runs
from tests.conftest import QUICK, Place


@pytest.mark.fault("two identical commands at once", "both end right, with the same weights; one champion, no run open")
@pytest.mark.slow
def test_two_identical_commands_at_once_both_end_right(place: Place, photos: Path):
    command = ["distill", "--data", str(photos), *QUICK, "--epochs", "2", "--json"]
    both = [place.start(*command) for _ in range(2)]
    results = []
    for process in both:
        out, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
        results.append(json.loads(out))
    client = connect(place.uri)
    students = find_runs(client, tags={}, role="student")
    assert {run.run_id for run in students} == {result["run_id"] for result in results}
    assert {run.status for run in find_runs(client, tags={})} == {"FINISHED"}
    assert len({run.tags["kd.weights_digest"] for run in students}) == 1
    assert len(list((place.home / "stores").glob("*/store.json"))) == 1
    for kind in ("teacher", "student"):
        found = champion(client, f"photos-{kind}")
        accuracies = [float(one.tags["kd.val_accuracy"]) for one in all_versions(client) if one.name == found.name]
        assert float(found.tags["kd.val_accuracy"]) == max(accuracies)
