"""One trial of a search: a real distillation, nested under the search's run, and as lean as it can be."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock

from kd_mlflow.config import DistillConfig, Recipe, SearchConfig, to_yaml
from kd_mlflow.distillers.registry import method_class
from kd_mlflow.entrypoints.checkpoints import Checkpoints
from kd_mlflow.entrypoints.judge import judge_split, split_logits
from kd_mlflow.entrypoints.machine import INFERENCE, watched
from kd_mlflow.entrypoints.network import build_network, fit_network, training_task
from kd_mlflow.entrypoints.recipes import student_recipe, with_resolved_method
from kd_mlflow.entrypoints.record import THROUGHPUT_BATCH, record_data
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.sources import cache_sentence
from kd_mlflow.entrypoints.students import student_fingerprint, teacher_tags
from kd_mlflow.entrypoints.teachers import Teacher
from kd_mlflow.errors import GuardError
from kd_mlflow.measures.agreement import agreement
from kd_mlflow.measures.classification import classify
from kd_mlflow.measures.efficiency import measure
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.search.claim import Claim, Lost
from kd_mlflow.search.space import Space, report_values
from kd_mlflow.search.storage import StorageAway
from kd_mlflow.search.study import SearchStudy
from kd_mlflow.search.worker import Hopeless, Outcome, Paused
from kd_mlflow.tracking.runs import RunWriter, end_run, find_runs, read_run
from kd_mlflow.training.checkpoint import EpochRow
from kd_mlflow.training.observer import Silent

TRAINING = ("efficiency/training_seconds", "efficiency/training_seconds_per_batch")


def known_metrics() -> list[str]:
    """What a trial can be judged by."""
    logits, labels = torch.eye(2), torch.tensor([0, 1])
    quality = classify(logits, labels, ("one", "two")).metrics | agreement(logits, logits)
    use = measure(torch.nn.Flatten(), image_size=1, device=torch.device("cpu"), batch_size=1, seconds=0)
    return [
        *[f"val/{name}" for name in ("loss", *quality)],
        *[f"efficiency/{name}" for name in use.metrics],
        *TRAINING,
    ]


@dataclass
class TrialRunner:
    """Does the trials of a study, one after the other; called by :class:`kd_mlflow.search.worker.Worker`.

    Attributes
    ----------
    teachers:
        The study's; a method that learns without one does not see them.
    parent_run_id:
        The run of the search.
    said:
        What the first teacher says of the validation split, by batch size.
    """

    session: Session
    study: SearchStudy
    teachers: Sequence[Teacher]
    parent_run_id: str
    checkpoints: Checkpoints
    said: dict[int, torch.Tensor] = field(default_factory=dict)

    def __call__(self, claim: Claim, check: Callable[[], None]) -> Outcome:
        """Train on every seed, record, and say what came out.

        Raises
        ------
        Hopeless, Paused, Lost
            The trial does not go on; its run says why.
        """
        first = self.study.config.seed
        cells = [
            with_resolved_method(self.study.config.trial(claim.values, seed))
            for seed in range(first, first + self.study.config.seeds)
        ]
        found = []
        with self._run(claim, cells[0]) as writer:
            for place, cell in enumerate(cells):
                found.append(self._seed(claim, check, writer, cell, place))
                if self.study.config.pruner == "wilcoxon":
                    claim.report(place, found[-1][self.study.objectives[0].name])
                    if claim.is_hopeless() and place + 1 < len(cells):
                        _give_up(writer, place, found[-1][self.study.objectives[0].name], "seed")
            shared = [name for name in found[0] if all(name in one for one in found)]
            means = {name: statistics.fmean(one[name] for one in found) for name in shared}
            if len(found) > 1:
                writer.final_metrics({_logged(name): value for name, value in means.items()})
        missing = [name for name in self.study.wanted if name not in means]
        if missing:
            raise GuardError(f"The trial has no {missing[0]}: the method '{cells[0].method}' has no teacher.")
        return Outcome(
            [means[one.name] for one in self.study.objectives],
            {str(one): one.excess(means[one.name]) for one in self.study.constraints},
        )

    def _seed(
        self, claim: Claim, check: Callable[[], None], trial: RunWriter, cell: DistillConfig, place: int
    ) -> dict[str, float]:
        """The figures of one seed; a seed that an earlier part of the trial ended keeps its own."""
        known = claim.noted.get(f"figures_{place}")
        if known is not None:
            return known
        with self._seed_run(claim, trial, cell, place) as own:
            figures = self._train(claim, check, own, cell, place)
        if self.study.config.seeds > 1:
            claim.note(**{f"figures_{place}": figures})
        return figures

    @contextmanager
    def _run(self, claim: Claim, cell: DistillConfig) -> Iterator[RunWriter]:
        """The trial's run: the one that was paused, or a new one that is linked to an attempt that died."""
        tags = {
            "kd.study": self.study.name,
            "kd.trial": str(claim.number),
            "kd.slot": str(claim.slot),
            "kd.attempt": str(claim.attempt),
            "kd.method": cell.method,
            "kd.architecture": cell.student,
        }
        if claim.noted.get("follows_run"):
            tags["kd.follows_run_id"] = claim.noted["follows_run"]
        writer = RunWriter.open(
            self.session.client,
            role="trial",
            experiment=self.session.experiment,
            run_name=f"trial {claim.number}",
            tags=tags,
            run_id=claim.noted.get("run_id"),
            parent_run_id=self.parent_run_id,
        )
        with _ended_as_trials_end(writer):
            claim.note(run_id=writer.run_id)
            writer.params(cell.recorded())
            writer.text("config.yaml", to_yaml(cell))
            record_data(self.session, writer, str(cell.data), "training")
            yield writer

    @contextmanager
    def _seed_run(self, claim: Claim, trial: RunWriter, cell: DistillConfig, place: int) -> Iterator[RunWriter]:
        """Where one seed is written: the trial's run, or with several seeds a run below it."""
        if self.study.config.seeds == 1:
            yield trial
            return
        tags = {"kd.study": self.study.name, "kd.seed": str(cell.seed), "kd.trial": str(claim.number)}
        if earlier := claim.noted.get(f"follows_run_{place}"):
            tags["kd.follows_run_id"] = earlier
        writer = RunWriter.open(
            self.session.client,
            role="trial",
            experiment=self.session.experiment,
            run_name=f"trial {claim.number} seed {cell.seed}",
            tags=tags,
            run_id=claim.noted.get(f"run_id_{place}"),
            parent_run_id=trial.run_id,
        )
        with _ended_as_trials_end(writer):
            claim.note(**{f"run_id_{place}": writer.run_id})
            writer.params(cell.recorded())
            yield writer

    def _train(
        self, claim: Claim, check: Callable[[], None], writer: RunWriter, cell: DistillConfig, place: int
    ) -> dict[str, float]:
        """One training and its validation figures by name; an equal one that is finished is not repeated."""
        session, teachers = self.session, self._teachers(cell)
        plan = student_recipe(cell, session)
        fingerprint = student_fingerprint(session, plan, teachers)
        writer.tags({"kd.fingerprint": fingerprint, **(teacher_tags(teachers) if teachers else {})})
        if (equal := self._equal(cell, fingerprint, writer.run_id)) is not None:
            return self._taken_over(writer, *equal)
        earlier = claim.noted.get("follows_run" if self.study.config.seeds == 1 else f"follows_run_{place}")
        self.checkpoints.continue_from(earlier, writer.run_id, fingerprint)
        judged = _EveryEpoch(self, claim, check, writer, place)
        observers = [self.checkpoints.mirror(writer.run_id), judged]
        models = [teacher.network.model for teacher in teachers]
        try:
            fitted, _, _ = fit_network(session, plan, writer, models, observers)
        except (Paused, Lost, StorageAway):
            raise  # whoever goes on with the trial needs its checkpoints
        except Exception:
            self._forget(writer.run_id, earlier)
            raise
        self._forget(writer.run_id, earlier)
        said = self._said_by_teacher(models[0], plan.batch_size) if models else None
        quality = judge_split(session, fitted.best, "val", plan.batch_size, said).metrics
        figures = {f"val/{name}": value for name, value in quality.items()}
        figures["val/loss"] = fitted.history[fitted.best_epoch - 1].metrics["val/loss"]
        figures |= dict(zip(TRAINING, (fitted.training_seconds, fitted.seconds_per_batch), strict=True))
        figures |= self._use(fitted.best, writer)
        writer.final_metrics({_logged(name): value for name, value in figures.items()})
        writer.final_metrics({"best/epoch": fitted.best_epoch})
        return figures

    def _said_by_teacher(self, teacher: Classifier, batch_size: int) -> torch.Tensor:
        """The teacher's validation logits, the same for every trial."""
        if batch_size not in self.said:
            self.said[batch_size] = split_logits(self.session, teacher, "val", batch_size)[0]
        return self.said[batch_size]

    def _forget(self, *run_ids: str | None) -> None:
        for run_id in filter(None, run_ids):
            self.checkpoints.remove(run_id)

    def _teachers(self, cell: DistillConfig) -> Sequence[Teacher]:
        return self.teachers[: method_class(cell.method).teacher_count[1]]

    def _equal(self, cell: DistillConfig, fingerprint: str, own: str) -> tuple[str, dict[str, float]] | None:
        """A finished run of this very training that has every figure that is asked for."""
        if not cell.reuse:
            return None
        wanted = set(map(_logged, self.study.wanted))
        for run in find_runs(self.session.client, tags={"kd.fingerprint": fingerprint}, status="FINISHED"):
            if run.run_id != own and wanted | {"best/accuracy"} <= run.metrics.keys():
                return run.run_id, run.metrics
        return None

    def _taken_over(self, writer: RunWriter, run_id: str, metrics: dict[str, float]) -> dict[str, float]:
        kept = {name: value for name, value in metrics.items() if name.startswith(("best/", "efficiency/"))}
        writer.tags({"kd.reused_run_id": run_id})
        writer.final_metrics(kept)
        return {name.replace("best/", "val/", 1): value for name, value in kept.items() if name != "best/epoch"}

    def _use(self, model: torch.nn.Module, writer: RunWriter) -> dict[str, float]:
        """What the network costs in use, if that is asked for; one process of a machine at a time measures."""
        if not any(name.startswith("efficiency/") and name not in TRAINING for name in self.study.wanted):
            return {}
        lock = FileLock(Path(tempfile.gettempdir()) / "kd-mlflow-measuring.lock", mode=0o666)
        with lock, watched(self.session, writer, INFERENCE):
            use = measure(
                model,
                image_size=self.session.store.image_size,
                device=self.session.device,
                batch_size=THROUGHPUT_BATCH,
            )
        return {f"efficiency/{name}": value for name, value in use.metrics.items()}


