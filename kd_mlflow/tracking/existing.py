"""Runs that are there already: the one that MLflow made for this process, one to go on with, one to end for another."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from kd_mlflow.errors import InputError, harmless
from kd_mlflow.tracking import encode
from kd_mlflow.tracking.artifacts import local_path
from kd_mlflow.tracking.records import get_run
from kd_mlflow.tracking.redaction import redact

Status = Literal["FINISHED", "FAILED", "KILLED"]
RUN_VARIABLE = "MLFLOW_RUN_ID"
# Commands of one project may share a run after each other; of all others a second one would mix two trainings.
SHARED_ROLES = ("prepare", "evaluate", "export")
# What MLflow calls a run for which nobody gave a name: an adjective, a noun and a number.
UNNAMED = re.compile(r"[a-z]+-[a-z]+-\d+")


def adopt_run_id() -> str | None:
    """The run that `mlflow run` made for this process, taken out of the environment.

    Taken out, so that neither a second run of this process nor a child process adopts it too.
    """
    return os.environ.pop(RUN_VARIABLE, None) or None


def check_adoptable(client: MlflowClient) -> None:
    """Refuse a run in the environment that cannot be gone on with, before any work is done for it.

    A run of `mlflow run` is there and not over; a variable that was left in a shell names another store's run, one
    that was deleted since, or one that another training has filled.

    Raises
    ------
    InputError
        Names the variable.
    """
    run_id = os.environ.get(RUN_VARIABLE)
    if not run_id:
        return
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise _stale(run_id, f"is not in the tracking store {redact(client.tracking_uri)}") from None
    if run.info.lifecycle_stage == "deleted":
        raise _stale(run_id, "is deleted")
    role = run.data.tags.get("kd.role", "")
    if run.info.status == "FINISHED" and role and role not in SHARED_ROLES:
        raise _stale(run_id, f"is the finished run of another command ({role})")


def _stale(run_id: str, what: str) -> InputError:
    return InputError(
        f"The run {harmless(run_id[:64])}, which the environment variable {RUN_VARIABLE} names, {what}; unset "
        f"{RUN_VARIABLE} to make a new run."
    )


def check_open(client: MlflowClient, run_id: str) -> None:
    """Refuse to go on with a run that is deleted.

    Raises
    ------
    InputError
        It is, or there is none of this id.
    """
    run = get_run(client, run_id)
    if run.info.lifecycle_stage != "deleted":
        return
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"Run {run_id} is deleted with its experiment '{experiment.name}'; start a new run, or bring both back: "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`."
        )
    raise InputError(f"Run {run_id} is deleted; bring it back with `mlflow runs restore --run-id {run_id}`.")


def check_artifact_root(client: MlflowClient, run_id: str) -> None:
    """Refuse a run whose artifacts belong into a folder that cannot be written, before hours go into them.

    Raises
    ------
    InputError
        Names the folder: it was moved, or belongs to somebody else.
    """
    run = get_run(client, run_id)
    folder = local_path(run.info.artifact_uri)
    if folder is None:
        return
    # A Path raises where a folder above may not be looked into.
    above = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK):
        return
    reason = "may not be written" if os.path.isdir(above) else "is no folder"
    name = client.get_experiment(run.info.experiment_id).name
    raise InputError(
        f"The experiment '{name}' keeps its artifacts in {folder.parent.parent}, and {above} {reason}; put that folder "
        "back, let your account write it, or choose another --experiment."
    )


def reopen(client: MlflowClient, run_id: str, run_name: str, tags: Mapping[str, str]) -> None:
    """Set a run RUNNING again under this process, with its own name if a person gave it one."""
    run = get_run(client, run_id)
    # Before the run is RUNNING again: whoever looks for dead processes shall not find the old one.
    client.log_batch(run_id, tags=[RunTag(key, encode.clean(str(v), encode.TAG_CHARACTERS)) for key, v in tags.items()])
    unnamed = not run.info.run_name or UNNAMED.fullmatch(run.info.run_name)
    client.update_run(run_id, status="RUNNING", name=run_name if unnamed else None)
    if "kd.reason" in run.data.tags:
        client.delete_tag(run_id, "kd.reason")


def end_run(client: MlflowClient, run_id: str, status: Status, reason: str) -> None:
    """End a run that somebody else wrote and does no more."""
    client.set_tag(run_id, "kd.reason", reason)
    client.set_terminated(run_id, status)
