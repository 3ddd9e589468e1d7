"""Small networks, batches and steps for tests of methods that need more than logits."""

from __future__ import annotations

import torch

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import Context, Distiller, Progress, Step
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.taps import Tapped
from kd_mlflow.models.zoo import build
from kd_mlflow.training.teachers import LiveTeacher

CLASSES, SIZE = 3, 32


def network(architecture: str, seed: int = 0, size: int = SIZE) -> Classifier:
    """An untrained network for three classes."""
    classes = tuple("abc"[:CLASSES])
    spec = ModelSpec(architecture=architecture, classes=classes, image_size=size, mean=(0.5,) * 3, std=(0.2,) * 3)
    return build(spec, seed=seed)


def batch(seed: int = 0, count: int = 4, size: int = SIZE) -> Batch:
    """Noise with labels, and a second view of it."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), generator=draw).float()
    labels = torch.randint(0, CLASSES, (count,), generator=draw)
    return Batch(images, labels, torch.arange(count), (images.flip(3),))


def context(student: Classifier, *teachers: Classifier, samples: int = 12) -> Context:
    """Of a training split of a few samples, the classes in turn."""
    index = torch.arange(samples)
    return Context(CLASSES, student=student, teachers=teachers, index=index, labels=index % CLASSES, seed=0)


def take_step(
    distiller: Distiller, student: Classifier, *teachers: Classifier, epoch: int = 1, epochs: int = 10, number: int = 0
) -> Step:
    """One step of the method with live teachers; gradients are left in place."""
    needs = distiller.needs if distiller.teacher_needs is None else distiller.teacher_needs
    live = [LiveTeacher(teacher, needs, torch.device("cpu")) for teacher in teachers]
    progress = Progress(epoch, epochs, number, 2)
    own = distiller.transform_batch(batch(), progress)
    step = distiller.step(own, Tapped(student, distiller.needs), live, progress)
    sum(step.losses.values()).backward()
    return step
