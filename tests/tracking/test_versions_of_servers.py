"""Servers of other versions of MLflow: refused before any work where calls are missing, and what counts as refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.rest_utils import verify_rest_response

from kd_mlflow.config import CompareConfig, DistillConfig, EvaluateConfig, PrepareConfig, SearchConfig, TeacherConfig
from kd_mlflow.entrypoints.compare import compare
from kd_mlflow.entrypoints.deploy import export_model, pull_model
from kd_mlflow.entrypoints.distill import distill
from kd_mlflow.entrypoints.evaluate import evaluate
from kd_mlflow.entrypoints.prepare import prepare_data
from kd_mlflow.entrypoints.reap import delete, reap
from kd_mlflow.entrypoints.runs_table import list_runs
from kd_mlflow.entrypoints.search import search
from kd_mlflow.entrypoints.sync import sync
from kd_mlflow.entrypoints.train import train_teacher
from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.tracking import spool as spool_module
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.refusal import CONFIRMATIONS, Refusals, describe, is_refusal, unknown_call
from kd_mlflow.tracking.server import OldServer
from kd_mlflow.tracking.spool import Spool
from tests.tracking.loopback import FLASK_404, Answer, Answers, as_json, loopback, mlflow_answers

RUN = "0" * 32
OLD = mlflow_answers("2.22.5", logged_models=False)
HIDDEN_OLD = mlflow_answers(None, logged_models=False)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_MLFLOW_HOME", str(tmp_path / "kd-home"))
    monkeypatch.setattr(spool_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(spool_module, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(spool_module, "LINGER_SECONDS", 0.0)


# The folder is missing: whoever asked for the data first would say so.
COMMANDS: dict[str, Callable[[str], Any]] = {
    "distill": lambda uri: distill(DistillConfig(data="missing/", tracking_uri=uri)),
    "teacher": lambda uri: train_teacher(TeacherConfig(data="missing/", tracking_uri=uri)),
    "compare": lambda uri: compare(CompareConfig(data="missing/", tracking_uri=uri)),
    "search": lambda uri: search(SearchConfig(data="missing/", tracking_uri=uri)),
    "evaluate": lambda uri: evaluate(EvaluateConfig(data="missing/", model="models:/m@champion", tracking_uri=uri)),
    "pull": lambda uri: pull_model("m@champion", Path("model"), uri),
    "export": lambda uri: export_model("m@champion", Path("model.pt2"), None, uri),
    "sync": sync,
    "reap": reap,
    "delete": lambda uri: delete(RUN, uri),
}


@pytest.mark.fault(
    "the tracking server is of MLflow 2.22, which has no logged models",
    "every command that writes refuses it in a sentence with both versions, before data and training",
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_server_without_logged_models_is_refused_before_any_work(command: str) -> None:
    with loopback(OLD) as (uri, calls), pytest.raises(OldServer, match=r"runs MLflow 2\.22\.5, and 3\.0 is the oldest"):
        COMMANDS[command](uri)
    assert calls == ["GET /version", "GET /api/2.0/mlflow/experiments/search"]


def test_a_run_of_mlflow_run_on_an_old_server_is_refused_before_data_are_prepared(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", RUN)
    with loopback(OLD) as (uri, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(OldServer):
            prepare_data(PrepareConfig(data="missing/"))


def test_the_runs_of_an_old_server_can_be_listed() -> None:
    with loopback(OLD) as (uri, calls):
        assert list_runs(uri) == []
    assert "GET /api/2.0/mlflow/experiments/search" in calls


@pytest.mark.parametrize("version", ["3.0.0", "3.0.0rc2", "3.17.2", "3.18.0.dev0", "4.1.0", "10.0"])
def test_every_server_from_the_first_with_logged_models_on_is_taken(version: str) -> None:
    with loopback(mlflow_answers(version, logged_models=True)) as (uri, calls):
        assert connect(uri).tracking_uri == uri
    assert "POST /api/2.0/mlflow/logged-models/search" not in calls


@pytest.mark.parametrize("version", ["2.22.5", "2.9.0", "1.30.0", "2.22.0rc0"])
def test_every_older_server_is_refused(version: str) -> None:
    with loopback(mlflow_answers(version, logged_models=True)) as (uri, _), pytest.raises(OldServer, match=version):
        connect(uri)


def _with(answers: Answers, path: str, instead: Answer) -> Answers:
    return lambda method, asked: instead if asked.startswith(path) else answers(method, asked)


LOGIN = (200, "text/html", "<html><title>Log in</title></html>" + " " * 100)


@pytest.mark.parametrize("hidden", [FLASK_404, LOGIN, (401, "text/plain", ""), (503, "text/html", "later")])
def test_a_server_whose_version_is_hidden_is_asked_for_logged_models(hidden: Answer) -> None:
    with loopback(_with(mlflow_answers(None, logged_models=True), "/version", hidden)) as (uri, _):
        assert connect(uri).tracking_uri == uri
    with (
        loopback(_with(HIDDEN_OLD, "/version", hidden)) as (uri, _),
        pytest.raises(OldServer, match=r"has no logged models, which came with MLflow 3\.0"),
    ):
        connect(uri)


def test_a_server_that_only_keeps_artifacts_is_named() -> None:
    text = (
        "Endpoint: /api/2.0/mlflow/experiments/search disabled due to the mlflow server running in `--artifacts-only` "
        "mode. To enable tracking server functionality, run `mlflow server` without `--artifacts-only`"
    )
    answers = _with(mlflow_answers("3.17.2", logged_models=True), "/api/2.0/mlflow/", (503, "text/html", text))
    with (
        loopback(answers) as (uri, _),
        pytest.raises(InputError, match="keeps no runs: it was started in `--artifacts"),
    ):
        connect(uri)


def _response(status: int, kind: str, content: str) -> requests.Response:
    response = requests.Response()
    response.status_code, response._content, response.encoding = status, content.encode(), "utf-8"
    response.headers["Content-Type"] = kind
    return response


def _as_mlflow_raises(answer: Answer) -> MlflowException:
    with pytest.raises(MlflowException) as error:
        verify_rest_response(_response(*answer), "/api/2.0/mlflow/logged-models")
    return error.value


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (FLASK_404, 404),
        ((405, "text/html", "<h1>Method Not Allowed</h1>"), 405),
        ((501, "text/html", "<h1>Not Implemented</h1>"), 501),
        (as_json({"detail": "Not Found"}, 404), 404),
        (as_json({"detail": "Method Not Allowed"}, 405), 405),
        (as_json({"message": "not found", "status": 404}, 404), 404),
        (as_json({"error_code": "404", "message": "no"}, 404), 404),
        (as_json({"error_code": "ENDPOINT_NOT_FOUND", "message": "no"}, 404), 404),
        ((502, "text/html", "<h1>Bad Gateway</h1>"), None),
        ((503, "text/html", "<h1>Service Unavailable</h1>"), None),
        ((504, "text/html", "<h1>Gateway Time-out</h1>"), None),
        ((401, "text/html", "log in"), None),
        (as_json({"error_code": "INTERNAL_ERROR", "message": "not found"}, 500), None),
    ],
)
def test_an_answer_of_what_does_not_know_a_call_is_told_from_an_outage(answer: Answer, status: int | None) -> None:
    error = _as_mlflow_raises(answer)
    assert unknown_call(error) == status
    # As the record of a model wraps it.
    wrapped = KdMlflowError("The model could not be stored.")
    wrapped.__cause__ = error
    assert unknown_call(wrapped) == status
    if status:
        assert describe(wrapped).startswith("the tracking server does not know the call")
        assert "<" not in describe(wrapped)


def test_an_upload_to_a_path_that_is_not_there_is_an_unknown_call() -> None:
    response = _response(404, "text/html", "<h1>404</h1>")
    assert unknown_call(requests.HTTPError("404 Client Error", response=response)) == 404
    assert unknown_call(requests.HTTPError("no answer")) is None


def test_a_refusal_in_the_store_s_own_words_needs_no_confirmation() -> None:
    for code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
        assert is_refusal(RestException({"error_code": code, "message": "no"}))
    assert not is_refusal(RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}))
    assert not is_refusal(_as_mlflow_raises(FLASK_404))


def test_a_404_is_final_at_once_from_a_server_that_is_too_old() -> None:
    with loopback(OLD) as (uri, _):
        assert Refusals(uri).is_final(_as_mlflow_raises(FLASK_404))


def test_a_404_is_final_from_a_server_that_answers_every_time_it_is_asked() -> None:
    with loopback(mlflow_answers("3.17.2", logged_models=True)) as (uri, _):
        refusals = Refusals(uri)
        error = _as_mlflow_raises(FLASK_404)
        assert [refusals.is_final(error) for _ in range(CONFIRMATIONS)] == [False] * (CONFIRMATIONS - 1) + [True]
        refusals.accepted()
        assert not refusals.is_final(error)


class _Gate:
    """A server that is replaced by a proxy's own pages for a while."""

    def __init__(self, served: Answers, page: Answer) -> None:
        self.served, self.page, self.away = served, page, False

    def __call__(self, method: str, path: str) -> Answer:
        return self.page if self.away else self.served(method, path)


