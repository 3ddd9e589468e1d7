"""Looking at a tracking store without changing it: MLflow's own client makes or alters tables where it finds others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import mlflow.store.db.utils
from mlflow import MlflowClient
from mlflow.store.db.base_sql_model import Base
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import check_store, chosen_uri, one_line, sqlite_file
from kd_mlflow.tracking.redaction import redact
from kd_mlflow.tracking.server import check_server, is_server

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


@dataclass(frozen=True)
class Look:
    """A store as it stands.

    Attributes
    ----------
    name:
        Its URI without credentials, and the versions of server and client.
    client:
        None for a database without MLflow's tables as this version has them.
    tables:
        ``whole``, ``none`` (the first command makes them) or ``older`` (the first command changes them).
    """

    name: str
    client: MlflowClient | None
    tables: str = "whole"


def look_at(tracking_uri: str = "") -> Look:
    """The store that a command would use, opened only if that changes nothing.

    Raises
    ------
    InputError
        It does not answer, refuses, is too old, or is not one; never names credentials.
    """
    uri = chosen_uri(tracking_uri)
    client = f"client MLflow {mlflow.__version__}"
    check_store(uri)
    if is_server(uri):
        version = check_server(uri)
        server = f"server MLflow {version}" if version else "the server does not say its version"
        return Look(f"{redact(uri)} ({server}, {client})", MlflowClient(uri))
    name, tables = f"{redact(uri)} ({client})", _tables(uri)
    return Look(name, MlflowClient(uri) if tables == "whole" else None, tables)


@contextmanager
def impatient() -> Iterator[None]:
    """MLflow tries a call that fails once more only, and not for minutes."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[RETRIES]
        else:
            os.environ[RETRIES] = before


def _tables(uri: str) -> str:
    file = sqlite_file(uri) if uri.startswith("sqlite") else None
    if file is not None and not (file.exists() and file.stat().st_size):
        _check_folder(file.parent, uri)
        return "none"
    if not uri.startswith(("sqlite", "postgresql", "mysql", "mssql")):
        return "whole"
    engine = create_engine(uri)
    try:
        names = {name for name in inspect(engine).get_table_names() if not name.startswith("alembic_")}
    except (SQLAlchemyError, ImportError) as error:
        raise InputError(f"The tracking store {redact(uri)} cannot be read: {one_line(error)}") from None
    finally:
        engine.dispose()
    if not names:
        return "none"
    return "whole" if set(Base.metadata.tables) <= names else "older"


def _check_folder(folder: Path, uri: str) -> None:
    if not os.access(folder, os.W_OK):
        raise InputError(f"The tracking store {uri} cannot be created: {folder} is not writable.")
