"""One network from recipe to record: trained, judged, written down, and kept as a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd_mlflow.config import Recipe
from kd_mlflow.data.loading import evaluation_batches, samples_per_epoch, steps_per_epoch, training_batches
from kd_mlflow.distillers.base import Context, Distiller
from kd_mlflow.distillers.registry import create, method_class
from kd_mlflow.entrypoints.judge import Verdict, judge, judge_alternatives
from kd_mlflow.entrypoints.machine import LoadWatch
from kd_mlflow.entrypoints.processes import ProcessDied, check_devices, together
from kd_mlflow.entrypoints.recording import Recorder
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.sources import cache_sentence, teacher_sources
from kd_mlflow.errors import GuardError, InputError
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
        As :func:`train_network`, or the device's memory does not hold a step of two images.
    """
    folder = CheckpointFolder(session.checkpoints(writer.run_id))
    deaths = 0
    while True:
        student = build_network(session, recipe)
        try:
            with together(session, recipe, student, teachers, folder) as group:
                task = training_task(session, recipe, student, teachers, group)
                for said in filter(None, (_shares(recipe), cache_sentence(session, recipe, task.teachers))):
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
            parts = recipe.accumulate
        recipe = _in_more_parts(session, writer, recipe, parts)
    images = samples_per_epoch(session.store, recipe.batch_size) * len(fitted.history)
    usage = _whole(meter.usage(images), before)
    return fitted, task.distiller, usage if recipe.devices == 1 else _unknown(usage, ONE_OF_SEVERAL)


def _shares(recipe: Recipe) -> str:
    """What several processes make of the batch; empty for one."""
    if recipe.devices == 1:
        return ""
    return (
        f"{recipe.devices} processes, each with {recipe.batch_size // recipe.devices} images of a batch of "
        f"{recipe.batch_size}; the learning rate {recipe.learning_rate:g} is that of the whole batch."
    )


def _in_more_parts(session: Session, writer: RunWriter, recipe: Recipe, parts: int) -> Recipe:
    """The recipe with batches in twice as many parts, with which the training goes on from its checkpoint.

    Raises
    ------
    GuardError
        Not even a step of two images fits: BatchNorm needs that many.
    """
    fewer, share = 2 * parts, recipe.batch_size // recipe.devices
    if share // fewer < 2:
        raise GuardError(
            f"The device's memory does not hold a step of {max(1, share // parts)} images; try a smaller "
            "--image-size or network."
        )
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    images = -(-share // fewer)
    session.terminal.warn(
        f"The device's memory does not hold a step; going on with each batch of {share} in {fewer} parts "
        f"of up to {images} images (--accumulate {fewer})."
    )
    writer.tags({"kd.accumulate": str(fewer)})
    return recipe.model_copy(update={"accumulate": fewer})


def check(session: Session, recipe: Recipe, teachers: Sequence[Classifier] | None = None) -> None:
    """Build network and method once, so that what cannot work is said before anything trains.

    Parameters
    ----------
    teachers:
        Networks such as the teachers will be; None while they are not known.

    Raises
    ------
    InputError
        The architecture, its weights or the method cannot be had, or not with these networks.
    """
    splits = session.store.splits
    check_devices(recipe.devices, session.device)
    Group(0, recipe.devices).check(min(recipe.batch_size, len(splits["train"])))
    if len(splits["val"]) < recipe.devices:
        raise InputError(f"{recipe.devices} processes cannot share a validation split of {len(splits['val'])} images.")
    fewest, most = method_class(recipe.method).teacher_count
    student = build_network(session, recipe)
    if teachers is None:
        return
    if not fewest <= len(teachers) <= most:
        raise InputError(f"The method '{recipe.method}' takes {most} teacher, not {len(teachers)}.")
    task = training_task(session, recipe, student, teachers)
    Tapped(task.distiller.training_student(student), task.distiller.needs)


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
    return build(network_spec(session, recipe), recipe.weights, seed=recipe.seed)


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
    )


def _label(recipe: Recipe) -> str:
    """What the lines of a training begin with: of students there may be many in one command."""
    return f"{recipe.role} ({recipe.method}, seed {recipe.seed})" if recipe.role == "student" else recipe.role


def _parameters(model: Classifier) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def training_task(
    session: Session, recipe: Recipe, student: Classifier, teachers: Sequence[Classifier], group: Group | None = None
) -> Task:
    """What the loop needs to train by the recipe, or this process's share of it."""
    store, device, group = session.store, session.device, group or Group()
    train = store.splits["train"]
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
        ),
        validation_batches=lambda: evaluation_batches(
            store, "val", batch_size=recipe.batch_size, device=device, part=group.rank, parts=group.size
        ),
        steps_per_epoch=steps_per_epoch(store, recipe.batch_size),
        device=device,
        group=group,
    )


def _class_weights(session: Session, recipe: Recipe) -> Tensor | None:
    """``[K]``: n / (K · n_k), so that their mean over the training split is 1."""
    if recipe.class_weights == "none":
        return None
    store = session.store
    labels = torch.as_tensor(store.labels[store.splits["train"]])
    counts = torch.bincount(labels, minlength=len(store.classes)).clamp(min=1)
    return (len(labels) / (len(store.classes) * counts)).float()
