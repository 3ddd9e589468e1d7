"""The training loop, one for every role."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kd_mlflow.config import Recipe
from kd_mlflow.data.batch import Batch
from kd_mlflow.data.labels import UNLABELED
from kd_mlflow.distillers.base import Distiller, Progress, Step, TeacherSource
from kd_mlflow.errors import GuardError
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.compiled import Compiled
from kd_mlflow.models.taps import Tapped
from kd_mlflow.training.checkpoint import Checkpoints, EpochRow
from kd_mlflow.training.device import autocast, resolve_compile, resolve_memory_format
from kd_mlflow.training.evaluation import epoch_scores, predict_logits
from kd_mlflow.training.group import Forward, Group
from kd_mlflow.training.observer import Observer
from kd_mlflow.training.optimizer import rate_factor, set_rates
from kd_mlflow.training.scaling import LossScaler
from kd_mlflow.training.state import TrainingState

log = logging.getLogger(__name__)

# On a GPU or in a group the loss is looked at once in so many steps, since each look waits for the others.
GUARD_WINDOW = 25
# Seeds of a run have 32 bits, and those of its epochs twenty more.
RANK_SEED = 2**53


@dataclass(frozen=True)
class Task:
    """What is to be trained, on what.

    Attributes
    ----------
    training_batches:
        The batches of an epoch (from 1); in a group this process's share of each.
    validation_batches:
        The validation split, or this process's share of it, in order.
    """

    recipe: Recipe
    student: Classifier
    distiller: Distiller
    teachers: Sequence[TeacherSource]
    training_batches: Callable[[int], Iterator[Batch]]
    validation_batches: Callable[[], Iterator[Batch]]
    steps_per_epoch: int
    device: torch.device
    group: Group = field(default_factory=Group)


@dataclass(frozen=True)
class Fit:
    """What a training left.

    Attributes
    ----------
    best:
        What is deployed, with the weights of the best validation epoch (ties: lower validation loss).
    last:
        The same with the weights of the last epoch, on the CPU.
    trained:
        The network that was trained, as of the best epoch: with the exits that ``best`` may lack.
    """

    best: Classifier
    last: Classifier
    trained: Classifier
    best_epoch: int
    history: tuple[EpochRow, ...]

    @property
    def seconds_per_batch(self) -> float:
        """The median over epochs of the mean seconds a step, loader included."""
        rows = self.history[1:] or self.history
        return statistics.median(row.metrics["train/seconds_per_batch"] for row in rows)

    @property
    def training_seconds(self) -> float:
        """Seconds in training steps, loader included, over all epochs."""
        return sum(row.metrics["train/seconds"] for row in self.history)


def fit(task: Task, checkpoints: Checkpoints, observer: Observer) -> Fit:
    """Train from the newest checkpoint, or from the start, to the last epoch.

    Every random draw is a function of (seed, epoch, sample), so that a training which was cut off and
    taken up again ends in the same weights as one that was not.

    Raises
    ------
    GuardError
        The loss or the weights are not finite, or no scale keeps the gradients within float16.
    """
    state = train(task, checkpoints, observer)
    observer.on_end(state.meta.best_epoch)
    trained = state.judged
    trained.zero_grad(set_to_none=True)
    last = task.distiller.deployed_student(copy.deepcopy(trained)).cpu()
    trained.load_state_dict(checkpoints.best(state.meta))
    best = task.distiller.deployed_student(copy.deepcopy(trained))
    for network in (best, last, trained):
        network.to(memory_format=torch.contiguous_format)
    return Fit(best, last, trained, state.meta.best_epoch, tuple(state.meta.history))


def train(task: Task, checkpoints: Checkpoints, observer: Observer) -> TrainingState:
    """All epochs; also those of a process of a group that another one leads, which writes nothing.

    Raises
    ------
    Ended
        The leader's training ended before its last epoch.
    """
    layout = resolve_memory_format(task.recipe.memory_format, task.device)
    student = _training_student(task).to(task.device, memory_format=layout)
    distiller = task.distiller.to(task.device)
    state = TrainingState.fresh(task.recipe, student, distiller, task.device)
    found = checkpoints.load()
    if found is not None:
        state.restore(*found)
        log.info("Taken up after epoch %d of %d.", state.meta.epoch, task.recipe.epochs)
    with task.group.led():
        observer.on_start(task.recipe.epochs, state.meta.epoch)
        for row in state.meta.history:
            observer.on_epoch(row)
    logits = Compiled(student) if resolve_compile(task.recipe.compile, task.device) else None
    forward = task.group.forward(Tapped(student, distiller.needs, logits), distiller)
    while not state.meta.finished:
        _epoch(task, state, forward, checkpoints, observer)
    return state


def _training_student(task: Task) -> Classifier:
    """The network that is trained; what a method adds to it starts from weights that the seed alone decides."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(task.recipe.seed)
        return task.distiller.training_student(task.student)


