"""Who may do what at the team's server: MLflow with a login, Postgres behind it, nginx (if installed) before it."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import boto3
import mlflow.server.auth.routes
import psycopg
import pytest
import requests
from botocore.config import Config
from mlflow import MlflowClient
from mlflow.server import app as flask
from mlflow.server import get_app_client
from mlflow.server.fastapi_app import app as fastapi

from tests.server.stack import Team

SERVER_INFO = {"/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info"}
EXPERIMENT = "/api/2.0/mlflow/experiments/get?experiment_id=0"
CREATE = "/api/2.0/mlflow/experiments/create"
needs_nginx = pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")


def routes() -> list[tuple[str, str]]:
    """Every method and path that MLflow answers, with something in the place of every name."""
    found = {(method, rule.rule) for rule in flask.url_map.iter_rules() for method in rule.methods}
    found |= {(method.upper(), path) for path, methods in fastapi.openapi()["paths"].items() for method in methods}
    added = [value for name, value in vars(mlflow.server.auth.routes).items() if name.isupper() and value[:1] == "/"]
    found |= {(method, path) for path in added for method in ("GET", "POST", "PATCH", "DELETE")}
    return sorted((method, re.sub(r"<[^>]*>|\{[^}]*\}", "1", path)) for method, path in found if method != "OPTIONS")


def answers(base: str, verify: str | bool = True) -> dict[tuple[str, str], int]:
    with requests.Session() as session:
        session.trust_env, session.verify = False, verify
        return {
            (method, path): session.request(method, base + path, json={}, allow_redirects=False).status_code
            for method, path in routes()
        }


def member(team: Team, name: str) -> tuple[str, str]:
    """Somebody else of the team, with an account of their own."""
    login = (f"{name}-{uuid.uuid4().hex[:6]}", uuid.uuid4().hex)
    created = requests.post(
        f"{team.url}/api/2.0/mlflow/users/create",
        json={"username": login[0], "password": login[1]},
        auth=team.login("admin"),
    )
    assert created.status_code == 200
    return login


def test_all_ways_into_the_server_are_known():
    known = {"/graphql", "/get-artifact", "/v1/traces", "/gateway/1/mlflow/invocations", "/signup"}
    assert known <= {path for _, path in routes()}
    assert len(routes()) > 700


@pytest.mark.fault(
    "a call without a login, to each of MLflow's ways in", "refused; only health, version and UI files are public"
)
def test_nobody_reads_or_writes_without_a_login(team):
    found = answers(team.url)
    public = {path for (_, path), status in found.items() if status != 401}
    assert public <= SERVER_INFO | {"/health", "/static-files/1"}
    assert set(found.values()) <= {200, 401, 404, 405}


@needs_nginx
@pytest.mark.fault("a call without a login, through the proxy", "refused; only the health check is public")
def test_the_proxy_answers_nobody_without_a_login(team):
    found = answers(team.proxy, team.certificate)
    assert {path for (_, path), status in found.items() if status != 401} == {"/health"}
    for path in ("/", "/static-files/index.html", "/healthy", "/health/../graphql", "/static-files/..%2f/graphql"):
        refused = requests.get(team.proxy + path, verify=team.certificate)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == 'Basic realm="mlflow"'


@pytest.mark.fault("a wrong password; MLflow's own former default", "refused")
@pytest.mark.parametrize(
    "login", [("admin", "password1234"), ("admin", "password"), ("admin", ""), ("kd", "kd"), ("nobody", "x")]
)
def test_a_wrong_password_is_refused(team, login):
    for base in filter(None, [team.url, team.proxy]):
        assert requests.get(base + EXPERIMENT, auth=login, verify=team.certificate).status_code == 401
        assert requests.post(base + CREATE, json={"name": "x"}, auth=login, verify=team.certificate).status_code == 401


@pytest.mark.fault("a foreign Host header (DNS rebinding)", "refused, whatever the login")
def test_a_foreign_host_is_refused(team):
    for host in ("evil.example", "localhost.evil.example", "169.254.169.254"):
        refused = requests.get(team.url + EXPERIMENT, auth=team.login(), headers={"Host": host})
        assert (refused.status_code, "Invalid Host header" in refused.text) == (403, True)
        if team.proxy:
            refused = requests.get(
                team.proxy + EXPERIMENT, auth=team.login(), headers={"Host": host}, verify=team.certificate
            )
            assert refused.status_code == 421


@pytest.mark.fault("a foreign page writes with a member's login (Origin header)", "refused; the server's own page may")
def test_a_foreign_page_may_not_write(team):
    def create(origin: str) -> int:
        body = {"name": uuid.uuid4().hex}
        return requests.post(team.url + CREATE, json=body, auth=team.login(), headers={"Origin": origin}).status_code

    assert create("https://evil.example") == 403
    assert create(f"https://localhost:{team.proxy_port}") == 200


def client(team: Team, login: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    given = team.client_environment() | {"MLFLOW_TRACKING_USERNAME": login[0], "MLFLOW_TRACKING_PASSWORD": login[1]}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return MlflowClient(given["MLFLOW_TRACKING_URI"])


@pytest.mark.fault("a member writes into another member's runs", "refused; reading is allowed")
def test_members_read_all_and_write_what_is_theirs(team, monkeypatch):
    owner, other = member(team, "owner"), member(team, "other")
    mine = client(team, owner, monkeypatch)
    experiment = mine.create_experiment(uuid.uuid4().hex)
    run_id = mine.create_run(experiment).info.run_id
    mine.log_metric(run_id, "val/accuracy", 0.5)

    theirs = client(team, other, monkeypatch)
    assert theirs.get_run(run_id).data.metrics == {"val/accuracy": 0.5}
    refused: list[Callable[[], object]] = [
        lambda: theirs.log_metric(run_id, "val/accuracy", 1.0),
        lambda: theirs.create_run(experiment),
        lambda: theirs.delete_run(run_id),
        lambda: get_app_client("basic-auth", team.proxy or team.url).create_user("x", "password-of-x"),
    ]
    for call in refused:
        with pytest.raises(Exception, match=r"403|[Pp]ermission denied"):
            call()
    assert client(team, owner, monkeypatch).get_run(run_id).data.metrics == {"val/accuracy": 0.5}


def test_an_administrator_lets_another_member_write(team, monkeypatch):
    owner, other = member(team, "owner"), member(team, "other")
    experiment = client(team, owner, monkeypatch).create_experiment(uuid.uuid4().hex)
    client(team, team.login("admin"), monkeypatch)
    accounts = get_app_client("basic-auth", team.proxy or team.url)
    accounts.grant_user_permission(other[0], "experiment", experiment, "EDIT")
    assert client(team, other, monkeypatch).create_run(experiment).info.experiment_id == experiment


def test_artifacts_reach_the_object_store_through_the_server_alone(team, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    mine = client(team, team.login(), monkeypatch)
    run_id = mine.create_run(mine.create_experiment(uuid.uuid4().hex)).info.run_id
    (tmp_path / "weights.bin").write_bytes(b"0123456789" * 1000)
    mine.log_artifact(run_id, str(tmp_path / "weights.bin"))

    host, port = team.store.get_host_and_port()
    store = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", config=Config(signature_version="s3v4"),
        aws_access_key_id=team.secret("s3_access_key"), aws_secret_access_key=team.secret("s3_secret_key"),
    )  # fmt: skip
    (kept,) = [item["Key"] for item in store.list_objects_v2(Bucket="mlflow")["Contents"] if run_id in item["Key"]]
    assert store.get_object(Bucket="mlflow", Key=kept)["Body"].read() == b"0123456789" * 1000
    before = team.log.read_text()
    assert Path(mine.download_artifacts(run_id, "weights.bin", str(tmp_path))).read_bytes() == b"0123456789" * 1000
    assert "presigned" not in team.log.read_text().removeprefix(before)


@needs_nginx
def test_what_is_not_needed_is_closed_to_members_too(team):
    closed = [
        "/gateway/mlflow/v1/models", "/v1/traces", "/ajax-api/3.0/mlflow/assistant/config", "/ajax-api/3.0/jobs/search",
        "/api/3.0/mlflow/mcp-servers", "/api/2.0/mlflow-artifacts/presigned/1/x",
        "/api/2.0/mlflow-artifacts/mpu/create/1", "/ajax-api/3.0/mlflow/%61ssistant/config",
        "//gateway//mlflow/v1/models",
    ]  # fmt: skip
    for path in closed:
        for method in ("GET", "POST"):
            answer = requests.request(
                method, team.proxy + path, json={}, auth=team.login("admin"), verify=team.certificate
            )
            assert answer.status_code == 404, path
    page = requests.get(team.proxy, auth=team.login(), verify=team.certificate)
    assert (page.status_code, "<title>MLflow</title>" in page.text) == (200, True)


@needs_nginx
def test_the_proxy_speaks_current_tls_alone(team):
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{team.proxy}/health")
    assert requests.get(team.proxy.replace("https", "http") + "/health").status_code == 400


def test_accounts_are_in_postgres_with_hashed_passwords(team):
    password = team.secret("mlflow_database")
    with psycopg.connect(team.postgres.login("mlflow", "mlflow_auth"), password=password) as connection:
        found = dict(connection.execute("SELECT username, password_hash FROM users").fetchall())
    assert {"admin", "kd"} <= set(found)
    assert all(
        team.secret(secret) not in found[name] for name, secret in [("admin", "mlflow_admin"), ("kd", "mlflow_account")]
    )


@pytest.mark.fault("someone reads the server's log and the list of its processes", "no password stands there")
def test_no_password_is_in_the_log_or_in_a_command_line(team):
    written = team.log.read_text()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            written += process.read_text()
        except OSError:
            continue
    for secret in team.secrets.iterdir():
        if not secret.name.startswith("tls"):
            assert secret.read_text() not in written, secret.name
