"""One distilled student under one run: trained, written down, held against teacher and control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kd_mlflow.config import DistillConfig, Recipe
from kd_mlflow.entrypoints.foreign_weights import notes_of
from kd_mlflow.entrypoints.in_turn import measure_views
from kd_mlflow.entrypoints.network import start_preparation, train_network, training_fingerprint
from kd_mlflow.entrypoints.recipes import student_recipe
from kd_mlflow.entrypoints.record import record_network, record_report, record_setup, view_of
from kd_mlflow.entrypoints.registration import Registered, register_network
from kd_mlflow.entrypoints.reuse import whole_view
from kd_mlflow.entrypoints.runs import open_run
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.teachers import Teacher
from kd_mlflow.measures.in_turn import Sitting
from kd_mlflow.reports.data import RunView
from kd_mlflow.reports.paired import paired_views
from kd_mlflow.tracking.artifacts import ArtifactsGone
from kd_mlflow.tracking.runs import RunWriter, find_runs

RECONSTRUCTION = "The method is a reconstruction: its source leaves choices open; its published figures do not apply."


@dataclass(frozen=True)
class Taught:
    """A distilled student as it was written down.

    Attributes
    ----------
    views:
        Of the teachers, the control and the student, the student's last.
    sitting:
        What teacher, control and student cost, measured in turn; None if that was left for later.
    """

    views: list[RunView]
    registered: Registered | None
    sitting: Sitting | None


def train_student_under(
    session: Session,
    writer: RunWriter,
    config: DistillConfig,
    plan: Recipe,
    teachers: Sequence[Teacher],
    control: RunView | None,
    notes: list[str],
    *,
    in_turn: bool,
) -> Taught:
    """Train the student, measure it beside the others if ``in_turn``, write everything down, register if asked for."""
    networks = [teacher.network for teacher in teachers]
    writer.tags({"kd.fingerprint": student_fingerprint(session, plan, teachers)})
    trained = train_network(session, plan, writer, networks)
    record_network(session, writer, plan, trained)
    writer.settle()
    student = view_of(session.client, writer.run_id)
    views = [view for view in (*[teacher.view for teacher in teachers], control, student) if view is not None]
    sitting = None
    if in_turn:
        teacher = teachers[0].network.model if teachers else None
        views, sitting = measure_views(session, writer, teacher, views, trained.network.model)
    reconstructed = [RECONSTRUCTION] if trained.evidence == "reconstruction" else []
    start = start_preparation(session, plan)
    notes = [*notes, *notes_of([start] if start else []), *reconstructed]
    record_report(session, writer, config, views, trained.verdict.test, notes, sitting)
    _record_gains(writer, student, teachers[0].view if teachers else None, control)
    registered = None
    if config.register_model:
        registered = register_network(session, trained.network, plan, trained.verdict.val.metrics, trained.evidence)
    return Taught(views, registered, sitting)


def train_or_reuse_student(
    session: Session,
    parent: RunWriter,
    cell: DistillConfig,
    teachers: Sequence[Teacher],
    control: RunView | None,
    resume: str | None,
    model: bool = False,
) -> RunView:
    """The finished student of the same fingerprint that the store still has whole, or one trained now.

    It is nested under the parent's run. ``model``: its model is registered afterwards, so the store must have it.
    """
    plan = student_recipe(cell, session)
    key = ("kd.fingerprint", student_fingerprint(session, plan, teachers))
    tags = dict([key]) if cell.reuse else {**dict([key]), "mlflow.parentRunId": parent.run_id}
    lost = ""
    for run in find_runs(session.client, tags=tags, role="student", status="FINISHED") if cell.reuse or resume else []:
        try:
            view = whole_view(session, run.run_id, model=model)
        except ArtifactsGone as gone:
            lost = lost or gone.fact
            continue
        session.terminal.say(f"Reusing the finished {cell.method}, seed {cell.seed}, of run {run.run_id}")
        return view
    if lost:
        session.terminal.warn(f"{lost}; {cell.method}, seed {cell.seed}, is trained again.")
    name = f"{cell.method} seed {cell.seed}"
    with open_run(
        session,
        "student",
        key,
        resume=resume,
        owner=False,
        name=name,
        config=cell,
        plan=plan,
        parent_run_id=parent.run_id,
    ) as writer:
        record_setup(session, writer, cell)
        writer.tags(teacher_tags(teachers) | ({"kd.control_run_id": control.run_id} if control else {}))
        taught = train_student_under(session, writer, cell, plan, teachers, control, [], in_turn=False)
    return taught.views[-1]


def student_fingerprint(session: Session, plan: Recipe, teachers: Sequence[Teacher]) -> str:
    """The identity of the student's training."""
    return training_fingerprint(session, plan, [teacher.network.digest for teacher in teachers])


def teacher_tags(teachers: Sequence[Teacher]) -> dict[str, str]:
    """Which exact teachers a student has; several with commas between."""
    return {
        "kd.teacher": ",".join(teacher.uri for teacher in teachers),
        "kd.teacher_run_id": ",".join(teacher.network.run_id for teacher in teachers),
        "kd.teacher_digest": ",".join(teacher.network.digest for teacher in teachers),
    }


def _record_gains(writer: RunWriter, student: RunView, teacher: RunView | None, control: RunView | None) -> None:
    """The differences that the whole job is about, as metrics of the student's run, with interval and test."""
    others = {"teacher": teacher, "control": control}
    gains = {}
    for name, view in others.items():
        for split, prefix in (("val", "best"), ("test", "test")):
            if view is None:
                continue
            stem = f"{prefix}/accuracy_minus_{name}"
            gains[stem] = student.metrics[f"{split}/accuracy"] - view.metrics[f"{split}/accuracy"]
            if (difference := paired_views(student, view, split)) is not None:
                gains |= {f"{stem}_{part}": getattr(difference, part) for part in ("low", "high", "p_value")}
    writer.final_metrics(gains)
