"""A tracking server over HTTP: whether it answers, which version it runs, and whether it has the calls we make."""

from __future__ import annotations

import re
from typing import Any

import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.proxies import proxy_of
from kd_mlflow.tracking.redaction import redact

# MLflow 3.0.0 is the first server with all calls of this package: logged-models, their artifacts, runs/outputs.
OLDEST = (3, 0)
ANSWER_SECONDS = 10.0
# The answers of what does not know a call: no such path, no such method, not built.
UNKNOWN_CALL = (404, 405, 501)
VERSION = re.compile(r"(\d+)\.(\d+)(?:\.[\w.+-]+)?")
# What MLflow says of a path that its own options switched off.
DISABLED = re.compile(r"disabled due to the mlflow server running ([^.]+)", re.IGNORECASE)
UPGRADE = "upgrade the server (docs/server.md), name another with --tracking-uri, or train with --offline"


class OldServer(InputError):
    """The server lacks calls that a command needs.

    Attributes
    ----------
    version:
        What it runs; empty where it does not say.
    """

    def __init__(self, sentence: str, version: str = "") -> None:
        super().__init__(sentence)
        self.version = version


def is_server(uri: str) -> bool:
    """Whether a tracking URI is reached over HTTP."""
    return uri.lower().startswith(("http://", "https://"))


def check_server(uri: str, *, any_version: bool = False) -> str:
    """A few quick questions, since MLflow's own calls retry for minutes before they give up.

    Parameters
    ----------
    any_version:
        Whether a server without logged models will do: it can be read, not written to.

    Returns
    -------
    str
        The server's version; empty where it, or a proxy before it, does not say.

    Raises
    ------
    InputError
        It does not answer, refuses, or is no MLflow server.
    OldServer
        It is too old.
    """
    version = server_version(uri)
    _check_answer(uri)
    if not any_version:
        _check_version(uri, version)
    return version


def server_version(uri: str) -> str:
    """What the server says that it runs; empty if it does not say.

    Raises
    ------
    InputError
        It does not answer.
    """
    answer = _ask(uri, "/version", "GET")
    said = answer.text.strip() if answer.status_code == 200 and len(answer.content) < 100 else ""
    return said if VERSION.fullmatch(said) else ""


def lacks_calls(uri: str, version: str) -> bool:
    """Whether the server is too old; one that does not say its version is asked for a call that came last.

    Raises
    ------
    InputError
        It does not answer.
    """
    if version:
        return tuple(map(int, VERSION.fullmatch(version).groups())) < OLDEST
    search = {"experiment_ids": ["0"], "max_results": 1}
    answer = _ask(uri, "/api/2.0/mlflow/logged-models/search", "POST", json=search)
    return answer.status_code in UNKNOWN_CALL and not _is_mlflow_error(answer)


def answers(uri: str) -> bool:
    """Whether an MLflow server answers there at this moment."""
    try:
        _check_answer(uri)
    except InputError:
        return False
    return True


def _check_version(uri: str, version: str) -> None:
    if not lacks_calls(uri, version):
        return
    least = ".".join(map(str, OLDEST))
    if version:
        raise OldServer(
            f"The tracking server {redact(uri)} runs MLflow {version}, and {least} is the oldest that can be used; "
            f"{UPGRADE}.",
            version,
        )
    raise OldServer(
        f"The tracking server {redact(uri)} has no logged models, which came with MLflow {least}: it is older, or a "
        f"proxy does not pass the path api/2.0/mlflow/logged-models; {UPGRADE}."
    )


def _check_answer(uri: str) -> None:
    answer = _ask(uri, "/api/2.0/mlflow/experiments/search?max_results=1", "GET")
    proxy = proxy_of(uri)
    through = f" through {proxy}" if proxy else ""
    way_round = f"; {proxy.way_round}" if proxy else ""
    status = answer.status_code
    if status in (401, 403, 407):
        raise InputError(
            f"The tracking server {redact(uri)} refuses access{through} (status {status}); check "
            f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and the server's --allowed-hosts{way_round}."
        )
    if status == 503 and (switched_off := DISABLED.search(answer.text)):
        raise InputError(
            f"The tracking server {redact(uri)} keeps no runs: it was started {' '.join(switched_off[1].split())}; "
            "name another with --tracking-uri."
        )
    if status != 200 or "json" not in answer.headers.get("Content-Type", ""):
        raise InputError(
            f"{redact(uri)} answers{through} with status {status} and not as an MLflow server; check --tracking-uri"
            f"{way_round}."
        )


def _ask(uri: str, path: str, method: str, **options: Any) -> requests.Response:
    try:
        return http_request(
            get_default_host_creds(uri),
            path,
            method,
            max_retries=1,
            backoff_factor=0,
            timeout=ANSWER_SECONDS,
            raise_on_status=False,
            **options,
        )
    except (MlflowException, requests.RequestException):
        proxy = proxy_of(uri)
        through = f" through {proxy}; {proxy.way_round}, else" if proxy else ";"
        raise InputError(
            f"The tracking server {redact(uri)} does not answer{through} start it, name another with --tracking-uri, "
            "or give --offline: the run is then kept on this machine until `kd-mlflow sync` sends it."
        ) from None


def _is_mlflow_error(answer: requests.Response) -> bool:
    try:
        return "error_code" in answer.json()
    except (ValueError, TypeError):
        return False
