"""A run that was killed and taken up again ends as one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kd_mlflow.training.checkpoint import file_sha256
from tests.conftest import ROOT, SMALL, TINY, Place, make_photos, make_place

EPOCHS = 3
ROLES = ["teacher", "control", "student"]


def command(photos: Path) -> list[str]:
    return [
        "distill",
        "--data",
        str(photos),
        *SMALL,
        "--epochs",
        str(EPOCHS),
        "--batch-size",
        "8",
        "--dropout",
        "0.2",
        "--json",
    ]


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough of them that an epoch lasts a moment."""
    return make_photos(tmp_path_factory.mktemp("many") / "photos", per_class=120)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, many_photos: Path) -> tuple[Place, dict]:
    place = make_place(tmp_path_factory.mktemp("undisturbed") / "place")
    return place, json.loads(place.run(*command(many_photos)))


def weights(place: Place, result: dict) -> dict[str, str]:
    return {
        f"{role} {kind}": file_sha256(place.home / "checkpoints" / result[role]["run_id"] / kind / "model.safetensors")
        for role in ROLES
        for kind in ("model", "last")
    }


def kill_in_second_epoch(place: Place, photos: Path, role: str, resume: bool = False) -> None:
    """SIGKILL once the role's network has written its first checkpoint and gone on."""
    process = place.start(*command(photos), *(["--resume"] if resume else []))
    deadline = time.monotonic() + 300
    while len({file.parent for file in place.home.glob("checkpoints/*/checkpoint-*.json")}) <= ROLES.index(role):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.fault(
    "SIGKILL while teacher, control and student train",
    "--resume ends in the same weights, under the same run ids",
)
@pytest.mark.slow
def test_a_run_killed_in_every_role_in_turn_equals_one_that_was_not(undisturbed, place, many_photos):
    client = MlflowClient(place.uri)
    cut = {}
    for role in ROLES:
        kill_in_second_epoch(place, many_photos, role, resume=bool(cut))
        (run,) = [run for run in client.search_runs(["1"]) if run.data.tags["kd.role"] == role]
        assert run.info.status == "RUNNING"
        folder = place.home / "checkpoints" / run.info.run_id
        assert max(file.name for file in folder.glob("checkpoint-*.json")) < f"checkpoint-{EPOCHS:05d}.json"
        cut[role] = run.info.run_id

    result = json.loads(place.run(*command(many_photos), "--resume"))

    whole_place, whole = undisturbed
    assert weights(place, result) == weights(whole_place, whole)
    assert {role: result[role]["run_id"] for role in ROLES[:2]} == {role: cut[role] for role in ROLES[:2]}
    assert len(client.search_runs(["1"])) == 3
    for name in ROLES:
        assert result[name]["val"] == whole[name]["val"]
        assert result[name]["test"] == whole[name]["test"]
        points = client.get_metric_history(result[name]["run_id"], "val/accuracy")
        assert [point.step for point in points] == list(range(1, EPOCHS + 1))
        assert client.get_run(result[name]["run_id"]).info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_id_is_enough_to_go_on_with_its_unfinished_teacher(undisturbed, place, many_photos):
    kill_in_second_epoch(place, many_photos, "teacher")
    runs = {run.data.tags["kd.role"]: run.info.run_id for run in MlflowClient(place.uri).search_runs(["1"])}
    result = json.loads(place.run("resume", runs["student"], "--json"))
    assert (result["run_id"], result["teacher"]["run_id"]) == (runs["student"], runs["teacher"])
    assert weights(place, result) == weights(*undisturbed)
    err = place.run("distill", f"--resume={runs['student']}", code=2)
    assert "finished" in err


def test_resume_without_anything_to_resume_runs_normally(place, photos):
    result = json.loads(
        place.run(
            "student",
            "--data",
            str(photos),
            "--student",
            TINY,
            "--image-size",
            "32",
            "--epochs",
            "1",
            "--resume",
            "--json",
        )
    )
    assert MlflowClient(place.uri).get_run(result["run_id"]).info.status == "FINISHED"


@pytest.mark.fault("SIGTERM in mid-training", "the run is KILLED with its reason, a checkpoint is left")
def test_sigterm_ends_the_run_as_killed_and_leaves_a_checkpoint(place, many_photos):
    process = place.start(*command(many_photos))
    while not list(place.home.glob("checkpoints/*/checkpoint-00001.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err
    states = {run.data.tags["kd.role"]: run.info.status for run in MlflowClient(place.uri).search_runs(["1"])}
    assert states == {"teacher": "KILLED", "student": "KILLED"}


@pytest.mark.fault("`mlflow run` is killed", "the training below it ends, its run is KILLED")
def test_the_command_ends_with_the_mlflow_run_above_it(place, many_photos):
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    given = ["-P", f"data={many_photos}", "-P", "epochs=50", "-P", "batch-size=8", "-P", "image-size=32"]
    given += ["-P", f"teacher-arch={SMALL[1]}", "-P", f"student={SMALL[3]}"]
    above = subprocess.Popen(
        [mlflow, "run", str(ROOT), "--env-manager", "local", *given],
        cwd=place.path,
        env=place.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(place.home.glob("checkpoints/*/checkpoint-*.json")):
        assert above.poll() is None
        time.sleep(0.05)
    above.terminate()
    above.wait()
    client, deadline = MlflowClient(place.uri), time.monotonic() + 60
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    while any(run.info.status == "RUNNING" for run in client.search_runs(experiments)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert {run.data.tags["kd.role"] for run in client.search_runs(experiments)} == {"teacher", "student"}
