"""The compiled student and the other memory layout: faster forms that train what the plain one trains."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from kd_mlflow.config import StudentConfig, recipe, resolve
from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.registry import create
from kd_mlflow.models.classifier import ModelSpec
from kd_mlflow.models.compiled import Compiled
from kd_mlflow.models.zoo import build
from kd_mlflow.training.checkpoint import CheckpointFolder, EpochRow
from kd_mlflow.training.device import resolve_compile, resolve_memory_format
from kd_mlflow.training.loop import Fit, Task, fit
from kd_mlflow.training.observer import Silent
from kd_mlflow.training.teachers import LiveTeacher
from tests.conftest import TINY
from tests.training.test_loop import CPU, SIZE, STEPS, batches


def network(seed: int):
    spec = ModelSpec(architecture=TINY, classes=("a", "b", "c"), image_size=SIZE, mean=(0.5,) * 3, std=(0.2,) * 3)
    return build(spec, seed=seed)


class StopAfter(Silent):
    def on_epoch(self, row: EpochRow) -> None:
        if row.epoch == 2:
            raise KeyboardInterrupt


def trained(folder: Path, observer: Silent | None = None, **given) -> Fit:
    config = resolve(StudentConfig, {"data": "photos", "student": TINY, "epochs": 3, **given})
    options = {"temperature": 4.0, "alpha": 0.7}
    plan = recipe(config, "control", "float32").model_copy(update={"method": "kd", "method_options": options})
    distiller = create("kd", Context(3), options)
    task = Task(
        plan, network(1), distiller, [LiveTeacher(network(7), distiller.needs, CPU)], batches, lambda: batches(0, 2),
        STEPS, CPU,
    )  # fmt: skip
    return fit(task, CheckpointFolder(folder), observer or Silent())


def check_close(one: Fit, other: Fit) -> None:
    for first, second in zip(one.history, other.history, strict=True):
        for name in ("train/loss", "val/loss"):
            assert first.metrics[name] == pytest.approx(second.metrics[name], rel=1e-3), name
    assert one.last.state_dict().keys() == other.last.state_dict().keys()


@pytest.fixture
def traced(monkeypatch):
    """Compiling without a code generator, which takes a minute."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **given: whole(model, backend="aot_eager", **given))


@pytest.mark.slow
def test_a_generated_student_is_trained_as_a_plain_one_is(tmp_path):
    check_close(trained(tmp_path / "fast", compile="on"), trained(tmp_path / "plain", compile="off"))


def test_a_compiled_student_is_trained_as_a_plain_one_is(tmp_path, traced):
    plain = trained(tmp_path / "plain", compile="off")
    fast = trained(tmp_path / "fast", compile="on")
    check_close(fast, plain)
    assert not any("_orig_mod" in name for name in fast.last.state_dict())


def test_channels_last_trains_the_same_and_leaves_contiguous_weights(tmp_path):
    plain = trained(tmp_path / "plain", memory_format="contiguous", optimizer="sgd")
    last = trained(tmp_path / "last", memory_format="channels_last", optimizer="sgd")
    check_close(last, plain)
    assert all(value.is_contiguous() for value in last.best.state_dict().values())
    assert all(value.is_contiguous() for value in CheckpointFolder(tmp_path / "last").load()[0].values())


def test_a_training_in_channels_last_that_was_cut_off_ends_in_the_same_weights(tmp_path):
    whole = trained(tmp_path / "whole", memory_format="channels_last")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", StopAfter(), memory_format="channels_last")
    resumed = trained(tmp_path / "cut", memory_format="channels_last")
    for name, value in whole.last.state_dict().items():
        assert torch.equal(value, resumed.last.state_dict()[name]), name


@pytest.mark.fault("the compiler fails, or compiles something else", "a warning, and the plain network is trained")
def test_what_cannot_be_compiled_is_trained_plainly(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="kd_mlflow")
    model, images = network(1).train(), next(batches(1)).images

    def broken(*_: object):
        raise RuntimeError("no compiler here")

    plain = model(images)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    assert torch.equal(Compiled(model)(images), plain)
    assert "no compiler here" in caplog.text
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda images: model(images) * 1.5)
    assert torch.equal(Compiled(model)(images), plain)
    assert "differs by" in caplog.text


def test_proving_the_compiled_form_leaves_no_trace(traced):
    model, images = network(1).train(), next(batches(1)).images
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compiled = Compiled(model)
    torch.manual_seed(5)
    assert compiled._is_right(images)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert compiled(images[:3]).shape == (3, 3)


def test_choices_follow_the_device():
    gpu = torch.device("cuda")
    assert [resolve_compile(name, gpu) for name in ("auto", "on", "off")] == [True, True, False]
    assert [resolve_compile(name, CPU) for name in ("auto", "on", "off")] == [False, True, False]
    assert resolve_memory_format("auto", gpu) == torch.channels_last
    assert resolve_memory_format("auto", CPU) == torch.contiguous_format
    assert resolve_memory_format("channels_last", CPU) == torch.channels_last
