"""Who takes part in the benchmark of a training step; each is a function that does some steps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import count, cycle, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.timing import Contender, timed
from kd_mlflow.config import DistillConfig, Recipe, recipe
from kd_mlflow.data.batch import Batch
from kd_mlflow.data.loading import samples_per_epoch, steps_per_epoch, training_batches, training_view
from kd_mlflow.data.store import Store
from kd_mlflow.distillers.base import Context, TeacherSource
from kd_mlflow.distillers.registry import create
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.inference import resolve_backend
from kd_mlflow.models.taps import Tapped
from kd_mlflow.models.zoo import build
from kd_mlflow.training.cache import CacheFolder
from kd_mlflow.training.device import autocast, resolve_precision
from kd_mlflow.training.group import Group
from kd_mlflow.training.loop import Task, train_epoch
from kd_mlflow.training.observer import Silent
from kd_mlflow.training.records import Codec
from kd_mlflow.training.state import TrainingState
from kd_mlflow.training.teachers import CachedTeacher, LiveTeacher

WARM = 25
TEMPERATURE, ALPHA = 4.0, 0.7
Source = Callable[[LiveTeacher, Recipe], TeacherSource]


def network(config: DistillConfig, store: Store, architecture: str, device: torch.device) -> Classifier:
    """One of the pair, from scratch."""
    spec = ModelSpec(
        architecture=architecture, classes=store.classes, image_size=config.image_size, mean=store.mean, std=store.std
    )
    return build(spec, seed=0).to(device)


def distillation_loss(logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """What everybody writes: softened divergence and cross-entropy."""
    soft = F.kl_div(
        F.log_softmax(logits / TEMPERATURE, dim=1),
        F.log_softmax(target / TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * F.cross_entropy(logits, labels)


def bare(config: DistillConfig, store: Store, device: torch.device, *, taught: bool, compiled: bool) -> Contender:
    """Forward, loss, backward, update on one batch that lies in memory, and nothing else."""
    student: nn.Module = network(config, store, config.student, device)
    teacher: nn.Module = network(config, store, config.teacher_arch, device).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learning_rate)
    images, labels = batch_in_memory(config, store, device)
    precision = resolve_precision(config.precision, device)
    if compiled:
        student, teacher = torch.compile(student), torch.compile(teacher)

    def step() -> None:
        with autocast(device, precision):
            logits = student(images)
            if taught:
                with torch.no_grad():
                    target = teacher(images)
        loss = distillation_loss(logits.float(), target.float(), labels) if taught else F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return lambda steps: timed(device, lambda: [step() for _ in range(steps)])


def notebook(config: DistillConfig, store: Store, device: torch.device, photos: Path | None) -> Contender:
    """ImageFolder, a loader with as many processes as there are cores, a live teacher, .item() at every step."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(config.image_size, scale=(config.crop_min_scale, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(store.mean, store.std),
        ]
    )
    folder = datasets.ImageFolder(str(photos or _as_files(store)), change)
    loader = DataLoader(
        folder, config.batch_size, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1,
        pin_memory=device.type == "cuda", persistent_workers=True,
    )  # fmt: skip
    student = network(config, store, config.student, device).body
    teacher = network(config, store, config.teacher_arch, device).body.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.learning_rate)

    def forever() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    stream = forever()

    def work(steps: int) -> float:
        total = 0.0
        for images, labels in islice(stream, steps):
            images, labels = images.to(device), labels.to(device)
            with torch.no_grad():
                target = teacher(images)
            logits = student(images)
            loss = distillation_loss(logits, target, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() + (logits.argmax(1) == labels).float().mean().item()
        return total

    return lambda steps: timed(device, lambda: work(steps))


def _as_files(store: Store) -> Path:
    """The store's images as JPEGs in class folders, for those who read files."""
    root = Path(tempfile.mkdtemp(prefix="kd-benchmark-"))
    for place in store.splits["train"][:2000]:
        folder = root / store.classes[int(store.labels[place])]
        folder.mkdir(exist_ok=True)
        Image.fromarray(store.images[place].transpose(1, 2, 0)).save(folder / f"{place}.jpg", quality=90)
    return root


def live(config: DistillConfig, store: Store, device: torch.device, method: str = "kd") -> Contender:
    """This project's own training pass, with a teacher that is asked at every step."""
    return _ours(config, store, device, method, lambda source, plan: source, count(1))


def cached(config: DistillConfig, store: Store, device: torch.device) -> Contender:
    """The same with the teacher's outputs out of the cache, which two epochs of it filled."""
    root = Path(tempfile.mkdtemp(prefix="kd-benchmark-"))
    places = store.splits["train"]

    def source(live: LiveTeacher, plan: Recipe) -> CachedTeacher:
        codec = Codec(len(store.classes), 0, "float16")
        return CachedTeacher(
            live,
            lambda: CacheFolder.of(root, {}, codec, len(places), 10**10),
            places,
            samples_per_epoch(store, config.batch_size),
            lambda chosen, epoch: training_view(store, config, chosen, seed=0, epoch=epoch, device=device),
        )

    run = _ours(config, store, device, "kd", source, cycle((1, 2)))
    run(2 * steps_per_epoch(store, config.batch_size))
    return run


def _ours(
    config: DistillConfig, store: Store, device: torch.device, method: str, source: Source, epochs: Iterable[int]
) -> Contender:
    plan = recipe(config, "student", resolve_precision(config.precision, device)).model_copy(update={"method": method})
    student = network(config, store, config.student, device)
    teacher = network(config, store, config.teacher_arch, device)
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
    teachers = []
    if distiller.teacher_count[1]:
        backend = resolve_backend(config.teacher_backend, device, plan.precision)
        teachers = [source(LiveTeacher(teacher, needs, device, backend), plan)]
    state = TrainingState.fresh(plan, student, distiller, device)
    forward = Group().forward(Tapped(student, distiller.needs), distiller)
    stream = _stream(store, config, device, distiller.views, epochs)

    def work(steps: int) -> None:
        task = Task(
            plan, student, distiller, teachers, lambda _: islice(stream, steps), lambda: iter(()), steps, device
        )
        # Past every warm-up, so that all terms of the loss are at work.
        train_epoch(task, state, forward, WARM, Silent())

    return lambda steps: timed(device, lambda: work(steps))


def _stream(
    store: Store, config: DistillConfig, device: torch.device, views: int, epochs: Iterable[int]
) -> Iterator[Batch]:
    for epoch in epochs:
        yield from training_batches(
            store, config, batch_size=config.batch_size, seed=0, epoch=epoch, device=device, views=views
        )


def of_timm(config: DistillConfig, store: Store, device: torch.device) -> Contender:
    """timm's task for distillation from logits, on the batch in memory.

    Raises
    ------
    ImportError
        timm is not installed.
    """
    import timm
    from timm.task import LogitDistillationTask

    names = (config.student, config.teacher_arch)
    bodies = [timm.create_model(name, num_classes=len(store.classes)).to(device) for name in names]
    task = LogitDistillationTask(
        bodies[0], bodies[1], criterion=nn.CrossEntropyLoss(), distill_loss_weight=ALPHA, task_loss_weight=1 - ALPHA,
        temperature=TEMPERATURE, device=device, verbose=False,
    )  # fmt: skip
    task.train()
    optimizer = torch.optim.Adam(bodies[0].parameters(), lr=config.learning_rate)
    images, labels = normalised_in_memory(config, store, device)

    def step() -> None:
        loss = task(images, labels)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return lambda steps: timed(device, lambda: [step() for _ in range(steps)])


def of_torchdistill(config: DistillConfig, store: Store, device: torch.device) -> Contender:
    """torchdistill's box with its loss for distillation, on the batch in memory.

    Raises
    ------
    ImportError
        torchdistill is not installed.
    """
    from torchdistill.core.distillation import DistillationBox

    student, teacher = (network(config, store, name, device).body for name in (config.student, config.teacher_arch))
    loss = {
        "student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".",
        "teacher_module_io": "output", "temperature": TEMPERATURE, "alpha": 1 - ALPHA, "reduction": "batchmean",
    }  # fmt: skip
    plan = {
        "num_epochs": 1,
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "Adam", "kwargs": {"lr": config.learning_rate}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}}},
        },
    }
    box = DistillationBox(teacher, student, {}, plan, device, None, False, 1)
    images, labels = normalised_in_memory(config, store, device)
    box.teacher_model.eval()
    box.student_model.train()

    def step() -> None:
        box.post_forward_process(box.forward_process(images, labels, None))

    return lambda steps: timed(device, lambda: [step() for _ in range(steps)])


def batch_in_memory(config: DistillConfig, store: Store, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images ``[B, 3, H, W]`` in pixel units and labels ``[B]``."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(config.batch_size, 3, config.image_size, config.image_size, generator=draw) * 255
    labels = torch.randint(0, len(store.classes), (config.batch_size,), generator=draw)
    return images.to(device), labels.to(device)


def normalised_in_memory(config: DistillConfig, store: Store, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same for those who normalise in their loader."""
    images, labels = batch_in_memory(config, store, device)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (store.mean, store.std))
    return (images / 255 - mean) / std, labels
