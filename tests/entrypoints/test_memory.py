"""When memory runs out: smaller parts of a batch, the same batch; else exit code 3."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient

from tests.conftest import TINY


def options(photos, student: str) -> list[str]:
    networks = ["--teacher-arch", TINY, "--student", student]
    small = ["--image-size", "32", "--batch-size", "16", "--epochs", "2", "--no-control"]
    return ["distill", "--data", str(photos), *networks, *small]


@pytest.mark.fault("memory does not hold a step", "it goes through in parts; the run says so")
def test_a_batch_that_does_not_fit_goes_through_in_parts_and_the_run_says_so(place, photos):
    out = place.run(*options(photos, "tests.entrypoints.hungry:make"), "--json")
    run = MlflowClient(place.uri).get_run(json.loads(out)["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["kd.accumulate"] == "4"
    assert run.data.params["cfg.batch_size"] == "16"
    assert run.data.metrics["train/loss"] > 0


@pytest.mark.fault("memory does not hold a step in one of several processes", "all go on in parts; the run says so")
def test_one_process_that_is_short_of_memory_has_all_go_on_in_parts(place, photos):
    out = place.run(*options(photos, "tests.entrypoints.hungry:make_second"), "--devices", "2", "--json")
    run = MlflowClient(place.uri).get_run(json.loads(out)["run_id"])
    assert (run.info.status, run.data.tags["kd.accumulate"]) == ("FINISHED", "2")


@pytest.mark.fault("memory does not hold two images", "exit code 3, and what was tried")
def test_what_never_fits_ends_with_code_three_and_the_size_that_was_tried(place, photos):
    said = place.run(*options(photos, "tests.entrypoints.hungry:make_starved"), code=3)
    assert "does not hold a step of 2 images" in said
    (run,) = MlflowClient(place.uri).search_runs(["1"], "tags.`kd.role` = 'student'")
    assert (run.info.status, run.data.tags["kd.accumulate"]) == ("FAILED", "8")
