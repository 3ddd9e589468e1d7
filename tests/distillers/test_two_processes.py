"""Every method in two real processes: each learns from both shares, and both end with the same weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from kd_mlflow.training.checkpoint import CheckpointFolder, EpochRow
from kd_mlflow.training.group import Ended, Group
from kd_mlflow.training.loop import train
from kd_mlflow.training.observer import Silent
from tests.distillers.steps import two_steps
from tests.distillers.test_all_methods import METHOD_NAMES, SMALL, batches, task

COUNT = 96
# Of each share alone are the images that mixup pairs, and crd's draws.
ALIKE = {method: {"mixup": False} if method == "patient" else {} for method in METHOD_NAMES if method != "crd"}


def shared(method: str, group: Group):
    """The method's task for one process: half of every batch, half of the validation images."""
    whole = task(method, SMALL)

    def part(all_batches):
        for batch in all_batches:
            yield batch.split(group.size)[group.rank]

    return replace(
        whole,
        training_batches=lambda epoch: part(batches(epoch, COUNT, views=whole.distiller.views)),
        validation_batches=lambda: part(batches(0, COUNT, first=COUNT)),
        group=group,
    )


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for method in METHOD_NAMES:
        try:
            state = train(shared(method, Group(rank, 2)), CheckpointFolder(Path(folder) / method), Silent())
            tensors = {name: value for name, value in state.tensors().items() if not name.startswith("optimizer")}
            digests = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}
            found[method] = {"tensors": digests, "metrics": state.meta.history[-1].metrics}
        except Exception as error:
            found[method] = {"error": f"{type(error).__name__}: {error}"}
            break
    steps = {method: two_steps(method, options, 1, Group(rank, 2)) for method, options in ALIKE.items()}
    torch.save(steps, Path(folder) / f"{rank}.pt")
    found["ended"] = ended_by_the_leader(rank, folder)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


class Hopeless(Exception):
    pass


class GivesUp(Silent):
    def on_epoch(self, row: EpochRow) -> None:
        raise Hopeless


def ended_by_the_leader(rank: int, folder: str) -> list[object]:
    """What ends the training in this process, whether all know of it, and whether the next one is done."""
    group = Group(rank, 2)
    try:
        train(shared("kd", group), CheckpointFolder(Path(folder) / "ended"), GivesUp())
    except (Hopeless, Ended) as end:
        again = train(shared("kd", Group(rank, 2)), CheckpointFolder(Path(folder) / "next"), Silent())
        return [type(end).__name__, group.agreed, again.meta.finished]
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    processes.spawn(work, args=(str(folder),), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def done(folder):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def steps(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_both_processes_end_alike(done, method):
    one, other = (found[method] for found in done)
    assert "error" not in one, one["error"]
    assert one["tensors"] == other["tensors"]
    timed = ("train/seconds", "train/images_per_s", "train/seconds_per_batch")
    alike = {name for name in one["metrics"] if name not in timed}
    assert {name: one["metrics"][name] for name in alike} == {name: other["metrics"][name] for name in alike}


@pytest.mark.parametrize("method", ALIKE)
def test_both_processes_take_the_steps_of_the_whole_batch(steps, method):
    """Class weights and label smoothing among it: losses and terms on average, gradients and state in each."""
    whole = two_steps(method, ALIKE[method], 1)
    pairs = [found[method] for found in steps]
    assert pairs[0].keys() == pairs[1].keys() == whole.keys()
    for key, value in whole.items():
        if "loss" in key or "term" in key:
            torch.testing.assert_close((pairs[0][key] + pairs[1][key]) / 2, value, rtol=1e-7, atol=1e-9, msg=key)
        elif "logits" not in key:
            for found in pairs:
                torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-9, msg=key)


def test_the_leader_ends_a_training_for_both_and_the_next_one_is_done(done):
    assert [found["ended"] for found in done] == [["Hopeless", True, True], ["Ended", False, True]]
