"""A training step of this project beside the bare loop of the same networks on tensors in memory.

The contenders take turns (A B C A B C …), each for some steps, after a warm-up; the figures are medians
over the rounds. The bare loops do nothing but forward, loss, backward and update on one batch that lies
in memory; ``live`` is the project's own pass over a prepared store: loader, augmentation, teacher, student,
running means and guard.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import click
import torch
import torch.nn.functional as F

from kd_mlflow.config import DistillConfig, recipe, resolve
from kd_mlflow.data.batch import Batch
from kd_mlflow.data.loading import training_batches
from kd_mlflow.data.store import Store, prepare
from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.registry import create
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.taps import Tapped
from kd_mlflow.models.zoo import build
from kd_mlflow.training.device import resolve_device
from kd_mlflow.training.loop import Task, train_epoch
from kd_mlflow.training.observer import Silent
from kd_mlflow.training.state import TrainingState
from kd_mlflow.training.teachers import LiveTeacher

Contender = Callable[[int], float]
WARM = 25


@click.command()
@click.option("--data", default="digits", show_default=True, help="Data, as for kd-mlflow distill.")
@click.option("--image-size", default=64, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--steps", default=6, show_default=True, help="Steps a turn.")
@click.option("--rounds", default=5, show_default=True, help="Turns of each contender.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(data: str, image_size: int, batch_size: int, steps: int, rounds: int, device: str, as_json: bool) -> None:
    """Time the distillation step ResNet34 → ResNet18 against the bare loop."""
    config = resolve(
        DistillConfig, {"data": data, "image_size": image_size, "batch_size": batch_size, "device": device}
    )
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(config, prepare(config, Path(scratch)), steps, rounds)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, figures in result["contenders"].items():
        click.echo(
            f"{name:14} {figures['images_per_s']:8.1f} images/s  ({figures['low']:.1f} to {figures['high']:.1f})"
        )
    for name, ratio in result["ratios"].items():
        click.echo(f"{name:24} {ratio:.3f}")


def measure(config: DistillConfig, store: Store, steps: int, rounds: int) -> dict:
    """Images a second of every contender, and their ratios."""
    device = resolve_device(config.device)
    contenders: dict[str, Contender] = {
        "bare_student": _bare(config, store, device, teacher=None),
        "bare_kd": _bare(config, store, device, teacher=_network(config, store, "resnet34", device)),
        "live": live(config, store, device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            taken = run(steps)
            if number:
                seconds[name].append(taken / steps)
    rates = {name: [config.batch_size / one for one in taken] for name, taken in seconds.items()}
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": str(device),
        },
        "contenders": {
            name: {"images_per_s": median[name], "low": min(values), "high": max(values)}
            for name, values in rates.items()
        },
        "ratios": {
            "live/bare_kd": median["live"] / median["bare_kd"],
            "bare_kd/bare_student": median["bare_kd"] / median["bare_student"],
        },
    }


def _network(config: DistillConfig, store: Store, architecture: str, device: torch.device) -> Classifier:
    spec = ModelSpec(
        architecture=architecture, classes=store.classes, image_size=config.image_size, mean=store.mean, std=store.std
    )
    return build(spec, seed=0).to(device)


def _bare(config: DistillConfig, store: Store, device: torch.device, teacher: Classifier | None) -> Contender:
    student = _network(config, store, "resnet18", device)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learning_rate)
    images = torch.rand(config.batch_size, 3, config.image_size, config.image_size, device=device) * 255
    labels = torch.randint(0, len(store.classes), (config.batch_size,), device=device)
    if teacher is not None:
        teacher.eval().requires_grad_(False)

    def run(steps: int) -> float:
        _wait(device)
        started = time.perf_counter()
        for _ in range(steps):
            logits = student(images)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.no_grad():
                    target = F.log_softmax(teacher(images) / 4, dim=1)
                soft = F.kl_div(F.log_softmax(logits / 4, dim=1), target, reduction="batchmean", log_target=True)
                loss = 0.7 * 16 * soft + 0.3 * loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        _wait(device)
        return time.perf_counter() - started

    return run


def live(config: DistillConfig, store: Store, device: torch.device, method: str = "kd") -> Contender:
    """The project's own training pass with a method's defaults."""
    plan = recipe(config, "student", "float32").model_copy(update={"method": method})
    student = _network(config, store, config.student, device)
    teacher = _network(config, store, config.teacher_arch, device)
    train = store.splits["train"]
    context = Context(
        len(store.classes),
        student=student,
        teachers=(teacher,),
        index=torch.as_tensor(train),
        labels=torch.as_tensor(store.labels[train]),
    )
    distiller = create(method, context, {}).to(device)
    student = distiller.training_student(student).to(device)
    needs = distiller.needs if distiller.teacher_needs is None else distiller.teacher_needs
    teachers = [LiveTeacher(teacher, needs, device)] if distiller.teacher_count[1] else []
    state = TrainingState.fresh(plan, student, distiller, device)
    tapped = Tapped(student, distiller.needs)
    stream = _endless(store, config, device, distiller.views)

    def run(steps: int) -> float:
        _wait(device)
        started = time.perf_counter()
        task = Task(
            plan, student, distiller, teachers, lambda _: islice(stream, steps), lambda: iter(()), steps, device
        )
        # Past every warm-up, so that all terms of the loss are at work.
        train_epoch(task, state, tapped, WARM, Silent())
        _wait(device)
        return time.perf_counter() - started

    return run


def _endless(store: Store, config: DistillConfig, device: torch.device, views: int) -> Iterator[Batch]:
    for epoch in count(1):
        yield from training_batches(
            store, config, batch_size=config.batch_size, seed=0, epoch=epoch, device=device, views=views
        )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
