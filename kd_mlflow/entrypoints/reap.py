"""`reap`: ends the runs of processes that were killed, and says which can be resumed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_mlflow.entrypoints.places import home
from kd_mlflow.entrypoints.runs import COMMANDS
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.life import is_dead
from kd_mlflow.tracking.runs import RunWriter, find_runs, read_run
from kd_mlflow.training.checkpoint import CheckpointFolder

REASON = "Its process is gone without a word; found by a later command."


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


def reap(tracking_uri: str = "", *, dry_run: bool = False) -> dict[str, Any]:
    """Mark every run KILLED whose process was one of this machine and is gone.

    Runs of other machines, and those that something else than this package writes, are left alone.
    """
    client, place = connect(tracking_uri), home()
    found = []
    for run in find_runs(client, tags={}, status="RUNNING"):
        if not is_dead(run.tags.get("kd.process", "")):
            continue
        if not dry_run:
            # Somebody may have taken it up meanwhile.
            now = read_run(client, run.run_id)
            if now.status != "RUNNING" or not is_dead(now.tags.get("kd.process", "")):
                continue
            RunWriter(client, run.run_id).finish("KILLED", REASON)
        found.append(_described(run.run_id, run.role, run.name, place / "checkpoints" / run.run_id))
    return {"dry_run": dry_run, "runs": [asdict(one) for one in found]}


def _described(run_id: str, role: str, name: str, folder: Path) -> Reaped:
    meta = CheckpointFolder(folder).load() if folder.is_dir() else None
    command = f"kd-mlflow resume {run_id}" if role in COMMANDS else ""
    return Reaped(run_id, role, name, meta[1].epoch if meta else 0, command)
