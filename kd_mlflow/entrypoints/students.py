"""One distilled student under one run: trained, written down, held against teacher and control."""

from __future__ import annotations

from collections.abc import Sequence

from kd_mlflow.config import DistillConfig, Recipe
from kd_mlflow.entrypoints.foreign_weights import notes_of
from kd_mlflow.entrypoints.network import start_preparation, train_network, training_fingerprint
from kd_mlflow.entrypoints.recipes import student_recipe
from kd_mlflow.entrypoints.record import record_network, record_report, record_setup, view_of
from kd_mlflow.entrypoints.registration import Registered, register_network
from kd_mlflow.entrypoints.runs import open_run
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.teachers import Teacher
from kd_mlflow.reports.data import RunView
from kd_mlflow.tracking.runs import RunWriter, find_runs

RECONSTRUCTION = "The method is a reconstruction: its source leaves choices open; its published figures do not apply."


def train_student_under(
    session: Session,
    writer: RunWriter,
    config: DistillConfig,
    plan: Recipe,
    teachers: Sequence[Teacher],
    control: RunView | None,
    notes: list[str],
) -> tuple[list[RunView], Registered | None]:
    """Train the student, write everything down, register it if asked for; the views of all, the student's last."""
    networks = [teacher.network for teacher in teachers]
    writer.tags({"kd.fingerprint": student_fingerprint(session, plan, teachers)})
    trained = train_network(session, plan, writer, networks)
    record_network(session, writer, plan, trained)
    writer.settle()
    student = view_of(session.client, writer.run_id)
    views = [view for view in (*[teacher.view for teacher in teachers], control, student) if view is not None]
    reconstructed = [RECONSTRUCTION] if trained.evidence == "reconstruction" else []
    start = start_preparation(session, plan)
    notes = [*notes, *notes_of([start] if start else []), *reconstructed]
    record_report(session, writer, config, views, trained.verdict.test, notes)
    _record_gains(writer, student, teachers[0].view if teachers else None, control)
    registered = None
    if config.register_model:
        registered = register_network(session, trained.network, plan, trained.verdict.val.metrics, trained.evidence)
    return views, registered


def train_or_reuse_student(
    session: Session,
    parent: RunWriter,
    cell: DistillConfig,
    teachers: Sequence[Teacher],
    control: RunView | None,
    resume: str | None,
) -> RunView:
    """The finished student of the same fingerprint, or one trained now, nested under the parent's run."""
    plan = student_recipe(cell, session)
    key = ("kd.fingerprint", student_fingerprint(session, plan, teachers))
    tags = dict([key]) if cell.reuse else {**dict([key]), "mlflow.parentRunId": parent.run_id}
    if cell.reuse or resume:
        for run in find_runs(session.client, tags=tags, role="student", status="FINISHED"):
            session.terminal.say(f"Reusing the finished {cell.method}, seed {cell.seed}, of run {run.run_id}")
            return view_of(session.client, run.run_id)
    name = f"{cell.method} seed {cell.seed}"
    with open_run(
        session, "student", key, resume=resume, owner=False, name=name, plan=plan, parent_run_id=parent.run_id
    ) as writer:
        record_setup(session, writer, cell)
        writer.tags(teacher_tags(teachers) | ({"kd.control_run_id": control.run_id} if control else {}))
        views, _ = train_student_under(session, writer, cell, plan, teachers, control, [])
    return views[-1]


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
    """The differences that the whole job is about, as metrics of the student's run."""
    others = {"teacher": teacher, "control": control}
    gains = {}
    for name, view in others.items():
        for split in ("best", "test"):
            key = f"{'val' if split == 'best' else split}/accuracy"
            if view is not None:
                gains[f"{split}/accuracy_minus_{name}"] = student.metrics[key] - view.metrics[key]
    writer.final_metrics(gains)