class _EveryEpoch(Silent):
    """Reports every epoch to the study and asks whether to go on."""

    def __init__(
        self, trials: TrialRunner, claim: Claim, check: Callable[[], None], writer: RunWriter, place: int
    ) -> None:
        self.trials, self.claim, self.check, self.writer = trials, claim, check, writer
        self.first_step = place * trials.study.config.epochs
        self.last_step = trials.study.config.seeds * trials.study.config.epochs
        self.metric = trials.study.objectives[0].name
        self.reports = trials.study.reports_epochs
        self.done = 0

    def on_start(self, epochs: int, done: int) -> None:
        self.done = done

    def on_epoch(self, row: EpochRow) -> None:
        step = self.first_step + row.epoch
        if self.reports:
            self.claim.report(step, row.metrics[self.metric])
        # The last epoch before a cut is judged again: it may have been the cut that came before the judgement.
        if row.epoch < self.done:
            return
        self.check()
        if self.reports and step < self.last_step and self.claim.is_hopeless():
            _give_up(self.writer, row.epoch, row.metrics[self.metric], "epoch")


def _give_up(writer: RunWriter, at: int, value: float, unit: str) -> None:
    writer.tags({"kd.pruned": "true", f"kd.pruned_{unit}": str(at), "kd.pruned_value": f"{value:.6g}"})
    raise Hopeless(f"pruned after {unit} {at} at {value:.4f}")


