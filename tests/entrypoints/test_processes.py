"""`--devices`: several real processes train one network, and the record is that of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from kd_mlflow.config import DistillConfig
from kd_mlflow.data.loading import evaluation_batches, training_batches
from kd_mlflow.data.store import prepare
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import find_runs, history
from kd_mlflow.training.group import Group
from tests.conftest import QUICK, TINY, Place, make_place

PLAIN = "tests.entrypoints.tiny:plain"
CPU = torch.device("cpu")
TOGETHER = ["--learning-rate", "0.05", "--accumulate", "2", "--gradient-clip", "1"]
STUDENT = ["student", "--student", PLAIN, "--image-size", "32", "--batch-size", "8", "--optimizer", "sgd"]
CURVES = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/macro_f1"]


def curves(place: Place) -> dict[str, list[float]]:
    """Of the newest run of the place."""
    client = connect(place.uri)
    found = history(client, find_runs(client, tags={})[0].run_id, CURVES)
    return {name: [value for _, value in found[name]] for name in CURVES}


def trained(folder: Path, photos: Path, *options: str) -> Place:
    place = make_place(folder)
    place.run(*STUDENT, "--data", str(photos), "--epochs", "3", *options)
    return place


def test_shares_are_the_batch_and_parts_the_split(photos, tmp_path):
    store = prepare(DistillConfig(data=str(photos), image_size=32), tmp_path)

    def stream(**given):
        return training_batches(store, DistillConfig(), batch_size=8, seed=0, epoch=1, device=CPU, **given)

    shares = [stream(share=Group(rank, 4).share) for rank in range(4)]
    for whole, *parts in zip(stream(), *shares, strict=True):
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert {len(part.index) for part in parts} == {2}
        assert whole.whole_labels is None
        assert all(torch.equal(part.whole_labels, whole.labels) for part in parts)
    parts = [evaluation_batches(store, "val", batch_size=4, device=CPU, part=n, parts=4) for n in range(4)]
    seen = [place for part in parts for batch in part for place in batch.index.tolist()]
    assert seen == store.splits["val"].tolist()


@pytest.fixture(scope="module")
def two(tmp_path_factory, photos):
    return trained(tmp_path_factory.mktemp("two") / "place", photos, *TOGETHER, "--devices", "2")


def test_two_processes_are_one_training(two, tmp_path, photos):
    """A network without BatchNorm: the same curves, from the same single run, to rounding."""
    alone, both = curves(trained(tmp_path / "one", photos, *TOGETHER)), curves(two)
    for name in CURVES:
        np.testing.assert_allclose(both[name], alone[name], rtol=0, atol=1e-6, err_msg=name)
    assert len(set(alone["train/loss"])) == 3
    (run,) = find_runs(connect(two.uri), tags={})
    assert (run.status, run.params["cfg.devices"]) == ("FINISHED", "2")


def test_a_batch_that_cannot_be_shared_is_one_sentence(place, photos):
    said = place.run(*STUDENT, "--data", str(photos), "--devices", "3", code=2)
    assert "8 images cannot be shared equally by 3 processes" in said
    assert not find_runs(connect(place.uri), tags={})


def children(process: subprocess.Popen) -> list[psutil.Process]:
    return [one for one in psutil.Process(process.pid).children() if "RANK" in one.environ()]


def started(place: Place, photos: Path, *options: str) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A command of two processes that has written its second checkpoint."""
    process = place.start(*STUDENT, "--data", str(photos), "--devices", "2", "--epochs", "60", *options)
    until = time.monotonic() + 120
    while not list(place.home.glob("checkpoints/*/checkpoint-0000[2-9].json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    return process, children(process)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, photos):
    place = make_place(tmp_path_factory.mktemp("undisturbed") / "place")
    place.run(*STUDENT, "--data", str(photos), "--devices", "2", "--epochs", "60")
    return curves(place)


@pytest.mark.fault(
    "SIGKILL of one of the processes that train together",
    "all go on from the last checkpoint; the curves are those of an undisturbed run",
)
def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(place, photos, undisturbed):
    process, (other,) = started(place, photos)
    other.kill()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Starting all of them again, from the last checkpoint" in err
    assert curves(place) == undisturbed
    assert [run.status for run in find_runs(connect(place.uri), tags={})] == ["FINISHED"]


@pytest.mark.fault(
    "SIGKILL of the process that leads",
    "the others end; --resume gives the curves of an undisturbed run",
)
def test_the_others_end_with_the_command_and_it_is_resumed(place, photos, undisturbed):
    process, (other,) = started(place, photos)
    process.kill()
    process.communicate()
    assert not psutil.wait_procs([other], timeout=30)[1]
    place.run(*STUDENT, "--data", str(photos), "--devices", "2", "--epochs", "60", "--resume")
    assert curves(place) == undisturbed


@pytest.mark.fault("SIGTERM with several processes", "all end, the run is KILLED")
def test_an_interrupt_ends_all_of_them(place, photos):
    process, (other,) = started(place, photos)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not psutil.wait_procs([other], timeout=30)[1]
    assert [run.status for run in find_runs(connect(place.uri), tags={})] == ["KILLED"]


def test_a_loss_that_is_not_finite_in_one_process_stops_all(place, photos):
    said = place.run(*STUDENT, "--data", str(photos), "--devices", "2", "--learning-rate", "1e30", code=3)
    assert "The loss became" in said
    assert [run.status for run in find_runs(connect(place.uri), tags={})] == ["FAILED"]


def test_torchrun_gives_what_devices_gives(two, tmp_path, photos):
    place = make_place(tmp_path / "torchrun")
    command = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "kd_mlflow", *STUDENT, "--data", str(photos), "--epochs", "3", *TOGETHER],
        cwd=place.path, env={**place.environment, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert curves(place) == curves(two)


def test_a_distillation_with_a_cached_teacher_reads_what_one_process_wrote(place, photos):
    options = ["distill", "--data", str(photos), *QUICK, "--epochs", "2", "--no-control", "--no-register-model"]
    place.run(*options, "--student", TINY, "--teacher-cache", "on")
    written = {file: file.stat().st_mtime_ns for file in place.home.glob("teacher-outputs/*/epoch-*.bin")}
    assert len(written) == 2
    found = json.loads(place.run(*options, "--teacher-cache", "on", "--devices", "2", "--json"))
    assert found["student"]["val"]["accuracy"] > 0.4
    assert {file: file.stat().st_mtime_ns for file in place.home.glob("teacher-outputs/*/epoch-*.bin")} == written


@pytest.mark.slow
def test_torchrun_starts_again_and_the_run_goes_on(place, photos, undisturbed):
    command = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    own = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    process = subprocess.Popen(
        [*command, "--max-restarts", "2", "-m", "kd_mlflow", *STUDENT, "--data", str(photos), "--epochs", "60"],
        cwd=place.path, env={**place.environment, **own}, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not list(place.home.glob("checkpoints/*/checkpoint-0000[2-9].json")) and time.monotonic() < until:
        time.sleep(0.02)
    ranks = {one.environ().get("RANK"): one for one in psutil.Process(process.pid).children()}
    os.kill(ranks["1"].pid, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert curves(place) == undisturbed
    assert [run.status for run in find_runs(connect(place.uri), tags={})] == ["FINISHED"]