INGRESS_404 = (404, "text/plain; charset=utf-8", "default backend - 404")
NGINX_502 = (502, "text/html", "<html><h1>502 Bad Gateway</h1><hr>nginx</html>")


@pytest.mark.fault(
    "a proxy answers 404, 502, 503 or 504 while the tracking server starts anew",
    "nothing is refused or lost: all is sent when the server is back",
)
@pytest.mark.parametrize(
    "page", [INGRESS_404, NGINX_502, (405, "text/html", "no"), as_json({"detail": "Not Found"}, 404)]
)
def test_what_a_proxy_answers_for_a_server_that_is_away_is_no_refusal(page: Answer, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gate = _Gate(mlflow_answers("3.17.2", logged_models=True), page)
    with loopback(gate) as (uri, calls):
        client = connect(uri)
        gate.away = True
        spool = Spool(client, RUN, tmp_path / "spool")
        spool.metrics({"val/loss": 1.0}, 1, 1001)
        while calls.count("POST /api/2.0/mlflow/runs/log-batch") <= 2 * CONFIRMATIONS:
            assert not spool.flush(0.05)
            assert not spool.refused
        gate.away = False
        assert spool.close(60)
        assert not spool.error


@pytest.mark.fault(
    "the tracking server does not know a call that a run needs (404, 405, 501)",
    "it is a refusal: nobody waits for it, and what was recorded stays on the disk",
)
@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_call_that_a_living_server_does_not_know_is_not_waited_for(status: int, tmp_path) -> None:
    missing = (status, "text/html", "<h1>no</h1>")
    answers = _with(mlflow_answers("3.17.2", logged_models=True), "/api/2.0/mlflow/runs/log-batch", missing)
    with loopback(answers) as (uri, calls):
        spool = Spool(connect(uri), RUN, tmp_path / "spool")
        spool.metrics({"val/loss": 1.0}, 1, 1001)
        assert not spool.close(60)
    assert spool.refused
    assert spool.error == (
        f"the tracking server does not know the call /api/2.0/mlflow/runs/log-batch (status {status})"
    )
    assert calls.count("POST /api/2.0/mlflow/runs/log-batch") == CONFIRMATIONS
    assert (tmp_path / "spool" / f"{RUN}.journal").is_file()
