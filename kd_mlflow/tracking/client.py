"""Opening the tracking store, and saying in one sentence why it cannot be opened."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from kd_mlflow.errors import InputError
from kd_mlflow.places import offline_artifacts

DEFAULT_URI = "sqlite:///mlflow.db"
ANSWER_SECONDS = 10.0
DATABASE_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433}
SQLITE_HEADER = b"SQLite format 3\0"


def redact(text: str) -> str:
    """``text``, a URI or a message that may hold one, without credentials."""
    # A password may hold a slash or an at: all up to the last at that ends a host is taken out.
    text = re.sub(r"://[^\s@]*(?:@[^\s/@]*)*@", "://***@", text)
    query = r"([?&][^=&\s]*(?:password|passwd|token|secret|key)[^=&\s]*=)[^&\s]+"
    return re.sub(query, r"\1***", text, flags=re.IGNORECASE)


def connect(tracking_uri: str = "") -> MlflowClient:
    """A client of a store that is there and answers.

    A fresh sqlite store is created under a file lock, since MLflow itself fails when several
    processes create one at once.

    Parameters
    ----------
    tracking_uri:
        Empty for MLFLOW_TRACKING_URI, and without that ``sqlite:///mlflow.db`` in the working directory.

    Raises
    ------
    InputError
        The store does not answer, refuses, or is not one; never names credentials.
    """
    # MLflow's own progress bars would stand between the lines of whoever calls.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # And the addresses that it prints between the lines of a command's JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
        return MlflowClient(uri)
    database = _sqlite_file(uri) if uri.startswith("sqlite") else None
    if database is None:
        _check_port(uri)
        return _opened(uri)
    _check_sqlite(uri, database)
    with _creation_lock(database):
        return _opened(uri)


def describe_store(client: MlflowClient, uri: str = "") -> str:
    """What is in the store, in a few words: for a person who wonders whether it is the right one."""
    experiments = len(active_experiments(client))
    models, token = 0, None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        models, token = models + len(page), page.token
        if not token:
            break
    name = redact(uri or client.tracking_uri)
    return f"{name} (MLflow {mlflow.__version__}): experiments: {experiments}, registered models: {models}"


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


def _check_server(uri: str) -> None:
    """One quick question, since MLflow's own calls retry for minutes before they give up."""
    place = redact(uri)
    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search?max_results=1",
            "GET",
            max_retries=1,
            backoff_factor=0,
            timeout=ANSWER_SECONDS,
            raise_on_status=False,
        )
    except (MlflowException, requests.RequestException):
        raise InputError(
            f"The tracking server {place} does not answer; start it, name another with --tracking-uri, or give "
            "--offline: the run is then kept on this machine until `kd-mlflow sync` sends it."
        ) from None
    if answer.status_code in (401, 403):
        raise InputError(
            f"The tracking server {place} refuses access (status {answer.status_code}); check "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and the server's --allowed-hosts."
        )
    if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
        raise InputError(
            f"{place} answers with status {answer.status_code} and not as an MLflow server; check --tracking-uri."
        )


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


def _sqlite_file(uri: str) -> Path | None:
    database = make_url(uri).database
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
