"""Every method on real small images: trains, resumes exactly, and what it leaves can be exported."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from sklearn.datasets import load_digits

from kd_mlflow.config import DistillConfig, StudentConfig, recipe, resolve
from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.names import METHODS
from kd_mlflow.distillers.registry import create
from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import export_program
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.zoo import build
from kd_mlflow.training.checkpoint import CheckpointFolder, EpochRow
from kd_mlflow.training.loop import Fit, Task, fit
from kd_mlflow.training.observer import Silent
from kd_mlflow.training.teachers import LiveTeacher

CPU = torch.device("cpu")
IMAGES, BATCH, SIZE = 96, 16, 32
# Slow students need more steps before their cross-entropy falls, most of all under losses that outweigh it or
# leave it out.
SLOW, OUTWEIGHED, MORE_IMAGES, MOST_IMAGES = (
    ("shufflenet_v2_x0_5", "mobilenet_v2"),
    ("lskd", "dist", "patient"),
    384,
    880,
)
SMALL = ("tests.distillers.small:deep", "tests.distillers.small:shallow")
SAME, NARROWER, OTHER = (
    ("resnet34", "resnet18"),
    ("shufflenet_v2_x1_0", "shufflenet_v2_x0_5"),
    ("vgg11_bn", "mobilenet_v2"),
)
MIXED = [("resnet34", "mobilenet_v2"), ("vgg16", "shufflenet_v2_x1_0"), ("convnext_tiny", "resnet18")]
# What a definition rules out, by method: pairs (None: every pair but the first) and a word of the refusal.
REFUSED = {
    "iakd": ({NARROWER, OTHER, *MIXED}, "swap"),
    "kdfm": ({OTHER, MIXED[1], MIXED[2]}, "classif"),
    "ofd": ({NARROWER, MIXED[1], MIXED[2]}, "BatchNorm"),
}
METHOD_NAMES = [name for name in METHODS if name != "labels"]


@lru_cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Scanned handwritten digits, 8 px, enlarged: ``[N, 3, 32, 32]`` and labels."""
    found = load_digits()
    images = torch.from_numpy(found.images).float() * (255 / 16)
    images = torch.nn.functional.interpolate(images[:, None], size=SIZE, mode="bilinear").repeat(1, 3, 1, 1)
    return images, torch.from_numpy(found.target).long()


def batches(epoch: int, count: int, first: int = 0, views: int = 1):
    images, labels = digits()
    order = first + torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
    for places in order.split(BATCH):
        others = tuple(images[places] * 0.8 for _ in range(views - 1))
        yield Batch(images[places], labels[places], places, others)


def network(architecture: str, seed: int) -> Classifier:
    classes = tuple("0123456789")
    return build(
        ModelSpec(architecture=architecture, classes=classes, image_size=SIZE, mean=(0.3,) * 3, std=(0.35,) * 3),
        seed=seed,
    )


def images_for(method: str, pair: tuple[str, str]) -> int:
    if pair[1] not in SLOW or pair in MIXED:
        return IMAGES
    return MOST_IMAGES if method in OUTWEIGHED else MORE_IMAGES


@lru_cache
def taught(architecture: str, count: int) -> Classifier:
    """A teacher that knows something: trained on the same digits, with labels alone."""
    config = resolve(StudentConfig, {"data": "photos", "student": architecture, "epochs": 6, "schedule": "constant"})
    teacher = network(architecture, 1)
    with TemporaryDirectory() as folder:
        plan = Task(
            recipe=recipe(config, "control", "float32"),
            student=teacher,
            distiller=create("labels", Context(10), {}),
            teachers=[],
            training_batches=lambda epoch: batches(epoch, count),
            validation_batches=lambda: batches(0, count, first=count),
            steps_per_epoch=count // BATCH,
            device=CPU,
        )
        return fit(plan, CheckpointFolder(Path(folder)), Silent()).last


