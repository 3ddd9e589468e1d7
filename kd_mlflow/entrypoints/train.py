"""`teacher` and `student`: one network trained with labels, recorded and registered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kd_mlflow.config import Options, Role, StudentConfig, TeacherConfig, recipe
from kd_mlflow.entrypoints.foreign_weights import notes_of
from kd_mlflow.entrypoints.network import check, start_preparation, train_network, training_fingerprint
from kd_mlflow.entrypoints.record import record_network, record_report, record_setup, summary, view_of
from kd_mlflow.entrypoints.registration import Registered, register_network
from kd_mlflow.entrypoints.reuse import whole_view
from kd_mlflow.entrypoints.runs import open_run
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.reports.data import RunView
from kd_mlflow.tracking.artifacts import ArtifactsGone
from kd_mlflow.tracking.runs import find_runs


@dataclass(frozen=True)
class TrainResult:
    """What `teacher` and `student` give back; ``network`` as in :func:`summary`."""

    run_id: str
    network: dict[str, Any]
    registered: Registered | None

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)


def train_teacher(config: TeacherConfig, *, resume: str | None = None, terminal: Terminal | None = None) -> TrainResult:
    """Train a teacher, record it in MLflow and register it as NAME-teacher.

    >>> from kd_mlflow.config import TeacherConfig
    >>> train_teacher(TeacherConfig(data="photos/", teacher_weights="imagenet"))   # doctest: +SKIP
    """
    session = Session.open(config, terminal or Terminal(quiet=True), new_run=not resume)
    view, registered = train_role(session, config, "teacher", resume=resume, owner=True)
    return TrainResult(view.run_id, summary(view), registered)


def train_student(config: StudentConfig, *, resume: str | None = None, terminal: Terminal | None = None) -> TrainResult:
    """Train a student with labels only: the control that a distilled student is held against.

    >>> from kd_mlflow.config import StudentConfig
    >>> train_student(StudentConfig(data="photos/", student="mobilenet_v2"))   # doctest: +SKIP
    """
    session = Session.open(config, terminal or Terminal(quiet=True), new_run=not resume)
    view, _ = train_role(session, config, "control", resume=resume, owner=True)
    return TrainResult(view.run_id, summary(view), None)


def train_role(
    session: Session, config: Options, role: Role, *, resume: str | None, owner: bool
) -> tuple[RunView, Registered | None]:
    """Train a teacher or a control as a run of its own."""
    own = _narrow(config, role)
    plan = recipe(own, role, session.precision)
    key = ("kd.fingerprint", training_fingerprint(session, plan))
    name = f"{role} {plan.architecture}"
    for note in check(session, plan, ()):
        session.terminal.say(note)
    with open_run(session, role, key, resume=resume, owner=owner, name=name, config=own, plan=plan) as writer:
        record_setup(session, writer, own)
        trained = train_network(session, plan, writer)
        record_network(session, writer, plan, trained)
        writer.settle()
        view = view_of(session.client, writer.run_id)
        start = start_preparation(session, plan)
        record_report(session, writer, own, [view], trained.verdict.test, notes_of([start] if start else []))
        registered = None
        if role == "teacher" and own.register_model:
            metrics = trained.verdict.val.metrics
            registered = register_network(session, trained.network, plan, metrics, trained.evidence)
    return view, registered


def train_or_reuse(
    session: Session, config: Options, role: Role, *, resume: str | None, known: str | None = None
) -> RunView:
    """The finished run of the same fingerprint that the store still has whole, or one that is trained now.

    Parameters
    ----------
    known:
        A run that comes before all others: an earlier part of the command chose it.
    """
    lost = ""
    for run_id in [*([known] if known else []), *finished_runs(session, config, role)]:
        try:
            view = whole_view(session, run_id)
        except ArtifactsGone as gone:
            lost = lost or gone.fact
            continue
        if run_id != known:
            session.terminal.say(f"Reusing the finished {role} of run {run_id}")
        return view
    if lost:
        session.terminal.warn(f"{lost}; the {role} is trained again.")
    return train_role(session, config, role, resume=resume, owner=False)[0]


def finished_runs(session: Session, config: Options, role: Role) -> list[str]:
    """The finished runs of the same fingerprint, the newest first; none with ``--no-reuse``."""
    if not config.reuse:
        return []
    plan = recipe(_narrow(config, role), role, session.precision)
    tags = {"kd.fingerprint": training_fingerprint(session, plan)}
    return [run.run_id for run in find_runs(session.client, tags=tags, role=role, status="FINISHED")]


def _narrow(config: Options, role: Role) -> Options:
    """The options of the command that trains this role alone."""
    model = TeacherConfig if role == "teacher" else StudentConfig
    return model(**{name: getattr(config, name) for name in model.model_fields})
