"""A checkpoint is whole or it does not exist."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from kd_mlflow.training.checkpoint import CheckpointFolder, EpochRow, Meta


def fill(path, epochs: int, best: tuple[int, ...] = (1,)) -> CheckpointFolder:
    folder, meta = CheckpointFolder(path), Meta()
    for epoch in range(1, epochs + 1):
        meta.epoch = epoch
        meta.history.append(EpochRow(epoch, 1000 + epoch, {"val/accuracy": epoch / 10}))
        weights = {"w": torch.full((3,), float(epoch))}
        folder.save({"student.w": torch.full((2,), float(epoch))}, weights if epoch in best else None, meta)
        if epoch in best:
            meta.best_epoch = epoch
    return folder


def test_the_newest_comes_back_with_its_history_and_the_best_weights(tmp_path):
    folder = fill(tmp_path, 4, best=(1, 3))
    tensors, meta = folder.load()
    assert tensors["student.w"].tolist() == [4.0, 4.0]
    assert [row.timestamp_ms for row in meta.history] == [1001, 1002, 1003, 1004]
    assert folder.best(meta)["w"].tolist() == [3.0, 3.0, 3.0]


def test_two_checkpoints_and_the_best_are_kept(tmp_path):
    fill(tmp_path, 5, best=(1, 2))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best-00002.safetensors",
        "checkpoint-00004.json",
        "checkpoint-00004.safetensors",
        "checkpoint-00005.json",
        "checkpoint-00005.safetensors",
    ]


@pytest.mark.fault("a checkpoint is cut off, altered or half there", "it is noticed, and the one before is used")
@pytest.mark.parametrize("harm", ["cut", "flip", "no json", "half json", "no tensors"])
def test_a_torn_or_altered_checkpoint_is_passed_over_for_the_one_before(tmp_path, harm, caplog):
    # MLflow, in the same process, sets the root logger to ERROR.
    caplog.set_level("WARNING", logger="kd_mlflow")
    folder = fill(tmp_path, 3)
    tensors, meta = tmp_path / "checkpoint-00003.safetensors", tmp_path / "checkpoint-00003.json"
    content = tensors.read_bytes()
    if harm == "cut":
        tensors.write_bytes(content[:-1])
    elif harm == "flip":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "no json":
        meta.unlink()
    elif harm == "half json":
        meta.write_text(meta.read_text()[:40])
    else:
        tensors.unlink()
    assert folder.load()[1].epoch == 2
    assert ("checkpoint-00003" in caplog.text) == (harm != "no json")


def test_an_empty_folder_has_none(tmp_path):
    assert CheckpointFolder(tmp_path / "new").load() is None


def _try_lock(path, answer):
    with CheckpointFolder(path).lock() as mine:
        answer.put(mine)


@pytest.mark.fault("two processes go on with one run", "one of them does, the other is told")
def test_one_process_at_a_time_holds_a_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with CheckpointFolder(tmp_path).lock() as mine:
        assert mine
        other = context.Process(target=_try_lock, args=(tmp_path, answer))
        other.start()
        assert answer.get(timeout=60) is False
        other.join()
    with CheckpointFolder(tmp_path).lock() as again:
        assert again
