"""One network from recipe to record: trained, judged, written down, and kept as a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd_mlflow.config import Recipe
from kd_mlflow.data.depth import FULL_RANGE
from kd_mlflow.data.labels import LabeledImages, label_mask
from kd_mlflow.data.loading import evaluation_batches, samples_per_epoch, steps_per_epoch, training_batches
from kd_mlflow.data.store import Store
from kd_mlflow.distillers.base import Context, Distiller
from kd_mlflow.distillers.names import CONTROL
from kd_mlflow.distillers.refusals import naming_methods
from kd_mlflow.distillers.registry import create, method_class
from kd_mlflow.entrypoints.cutting import check_images, check_parts, in_more_parts, parts_sentence, shares_sentence
from kd_mlflow.entrypoints.fingerprint import fingerprint
from kd_mlflow.entrypoints.foreign_weights import Preparation, preparation, record_preparations
from kd_mlflow.entrypoints.judge import Verdict, judge, judge_alternatives
from kd_mlflow.entrypoints.machine import LoadWatch
from kd_mlflow.entrypoints.processes import ProcessDied, check_devices, together
from kd_mlflow.entrypoints.recording import Recorder
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.sources import cache_sentence, teacher_sources
from kd_mlflow.errors import InputError
from kd_mlflow.measures.resources import ResourceMeter, Usage
from kd_mlflow.models.artifact import load_model, read_run_id, save_model
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.taps import Tapped
from kd_mlflow.models.zoo import build, normalization_for
from kd_mlflow.tracking.runs import RunWriter
from kd_mlflow.training.checkpoint import CheckpointFolder, file_sha256
from kd_mlflow.training.device import resolve_compile, resolve_memory_format
from kd_mlflow.training.group import Group
from kd_mlflow.training.loop import Fit, NonFiniteLoss, Task, fit
from kd_mlflow.training.observer import Observer, Several

# How often a training goes on after the death of one of its processes.
RESTARTS = 3
ONE_OF_SEVERAL = "several processes trained, and only the first of them was watched"


@dataclass(frozen=True)
class Network:
    """A network at hand, with where it came from.

    Attributes
    ----------
    folder:
        The model folder it was written to or read from.
    digest:
        SHA-256 of its weights file.
    """

    model: Classifier
    run_id: str
    folder: Path
    digest: str


@dataclass(frozen=True)
class Trained:
    """A network that was trained just now, with everything that was measured.

    Attributes
    ----------
    others:
        Figures of the trained network's other predictions, such as its exits.
    extra_parameters:
        Parameters that training needed and the deployed network does not have.
    evidence:
        How sure the reading of the method is.
    """

    network: Network
    fit: Fit
    verdict: Verdict
    training: Usage
    last_folder: Path
    others: dict[str, float]
    extra_parameters: int
    evidence: str


def train_network(session: Session, recipe: Recipe, writer: RunWriter, teachers: Sequence[Network] = ()) -> Trained:
    """Train by the recipe under the writer's run, going on from its checkpoints if there are any.

    Raises
    ------
    GuardError
        The loss became non-finite; the samples of the batch are recorded.
    """
    folder = session.checkpoints(writer.run_id)
    models = [teacher.model for teacher in teachers]
    compiled = resolve_compile(recipe.compile, session.device)
    layout = resolve_memory_format(recipe.memory_format, session.device)
    writer.tags({"kd.compile": str(compiled).lower(), "kd.memory_format": str(layout).removeprefix("torch.")})
    writer.start_system_metrics()
    try:
        fitted, distiller, usage = fit_network(session, recipe, writer, models)
    finally:
        writer.stop_system_metrics()
    verdict = judge(session, fitted.best, recipe, models[0] if models else None)
    others = judge_alternatives(session, fitted, distiller, recipe.batch_size)
    for model in models:
        model.cpu()
    save_model(folder / "model", fitted.best, run_id=writer.run_id)
    save_model(folder / "last", fitted.last, run_id=writer.run_id, program=False)
    digest = file_sha256(folder / "model" / "model.safetensors")
    network = Network(fitted.best, writer.run_id, folder / "model", digest)
    extra = sum(parameter.numel() for parameter in distiller.parameters())
    extra += _parameters(fitted.trained) - _parameters(fitted.best)
    return Trained(network, fitted, verdict, usage, folder / "last", others, extra, distiller.source.evidence)


def fit_network(
    session: Session,
    recipe: Recipe,
    writer: RunWriter,
    teachers: Sequence[Classifier],
    observers: Sequence[Observer] = (),
) -> tuple[Fit, Distiller, Usage]:
    """The training alone, every epoch recorded; with the distiller as it ended, and what the training used.

    Raises
    ------
    GuardError
        As :func:`train_network`, or the device's memory does not hold the smallest part of a batch.
    """
    folder, images = CheckpointFolder(session.checkpoints(writer.run_id)), len(session.store.splits["train"])
    if (start := start_preparation(session, recipe)) is not None:
        record_preparations(writer, [start], "start")
    deaths = 0
    check_parts(recipe)
    while True:
        student = build_network(session, recipe)
        check_images(recipe, images, student)
        try:
            with together(session, recipe, student, teachers, folder) as group:
                task = training_task(session, recipe, student, teachers, group)
                cut = parts_sentence(recipe, images, student, task.distiller)
                kept = cache_sentence(session, recipe, task.teachers)
                for said in filter(None, (shares_sentence(recipe), cut, kept)):
                    session.terminal.say(said)
                with session.terminal.training(_label(recipe)) as lines, ResourceMeter(session.device) as meter:
                    load = LoadWatch(session, writer, recipe.devices)
                    before, fitted = _fit(task, folder, Several([Recorder(writer), lines, load, *observers]))
            load.note()
            break
        except ProcessDied as death:
            deaths += 1
            if deaths > RESTARTS:
                raise
            session.terminal.warn(f"{death} Starting all of them again, from the last checkpoint.")
            continue
        except NonFiniteLoss as stop:
            paths = [session.store.path_of(index) for index in stop.samples]
            writer.json(
                "non_finite_loss.json",
                {"epoch": stop.epoch, "step": stop.step, "samples": stop.samples, "paths": paths},
            )
            raise
        except torch.OutOfMemoryError:
            pass  # only outside of the handler are the step's tensors let go
        recipe = in_more_parts(session, writer, recipe, student)
    images = samples_per_epoch(session.store, recipe.batch_size) * len(fitted.history)
    usage = _whole(meter.usage(images), before)
    return fitted, task.distiller, usage if recipe.devices == 1 else _unknown(usage, ONE_OF_SEVERAL)


@naming_methods()
def check(session: Session, recipe: Recipe, teachers: Sequence[Classifier] | None = None) -> list[str]:
    """Build network and method once, so that what cannot work is said before anything trains.

    Parameters
    ----------
    teachers:
        Networks such as the teachers will be; None while they are not known.

    Returns
    -------
    list of str
        Sentences on what of the method has no effect here; none while the teachers are not known.

    Raises
    ------
    InputError
        The architecture, its weights or the method cannot be had, or not with these networks.
    """
    splits = session.store.splits
    check_devices(recipe.devices, session.device)
    check_parts(recipe)
    if len(splits["val"]) < recipe.devices:
        raise InputError(f"{recipe.devices} processes cannot share a validation split of {len(splits['val'])} images.")
    fewest, most = method_class(recipe.method).teacher_count
    student = build_network(session, recipe)
    check_images(recipe, len(splits["train"]), student)
    if teachers is None:
        return []
    if not fewest <= len(teachers) <= most:
        raise InputError(f"The method '{recipe.method}' takes {most} teacher, not {len(teachers)}.")
    task = training_task(session, recipe, student, teachers)
    trained = task.distiller.training_student(student)
    Tapped(trained, task.distiller.needs)
    check_images(recipe, len(splits["train"]), trained, task.distiller)
    task.distiller.check_epochs(recipe.epochs)
    return [*label_notes(session.store, recipe, task.distiller), *task.distiller.notes(recipe.batch_size)]


def _whole(usage: Usage, epochs_before: int) -> Usage:
    """The figures of a training; those of its last part alone are not given out as the whole's."""
    if not epochs_before:
        return usage
    return _unknown(usage, f"the training was taken up after epoch {epochs_before}; what was used before is not known")


