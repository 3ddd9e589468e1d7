"""The experiment that runs go into when the environment names it, as MLflow reads it."""

from __future__ import annotations

import os

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kd_mlflow.errors import InputError
from kd_mlflow.places import offline_uri
from kd_mlflow.tracking.existing import RUN_VARIABLE
from kd_mlflow.tracking.redaction import redact

DEFAULT_EXPERIMENT = "kd-mlflow"
NAME_VARIABLE, ID_VARIABLE = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"


def experiment_name(client: MlflowClient, asked: str = "") -> str:
    """The name of the experiment for new runs.

    In this order: ``asked``; the experiment of MLFLOW_EXPERIMENT_NAME, which is made if it is new, and else must have
    the id in MLFLOW_EXPERIMENT_ID if that is set as well; that of MLFLOW_EXPERIMENT_ID; ``kd-mlflow``. Where
    MLFLOW_RUN_ID names a run, as under `mlflow run`, the two variables say nothing: that run has its experiment.

    Raises
    ------
    InputError
        There is no experiment of this id, or the two variables name two experiments.
    """
    name, number = os.environ.get(NAME_VARIABLE, ""), os.environ.get(ID_VARIABLE, "").strip()
    if asked or os.environ.get(RUN_VARIABLE) or not number:
        return asked or name or DEFAULT_EXPERIMENT
    if client.tracking_uri == offline_uri():
        if name:
            return name
        raise InputError(
            f"{ID_VARIABLE}={number} is an experiment of a tracking store that --offline does not ask; name the "
            "experiment with --experiment."
        )
    if not name:
        return _name_of(client, number)
    there = client.get_experiment_by_name(name)
    if there is not None and there.experiment_id != number:
        raise InputError(
            f"{NAME_VARIABLE} and {ID_VARIABLE} name two experiments: '{name}' has the id {there.experiment_id}, not "
            f"{number}; unset one of them, or give --experiment."
        )
    return name


def _name_of(client: MlflowClient, number: str) -> str:
    try:
        # A larger number than a store can hold makes it fail, and over HTTP be asked again for minutes.
        if number.isdecimal() and int(number) < 2**63:
            return client.get_experiment(number).name
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    raise InputError(
        f"There is no experiment with the id {number}, which {ID_VARIABLE} names, in {redact(client.tracking_uri)}; "
        "unset that variable, or name the experiment with --experiment."
    )
