"""Training in float16: a scaled loss, updates skipped whole where gradients overflow, and an exact resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kd_mlflow.distillers.base import Progress
from kd_mlflow.distillers.names import METHODS
from kd_mlflow.errors import GuardError, InputError
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import find_runs
from kd_mlflow.training import scaling
from kd_mlflow.training.checkpoint import CheckpointFolder
from kd_mlflow.training.device import resolve_precision
from kd_mlflow.training.group import Group
from kd_mlflow.training.loop import NonFiniteLoss, Task, fit
from kd_mlflow.training.observer import Silent
from kd_mlflow.training.scaling import LossScaler
from tests.conftest import TINY
from tests.distillers.steps import two_steps
from tests.training.test_loop import CPU, StopAfter, batches, network, task

HERE = Progress(1, 1, 0, 1)


def in_float16(teacher=None, **given) -> Task:
    plain = task(teacher, **given)
    return replace(plain, recipe=plain.recipe.model_copy(update={"precision": "float16"}))


@pytest.mark.parametrize(
    ("asked", "device", "native", "expected"),
    [
        ("auto", "cuda", True, "bfloat16"),
        ("auto", "cuda", False, "float16"),
        ("auto", "cpu", False, "float32"),
        ("auto", "mps", False, "float32"),
        ("float16", "cpu", False, "float16"),
        ("bfloat16", "cuda", False, "bfloat16"),
    ],
)
def test_auto_is_the_half_precision_that_the_gpu_has(monkeypatch, asked, device, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert resolve_precision(asked, torch.device(device)) == expected


def test_float16_is_refused_where_nothing_scales_its_gradients():
    with pytest.raises(InputError, match="--precision float16 is for CUDA devices and CPUs; on mps"):
        resolve_precision("float16", torch.device("mps"))


@pytest.mark.parametrize("given", [{}, {"optimizer": "sgd", "gradient_clip": 1.0, "accumulate": 2}, {"ema": 0.9}])
def test_a_resume_amid_overflows_equals_an_uninterrupted_training(tmp_path, monkeypatch, given):
    """A scale that begins too high and grows after three steps overflows before and after the cut."""
    monkeypatch.setattr(scaling, "START", 2.0**22)
    monkeypatch.setattr(scaling, "GROWTH_INTERVAL", 3)
    teacher = network(7)
    whole = fit(in_float16(teacher, **given), CheckpointFolder(tmp_path / "whole"), Silent())
    cut = CheckpointFolder(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        fit(in_float16(teacher, **given), cut, StopAfter(2))
    assert cut.load()[0]["scaler.scale"] < 2.0**22
    resumed = fit(in_float16(teacher, **given), cut, Silent())
    for name, value in whole.last.state_dict().items():
        assert torch.equal(value, resumed.last.state_dict()[name]), name
        assert value.dtype != torch.float16
    skipped = [row.metrics["train/overflow_steps"] for row in whole.history]
    assert skipped == [row.metrics["train/overflow_steps"] for row in resumed.history]
    assert skipped[0] >= 3
    assert sum(skipped[2:]) >= 1
    assert all(0 <= count <= 4 and count == int(count) for count in skipped)


def test_wider_precisions_count_no_overflows(tmp_path):
    done = fit(task(epochs=1), CheckpointFolder(tmp_path), Silent())
    assert "train/overflow_steps" not in done.history[0].metrics


def weights(*kinds: str) -> tuple[list[torch.nn.Parameter], list[torch.optim.Optimizer]]:
    """A single weight of 1 for each optimizer, with a rate of 0.1."""
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in kinds]
    make = {"sgd": lambda p: torch.optim.SGD([p], 0.1, momentum=0.9, fused=True)}
    make["adam"] = lambda p: torch.optim.Adam([p], 0.1, fused=True)
    return parameters, [make[kind](parameter) for kind, parameter in zip(kinds, parameters, strict=True)]


def update(scaler: LossScaler, parameters, optimizers, *gradients: float | None, clip: float = 0) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None
        if gradient is not None:
            scaler.scale((parameter * gradient).sum()).backward()
    scaler.unscale(optimizers)
    if clip:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    scaler.step()


def test_an_overflow_for_one_optimizer_skips_the_update_of_all_and_counts_once():
    parameters, optimizers = weights("sgd", "adam")
    scaler = LossScaler(optimizers, CPU)
    update(scaler, parameters, optimizers, 1.0, float("inf"))
    assert [parameter.item() for parameter in parameters] == [1, 1]
    assert optimizers[1].state[parameters[1]]["step"].item() == 0
    assert (scaler.skipped.item(), scaler.scaler.get_scale()) == (1, 2.0**15)
    update(scaler, parameters, optimizers, float("nan"), float("inf"))
    assert optimizers[1].state[parameters[1]]["step"].item() == 0
    update(scaler, parameters, optimizers, 1.0, 1.0)
    assert [parameter.item() for parameter in parameters] == pytest.approx([0.9, 0.9])
    assert (scaler.skipped.item(), scaler.scaler.get_scale()) == (2, 2.0**14)
    scaler.begin_epoch()
    assert scaler.skipped.item() == 0


def test_momentum_after_a_skipped_first_step_is_that_of_the_first_step():
    parameters, optimizers = weights("sgd")
    scaler = LossScaler(optimizers, CPU)
    update(scaler, parameters, optimizers, float("inf"))
    update(scaler, parameters, optimizers, 2.0)
    update(scaler, parameters, optimizers, 2.0)
    assert parameters[0].item() == pytest.approx(1 - 0.2 - 0.1 * (0.9 * 2 + 2))


def test_an_optimizer_without_gradients_is_left_alone():
    parameters, optimizers = weights("sgd", "adam")
    scaler = LossScaler(optimizers, CPU)
    update(scaler, parameters, optimizers, 1.0, None)
    assert [parameter.item() for parameter in parameters] == pytest.approx([0.9, 1.0])


def test_the_gradient_is_clipped_at_its_own_size():
    parameters, optimizers = weights("sgd")
    update(LossScaler(optimizers, CPU), parameters, optimizers, 4.0, clip=1.0)
    assert parameters[0].item() == pytest.approx(0.9, rel=1e-5)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("nan")


@pytest.mark.fault("every gradient is infinite in float16, the loss is not", "exit code 3; no weight has moved")
def test_gradients_that_no_scale_helps_stop_the_training(tmp_path):
    plan = in_float16(epochs=9)
    loss = plan.distiller.loss
    plan.distiller.loss = lambda *given: (NoGradient.apply(loss(*given)[0]), {})
    with pytest.raises(
        GuardError, match="in float16 even without scaling, by epoch 5, step 16; give --precision"
    ) as stop:
        fit(plan, CheckpointFolder(tmp_path), Silent())
    assert (type(stop.value), stop.value.exit_code) == (GuardError, 3)
    tensors, meta = CheckpointFolder(tmp_path).load()
    assert [row.metrics["train/overflow_steps"] for row in meta.history] == [4, 4, 4, 4]
    before = network(1).state_dict()
    assert torch.equal(tensors["student.body.fc.weight"], before["body.fc.weight"])


@pytest.mark.fault("the loss is infinite in float16", "exit code 3; the sentence names --precision float32")
def test_a_loss_that_float16_does_not_hold_is_no_overflow_of_gradients(tmp_path):
    def too_bright(epoch: int):
        for batch in batches(epoch):
            yield replace(batch, images=batch.images * 1e6)

    with pytest.raises(NonFiniteLoss, match="or give --precision float32: float16 ends at 65504"):
        fit(in_float16(training=too_bright), CheckpointFolder(tmp_path), Silent())


def test_all_processes_know_of_a_scale_that_fell_too_low():
    _, optimizers = weights("sgd")
    scaler, group = LossScaler(optimizers, CPU), Group()
    scaler.restore({"scale": torch.tensor(1.0), "growth": torch.tensor(0)})
    scaler.check(HERE, group)
    assert not group.agreed
    scaler.restore({"scale": torch.tensor(0.5), "growth": torch.tensor(0)})
    with pytest.raises(GuardError):
        scaler.check(HERE, group)
    assert group.agreed


@pytest.mark.parametrize("method", METHODS)
def test_every_method_steps_in_float16_with_its_loss_in_float32(method, monkeypatch):
    monkeypatch.setattr(scaling, "START", 2.0)  # terms of large weight overflow under the usual scale, at first
    found = two_steps(method, {}, 1, precision="float16")
    assert {value.dtype for key, value in found.items() if " loss " in key} == {torch.float32}
    assert all(value.isfinite().all() for key, value in found.items() if "logits" not in key)
    moved = [value for key, value in found.items() if "1 gradient student" in key]
    assert any(value.abs().sum() > 0 for value in moved)


def test_two_processes_train_in_float16_and_the_record_says_so(place, photos):
    options = ["--student", TINY, "--image-size", "32", "--epochs", "2", "--batch-size", "8", "--device", "cpu"]
    more = ["--precision", "float16", "--devices", "2", "--accumulate", "2", "--gradient-clip", "1"]
    place.run("student", "--data", str(photos), *options, *more)
    (run,) = find_runs(connect(place.uri), tags={})
    assert (run.status, run.tags["kd.precision"], run.params["cfg.precision"]) == ("FINISHED", "float16", "float16")
    assert run.metrics["train/overflow_steps"] >= 0
    assert run.metrics["train/loss"] > 0