def task(method: str, pair: tuple[str, str]) -> Task:
    given = {"data": "photos", "method": method, "epochs": 2, "schedule": "constant"}
    config = resolve(DistillConfig, given | {"learning_rate": 1e-3 if pair == SMALL else 2e-4})
    plan = recipe(config, "student", "float32", {})
    count = images_for(method, pair)
    teacher, student = copy.deepcopy(taught(pair[0], count)), network(pair[1], 2)
    index = torch.arange(count)
    context = Context(10, student=student, teachers=(teacher,), index=index, labels=digits()[1][:count], seed=0)
    distiller = create(method, context, {})
    needs = distiller.needs if distiller.teacher_needs is None else distiller.teacher_needs
    return Task(
        recipe=plan,
        student=student,
        distiller=distiller,
        teachers=[LiveTeacher(teacher, needs, CPU)] if distiller.teacher_count[1] else [],
        training_batches=lambda epoch: batches(epoch, count, views=distiller.views),
        validation_batches=lambda: batches(0, count, first=count),
        steps_per_epoch=count // BATCH,
        device=CPU,
    )


class StopAfterOne(Silent):
    def on_epoch(self, row: EpochRow) -> None:
        raise KeyboardInterrupt


def same(one: Fit, other: Fit) -> None:
    for left, right in ((one.last, other.last), (one.best, other.best)):
        for name, value in left.state_dict().items():
            assert torch.equal(value, right.state_dict()[name]), name


def lives_through(method: str, pair: tuple[str, str], folder: Path) -> None:
    """Trains, its cross-entropy falls, a cut and resumed training is the same, and the program equals the module.

    The mixed pairs have too few steps for the second epoch to be sure to be better than the first.
    """
    done = fit(task(method, pair), CheckpointFolder(folder / "whole"), Silent())
    first, last = (row.metrics["train/cross_entropy"] for row in done.history)
    assert last < first or pair in MIXED
    cut = CheckpointFolder(folder / "cut")
    with pytest.raises(KeyboardInterrupt):
        fit(task(method, pair), cut, StopAfterOne())
    same(done, fit(task(method, pair), cut, Silent()))
    assert set(done.best.state_dict()) == set(network(pair[1], 0).state_dict())
    images = digits()[0][:3].to(torch.uint8)
    kept = done.best.eval()
    with torch.no_grad():
        torch.testing.assert_close(export_program(kept).module()(images), kept(images), rtol=1e-4, atol=1e-4)


def check(method: str, pair: tuple[str, str], folder: Path) -> None:
    pairs, word = REFUSED.get(method, (set(), ""))
    if pair in pairs:
        with pytest.raises(InputError, match=word):
            task(method, pair)
    else:
        lives_through(method, pair, folder)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_trains_resumes_and_exports(tmp_path, method):
    lives_through(method, SMALL, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [SAME, NARROWER, OTHER, *MIXED], ids="-".join)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_with_every_kind_of_pair(tmp_path, method, pair):
    check(method, pair, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_steps_at_224_pixels_and_in_bfloat16(method):
    teacher, student = (
        build(
            ModelSpec(architecture=name, classes=("a", "b", "c"), image_size=224, mean=(0.5,) * 3, std=(0.2,) * 3),
            seed=0,
        )
        for name in SAME
    )
    context = Context(
        3, student=student, teachers=(teacher,), index=torch.arange(4), labels=torch.tensor([0, 1, 2, 1]), seed=0
    )
    distiller = create(method, context, {})
    from kd_mlflow.distillers.base import Progress
    from kd_mlflow.models.taps import Tapped

    needs = distiller.needs if distiller.teacher_needs is None else distiller.teacher_needs
    live = [LiveTeacher(teacher, needs, CPU)] if distiller.teacher_count[1] else []
    images = torch.randint(0, 256, (4, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    batch = Batch(images, context.labels, context.index, (images.flip(3),))
    progress = Progress(8, 10, 7, 1)
    trained = distiller.training_student(student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = distiller.transform_batch(batch, progress)
        step = distiller.step(batch, Tapped(trained, distiller.needs), live, progress)
    total = sum(step.losses.values())
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in trained.parameters() if p.grad is not None)
