"""A disk that fills up in mid-training."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import find_runs
from kd_mlflow.training.checkpoint import CheckpointFolder, file_sha256
from tests.conftest import SMALL, Place, make_photos, make_place


@pytest.fixture
def small(place: Place) -> Iterator[Place]:
    """A machine whose disk for checkpoints is a small one of its own."""
    place.home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", place.home], capture_output=True)
    if mounted.returncode:
        pytest.skip("only a privileged user may mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place.home], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


@pytest.mark.fault("the disk is full in mid-training", "exit code 1; the checkpoint before is whole, and gone on from")
@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_costs_nothing(small: Place, tmp_path):
    photos = make_photos(tmp_path / "many", per_class=60)
    command = ["student", "--data", str(photos), *SMALL[2:], "--epochs", "4", "--batch-size", "8", "--json"]
    process = small.start(*command)
    until = time.monotonic() + 200
    while not list(small.home.glob("checkpoints/*/checkpoint-00001.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    filler = fill(small.home)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "go on with --resume" in " ".join(said.split())
    (run,) = find_runs(connect(small.uri), tags={})
    assert run.status == "FAILED"
    tensors, meta = CheckpointFolder(small.home / "checkpoints" / run.run_id).load()
    assert tensors
    assert not meta.finished
    filler.unlink()
    resumed = json.loads(small.run(*command, "--resume"))
    assert resumed["run_id"] == run.run_id
    undisturbed = make_place(tmp_path / "undisturbed")
    whole = json.loads(undisturbed.run(*command))
    files = [
        one.home / "checkpoints" / result["run_id"] / "model/model.safetensors"
        for one, result in ((small, resumed), (undisturbed, whole))
    ]
    assert file_sha256(files[0]) == file_sha256(files[1])
