"""`distill`, the main job: a teacher, a control, a student taught by the one and held against the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kd_mlflow.config import DistillConfig
from kd_mlflow.distillers.names import CONTROL
from kd_mlflow.distillers.registry import method_class
from kd_mlflow.entrypoints.fingerprint import request_fingerprint
from kd_mlflow.entrypoints.network import check
from kd_mlflow.entrypoints.recipes import student_recipe, warm_up_notes, with_resolved_method
from kd_mlflow.entrypoints.record import record_setup, summary
from kd_mlflow.entrypoints.registration import Registered
from kd_mlflow.entrypoints.runs import NEWEST, open_run
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.students import teacher_tags, train_student_under
from kd_mlflow.entrypoints.teachers import (
    Teacher,
    find_teachers,
    prospective_teachers,
    teacher_notes,
    weak_teacher_note,
)
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.entrypoints.train import train_or_reuse
from kd_mlflow.errors import InputError
from kd_mlflow.reports.data import RunView
from kd_mlflow.reports.paired import paired_views
from kd_mlflow.reports.verdict import gain
from kd_mlflow.tracking.runs import RunWriter, read_run


@dataclass(frozen=True)
class DistillResult:
    """What `distill` gives back: three networks as in :func:`summary` (of several teachers the first).

    Attributes
    ----------
    verdict:
        Whether the student is ahead of the control, and whether that is more than chance; empty without a control.
    student_minus_control:
        The paired difference of accuracies on ``val`` and ``test``; of a split that cannot be paired None.
    efficiency_in_turn:
        What teacher, control and student cost in use, measured in turn, with ratios to the teacher (or, for a method
        without one, to the control); None if there is nothing to compare with.
    """

    run_id: str
    teacher: dict[str, Any] | None
    control: dict[str, Any] | None
    student: dict[str, Any]
    verdict: str
    student_minus_control: dict[str, Any] | None
    efficiency_in_turn: dict[str, Any] | None
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
    config = with_resolved_method(config)
    wants_teacher = takes_teacher(config)
    session = Session.open(config, terminal or Terminal(quiet=True), new_run=not resume)
    key = ("kd.request", request_fingerprint(config, session.store.digest))
    plan = student_recipe(config, session)
    check(session, plan, prospective_teachers(session, config) if wants_teacher else [])
    name = f"student {config.student} {config.method}"
    with open_run(session, "student", key, resume=resume, owner=True, name=name, config=config, plan=plan) as writer:
        record_setup(session, writer, config)
        others = NEWEST if resume else None
        teachers = _teachers(session, writer, config, others) if wants_teacher else []
        without_effect = check(session, plan, [teacher.network.model for teacher in teachers])
        notes = teacher_notes(session, writer, config, teachers)
        control = _control(session, writer, config, others) if config.control else None
        notes += _compare_teacher(session, writer, config, teachers, control)
        for note in (*warm_up_notes(config), *without_effect):
            session.terminal.warn(note)
            notes.append(note)
        taught = train_student_under(session, writer, config, plan, teachers, control, notes, in_turn=True)
        views = {view.role: view for view in reversed(taught.views)}
        student, control = views["student"], views.get("control")
        return DistillResult(
            writer.run_id,
            summary(views["teacher"]) if teachers else None,
            summary(control) if control else None,
            summary(student),
            gain(student, control) if control else "",
            _minus(student, control) if control else None,
            taught.sitting.to_json() if taught.sitting else None,
            taught.registered,
        )


def _minus(student: RunView, control: RunView) -> dict[str, Any]:
    """The paired differences on validation and test, as plain types."""
    found = {split: paired_views(student, control, split) for split in ("val", "test")}
    return {split: asdict(difference) if difference else None for split, difference in found.items()}


def takes_teacher(config: DistillConfig) -> bool:
    """Whether the method learns from a teacher at all; known before any data is touched.

    Raises
    ------
    InputError
        It takes fewer or more teachers than were asked for.
    """
    if config.method == CONTROL:
        raise InputError("The method 'labels' has no teacher; use `kd-mlflow student` for it.")
    fewest, most = method_class(config.method).teacher_count
    if most == 0 and config.teacher == ("auto",):
        return False
    if most == 0:
        raise InputError(f"The method '{config.method}' learns without a teacher; leave out --teacher.")
    if not fewest <= len(config.teacher) <= most:
        raise InputError(f"The method '{config.method}' takes {most} teacher, not {len(config.teacher)}.")
    return True


def _teachers(session: Session, writer: RunWriter, config: DistillConfig, resume: str | None) -> list[Teacher]:
    """The teachers; once chosen they stay the same for this run, however often it is resumed."""
    chosen = read_run(session.client, writer.run_id).tags
    teachers = find_teachers(session, config, resume=resume, fixed=chosen.get("kd.teacher", ""))
    tags = teacher_tags(teachers)
    if chosen.get("kd.teacher_digest", tags["kd.teacher_digest"]) != tags["kd.teacher_digest"]:
        raise InputError(f"The teacher {tags['kd.teacher']} is not the one that this run began with; start a new run.")
    writer.tags(tags)
    return teachers


def _control(session: Session, writer: RunWriter, config: DistillConfig, resume: str | None) -> RunView:
    """The control; one that this run has already is not trained again by a resume."""
    known = read_run(session.client, writer.run_id).tags.get("kd.control_run_id")
    control = train_or_reuse(session, config, "control", resume=resume, known=known)
    writer.tags({"kd.control_run_id": control.run_id})
    return control


def _compare_teacher(
    session: Session, writer: RunWriter, config: DistillConfig, teachers: list[Teacher], control: RunView | None
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
    if not teachers:
        return []
    note = weak_teacher_note(config, teachers, control)
    writer.tags({"kd.weak_teacher": str(bool(note)).lower()})
    if not note:
        return []
    session.terminal.warn(note)
    return [note]
