"""Opening the run that a network is trained under: a new one, that of `mlflow run`, or one to go on with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kd_mlflow.config import Options, Recipe
from kd_mlflow.entrypoints.resumption import differences, nothing_to_resume, told
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.errors import InputError
from kd_mlflow.places import check_writable
from kd_mlflow.tracking.artifacts import ArtifactsGone
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.encode import flat_params
from kd_mlflow.tracking.existing import RUN_VARIABLE, check_adoptable
from kd_mlflow.tracking.runs import RunRecord, RunWriter, adopt_run_id, download, find_runs, read_run
from kd_mlflow.training.checkpoint import CheckpointFolder

NEWEST = "newest"
# By role.
COMMANDS = {"teacher": "teacher", "control": "student", "student": "distill", "compare": "compare"}


@contextmanager
def open_run(
    session: Session,
    role: str,
    key: tuple[str, str],
    *,
    resume: str | None,
    owner: bool,
    name: str,
    config: Options,
    plan: Recipe | None = None,
    parent_run_id: str | None = None,
) -> Iterator[RunWriter]:
    """A run that this process alone writes to.

    Parameters
    ----------
    role:
        teacher, control, student, compare.
    key:
        The tag and value by which the same work is recognised (its fingerprint).
    resume:
        None for a new run, ``newest`` for the newest unfinished one with this key (a new one if there
        is none), or a run id.
    owner:
        Whether this is the run the command was started for, which adopts the run of `mlflow run`.
    config:
        What was asked for, as the run records it.
    plan:
        What is trained under it, if it trains.
    parent_run_id:
        The run it is nested in.

    Raises
    ------
    InputError
        The run to go on with is finished, is of other work, or is being written by another process.
    """
    check_writable(session.checkpoint_root)
    made_by_mlflow = adopt_run_id() if owner else None
    tags = {key[0]: key[1], "kd.host": platform.node()}
    if plan is not None:
        tags |= {"kd.architecture": plan.architecture, "kd.method": plan.method}
    with ExitStack() as held:
        found = _unfinished(session, role, key, resume, config, held) if resume else None
        if resume and not found and owner:
            session.terminal.warn(nothing_to_resume(session, role, key, config))
        if found and made_by_mlflow and found != made_by_mlflow:
            session.client.set_tag(made_by_mlflow, "kd.continued_run_id", found)
        run_id = found or made_by_mlflow
        writer = RunWriter.open(
            session.client,
            role=role,
            experiment=session.experiment,
            run_name=name,
            tags=tags,
            run_id=run_id,
            parent_run_id=parent_run_id,
        )
        if owner:
            session.experiment = writer.experiment
        if not found:
            held.enter_context(CheckpointFolder(session.checkpoints(writer.run_id)).lock())
        if found:
            session.terminal.say(f"Going on with the {role}'s run {found}")
        with writer:
            yield writer


def _unfinished(
    session: Session, role: str, key: tuple[str, str], resume: str, config: Options, held: ExitStack
) -> str | None:
    """The run to go on with, its folder locked until ``held`` closes."""
    if resume == NEWEST:
        runs = unfinished_runs(session, role, key)
        return next((run.run_id for run in runs if _lock(session, run, held)), None)
    run = read_run(session.client, resume)
    if run.status == "FINISHED":
        raise InputError(f"Run {resume} is finished; there is nothing to resume. Leave out --resume for a new run.")
    if run.role != role:
        raise InputError(
            f"Run {resume} is of role {run.role or 'unknown'}, and this command writes one of role {role}."
        )
    if run.tags.get(key[0]) != key[1]:
        different = told(differences(session, run, flat_params(config.recorded())))
        raise InputError(
            f"Run {resume} was started with other options, data or code than these: it differs in {different}; "
            "it can only go on as it began (its options are in its config.yaml)."
        )
    if _lives_elsewhere(run):
        raise InputError(f"Run {resume} is RUNNING on {run.tags['kd.host']}; resume it there.")
    if not _lock(session, run, held):
        raise InputError(f"Run {resume} is being written by another process on this machine.")
    return run.run_id


def unfinished_runs(session: Session, role: str, key: tuple[str, str]) -> list[RunRecord]:
    """Runs of this work that were cut off, newest first; one that runs on another machine is left to it."""
    runs = find_runs(session.client, tags=dict([key]), role=role)
    return [run for run in runs if run.status != "FINISHED" and not _lives_elsewhere(run)]


def _lives_elsewhere(run: RunRecord) -> bool:
    return run.status == "RUNNING" and run.tags.get("kd.host", platform.node()) != platform.node()


def _lock(session: Session, run: RunRecord, held: ExitStack) -> bool:
    return held.enter_context(CheckpointFolder(session.checkpoints(run.run_id)).lock())


def check_adopted(tracking_uri: str) -> None:
    """Look at the run that :func:`adopted_run` will write to, before the command does its work.

    Raises
    ------
    InputError
        It cannot be gone on with, or the store cannot be used.
    """
    if os.environ.get(RUN_VARIABLE):
        check_adoptable(connect(tracking_uri))


@contextmanager
def adopted_run(tracking_uri: str, role: str, name: str) -> Iterator[RunWriter | None]:
    """The run that `mlflow run` made for a command that makes none of its own; None without `mlflow run`."""
    run_id = adopt_run_id()
    if run_id is None:
        yield None
        return
    with RunWriter.open(
        connect(tracking_uri), role=role, experiment="kd-mlflow", run_name=name, tags={}, run_id=run_id
    ) as writer:
        yield writer


def command_of_run(tracking_uri: str, run_id: str) -> tuple[str, str]:
    """The command that goes on with this run, and the run it is told: a cell goes on with its comparison.

    Raises
    ------
    InputError
        There is no such run, or it is none that is gone on with by its id.
    """
    client = connect(tracking_uri)
    run = read_run(client, run_id)
    parent = run.tags.get("mlflow.parentRunId")
    above = read_run(client, parent).role if run.role == "student" and parent else ""
    if above == "compare":
        return "compare", parent
    if run.role not in COMMANDS or above == "search":
        known = "a trial goes on with its search, and a search with the same command"
        raise InputError(f"Run {run_id} is no teacher, student or comparison that could go on by itself; {known}.")
    return COMMANDS[run.role], run_id


@contextmanager
def config_of_run(tracking_uri: str, run_id: str) -> Iterator[Path]:
    """A run's own config.yaml, for a resume that needs nothing but the run's id."""
    client = connect(tracking_uri)
    with TemporaryDirectory() as folder:
        try:
            file = download(client, run_id, "config.yaml", Path(folder))
        except ArtifactsGone as gone:
            advice = "put the artifacts back there, or give the run's options again, with --resume and without the id"
            raise ArtifactsGone(gone.fact, advice) from None
        yield file
