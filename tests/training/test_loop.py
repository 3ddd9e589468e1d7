"""The loop: exact resume, an untouched teacher, selection by validation, guards."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kd_mlflow.config import StudentConfig, recipe, resolve
from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.registry import create
from kd_mlflow.errors import GuardError
from kd_mlflow.models.classifier import ModelSpec
from kd_mlflow.models.zoo import build
from kd_mlflow.training.checkpoint import CheckpointFolder, EpochRow
from kd_mlflow.training.group import Group
from kd_mlflow.training.loop import NonFiniteLoss, Task, fit
from kd_mlflow.training.observer import Silent
from kd_mlflow.training.teachers import LiveTeacher

CPU = torch.device("cpu")
STEPS, SIZE = 4, 32


def network(seed: int):
    spec = ModelSpec(
        architecture="shufflenet_v2_x0_5",
        classes=("a", "b", "c"),
        image_size=SIZE,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        dropout=0.3,
    )
    return build(spec, seed=seed)


def batches(epoch: int, count: int = STEPS):
    draw = torch.Generator().manual_seed(epoch)
    for number in range(count):
        labels = torch.randint(0, 3, (8,), generator=draw)
        images = torch.randint(0, 90, (8, 3, SIZE, SIZE), generator=draw).float()
        images[torch.arange(8), labels] += 120
        yield Batch(images, labels, torch.arange(8) + 8 * number)


def task(teacher=None, training=batches, **given) -> Task:
    config = resolve(StudentConfig, {"data": "photos", "student": "shufflenet_v2_x0_5", "epochs": 4, **given})
    plan = recipe(config, "control", "float32")
    if teacher is not None:
        plan = plan.model_copy(update={"method": "kd", "method_options": {"temperature": 4.0, "alpha": 0.7}})
    distiller = create(plan.method, Context(3), plan.method_options)
    return Task(
        recipe=plan,
        student=network(1),
        distiller=distiller,
        teachers=[] if teacher is None else [LiveTeacher(teacher, distiller.needs, CPU)],
        training_batches=training,
        validation_batches=lambda: batches(0, 2),
        steps_per_epoch=STEPS,
        device=CPU,
    )


class StopAfter(Silent):
    """Pulls the plug after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch(self, row: EpochRow) -> None:
        if row.epoch == self.epochs:
            raise KeyboardInterrupt


VARIANTS = [
    {},
    {"optimizer": "adamw", "schedule": "cosine", "warmup_epochs": 1.5, "weight_decay": 0.01},
    {"optimizer": "sgd", "gradient_clip": 1.0, "label_smoothing": 0.1},
    {"ema": 0.9},
]


