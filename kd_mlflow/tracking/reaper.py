"""Ending runs that nobody writes any more, and deleting runs with all that hangs on them."""

from __future__ import annotations

from mlflow import MlflowClient

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.life import is_dead
from kd_mlflow.tracking.records import RunRecord, find_runs, read_run
from kd_mlflow.tracking.runs import RunWriter

REASON = "Its process is gone without a word; found by a later command."
PARENT = "mlflow.parentRunId"


def reap(client: MlflowClient, *, dry_run: bool = False) -> list[RunRecord]:
    """Mark every run KILLED whose process was one of this machine and is gone; those runs, as they were.

    Runs of other machines, and those that something else than this package writes, are left alone.
    """
    found = [run for run in find_runs(client, tags={}, status="RUNNING") if _is_left(run)]
    if dry_run:
        return found
    ended = []
    for run in found:
        if _is_left(read_run(client, run.run_id)):  # somebody may have taken it up meanwhile
            RunWriter(client, run.run_id).finish("KILLED", REASON)
            ended.append(run)
    return ended


def delete_runs(client: MlflowClient, run_id: str) -> list[RunRecord]:
    """Delete a run and all runs below it, the lowest first; `mlflow runs restore` brings each back.

    Raises
    ------
    InputError
        There is no such run, or one of them is being written.
    """
    whole, todo = [read_run(client, run_id)], [run_id]
    while todo:
        below = find_runs(client, tags={PARENT: todo.pop()})
        whole += below
        todo += [run.run_id for run in below]
    for run in whole:
        if run.status == "RUNNING" and not _is_left(run):
            raise InputError(f"Run {run.run_id} is RUNNING; stop it first, or mark it ended in MLflow.")
    for run in reversed(whole):
        client.delete_run(run.run_id)
    return whole


def _is_left(run: RunRecord) -> bool:
    return run.status == "RUNNING" and is_dead(run.tags.get("kd.process", ""))
