"""Finding the teacher that a distillation asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from kd_mlflow.config import CompareConfig, DistillConfig, SearchConfig, recipe
from kd_mlflow.entrypoints.candidates import chance_bound
from kd_mlflow.entrypoints.evaluate import evaluate_network, exact, find_network, network_of_run, same_classes
from kd_mlflow.entrypoints.foreign_weights import Preparation, notes_of, preparation, record_preparations
from kd_mlflow.entrypoints.network import Network, build_network, load_network, network_spec, training_fingerprint
from kd_mlflow.entrypoints.record import view_of
from kd_mlflow.entrypoints.registration import data_tags, model_tags
from kd_mlflow.entrypoints.reuse import chosen_network
from kd_mlflow.entrypoints.runs import unfinished_runs
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.train import finished_runs, train_role
from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import save_model
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.zoo import build, known, normalization_for, stored_normalization
from kd_mlflow.reports.data import RunView
from kd_mlflow.reports.paired import LABELS_ONLY, paired_views, told
from kd_mlflow.tracking.artifacts import ArtifactsGone
from kd_mlflow.tracking.records import is_deleted
from kd_mlflow.tracking.registry import champion
from kd_mlflow.tracking.runs import RunWriter, find_runs
from kd_mlflow.training.checkpoint import file_sha256


@dataclass(frozen=True)
class Teacher:
    """A teacher at hand, with its figures on this data and the exact version it is.

    Attributes
    ----------
    preparation:
        How a weights file is used; None for a teacher of another kind.
    """

    network: Network
    view: RunView
    uri: str
    preparation: Preparation | None = None


def find_teachers(session: Session, config: DistillConfig, *, resume: str | None, fixed: str = "") -> list[Teacher]:
    """The teachers of ``--teacher``; ``fixed`` are the exact ones that an earlier part of this run chose.

    Raises
    ------
    InputError
        There is no such teacher, or it was trained on other classes.
    """
    if fixed:
        found = [_fixed(session, config, one) for one in fixed.split(",")]
    else:
        found = [_find(session, config, one, resume) for one in config.teacher]
    return [replace(teacher, view=replace(teacher.view, role="teacher")) for teacher in found]


def prospective_teachers(session: Session, config: DistillConfig) -> list[Classifier] | None:
    """Untrained networks such as the teachers will be; None if one of them is at hand and has to be looked at."""
    if any(asked != "auto" and not _is_architecture(asked) for asked in config.teacher):
        return None
    plans = [recipe(_of(config, asked), "teacher", session.precision) for asked in config.teacher]
    return [build_network(session, plan) for plan in plans]


def weak_teacher_note(config: DistillConfig | CompareConfig, teachers: Sequence[Teacher], control: RunView) -> str:
    """What is to be said when the control is better on validation than a teacher; empty when it is not.

    Raises
    ------
    InputError
        So it is, and a strong teacher was required.
    """
    if not teachers:
        return ""
    weakest = min((teacher.view for teacher in teachers), key=lambda view: view.metrics["val/accuracy"])
    theirs, plain = weakest.metrics["val/accuracy"], control.metrics["val/accuracy"]
    if theirs >= plain:
        return ""
    note = (
        f"The teacher is weak: its validation accuracy {theirs:.4f} is below that of the labels-only student, "
        f"{plain:.4f}. {told('the teacher', LABELS_ONLY, 'validation', paired_views(weakest, control, 'val'))}"
    )
    if config.require_strong_teacher:
        raise InputError(f"{note} Train a better one, or leave out --require-strong-teacher.")
    return note


def teacher_notes(
    session: Session,
    writer: RunWriter,
    config: DistillConfig | CompareConfig | SearchConfig,
    teachers: Sequence[Teacher],
    suffix: str = "",
) -> list[str]:
    """What the report says of the teachers alone: how a weights file is used, and who is near chance; recorded.

    Parameters
    ----------
    suffix:
        Of the tags, where a run has several data sets.

    Raises
    ------
    InputError
        One is near chance, and a strong teacher was required.
    """
    used = [teacher.preparation for teacher in teachers if teacher.preparation is not None]
    record_preparations(writer, used, "teacher", suffix)
    weak = [note for teacher in teachers if (note := _near_chance(session, teacher))]
    for note in weak:
        session.terminal.warn(note)
    if teachers:
        writer.tags({f"kd.teacher_near_chance{suffix}": str(bool(weak)).lower()})
    if weak and config.require_strong_teacher:
        raise InputError(f"{weak[0]} Train a better one, or leave out --require-strong-teacher.")
    return [*notes_of(used), *weak]


def _near_chance(session: Session, teacher: Teacher) -> str:
    """A sentence on a teacher that is no better on validation than one that always gives one answer; else empty."""
    labels = session.store.labels[session.store.splits["val"]]
    accuracy, bound = teacher.view.metrics["val/accuracy"], chance_bound(labels)
    if accuracy > bound:
        return ""
    return (
        f"The teacher is weak: {teacher.uri} is right on {accuracy:.1%} of {len(labels)} validation images, and to "
        f"name always the most frequent class is right on {chance_bound(labels, 0):.1%} (better than chance is above "
        f"{bound:.1%})."
    )


def _of(config: DistillConfig, asked: str) -> DistillConfig:
    """The same with the architecture of the teacher that was asked for."""
    return config if asked == "auto" else config.model_copy(update={"teacher_arch": asked})


def _find(session: Session, config: DistillConfig, asked: str, resume: str | None) -> Teacher:
    if asked == "auto" or _is_architecture(asked):
        config = _of(config, asked)
        cut_off = resume is not None and _was_cut_off(session, config)
        lost: list[str] = []
        teacher = (None if cut_off else _champion(session, config, lost)) or _finished(session, config, lost)
        if lost:
            instead = f"the teacher of run {teacher.uri} takes its place" if teacher else "a teacher is trained now"
            session.terminal.warn(f"{lost[0]}; {instead}.")
        return teacher or _trained(session, config, resume)
    uri = exact(session.client, asked)
    path = Path(uri)
    if path.is_file():
        network, used = _from_weights(session, config, path)
    else:
        network, used = find_network(session.client, uri), None
        if config.teacher_normalization is not None and asked in config.teacher:
            session.terminal.warn(f"{uri} carries its own mean and std, which --teacher-normalization does not change.")
    return _measured(session, network, uri, used)


def _fixed(session: Session, config: DistillConfig, uri: str) -> Teacher:
    """The very teacher that an earlier part of this work began with.

    Raises
    ------
    ArtifactsGone
        Neither the store nor this machine has it any more.
    """
    path = Path(uri)
    try:
        network, used = _from_weights(session, config, path) if path.is_file() else (chosen_network(session, uri), None)
    except ArtifactsGone as gone:
        advice = "put the artifacts back there, or start anew, without --resume or with another --study"
        raise ArtifactsGone(f"{gone.fact}, and what goes on was taught by it", advice) from None
    return _measured(session, network, uri, used)


def _measured(session: Session, network: Network, uri: str, used: Preparation | None) -> Teacher:
    same_classes(session, network, uri)
    return Teacher(network, _figures(session, network, uri), uri, used)


def _was_cut_off(session: Session, config: DistillConfig) -> bool:
    """Whether an earlier part of this work began to train a teacher, which then comes before any champion."""
    plan = recipe(config, "teacher", session.precision)
    key = ("kd.fingerprint", training_fingerprint(session, plan))
    return bool(unfinished_runs(session, "teacher", key))


def _is_architecture(asked: str) -> bool:
    """A name of the zoo or a factory, and nothing that exists under that name as a file or a run."""
    taken = asked.startswith("models:/") or re.fullmatch(r"[0-9a-f]{32}", asked) or Path(asked).exists()
    if taken:
        return False
    if not known(asked):
        raise InputError(
            f"--teacher {asked} is no registered model (models:/NAME@ALIAS), run id, folder, file or architecture."
        )
    return True


def _champion(session: Session, config: DistillConfig, lost: list[str]) -> Teacher | None:
    """The registered champion for this very data, size, classes and architecture; ``lost`` takes why it is not used."""
    if not config.reuse:
        return None
    found = champion(session.client, f"{session.name}-teacher")
    wanted = data_tags(session) | model_tags(recipe(config, "teacher", session.precision))
    if found is None or any(found.tags.get(name) != value for name, value in wanted.items()):
        return None
    uri = f"models:/{found.name}/{found.version}"
    if found.run_id and is_deleted(session.client, found.run_id):
        lost.append(f"The run of the champion {uri} was deleted")
        return None
    try:
        network = chosen_network(session, uri)
    except ArtifactsGone as gone:
        lost.append(gone.fact)
        return None
    session.terminal.say(f"Teacher: the champion {uri}")
    return Teacher(network, _figures(session, network, uri), uri)


def _finished(session: Session, config: DistillConfig, lost: list[str]) -> Teacher | None:
    """The teacher of a finished run that was trained the same way; ``lost`` takes why one is not used."""
    for run_id in finished_runs(session, config, "teacher"):
        try:
            network = network_of_run(session.client, run_id)
        except ArtifactsGone as gone:
            lost.append(gone.fact)
            continue
        session.terminal.say(f"Reusing the finished teacher of run {run_id}")
        try:
            view = view_of(session.client, run_id)
        except ArtifactsGone as gone:
            session.terminal.warn(f"{gone.fact}; the teacher is measured again.")
            view = _figures(session, network, run_id)
        return Teacher(network, view, run_id)
    return None


def _trained(session: Session, config: DistillConfig, resume: str | None) -> Teacher:
    """A teacher trained now."""
    view, _ = train_role(session, config, "teacher", resume=resume, owner=False)
    return Teacher(network_of_run(session.client, view.run_id), view, view.run_id)


def _figures(session: Session, network: Network, uri: str) -> RunView:
    """The teacher's figures on this data: those of its own run if the store has it, else measured now."""
    tags = {
        "kd.dataset_digest": session.store.digest,
        "kd.image_size": str(session.store.image_size),
        "kd.weights_digest": network.digest,
    }
    for run in find_runs(session.client, tags=tags, status="FINISHED"):
        # A run of `evaluate` may have measured one split only.
        if {"best/accuracy", "test/accuracy"} <= set(run.metrics):
            with suppress(ArtifactsGone):
                return view_of(session.client, run.run_id)
    return evaluate_network(session, network, ("val", "test"), uri, owner=False)


def _from_weights(session: Session, config: DistillConfig, path: Path) -> tuple[Network, Preparation | None]:
    """A weights file of the architecture ``--teacher-arch``, written out as a model folder, and how it is used."""
    choice = config.teacher_normalization or "auto"
    plan = recipe(config, "teacher", session.precision)
    spec = network_spec(session, plan.model_copy(update={"weights": str(path), "normalization": choice}))
    default = "data" if config.normalization == "auto" else config.normalization
    if choice == "auto" and stored_normalization(spec.architecture, path) is None:
        mean, std = normalization_for(default, spec.architecture, str(path), session.store.mean, session.store.std)
        spec = spec.model_copy(update={"mean": mean, "std": std})
    used = preparation(session, spec, str(path), choice=choice, default=default, side="teacher", whole=True)
    facts = f"{file_sha256(path)} {spec.model_dump_json()} {used.identity if used else ''}"
    folder = session.home / "models" / f"file-{hashlib.sha256(facts.encode()).hexdigest()[:32]}"
    if not folder.is_dir():
        model = build(used.spec(spec) if used else spec, str(path), seed=0, whole=True, side="teacher")
        save_model(folder, used.apply(model) if used else model, program=False)
    return load_network(folder), used