@pytest.mark.parametrize("given", VARIANTS, ids=["adam", "adamw", "sgd", "ema"])
def test_resumed_training_equals_uninterrupted_training(tmp_path: Path, given):
    teacher = network(7)
    whole = fit(task(teacher, **given), CheckpointFolder(tmp_path / "whole"), Silent())
    cut = CheckpointFolder(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        fit(task(teacher, **given), cut, StopAfter(2))
    resumed = fit(task(teacher, **given), cut, Silent())
    for name, value in whole.last.state_dict().items():
        assert torch.equal(value, resumed.last.state_dict()[name]), name
    for name, value in whole.best.state_dict().items():
        assert torch.equal(value, resumed.best.state_dict()[name]), name
    timings = ("images_per_s", "seconds", "seconds_per_batch")
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert {k: v for k, v in one.metrics.items() if not k.endswith(timings)} == {
            k: v for k, v in other.metrics.items() if not k.endswith(timings)
        }


def test_the_teacher_is_never_touched(tmp_path):
    teacher = network(7)
    before = copy.deepcopy(teacher.state_dict())
    fit(task(teacher), CheckpointFolder(tmp_path), Silent())
    for name, value in before.items():
        assert torch.equal(value, teacher.state_dict()[name]), name
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_falls_and_both_terms_are_logged(tmp_path):
    done = fit(task(network(7), epochs=12), CheckpointFolder(tmp_path), Silent())
    first, last = done.history[0].metrics, done.history[-1].metrics
    assert last["train/cross_entropy"] < first["train/cross_entropy"]
    assert last["train/loss"] == pytest.approx(0.7 * last["train/kd"] + 0.3 * last["train/cross_entropy"], rel=1e-5)


def test_the_best_epoch_has_the_highest_accuracy_and_at_a_tie_the_lower_loss(tmp_path):
    done = fit(task(epochs=6), CheckpointFolder(tmp_path), Silent())
    ranks = [(row.metrics["val/accuracy"], -row.metrics["val/loss"]) for row in done.history]
    assert done.best_epoch == 1 + max(range(6), key=lambda place: ranks[place])


def test_patience_stops_early_and_a_resume_does_not_go_on(tmp_path):
    options = {"epochs": 30, "patience": 2, "learning_rate": 1e-9}
    done = fit(task(**options), CheckpointFolder(tmp_path), Silent())
    assert len(done.history) == done.best_epoch + 2 < 30
    assert len(fit(task(**options), CheckpointFolder(tmp_path), Silent()).history) == len(done.history)


def test_a_non_finite_loss_stops_and_names_the_samples(tmp_path):
    def poisoned(epoch: int):
        for number, batch in enumerate(batches(epoch)):
            if (epoch, number) == (2, 1):
                batch.images.fill_(float("nan"))
            yield batch

    with pytest.raises(NonFiniteLoss) as stop:
        fit(task(training=poisoned), CheckpointFolder(tmp_path), Silent())
    assert (stop.value.epoch, stop.value.step, stop.value.exit_code) == (2, STEPS + 1, 3)
    assert stop.value.samples == list(range(8, 16))
    assert CheckpointFolder(tmp_path).load()[1].epoch == 1


@pytest.mark.fault("the last step of an epoch makes the weights infinite", "exit code 3; no checkpoint holds them")
def test_weights_that_are_not_finite_are_never_kept(tmp_path):
    def explosive(epoch: int):
        yield from batches(epoch)
        if epoch == 2:  # as a step would whose gradient overflows
            plan.student.head.weight.data[0, 0] = float("inf")

    plan = task(training=explosive)
    with pytest.raises(GuardError, match="weights became infinite") as stop:
        fit(plan, CheckpointFolder(tmp_path), Silent())
    assert (type(stop.value), stop.value.exit_code) == (GuardError, 3)
    tensors, meta = CheckpointFolder(tmp_path).load()
    assert meta.epoch == 1
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())


def test_a_guard_with_a_window_finds_the_same_batch():
    from kd_mlflow.distillers.base import Progress
    from kd_mlflow.training.loop import _FiniteGuard

    guard = _FiniteGuard(window=10, group=Group())
    for number, batch in enumerate(batches(1)):
        loss = torch.tensor(float("inf") if number == 2 else 1.0)
        guard.watch(loss, batch, Progress(1, 1, number, STEPS))
    with pytest.raises(NonFiniteLoss) as stop:
        guard.check()
    assert stop.value.samples == list(range(16, 24))


@pytest.mark.parametrize("parts", [2, 3, 8, 50])
def test_gradients_of_the_parts_of_a_batch_add_up_to_those_of_the_whole(tmp_path, parts):
    """A network without BatchNorm takes the same steps, whether a batch goes through it whole or in parts."""

    def plain(seed: int):
        model = network(seed)
        torch.manual_seed(seed)
        model.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 3))
        return model

    def trained(name: str, accumulate: int):
        asked = task(plain(7), accumulate=accumulate, optimizer="sgd", learning_rate=1e-4)
        return fit(replace(asked, student=plain(1)), CheckpointFolder(tmp_path / name), Silent())

    whole, cut = trained("whole", 1), trained("cut", parts)
    for name, value in whole.last.state_dict().items():
        torch.testing.assert_close(cut.last.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    for one, other in zip(whole.history, cut.history, strict=True):
        for name in ("train/loss", "train/kd", "train/cross_entropy", "train/accuracy", "val/accuracy"):
            assert other.metrics[name] == pytest.approx(one.metrics[name], rel=1e-4), name


def test_what_a_method_builds_for_training_depends_on_the_seed_alone(tmp_path):
    """The shared classifier of kdfm has an adapter where the widths differ, made when the training starts."""

    def trained(name: str, state: int):
        spec = network(0).spec.model_copy(update={"architecture": "mobilenet_v2"})
        teacher, student = network(7), build(spec, seed=1)
        asked = task(teacher, epochs=1)
        distiller = create("kdfm", Context(3, student=student, teachers=(teacher,), seed=0), {})
        live = [LiveTeacher(teacher, distiller.needs, CPU)]
        torch.manual_seed(state)
        return fit(
            replace(asked, student=student, distiller=distiller, teachers=live),
            CheckpointFolder(tmp_path / name),
            Silent(),
        )

    one, other = trained("one", 1), trained("other", 2)
    for name, value in one.last.state_dict().items():
        assert torch.equal(value, other.last.state_dict()[name]), name
