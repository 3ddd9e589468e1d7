"""Tracking URIs that mean a folder of files, or nothing at all: what a person meant, and the way out."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import get_uri_scheme

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.redaction import redact

SQLITE_HEADER = b"SQLite format 3\0"
REGISTRY_VARIABLE = "MLFLOW_REGISTRY_URI"


def check_kind(uri: str, remedy: str = "give --tracking-uri") -> None:
    """Refuse what MLflow takes for a folder of files, unless MLFLOW_ALLOW_FILE_STORE has it take them.

    Parameters
    ----------
    remedy:
        How another URI is named, before that URI.

    Raises
    ------
    InputError
        Names the URI that was probably meant, or the command that moves the runs into a database.
    """
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri) and not Path(uri).exists():
        raise InputError(f"The store {uri} has no scheme; {remedy} http://{uri} for a server.")
    if _scheme(uri) not in ("", "file") or os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return
    path = Path(local_file_uri_to_path(uri)).absolute()
    if _is_sqlite(path):
        raise InputError(f"{path} is an sqlite database; {remedy} sqlite:///{path}.")
    given_up = f"The store {redact(uri)} means a folder of files, a kind that MLflow has given up"
    if not path.is_dir() or not any(path.iterdir()):
        raise InputError(
            f"{given_up}; {remedy} sqlite:///mlflow.db for a database in one file, or a server's http:// address."
        )
    target = f"sqlite:///{_free_name(path)}"
    raise InputError(
        f"{given_up}; copy its runs with `mlflow migrate-filestore --source {shlex.quote(str(path))} --target "
        f"{shlex.quote(target)}`, and then {remedy} {shlex.quote(target)}."
    )


def check_registry() -> None:
    """The same for the registry, which MLFLOW_REGISTRY_URI may put elsewhere.

    Raises
    ------
    InputError
        As for :func:`check_kind`.
    """
    if uri := os.environ.get(REGISTRY_VARIABLE):
        check_kind(uri, f"set {REGISTRY_VARIABLE} to")


def _scheme(uri: str) -> str:
    """As MLflow finds it; ``?`` where it finds none that it knows how to read."""
    if uri == "databricks":  # a name that MLflow takes in the place of a URI
        return "?"
    try:
        return get_uri_scheme(uri).lower()
    except Exception:  # its own sentence follows when the store is opened
        return "?"


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE_HEADER)) == SQLITE_HEADER
    except OSError:
        return False


def _free_name(folder: Path) -> Path:
    """A database beside the folder that is not there yet: the migration writes over one that is."""
    names = ["mlflow", folder.name, *(f"{folder.name}-{number}" for number in range(1, 100))]
    return next(path for name in names if not (path := folder.parent / f"{name}.db").exists())
