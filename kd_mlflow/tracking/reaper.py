"""Ending runs that nobody writes any more, and deleting runs with all that hangs on them."""

from __future__ import annotations

import math

from mlflow import MlflowClient

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.life import HEARTBEAT, is_dead, is_of_an_earlier_start, silent_seconds
from kd_mlflow.tracking.records import RunRecord, find_runs, read_run
from kd_mlflow.tracking.runs import end_run

REASON = "Its process is gone without a word; found by a later command."
PARENT = "mlflow.parentRunId"
# A machine that was started again has lost its processes; another one of the same name would have a heartbeat.
RESTART_SECONDS = 600.0


def reap(client: MlflowClient, *, silence: float = math.inf, dry_run: bool = False) -> list[RunRecord]:
    """Mark every run KILLED whose process was one of this machine and is gone; those runs, as they were.

    Also those of other machines that have been silent for longer than ``silence`` seconds: should one of them be alive
    and only cut off, its run ends as it does. What something else than this package writes is left alone.
    """
    found = [run for run in find_runs(client, tags={}, status="RUNNING") if _is_left(run, silence)]
    if dry_run:
        return found
    ended = []
    for run in found:
        if _is_left(read_run(client, run.run_id), silence):  # somebody may have taken it up meanwhile
            end_run(client, run.run_id, "KILLED", REASON)
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


def _is_left(run: RunRecord, longest_silence: float = math.inf) -> bool:
    mark, silence = run.tags.get("kd.process", ""), silent_seconds(run.tags.get(HEARTBEAT, ""))
    if run.status != "RUNNING" or not mark:
        return False
    restarted = is_of_an_earlier_start(mark) and silence > RESTART_SECONDS
    return is_dead(mark) or restarted or silence > longest_silence
