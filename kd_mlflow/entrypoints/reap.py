"""`reap` and `delete`: runs of processes that were killed, and runs that nobody wants any more."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_mlflow.entrypoints.runs import command_of_run
from kd_mlflow.errors import InputError
from kd_mlflow.places import CHECKPOINTS, SPOOL, home, home_folder
from kd_mlflow.tracking import reaper
from kd_mlflow.tracking.client import connect, redact
from kd_mlflow.tracking.records import RunRecord
from kd_mlflow.tracking.spool import forget, send_left
from kd_mlflow.training.checkpoint import CheckpointFolder


@dataclass(frozen=True)
class Reaped:
    """A run whose process is gone.

    Attributes
    ----------
    epochs:
        What its newest checkpoint holds.
    resume:
        The command that goes on with it; empty where another run has to be asked for that.
    """

    run_id: str
    role: str
    name: str
    epochs: int
    resume: str


def reap(tracking_uri: str = "", *, silent_minutes: float = 60, dry_run: bool = False) -> dict[str, Any]:
    """Mark every run KILLED whose process was one of this machine and is gone, or that is silent for so long."""
    place = home() / CHECKPOINTS
    spool = home() / SPOOL if dry_run else home_folder(SPOOL)
    client = connect(tracking_uri)
    if not dry_run:
        send_left(client, spool)  # the end of a run may be among what was not sent
    found = reaper.reap(client, silence=60 * silent_minutes, dry_run=dry_run)
    return {"dry_run": dry_run, "runs": [asdict(_described(run, place, tracking_uri)) for run in found]}


def delete(run_id: str, tracking_uri: str = "") -> dict[str, Any]:
    """Delete a run, the runs below it, and their checkpoints on this machine.

    Raises
    ------
    InputError
        There is no such run, or one of them is being written.
    """
    checkpoints, spool = home() / CHECKPOINTS, home_folder(SPOOL)
    deleted = reaper.delete_runs(connect(tracking_uri), run_id)
    for run in deleted:
        shutil.rmtree(checkpoints / run.run_id, ignore_errors=True)
        forget(spool, run.run_id)
    return {"deleted": [{"run_id": run.run_id, "role": run.role, "name": run.name} for run in deleted]}


def _described(run: RunRecord, checkpoints: Path, tracking_uri: str) -> Reaped:
    folder = checkpoints / run.run_id
    found = CheckpointFolder(folder).load() if folder.is_dir() else None
    try:
        command = f"kd-mlflow resume {command_of_run(tracking_uri, run.run_id)[1]}"
        command += f" --tracking-uri {redact(tracking_uri)}" if tracking_uri else ""
    except InputError:
        command = ""
    return Reaped(run.run_id, run.role, run.name, found[1].epoch if found else 0, command)