def _epoch(task: Task, state: TrainingState, forward: Forward, checkpoints: Checkpoints, observer: Observer) -> None:
    """One pass over the training split, validation, checkpoint."""
    meta, recipe = state.meta, task.recipe
    epoch = meta.epoch + 1
    # Dropout draws from the global generator: seeded by epoch, a resumed epoch draws the same.
    torch.manual_seed(recipe.seed * 1_000_003 + epoch + task.group.rank * RANK_SEED)
    metrics = train_epoch(task, state, forward, epoch, observer)
    _check_weights(state.student, epoch, task.group)
    task.group.average_buffers(*{id(one): one for one in (state.student, state.distiller, state.judged)}.values())
    parts = predict_logits(state.judged, task.validation_batches(), task.device, recipe.precision)
    logits, labels, _ = (task.group.rows(part) for part in parts)
    metrics |= {f"val/{name}": value for name, value in epoch_scores(logits, labels).items()}
    meta.epoch = epoch
    meta.history.append(EpochRow(epoch, time.time_ns() // 1_000_000, metrics))
    is_best = meta.best_epoch == 0 or _rank(metrics) > _rank(meta.history[meta.best_epoch - 1].metrics)
    if is_best:
        meta.best_epoch = epoch
    meta.finished = epoch >= recipe.epochs or bool(recipe.patience and epoch - meta.best_epoch >= recipe.patience)
    with task.group.led():
        if task.group.leads:
            # The checkpoint comes before the report: what was reported is never taken back by a resume.
            best = state.judged_weights() if is_best else None
            observer.on_checkpoint(checkpoints.save(state.tensors(), best, meta))
            observer.on_epoch(meta.history[-1])


def train_epoch(task: Task, state: TrainingState, forward: Forward, epoch: int, observer: Observer) -> dict[str, float]:
    """All steps of an epoch; sums stay on the device and are read once, at its end."""
    state.student.train()
    state.distiller.train()
    alone = task.device.type == "cpu" and task.group.size == 1
    guard = _FiniteGuard(1 if alone else GUARD_WINDOW, task.group, state.scaler)
    if state.scaler is not None:
        state.scaler.begin_epoch()
    sums: dict[str, Tensor] = {}
    seen, started, rate = 0, time.perf_counter(), 0.0
    for number, batch in enumerate(task.training_batches(epoch)):
        progress = Progress(
            epoch, task.recipe.epochs, (epoch - 1) * task.steps_per_epoch + number, task.steps_per_epoch
        )
        factor = rate_factor(task.recipe, progress.step, task.steps_per_epoch)
        rate = task.recipe.learning_rate * factor
        set_rates(state.optimizers.values(), factor)
        batch = task.distiller.transform_batch(batch, progress)
        step = _step(task, state, forward, batch, progress)
        loss = sum(step.losses.values()).detach()
        guard.watch(loss, batch, progress)
        correct = (step.logits.argmax(dim=1) == batch.labels).sum()
        for name, value in {"loss": loss, **step.terms}.items():
            sums[name] = sums.get(name, 0.0) + value * len(batch.labels)
        sums["accuracy"] = sums.get("accuracy", 0) + correct
        sums["labeled"] = sums.get("labeled", 0) + (batch.labels != UNLABELED).sum()
        seen += len(batch.labels)
        observer.on_step(epoch, number + 1, task.steps_per_epoch)
    guard.check()
    whole = task.group.sums({**sums, "seen": seen})
    seen = whole.pop("seen")
    labeled = whole.pop("labeled")
    means = {f"train/{name}": value / seen for name, value in whole.items()}
    means["train/accuracy"] = whole["accuracy"] / max(1, labeled)
    if state.scaler is not None:  # the same in all processes
        means["train/overflow_steps"] = float(state.scaler.skipped)
    elapsed = time.perf_counter() - started
    return means | {
        "train/learning_rate": rate,
        "train/seconds": elapsed,
        "train/images_per_s": seen / elapsed,
        "train/seconds_per_batch": elapsed / task.steps_per_epoch,
    }


def _step(task: Task, state: TrainingState, forward: Forward, batch: Batch, progress: Progress) -> Step:
    """Forward and backward, in parts if asked for, and one update."""
    for optimizer in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    done: list[tuple[float, Step]] = []
    parts = batch.split(task.recipe.accumulate, state.smallest_part)
    for number, part in enumerate(parts):
        with nullcontext() if number == len(parts) - 1 else task.group.without_exchange(forward):
            with autocast(task.device, task.recipe.precision):
                step = forward(part, task.teachers, replace(progress, part=number))
            share = len(part.labels) / len(batch.labels)
            loss = sum(step.losses.values())
            loss = loss if share == 1 else loss * share
            (loss if state.scaler is None else state.scaler.scale(loss)).backward()
        done.append((share, step))
    _update(state, task.recipe.gradient_clip)
    return done[0][1] if len(done) == 1 else _joined(done)


def _update(state: TrainingState, clip: float) -> None:
    """One update from the gradients that are there; none of any network where they overflowed float16."""
    if state.scaler is not None:
        state.scaler.unscale(state.optimizers.values())
    for optimizer in state.optimizers.values():
        if clip:
            torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
        if state.scaler is None:
            optimizer.step()
    if state.scaler is not None:
        state.scaler.step()
    if state.average is not None:
        # Also after a skipped update, which the host does not know of: as if its gradient had been 0.
        state.average.update_parameters(state.student)


def _joined(parts: Sequence[tuple[float, Step]]) -> Step:
    """One step out of the parts of a batch and their shares of it."""
    first = parts[0][1]
    return Step(
        {name: sum(share * step.losses[name].detach() for share, step in parts) for name in first.losses},
        torch.cat([step.logits for _, step in parts]),
        {name: sum(share * step.terms[name] for share, step in parts) for name in first.terms},
    )


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["val/accuracy"], -metrics["val/loss"]


def _check_weights(student: Classifier, epoch: int, group: Group) -> None:
    """Raise a GuardError for weights that are not finite: no checkpoint ever holds such."""
    finite = [value.isfinite().all() for value in student.state_dict().values() if value.is_floating_point()]
    if not bool(torch.stack(finite).all()):
        group.agreed = True  # all processes have these weights
        raise GuardError(
            f"The weights became infinite or not a number at the end of epoch {epoch}, after a loss that was finite. "
            "Lower --learning-rate, or set --gradient-clip 1."
        )


class _FiniteGuard:
    """Notices a loss that is not finite, without making every step wait; in a group in all processes at once."""

    def __init__(self, window: int, group: Group, scaler: LossScaler | None = None) -> None:
        self.window = window
        self.group = group
        self.scaler = scaler
        self.pending: list[tuple[Tensor, Tensor, Progress]] = []

    def watch(self, loss: Tensor, batch: Batch, progress: Progress) -> None:
        self.pending.append((loss, batch.index, progress))
        if len(self.pending) >= self.window:
            self.check()

    def check(self) -> None:
        if not self.pending:
            return
        losses = torch.stack([loss for loss, _, _ in self.pending]).float().cpu()
        everywhere = self.group.rows(losses[None])
        for place, (_, index, progress) in enumerate(self.pending):
            here = everywhere[:, place]
            if not here.isfinite().all():
                samples = self.group.rows(index.cpu()).tolist()
                self.group.agreed = True
                raise NonFiniteLoss(float(here[~here.isfinite()][0]), progress, samples, self.scaler is not None)
        if self.scaler is not None:
            self.scaler.check(self.pending[-1][2], self.group)
        self.pending.clear()


class NonFiniteLoss(GuardError):
    """The loss became infinite or not a number.

    Attributes
    ----------
    samples:
        Places in the manifest of the batch at which it happened.
    """

    def __init__(self, loss: float, progress: Progress, samples: list[int], in_float16: bool = False) -> None:
        self.samples = samples
        self.epoch = progress.epoch
        self.step = progress.step
        super().__init__(
            f"The loss became {loss} in epoch {progress.epoch}, step {progress.step}; the samples of that batch "
            "are in the run. Lower --learning-rate, or set --gradient-clip 1"
            f"{', or give --precision float32: float16 ends at 65504' if in_float16 else ''}."
        )