def _unknown(usage: Usage, reason: str) -> Usage:
    return Usage({}, dict.fromkeys([*usage.metrics, *usage.missing], reason))


def load_network(folder: Path, *, own: bool = True) -> Network:
    """A network that was written to a folder earlier, by a run of this person's or (not ``own``) by anybody."""
    return Network(load_model(folder, own=own), read_run_id(folder), folder, file_sha256(folder / "model.safetensors"))


def _fit(task: Task, folder: CheckpointFolder, observer: Several) -> tuple[int, Fit]:
    """The fit, and how many epochs of it an earlier process trained."""
    found = folder.load()
    return (found[1].epoch if found else 0), fit(task, folder, observer)


def build_network(session: Session, recipe: Recipe) -> Classifier:
    """The recipe's network before its first step."""
    spec, start = network_spec(session, recipe), start_preparation(session, recipe)
    if start is None:
        return build(spec, recipe.weights, seed=recipe.seed, side=_side(recipe))
    return start.apply(build(start.spec(spec), recipe.weights, seed=recipe.seed, side=_side(recipe)))


def start_preparation(session: Session, recipe: Recipe) -> Preparation | None:
    """How the weights file is used that a training starts from; None without one, or where it does not matter."""
    spec, choice = network_spec(session, recipe), recipe.normalization
    return preparation(session, spec, recipe.weights, choice=choice, default="data", side=_side(recipe))


