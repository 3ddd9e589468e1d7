"""Opening the tracking store, and saying in one sentence why it cannot be opened."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from kd_mlflow.errors import InputError
from kd_mlflow.places import offline_artifacts
from kd_mlflow.tracking.kinds import SQLITE_HEADER, check_kind, check_registry
from kd_mlflow.tracking.redaction import redact
from kd_mlflow.tracking.server import ANSWER_SECONDS, check_server, is_server

DEFAULT_URI = "sqlite:///mlflow.db"
DATABASE_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}


def connect(tracking_uri: str = "", *, any_version: bool = False) -> MlflowClient:
    """A client of a store that is there and answers.

    A fresh sqlite store is created under a file lock, since MLflow itself fails when several
    processes create one at once.

    Parameters
    ----------
    tracking_uri:
        Empty for MLFLOW_TRACKING_URI, and without that ``sqlite:///mlflow.db`` in the working directory.
    any_version:
        Whether a server that is too old to be written to will do.

    Raises
    ------
    InputError
        The store does not answer, refuses, is too old, or is not one; never names credentials.
    """
    # MLflow's own progress bars would stand between the lines of whoever calls.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # And the addresses that it prints between the lines of a command's JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    uri = chosen_uri(tracking_uri)
    check_store(uri)
    if is_server(uri):
        check_server(uri, any_version=any_version)
        return MlflowClient(uri)
    database = sqlite_file(uri) if uri.startswith("sqlite") else None
    if database is None:
        return _opened(uri)
    with _creation_lock(database):
        return _opened(uri)


def chosen_uri(tracking_uri: str = "") -> str:
    """The tracking URI that a command uses: its option, MLFLOW_TRACKING_URI, or a database in the working directory."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def check_store(uri: str) -> None:
    """What can be told of a store before it is opened: a folder of files, a database that is none or does not listen.

    Raises
    ------
    InputError
        It cannot be used; never names credentials.
    """
    check_kind(uri)
    check_registry()
    if is_server(uri):
        return
    database = sqlite_file(uri) if uri.startswith("sqlite") else None
    if database is None:
        _check_port(uri)
    else:
        _check_sqlite(uri, database)


def describe_store(client: MlflowClient, name: str = "") -> str:
    """What is in the store, in a few words: for a person who wonders whether it is the right one.

    Parameters
    ----------
    name:
        How the store is called; empty for its URI and the version of MLflow here.
    """
    experiments = len(active_experiments(client))
    models, token = 0, None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        models, token = models + len(page), page.token
        if not token:
            break
    name = name or f"{redact(client.tracking_uri)} (MLflow {mlflow.__version__})"
    return f"{name}: experiments: {experiments}, registered models: {models}"


def active_experiments(client: MlflowClient) -> dict[str, str]:
    """The experiments that are not deleted: name by id."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = client.search_experiments(view_type=ViewType.ACTIVE_ONLY, max_results=1000, page_token=token)
        found |= {experiment.experiment_id: experiment.name for experiment in page}
        token = page.token
        if not token:
            return found


def require_not_deleted(client: MlflowClient, name: str) -> None:
    """Refuse an experiment that somebody deleted: restored, it would bring back all runs that were deleted with it.

    Raises
    ------
    InputError
        Names the ways out.
    """
    _refuse_deleted(client.get_experiment_by_name(name))


def _refuse_deleted(experiment: Experiment | None) -> None:
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"The experiment '{experiment.name}' is deleted; choose another name with --experiment, or bring it back "
            f"with all its runs: `mlflow experiments restore --experiment-id {experiment.experiment_id}`."
        )


def experiment_id(client: MlflowClient, name: str) -> str:
    """The experiment's id; created if it is new.

    Raises
    ------
    InputError
        MLflow refuses the name, or the experiment is deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, offline_artifacts(client.tracking_uri, name))
        except MlflowException as error:
            # Another process may have created it between the look and the attempt.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise InputError(f"The experiment '{name}' cannot be created: {one_line(error)}") from None
    _refuse_deleted(found)
    return found.experiment_id


def one_line(error: BaseException, limit: int = 400) -> str:
    """An exception as one line without credentials."""
    text = " ".join(redact(str(error)).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _opened(uri: str) -> MlflowClient:
    try:
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # each kind of store has exceptions of its own
        raise InputError(f"The tracking store {redact(uri)} cannot be used: {one_line(error)}") from None
    return client


def _check_port(uri: str) -> None:
    """Whether a database server listens; MLflow would retry for half an hour to find out."""
    try:
        url = make_url(uri)
    except ArgumentError:
        return
    port = url.port or DATABASE_PORTS.get(url.get_backend_name())
    if not url.host or not port:
        return
    try:
        socket.create_connection((url.host, port), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"The tracking store {redact(uri)} does not answer ({error.strerror or error}); start it, or name "
            "another with --tracking-uri."
        ) from None


def sqlite_file(uri: str) -> Path | None:
    """The file of an sqlite URI; None for one in memory."""
    try:
        database = make_url(uri).database
    except ArgumentError:
        raise InputError(
            f"The tracking store {redact(uri)} is no URL of a database; write sqlite:///FILE for a file here, "
            "sqlite:////FOLDER/FILE for one with its whole path."
        ) from None
    return Path(database) if database and database != ":memory:" else None


def _check_sqlite(uri: str, database: Path) -> None:
    if not database.parent.is_dir():
        raise InputError(f"The tracking store {uri} cannot be created: there is no folder {database.parent}.")
    if not database.exists():
        return
    try:
        with database.open("rb") as handle:
            header = handle.read(len(SQLITE_HEADER))
    except OSError as error:
        raise InputError(f"The tracking store {uri} cannot be read: {error.strerror}.") from None
    if header not in (b"", SQLITE_HEADER):
        raise InputError(f"{database} is not an sqlite database; name another with --tracking-uri.")


@contextmanager
def _creation_lock(database: Path) -> Iterator[None]:
    if not os.access(database.parent, os.W_OK):
        if not database.exists():
            raise InputError(f"The tracking store {database} cannot be created: {database.parent} is not writable.")
        yield  # a store in a read-only folder can still be read
        return
    with Path(f"{database}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
