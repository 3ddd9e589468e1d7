"""`distill`, the main job: a teacher, a control, a student taught by the one and held against the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kd_mlflow.config import DistillConfig, Recipe, recipe
from kd_mlflow.entrypoints.fingerprint import fingerprint, request_fingerprint
from kd_mlflow.entrypoints.network import check, train_network
from kd_mlflow.entrypoints.record import record_network, record_report, record_setup, summary, view_of
from kd_mlflow.entrypoints.registration import Registered, register_network
from kd_mlflow.entrypoints.runs import NEWEST, open_run
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.teachers import Teacher, find_teacher
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.entrypoints.train import train_or_reuse
from kd_mlflow.errors import InputError
from kd_mlflow.reports.data import RunView
from kd_mlflow.tracking.runs import RunWriter, read_run


@dataclass(frozen=True)
class DistillResult:
    """What `distill` gives back: three networks as in :func:`summary`, and what was registered."""

    run_id: str
    teacher: dict[str, Any]
    control: dict[str, Any] | None
    student: dict[str, Any]
    registered: Registered | None

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)


def distill(config: DistillConfig, *, resume: str | None = None, terminal: Terminal | None = None) -> DistillResult:
    """Distil a student from a teacher, beside the same student trained with labels only.

    >>> from kd_mlflow.config import DistillConfig
    >>> distill(DistillConfig(data="photos/", temperature=4, alpha=0.7)).student["test"]   # doctest: +SKIP

    Parameters
    ----------
    resume:
        None, ``newest`` (the newest unfinished run that was asked for the same way), or a run id.

    Raises
    ------
    InputError
        Something that was asked for cannot be done: the sentence says what and why.
    GuardError
        The loss became non-finite.
    """
    session = Session.open(config, terminal or Terminal(quiet=True))
    key = ("kd.request", request_fingerprint(config, session.store.digest))
    plan = recipe(config, "student", session.precision)
    check(session, plan)
    with open_run(
        session, plan, key, resume=resume, owner=True, name=f"student {config.student} {config.method}"
    ) as writer:
        record_setup(session, writer, config)
        others = NEWEST if resume else None
        teacher = _teacher(session, writer, config, others)
        control = _control(session, writer, config, others) if config.control else None
        notes = _compare_teacher(session, writer, config, teacher, control)
        return _student(session, writer, config, plan, teacher, control, notes)


def _teacher(session: Session, writer: RunWriter, config: DistillConfig, resume: str | None) -> Teacher:
    """The teacher; once chosen it stays the same for this run, however often it is resumed."""
    chosen = read_run(session.client, writer.run_id).tags
    teacher = find_teacher(session, config, resume=resume, fixed=chosen.get("kd.teacher", ""))
    if chosen.get("kd.teacher_digest", teacher.network.digest) != teacher.network.digest:
        raise InputError(f"The teacher {teacher.uri} is not the one that this run began with; start a new run.")
    writer.tags(
        {
            "kd.teacher": teacher.uri,
            "kd.teacher_run_id": teacher.network.run_id,
            "kd.teacher_digest": teacher.network.digest,
        }
    )
    return teacher


def _control(session: Session, writer: RunWriter, config: DistillConfig, resume: str | None) -> RunView:
    """The control; one that this run has already is not trained again by a resume."""
    known = read_run(session.client, writer.run_id).tags.get("kd.control_run_id")
    control = view_of(session.client, known) if known else train_or_reuse(session, config, "control", resume=resume)
    writer.tags({"kd.control_run_id": control.run_id})
    return control


def _compare_teacher(
    session: Session, writer: RunWriter, config: DistillConfig, teacher: Teacher, control: RunView | None
) -> list[str]:
    """Note what the control says of the teacher, on validation.

    Raises
    ------
    InputError
        The teacher is weaker than the control and a strong one was required.
    """
    if control is None:
        if config.require_strong_teacher:
            raise InputError("--require-strong-teacher needs the control to compare with; leave out --no-control.")
        return ["No control was trained: what the distillation itself gained is not known."]
    theirs, plain = teacher.view.metrics["val/accuracy"], control.metrics["val/accuracy"]
    weak = theirs < plain
    writer.tags({"kd.weak_teacher": str(weak).lower()})
    if not weak:
        return []
    note = (
        f"The teacher is weak: its validation accuracy {theirs:.4f} is below that of the labels-only student, "
        f"{plain:.4f}."
    )
    if config.require_strong_teacher:
        raise InputError(f"{note} Train a better one, or leave out --require-strong-teacher.")
    session.terminal.warn(note)
    return [note]


def _student(
    session: Session,
    writer: RunWriter,
    config: DistillConfig,
    plan: Recipe,
    teacher: Teacher,
    control: RunView | None,
    notes: list[str],
) -> DistillResult:
    """Train the student, write everything down, and register it."""
    writer.tags({"kd.fingerprint": fingerprint(plan, session.store.digest, [teacher.network.digest])})
    trained = train_network(session, plan, writer, [teacher.network])
    record_network(session, writer, plan, trained)
    student = view_of(session.client, writer.run_id)
    views = [view for view in (teacher.view, control, student) if view is not None]
    record_report(session, writer, config, views, trained.verdict.test, notes)
    _record_comparison(writer, student, teacher.view, control)
    registered = register_network(session, trained, plan) if config.register_model else None
    return DistillResult(
        writer.run_id, summary(teacher.view), summary(control) if control else None, summary(student), registered
    )


def _record_comparison(writer: RunWriter, student: RunView, teacher: RunView, control: RunView | None) -> None:
    """The differences that the whole job is about, as metrics of the student's run."""
    others = {"teacher": teacher, "control": control}
    gains = {}
    for name, view in others.items():
        for split in ("best", "test"):
            key = f"{'val' if split == 'best' else split}/accuracy"
            if view is not None:
                gains[f"{split}/accuracy_minus_{name}"] = student.metrics[key] - view.metrics[key]
    writer.final_metrics(gains)