def training_fingerprint(session: Session, recipe: Recipe, teacher_digests: Sequence[str] = ()) -> str:
    """The identity of a training (32 hex digits), how its weights file is used included."""
    start = start_preparation(session, recipe)
    return fingerprint(recipe, session.store.digest, [*teacher_digests, *([start.identity] if start else [])])


def _side(recipe: Recipe) -> str:
    return "teacher" if recipe.role == "teacher" else "student"


def network_spec(session: Session, recipe: Recipe) -> ModelSpec:
    """How the recipe's network is built for this data."""
    store = session.store
    mean, std = normalization_for(recipe.normalization, recipe.architecture, recipe.weights, store.mean, store.std)
    return ModelSpec(
        architecture=recipe.architecture,
        classes=store.classes,
        image_size=recipe.image_size,
        mean=mean,
        std=std,
        stem=recipe.stem,
        dropout=recipe.dropout,
        squeeze_excitation=recipe.squeeze_excitation,
        value_range=store.value_range or FULL_RANGE,
    )


def _label(recipe: Recipe) -> str:
    """What the lines of a training begin with: of students there may be many in one command."""
    return f"{recipe.role} ({recipe.method}, seed {recipe.seed})" if recipe.role == "student" else recipe.role


def _parameters(model: Classifier) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def label_notes(store: Store, recipe: Recipe, distiller: Distiller) -> list[str]:
    """What is said of a student that has only some of the labels."""
    mask = label_mask(store, recipe)
    if mask is None:
        return []
    rest = f"{recipe.method} learns from the others, too"
    if not distiller.learns_unlabeled:
        rest = f"{'training with labels only' if recipe.method == CONTROL else recipe.method} leaves the others out"
    count, total = int(mask.sum()), len(store.splits["train"])
    return [f"The {recipe.role} has the labels of {count} of {total} training images; {rest}."]


@naming_methods()
def training_task(
    session: Session, recipe: Recipe, student: Classifier, teachers: Sequence[Classifier], group: Group | None = None
) -> Task:
    """What the loop needs to train by the recipe, or this process's share of it."""
    store, device, group = session.store, session.device, group or Group()
    mask = label_mask(store, recipe)
    train = store.splits["train"] if mask is None else np.flatnonzero(mask)
    context = Context(
        num_classes=len(store.classes),
        class_weights=_class_weights(session, recipe),
        label_smoothing=recipe.label_smoothing,
        student=student,
        teachers=tuple(teachers),
        index=torch.as_tensor(train),
        labels=torch.as_tensor(store.labels[train]),
        seed=recipe.seed,
    )
    distiller: Distiller = create(recipe.method, context, recipe.method_options)
    labeled = None if mask is None else LabeledImages(mask, alone=not distiller.learns_unlabeled)
    return Task(
        recipe=recipe,
        student=student,
        distiller=distiller,
        teachers=teacher_sources(session, recipe, distiller, teachers),
        training_batches=lambda epoch: training_batches(
            store,
            recipe,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            epoch=epoch,
            device=device,
            views=distiller.views,
            share=group.share,
            labeled=labeled,
        ),
        validation_batches=lambda: evaluation_batches(
            store, "val", batch_size=recipe.batch_size, device=device, part=group.rank, parts=group.size
        ),
        steps_per_epoch=steps_per_epoch(store, recipe.batch_size),
        device=device,
        group=group,
    )


def _class_weights(session: Session, recipe: Recipe) -> Tensor | None:
    """``[K]``: n / (K · n_k), so that their mean over the labeled training images is 1."""
    if recipe.class_weights == "none":
        return None
    store = session.store
    mask = label_mask(store, recipe)
    labels = torch.as_tensor(store.labels[store.splits["train"] if mask is None else np.flatnonzero(mask)])
    counts = torch.bincount(labels, minlength=len(store.classes)).clamp(min=1)
    return (len(labels) / (len(store.classes) * counts)).float()