@contextmanager
def _ended_as_trials_end(writer: RunWriter) -> Iterator[None]:
    """A pruned or paused trial's run is KILLED with the reason; all other ends are those of any run."""
    with writer:
        try:
            yield
        except Hopeless as end:
            writer.finish("KILLED", str(end))
            raise
        except Paused:
            writer.finish("KILLED", "The search was stopped; the trial goes on when it does.")
            raise
        except Lost:
            writer.finish("KILLED", "The worker was silent for too long; another one does the trial.")
            raise


def _logged(name: str) -> str:
    """The name in the run: ``val/…`` is the curve there, the selected epoch's figures are ``best/…``."""
    return name.replace("val/", "best/", 1)


def sweep(session: Session, study: SearchStudy) -> None:
    """End the runs of trials whose worker died: none of a study's runs stays RUNNING that nobody writes."""
    # In this order: a trial that is claimed in between has no run in the list.
    running = find_runs(session.client, tags={"kd.study": study.name}, role="trial", status="RUNNING")
    alive = {str(trial.number) for trial in study.ledger().running}
    for run in running:
        dead = run.tags.get("kd.trial") not in alive
        if dead and read_run(session.client, run.run_id).status == "RUNNING":
            end_run(session.client, run.run_id, "KILLED", "The worker died; another one does the trial.")


def cache_note(session: Session, config: SearchConfig, space: Space, teachers: Sequence[Classifier]) -> str:
    """What the trials will keep of their teachers' outputs; empty if nothing."""
    for plan in recipes_to_check(session, config, space):
        own = teachers[: method_class(plan.method).teacher_count[1]]
        task = training_task(session, plan, build_network(session, plan), own)
        if said := cache_sentence(session, plan, task.teachers):
            return said
    return ""


def recipes_to_check(session: Session, config: SearchConfig, space: Space) -> list[Recipe]:
    """A recipe for every pair of method and student that is trained, the report's included: all must be possible."""
    report = report_values(space, config)
    choices = {one.name: one.choices for one in space.parameters}
    return [
        student_recipe(with_resolved_method(config.trial({"method": method, "student": student}, config.seed)), session)
        for method in dict.fromkeys([*choices.get("method", ()), report.get("method", config.method)])
        for student in choices.get("student", (config.student,))
    ]
